"""How fast the node is, beside other programs found on the same machine."""
