"""What comes in: associations, C-STORE, and who may call."""
