"""Reads breast ultrasound: selects frames, runs the ResNet50, explains, drafts."""
