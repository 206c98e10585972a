"""kill -9 at any moment of a delivery: nothing lost, nothing out of order."""

import asyncio
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fhir.encoding.wire import parse
from fhir.subscriptions.relay import ensure_relay_subscription
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.conftest import ROLES
from tests.fhir.content.test_life_cycle import because
from tests.fhir.rig import Rig, publish_draft, receive_study, running_fhir
from tests.fhir.subscriptions.rig import (
    Channel,
    event_numbers,
    parameter,
    running_hook,
)

EVENTS = 6
ROOT = Path(__file__).parents[3]


class Killer:
    """A relay that kills the process which calls it, at a chosen moment."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.numbers: list[int] = []
        self.process: asyncio.subprocess.Process | None = None
        self.killed = False
        self.complete = asyncio.Event()

    async def receive(self, request: web.Request) -> web.Response:
        bundle = parse(await request.read())
        if self._is_due(bundle):
            self.killed = True
            if self.when == "after the answer":
                self.numbers += event_numbers(bundle)
                asyncio.get_running_loop().call_later(0, self._kill)
                return web.Response()
            self._kill()
            return web.Response(status=500)
        self.numbers += event_numbers(bundle)
        if set(self.numbers) >= set(range(1, EVENTS + 1)):
            self.complete.set()
        return web.Response()

    def _is_due(self, bundle: Any) -> bool:
        if self.killed:
            return False
        if self.when == "in the handshake":
            return parameter(bundle, "type") == "handshake"
        return event_numbers(bundle) == [3]

    def _kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "when", ["in the handshake", "before the answer", "after the answer"]
)
async def test_a_killed_deliverer_loses_nothing(
    store: Any, clock: FrozenClock, root_key: Path, when: str
) -> None:
    killer = Killer(when)
    async with (
        running_hook(receive=killer.receive) as hook,
        running_fhir(store, roles=ROLES, relay_url=hook.url) as rig,
    ):
        await _sign_often(rig)
        start = clock.now
        for _ in range(2):
            killer.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.fhir.deliverer",
                store.db._dsn,
                str(root_key),
                hook.url,
                start.isoformat(),
                cwd=ROOT,
            )
            start += timedelta(seconds=60)  # the lease of the killed one is over
            ended = asyncio.ensure_future(killer.process.wait())
            complete = asyncio.ensure_future(killer.complete.wait())
            await asyncio.wait(
                {ended, complete},
                return_when=asyncio.FIRST_COMPLETED,
                timeout=60,
            )
            complete.cancel()
        if killer.process.returncode is None:
            killer.process.kill()
            await killer.process.wait()
    assert killer.killed
    expected = list(range(1, EVENTS + 1))
    assert sorted(set(killer.numbers)) == expected
    assert killer.numbers == sorted(killer.numbers)
    repeated = len(killer.numbers) - len(expected)
    assert repeated <= (1 if when == "after the answer" else 0)


@pytest.mark.parametrize(("moment", "expected"), [("before", []), ("after", [1])])
async def test_a_signer_killed_around_its_commit_tells_what_it_committed(
    channel: Channel, root_key: Path, moment: str, expected: list[int]
) -> None:
    rig = channel.rig
    await channel.subscribe_relay()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fhir.signer",
        rig.store.db._dsn,
        str(root_key),
        channel.clock.now.isoformat(),
        str(rig.report_id),
        moment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while b"signed" not in await process.stdout.readline():
            assert process.returncode is None
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await channel.deliver()
    assert channel.hook.numbers == expected
    status = (await rig.read(rig.report_path))["status"]
    assert status == ("final" if expected else "partial")
    if not expected:  # nor does the number of what never was leave a gap
        assert (await rig.sign()).status == 200
        await channel.deliver()
        assert channel.hook.numbers == [1]


async def _sign_often(rig: Rig) -> None:
    await receive_study(rig.store, make_patient())
    rig.report = await publish_draft(
        rig.store, rig.settings, findings=make_findings("2")
    )
    await ensure_relay_subscription(rig.store, rig.settings)
    assert (await rig.sign()).status == 200
    for _ in range(EVENTS - 1):
        entry = await rig.edited(rig.report_path, status="amended")
        assert (await rig.transact(entry, because(rig))).status == 200
