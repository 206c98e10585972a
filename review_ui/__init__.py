"""The review page: what the radiologist sees and touches, and signing in to it."""
