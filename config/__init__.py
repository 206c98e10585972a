"""Settings: the only package that reads files and the environment for them."""
