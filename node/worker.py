"""The job loop: claims durable jobs, keeps them alive, and ends in order.

A handler runs at least once and is idempotent; it is `async (payload) -> None`.
What it raises decides what follows: a NodeError of a kind that waiting cannot
mend goes straight to the dead letters, everything else is tried again later.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from node.domain.errors import ErrorKind, NodeError
from node.store.jobs import Job, Jobs, Postponed

log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[None]]

_HOPELESS = frozenset(
    {
        ErrorKind.INVALID,
        ErrorKind.UNSUPPORTED,
        ErrorKind.FORBIDDEN,
        ErrorKind.GONE,
        ErrorKind.RULE,
        ErrorKind.INTEGRITY,
    }
)
_HEARTBEAT_S = 2.0


@dataclass(frozen=True)
class Periodic:
    """Something to do again and again, `every_s` seconds after it last ended."""

    name: str
    every_s: float
    run: Callable[[], Awaitable[object]]


class Worker:
    """Runs handlers for the kinds of jobs it knows, `width` of them side by side.

    It takes none while a job of a kind in `behind` is due or under way anywhere, and
    only jobs of its lane.
    """

    def __init__(
        self,
        jobs: Jobs,
        handlers: Mapping[str, Handler],
        *,
        periodic: Sequence[Periodic] = (),
        width: int = 4,
        behind: Sequence[str] = (),
        lane: str = "",
    ) -> None:
        self._jobs = jobs
        self._handlers = handlers
        self._periodic = periodic
        self._width = width
        self._behind = behind
        self._lane = lane
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no further job; `run` returns when those under way have ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop` is called."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._width):
                group.create_task(self._work())
            for periodic in self._periodic:
                group.create_task(self._repeat(periodic))

    async def _work(self) -> None:
        kinds = list(self._handlers)
        while not self._stopping.is_set():
            try:
                job = await self._jobs.claim(
                    kinds, self._name, behind=self._behind, lane=self._lane
                )
                if job is None:
                    await self._pause(self._jobs.wait(kinds))
                else:
                    await self._carry_out(job)
            except NodeError as error:
                # PostgreSQL is away: the jobs are safe there, we look again.
                log.warning("job loop waits", error=error.message)
                await self._pause(asyncio.sleep(1.0))

    async def _carry_out(self, job: Job) -> None:
        beating = asyncio.create_task(self._beat(job))
        try:
            await self._handlers[job.kind](job.payload)
        except Postponed as later:
            await self._jobs.postpone(job, later.until)
        except NodeError as error:
            log.warning("job failed", kind=job.kind, job=job.id, error=error.message)
            await self._jobs.failed(
                job, error.message, retry=error.kind not in _HOPELESS
            )
        except Exception as error:
            # The text of a foreign exception may hold what must not be logged.
            log.exception("job failed unforeseen", kind=job.kind, job=job.id)
            await self._jobs.failed(
                job, f"unforeseen {type(error).__name__}; see the log", retry=True
            )
        else:
            await self._jobs.done(job)
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _beat(self, job: Job) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            with contextlib.suppress(NodeError):
                await self._jobs.heartbeat(job)

    async def _repeat(self, periodic: Periodic) -> None:
        while not self._stopping.is_set():
            try:
                await periodic.run()
            except NodeError as error:
                log.warning(
                    "periodic work failed", name=periodic.name, error=error.message
                )
            except Exception:
                log.exception("periodic work failed unforeseen", name=periodic.name)
            await self._pause(asyncio.sleep(periodic.every_s))

    async def _pause(self, waiting: Awaitable[object]) -> None:
        """Wait for `waiting` or for the order to stop, whichever comes first."""
        stop = asyncio.ensure_future(self._stopping.wait())
        pause = asyncio.ensure_future(waiting)
        await asyncio.wait({stop, pause}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, pause):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, NodeError):
                await task
