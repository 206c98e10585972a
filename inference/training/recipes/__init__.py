"""The papers' comparison tables, run on public stand-ins for their private images."""
