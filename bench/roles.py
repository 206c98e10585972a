"""A node to measure: folder, ports and database of its own, the roles asked for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import ROOT, free_port
from config.settings import Settings, load_settings
from node.installation import prepared
from node.logs import configure_logging
from node.supervisor import role_command

Start = Callable[[str], int]


@contextmanager
def prepared_node(folder: Path, **changes: str) -> Iterator[tuple[Settings, Start]]:
    """Yield the settings of a node, and how to start a role of it: by name, as its pid.

    `changes` are settings as the environment names them. Roles end with the block.
    """
    values = {
        "SONONODE_DATA": str(folder / "data"),
        "SONONODE_DICOM__PORT": str(free_port()),
        "SONONODE_HTTP__PORT": str(free_port()),
        "SONONODE_RELAY__PORT": str(free_port()),
        "SONONODE_LOG__LEVEL": "error",
        **changes,
    }
    settings = load_settings(values)
    configure_logging("error", "console")
    with prepared(settings) as addresses, ExitStack() as ends:
        environment = {
            **os.environ,
            **values,
            "PYTHONPATH": str(ROOT),
            "SONONODE_DATABASE__URL": addresses.node,
        }

        def start(role: str) -> int:
            process = subprocess.Popen(role_command(role), cwd=ROOT, env=environment)
            ends.callback(process.wait)
            ends.callback(process.terminate)
            return process.pid

        yield settings, start


def processor_s(process: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
