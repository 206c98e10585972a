"""Trains and evaluates the lesion network from public, labelled breast ultrasound."""
