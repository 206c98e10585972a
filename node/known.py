"""Callers who were recognised a moment ago: one look at their session a second.

A system that reads a thousand reports asks the database once who it is. What ends
a session elsewhere (an account closed, a password changed, a token revoked) holds
here within `KNOWN_FOR_S`; a sign-out in this process holds at once.
"""

import hashlib
import time
from collections.abc import Callable

from node.domain.access import Identity

KNOWN_FOR_S = 1.0
_MOST = 10_000


class KnownCallers:
    """The callers of the last moment, by the hash of what they showed."""

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._callers: dict[tuple[bytes, str], tuple[float, Identity]] = {}

    def find(self, token: str, how: str) -> Identity | None:
        """Return who showed `token` lately in the same way, None to ask again."""
        found = self._callers.get((_digest(token), how))
        if found is None or found[0] <= self._clock():
            return None
        return found[1]

    def keep(self, token: str, how: str, caller: Identity) -> None:
        """Remember who showed `token`; with 0 seconds nobody is remembered."""
        if self._seconds <= 0:
            return
        if len(self._callers) >= _MOST:
            self._callers.clear()
        until = self._clock() + self._seconds
        self._callers[_digest(token), how] = (until, caller)

    def forget(self, token: str) -> None:
        """Forget who showed `token`: it was signed out."""
        digest = _digest(token)
        for key in [key for key in self._callers if key[0] == digest]:
            del self._callers[key]

    def forget_all(self) -> None:
        """Forget everybody: what ended was more than one token."""
        self._callers.clear()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
