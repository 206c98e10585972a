"""The review page for radiologists, and signing in."""
