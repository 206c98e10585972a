"""From signing to the hooks: few, 200, and 200 beside one that never answers."""

from __future__ import annotations

import asyncio
import re
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import uvloop

from bench.roles import prepared_node, processor_s
from config.settings import Settings
from fhir.content.publish import put
from fhir.encoding.wire import Json, parse
from fhir.subscriptions.notification import BACKPORT
from fhir.subscriptions.requests import subscribe
from node.app import opened
from node.domain.access import Role
from node.installation import attached
from node.parts import fhir_settings_of
from node.store import people, resources, subscriptions
from node.store.store import Store
from tests.factories import make_findings, make_patient
from tests.fhir.rig import publish_draft, receive_study

FEW, MANY = 3, 200
SIGNS = 20
TOPIC = "https://fhir.sononode.org/SubscriptionTopic/report-signed"
# The invented studies have no pixels of which an SR or paper could be made.
_NO_RESULTS = """
create function put_off() returns trigger language plpgsql as
$$ begin new.not_before := new.not_before + interval '1 day'; return new; end $$;
create trigger put_off before insert on jobs for each row execute function put_off();
"""
_LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
# Each turn twice and crosswise, so that a slow minute falls on both.
_TURNS = ((FEW, False), (MANY, False), (MANY, True), (MANY, True), (MANY, False))


def measure(folder: Path) -> list[dict[str, object]]:
    """Serve a node with its web and its worker; return a row for each company."""
    with prepared_node(folder, SONONODE_RELAY__ENABLED="false") as (settings, start):
        _, worker = start("web"), start("worker")
        return uvloop.run(_measure(settings, worker))


async def _measure(settings: Settings, worker: int) -> list[dict[str, object]]:
    found: dict[tuple[int, bool], _Found] = {}
    async with (
        opened(attached(settings)) as store,
        _listening(answers=True) as live,
        _listening(answers=False) as hole,
        aiohttp.ClientSession() as http,
    ):
        async with store.db.transaction() as tx:
            await tx.execute(_NO_RESULTS)
        reports = await _reports(store, settings, SIGNS * len(_TURNS))
        hooks = [await _subscribe(store, settings, live.port) for _ in range(MANY)]
        black_hole = await _subscribe(store, settings, hole.port)
        token = await _doctor(store, settings, http)
        for count, holed in _TURNS:
            await _let_listen(store, hooks[:count], [black_hole] if holed else [])
            row = found.setdefault((count, holed), _Found())
            used = processor_s(worker)
            for _ in range(SIGNS):
                await _sign(settings, http, token, reports.pop(), live, count, row)
            row.used_s += processor_s(worker) - used
    return [row.row(count, holed) for (count, holed), row in found.items()]


class _Found:
    """What a company of hooks has shown."""

    def __init__(self) -> None:
        self.signed: list[float] = []
        self.told: list[float] = []
        self.used_s = 0.0  # of the worker's processor

    def row(self, count: int, holed: bool) -> dict[str, object]:
        """Return the figures in milliseconds."""
        told = statistics.quantiles(self.told, n=100)
        return {
            "hooks": f"{count} + a black hole" if holed else str(count),
            "notifications": len(self.told),
            "sign answered p50 ms": round(1000 * statistics.median(self.signed)),
            "sign to hook p50 ms": round(1000 * told[49]),
            "p95 ms": round(1000 * told[94]),
            "slowest ms": round(1000 * max(self.told)),
            "worker's processor, ms each": round(
                1000 * self.used_s / len(self.told), 2
            ),
        }


