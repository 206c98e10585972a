"""What is valid here, and what the node says that it can."""
