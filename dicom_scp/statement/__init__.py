"""The tables of the conformance statement, made from the code."""
