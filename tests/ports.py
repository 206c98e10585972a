"""Ports for the processes that tests start, which are told theirs before they listen.

A port that the kernel gave and took back may be anybody's before a process of ours
listens on it: the other worker's, or an outgoing connection's. These lie below what
the kernel gives away, and each worker has a range of its own.
"""

import itertools
import os
import random
import socket

_FIRST, _WORKERS, _EACH = 10_000, 8, 2_500  # below 32768, where Linux begins
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS
# Two runs of the suite on one machine begin at different places.
_start = random.SystemRandom().randrange(_EACH)
_turns = itertools.count(_start)


def free_port() -> int:
    """Return a port of this machine that nobody listens on and nobody is given."""
    for turn in itertools.islice(_turns, _EACH):
        port = _FIRST + _worker * _EACH + turn % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port from {_FIRST + _worker * _EACH} on")
