"""What leaves for training, without any name in it."""
