"""Bulk exports: everything that a program may see, as files (Bulk Data Access 2.0)."""