async def _sign(
    settings: Settings,
    http: aiohttp.ClientSession,
    token: str,
    report: Json,
    live: _Hooks,
    count: int,
    found: _Found,
) -> None:
    """Sign one report; note when it was answered and when each hook had it."""
    live.expect(report["id"], count)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/fhir+json",
        "If-Match": f'W/"{report["meta"]["versionId"]}"',
    }
    url = f"{settings.http.base_url}/fhir/DiagnosticReport/{report['id']}"
    signed = {**report, "status": "final"}
    begun = time.perf_counter()
    async with http.put(url, json=signed, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise SystemExit(f"bench: signing failed: {text[:500]}")
    found.signed.append(time.perf_counter() - begun)
    async with asyncio.timeout(60):
        await live.complete.wait()
    found.told += [at - begun for at in live.at]
    await asyncio.sleep(0.1)


class _Hooks:
    """Every hook of a port: takes POSTs, notes when one about the report came."""

    def __init__(self, *, answers: bool) -> None:
        self.port = 0
        self.at: list[float] = []
        self.complete = asyncio.Event()
        self._answers = answers
        self._wanted, self._count = b"", 0

    def expect(self, report_id: str, count: int) -> None:
        """Wait for `count` notifications about a report."""
        self._wanted, self._count = report_id.encode(), count
        self.at, self.complete = [], asyncio.Event()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer one connection until it ends."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if not self._answers:
                    continue
                if self._wanted and self._wanted in body:
                    self.at.append(time.perf_counter())
                    if len(self.at) == self._count:
                        self.complete.set()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()


@asynccontextmanager
async def _listening(*, answers: bool) -> AsyncIterator[_Hooks]:
    hooks = _Hooks(answers=answers)
    # Two hundred may call for the first time at once.
    server = await asyncio.start_server(hooks.serve, "127.0.0.1", 0, backlog=1024)
    hooks.port = server.sockets[0].getsockname()[1]
    try:
        yield hooks
    finally:
        server.close()


async def _reports(store: Store, settings: Settings, count: int) -> list[Json]:
    """Draft reports that a doctor may sign; return their resources."""
    drafted = []
    told = fhir_settings_of(settings)
    for number in range(count):
        uid = f"2.25.{5000 + number}"
        patient = make_patient(patient_id=f"MRN-{number:05}")
        await receive_study(store, patient, study_uid=uid)
        findings = make_findings("2")
        report = await publish_draft(store, told, study_uid=uid, findings=findings)
        drafted.append(str(report.id))
    async with store.db.transaction(readonly=True) as tx:
        return [
            parse((await resources.read(tx, store, "DiagnosticReport", one)).body)
            for one in drafted
        ]


async def _subscribe(store: Store, settings: Settings, port: int) -> UUID:
    subscription_id = uuid4()
    content = {
        "url": f"{BACKPORT}/backport-payload-content",
        "valueCode": "full-resource",
    }
    asked: Json = {
        "resourceType": "Subscription",
        "status": "off",
        "reason": "bench",
        "criteria": TOPIC,
        "channel": {
            "type": "rest-hook",
            "endpoint": f"http://127.0.0.1:{port}/hook",
            "payload": "application/fhir+json",
            "_payload": {"extension": [content]},
        },
    }
    async with store.db.transaction() as tx:
        told = fhir_settings_of(settings)
        asked = await subscribe(tx, store, told, asked, subscription_id, None)
        await put(tx, store, {**asked, "id": str(subscription_id)})
    return subscription_id


async def _let_listen(store: Store, live: list[UUID], hole: list[UUID]) -> None:
    """Switch on who listens in this turn, the others off."""
    async with store.db.transaction() as tx:
        for one in await subscriptions.find_all(tx, store):
            on = one.subscription_id in {*live, *hole}
            status = "active" if on else "off"
            await subscriptions.set_status(tx, one.subscription_id, status)


async def _doctor(store: Store, settings: Settings, http: aiohttp.ClientSession) -> str:
    password = secrets.token_urlsafe(12)
    async with store.db.transaction() as tx:
        await people.create_user(
            tx,
            login="doctor",
            password=password,
            display="Dr Bench",
            roles=[Role.RADIOLOGIST],
            now=store.clock(),
        )
    base_url = settings.http.base_url
    deadline = time.monotonic() + 60
    form = {"grant_type": "password", "username": "doctor", "password": password}
    while time.monotonic() < deadline:
        try:
            async with http.post(f"{base_url}/auth/token", data=form) as answer:
                return str((await answer.json())["access_token"])
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.2)
    raise SystemExit("bench: the web process did not start")
