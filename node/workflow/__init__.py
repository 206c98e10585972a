"""The verbs of the node: each function is one transaction."""
