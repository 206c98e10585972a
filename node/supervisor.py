"""Runs the roles of one node as processes of their own and keeps them running."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from node.domain.errors import NodeError

log = structlog.get_logger(__name__)

_PR_SET_PDEATHSIG = 1
_RESTART_FIRST_S = 0.2
_RESTART_LAST_S = 10.0
_STEADY_S = 10.0
_EXIT_SETTINGS = 2
_LEFTOVERS_GRACE_S = 3.0
_MARK = "SONONODE_SUPERVISED"


@dataclass
class _Child:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = 0
    proven: bool = False

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603
            self.command,
            env=dict(self.environment),
            preexec_fn=partial(_end_with_parent, os.getpid()),
        )
        self.started_at = time.monotonic()


def _end_with_parent(parent: int) -> None:
    """Let the child get SIGTERM when the supervisor dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between, and nobody would tell us
        os._exit(1)
    # A terminal's Ctrl-C reaches the whole group; the order to stop is the
    # supervisor's to give, in its sequence.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class Supervisor:
    """Starts children in order, restarts what dies, stops them in reverse order.

    A child that ends with status 2 says that its settings are wrong: restarting
    cannot help, so the whole node stops with the same status. One that has run
    for a while before is restarted whatever it says: a file that somebody touched
    must not end the receiving of images.
    """

    grace_s: float = 30.0
    _children: list[_Child] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def add(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start one more child."""
        child = _Child(name, command, environment)
        self._children.append(child)
        child.start()

    def stop(self) -> None:
        """Ask `run` to end everything; safe in a signal handler."""
        self._stop.set()

    def run(self, while_running: Callable[[], object] | None = None) -> int:
        """Watch the children until `stop`; return the exit status of the node."""
        status = 0
        while not self._stop.wait(0.2):
            if while_running is not None:
                try:
                    while_running()
                except NodeError as error:
                    log.error("supervising", error=error.message)
            if any(self._look_after(child) for child in self._children):
                status = _EXIT_SETTINGS
                break
        self._end_all()
        return status

    def _look_after(self, child: _Child) -> bool:
        """Restart `child` when it has died; True when that would be pointless."""
        now = time.monotonic()
        if child.process is None:
            if now >= child.restart_at:
                child.start()
            return False
        code = child.process.poll()
        steady = now - child.started_at > _STEADY_S
        child.proven = child.proven or steady
        if code is None:
            return False
        if code == _EXIT_SETTINGS and not child.proven:
            return True
        child.failures = 1 if steady else child.failures + 1
        pause = min(_RESTART_FIRST_S * 2 ** (child.failures - 1), _RESTART_LAST_S)
        log.warning("a process died", role=child.name, status=code, restart_in_s=pause)
        child.process, child.restart_at = None, now + pause
        return False

    def _end_all(self) -> None:
        """End one role after the other: receiving first, what it leans on last."""
        deadline = time.monotonic() + self.grace_s
        for child in reversed(self._children):
            if child.process is None:
                continue
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a process did not end in time", role=child.name)
                child.process.kill()
                child.process.wait()


def role_command(role: str) -> list[str]:
    """Return the command line that runs one role of the node."""
    return [sys.executable, "-m", "node", "serve", "--role", role]


def supervised(data: Path) -> dict[str, str]:
    """Return what marks the environment of the roles of the node on `data`."""
    return {_MARK: str(data.absolute())}


def end_leftovers(data: Path) -> int:
    """End the roles that a killed supervisor of `data` left; return how many.

    They were told to end when it died; they get a moment to do so, then SIGKILL,
    which loses nothing that was acknowledged. To be called by the only supervisor
    of `data`: every marked process is then somebody else's orphan.
    """
    left = dict.fromkeys(_marked(data))
    deadline = time.monotonic() + _LEFTOVERS_GRACE_S
    while running := [pid for pid in _marked(data) if pid in left]:
        if time.monotonic() > deadline:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(left)


def _marked(data: Path) -> list[int]:
    """Return the living processes that carry the mark of `data` (Linux)."""
    mark = f"{_MARK}={data.absolute()}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # gone, or somebody else's
            continue
        if mark in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def environment_with(**extra: str) -> dict[str, str]:
    """Return this process's environment with `extra` on top."""
    return {**os.environ, **extra}
