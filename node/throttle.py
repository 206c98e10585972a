"""Slows down whoever tries secrets: counted per name and address, and per address."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from aiohttp import hdrs, web


@dataclass
class Throttle:
    """Counts failed attempts; one instance for all ways in to the same secrets."""

    clock: Callable[[], datetime]
    attempts: int = 5
    attempts_from_one_address: int = 50
    window: timedelta = timedelta(minutes=15)
    failures: dict[str, deque[datetime]] = field(default_factory=dict)

    def begin(self, name: str, address: str) -> None:
        """Count one attempt before its secret is looked at.

        Counting first keeps a hundred parallel attempts from all being first.
        Raises 429 when there were too many.
        """
        now = self.clock()
        self._forget(now - self.window)
        limits = {
            f"{address} {name}": self.attempts,
            address: self.attempts_from_one_address,
        }
        for key, limit in limits.items():
            past = self.failures.get(key) or deque[datetime]()
            if len(past) >= limit:
                wait = past[0] + self.window - now
                seconds = max(1, int(wait.total_seconds()))
                raise web.HTTPTooManyRequests(headers={hdrs.RETRY_AFTER: str(seconds)})
        for key in limits:
            self.failures.setdefault(key, deque()).append(now)

    def succeeded(self, name: str, address: str) -> None:
        """Forget the failures of this name from this address."""
        self.failures.pop(f"{address} {name}", None)
        if self.failures.get(address):
            self.failures[address].pop()

    def _forget(self, before: datetime) -> None:
        for key, past in list(self.failures.items()):
            while past and past[0] < before:
                past.popleft()
            if not past:
                del self.failures[key]
