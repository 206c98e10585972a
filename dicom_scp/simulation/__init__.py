"""Simulated ultrasound rooms, for demonstrations, tests and acceptance at a site."""
