"""What goes out: to which archive, by which protocol, and whether it got there."""
