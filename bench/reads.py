"""FHIR reads and searches a second of one web process, with sign-in and masking on."""

from __future__ import annotations

import asyncio
import re
import secrets
import statistics
import time
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import uvloop

from bench.roles import prepared_node, processor_s
from config.settings import Settings
from node.app import opened
from node.domain.access import Role
from node.installation import attached
from node.parts import fhir_settings_of
from node.store import people
from tests.factories import make_patient
from tests.fhir.rig import publish_draft, receive_study

REPORTS = 100
CLIENTS = 16
SECONDS = 4.0
WARM_S = 1.0


def measure(folder: Path) -> list[dict[str, object]]:
    """Serve `REPORTS` drafted reports; return a row for each kind of request."""
    with prepared_node(folder) as (settings, start):
        password, reports = asyncio.run(_seed(settings))
        web = start("web")
        return uvloop.run(_load(settings.http.base_url, password, reports, web))


async def _seed(settings: Settings) -> tuple[str, list[str]]:
    """Write the reports and the account of an EHR; return its password and the ids."""
    ids = []
    password = secrets.token_urlsafe(12)
    settings = attached(settings)
    async with opened(settings) as store:
        for number in range(REPORTS):
            patient = make_patient(patient_id=f"MRN-{number:05}")
            await receive_study(store, patient, study_uid=f"2.25.{5000 + number}")
            report = await publish_draft(
                store,
                fhir_settings_of(settings),
                study_uid=f"2.25.{5000 + number}",
            )
            ids.append(str(report.id))
        async with store.db.transaction() as tx:
            await people.create_user(
                tx,
                login="ehr",
                password=password,
                display="EHR",
                roles=[Role.EHR],
                now=store.clock(),
            )
    return password, ids


async def _load(
    base_url: str, password: str, reports: list[str], server: int
) -> list[dict[str, object]]:
    async with aiohttp.ClientSession() as http:
        await _ready(http, base_url)
        form = {"grant_type": "password", "username": "ehr", "password": password}
        async with http.post(f"{base_url}/auth/token", data=form) as answer:
            token = (await answer.json())["access_token"]
    paths = {
        # Callers of the same one could share an answer: each kind is measured.
        "read one report": [f"DiagnosticReport/{reports[0]}"],
        "read any of 100": [f"DiagnosticReport/{report}" for report in reports],
        "search, 20 rows": ["DiagnosticReport?_count=20&_sort=-_lastUpdated"],
    }
    return [
        await _requests(base_url, asked, token, what, server)
        for what, asked in paths.items()
    ]


async def _ready(http: aiohttp.ClientSession, base_url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            async with http.get(f"{base_url}/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("bench: the web process did not start")


class _Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered.

    A client that parsed what it gets would take more processor than the server.
    """

    def __init__(
        self, requests: list[bytes], first: int, until: float, counted_from: float
    ) -> None:
        self.took: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._turn = first
        self._until = until
        self._counted_from = counted_from
        self._received = 0
        self._expected: int | None = None
        self._head = b""
        self._begun = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._begun = time.perf_counter()
        if self._begun > self._until:
            self._transport.close()
            self.done.set_result(None)
            return
        self._received, self._expected, self._head = 0, None, b""
        self._transport.write(self._requests[self._turn % len(self._requests)])
        self._turn += 1

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._expected is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._head.startswith(b"HTTP/1.1 200"):
                self._fail(self._head[:30].decode("latin-1"))
                return
            length = re.search(rb"(?i)content-length: (\d+)", self._head[:end])
            if length is None:
                self._fail("an answer has no length")
                return
            self._expected = end + 4 + int(length[1])
        if self._received >= self._expected:
            now = time.perf_counter()
            if self._begun > self._counted_from:
                self.took.append(now - self._begun)
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._fail("the connection was lost")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(SystemExit(f"bench: {why}"))
        self._transport.close()


async def _requests(
    base_url: str, paths: list[str], token: str, what: str, server: int
) -> dict[str, object]:
    """Send requests from `CLIENTS` connections; the first second does not count.

    The server's own processor time says more than the rate where others share
    the machine.
    """
    address = urlsplit(base_url)
    requests = [
        (
            f"GET /fhir/{path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Authorization: Bearer {token}\r\nAccept: application/fhir+json\r\n\r\n"
        ).encode()
        for path in paths
    ]
    start = time.perf_counter() + WARM_S
    loop = asyncio.get_running_loop()
    callers = []
    for number in range(CLIENTS):
        first = number * len(requests) // CLIENTS
        _, caller = await loop.create_connection(
            partial(_Caller, requests, first, start + SECONDS, start),
            address.hostname,
            address.port,
        )
        callers.append(caller)
    await asyncio.sleep(max(0.0, start - time.perf_counter()))
    before = processor_s(server)
    await asyncio.gather(*(caller.done for caller in callers))
    used = processor_s(server) - before
    took = sorted(one for caller in callers for one in caller.took)
    return {
        "request": what,
        "callers": CLIENTS,
        "per second": round(len(took) / SECONDS),
        "per second of its processor": round(len(took) / used) if used else 0,
        "median ms": round(1000 * statistics.median(took), 1),
        "p99 ms": round(1000 * took[int(0.99 * len(took))], 1),
    }
