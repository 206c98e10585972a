"""Where commands print: as wide as the terminal; in a pipe wide enough for two UIDs."""

import sys

from rich.console import Console

_PIPE_COLUMNS = 220

console = Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
# One fault is one line, also in a log file.
errors = Console(stderr=True, soft_wrap=True)
