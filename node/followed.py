"""What is made of files that a site renews: made anew when they change, no restart."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from node.domain.errors import NodeError

T = TypeVar("T")

log = structlog.get_logger(__name__)

_Signature = tuple[tuple[str, int, int, int] | None, ...]


class Followed(Generic[T]):
    """What `make` makes of files, as they are now; for every thread.

    A change counts from the next `current` on, which looks no more than once in
    `every_s`. Files that cannot be used change nothing but the log, which has
    `{name}_not_loaded` once for each change, and `{name}_loaded` for the others.
    """

    def __init__(
        self,
        name: str,
        files: Callable[[], Iterable[Path]],
        make: Callable[[], T],
        *,
        every_s: float = 0.0,
    ) -> None:
        """Make the first one; whatever `make` raises travels on."""
        self._name, self._files, self._make = name, files, make
        self._every_s = every_s
        self._lock = threading.Lock()
        self._signature, self._looked_at = self._look(), time.monotonic()
        self._made = make()

    def current(self) -> T:
        """Return what the newest files that could be used make."""
        with self._lock:
            if time.monotonic() - self._looked_at < self._every_s:
                return self._made
            signature, self._looked_at = self._look(), time.monotonic()
            if signature != self._signature:
                self._signature = signature  # a broken file is told once
                try:
                    self._made = self._make()
                    log.info(f"{self._name}_loaded")
                except NodeError as error:
                    log.error(f"{self._name}_not_loaded", reason=error.message)
            return self._made

    def _look(self) -> _Signature:
        return tuple(_signature_of(path) for path in self._files())


def _signature_of(path: Path) -> tuple[str, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return str(path), status.st_mtime_ns, status.st_size, status.st_ino
