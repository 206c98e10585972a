"""Signed reports on their way to the hospital's report repositories (IHE IMR)."""
