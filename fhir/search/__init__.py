"""What can be searched, how it is asked and how the answer is shown."""
