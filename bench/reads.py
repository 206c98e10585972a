"""FHIR reads and searches a second of one web process, with sign-in and masking on."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import subprocess
import time
from pathlib import Path

import aiohttp

from bench.peers import ROOT, free_port
from config.settings import Settings, load_settings
from node.app import fhir_settings_of, opened
from node.domain.access import Role
from node.installation import Addresses, attached, prepared
from node.logs import configure_logging
from node.store import people
from node.supervisor import role_command
from tests.factories import make_patient
from tests.fhir.rig import publish_draft, receive_study

REPORTS = 100
CLIENTS = 16
SECONDS = 4.0
WARM_S = 1.0


def measure(folder: Path) -> list[dict[str, object]]:
    """Serve `REPORTS` drafted reports; return a row for each kind of request."""
    values = {
        "SONONODE_DATA": str(folder / "data"),
        "SONONODE_DICOM__PORT": str(free_port()),
        "SONONODE_HTTP__PORT": str(free_port()),
        "SONONODE_RELAY__PORT": str(free_port()),
        "SONONODE_LOG__LEVEL": "error",
    }
    settings = load_settings(values)
    configure_logging("error", "console")
    with prepared(settings) as addresses:
        password, report = asyncio.run(_seed(settings))
        server = _serve(values, addresses)
        try:
            return asyncio.run(_load(settings.http.base_url, password, report))
        finally:
            server.terminate()
            server.wait()


async def _seed(settings: Settings) -> tuple[str, str]:
    """Write the reports and the account of an EHR; return its password and one id."""
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
        async with store.db.transaction() as tx:
            await people.create_user(
                tx,
                login="ehr",
                password=password,
                display="EHR",
                roles=[Role.EHR],
                now=store.clock(),
            )
    return password, str(report.id)


def _serve(values: dict[str, str], addresses: Addresses) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        **values,
        "PYTHONPATH": str(ROOT),
        "SONONODE_DATABASE__URL": addresses.node,
    }
    return subprocess.Popen(role_command("web"), cwd=ROOT, env=environment)


async def _load(base_url: str, password: str, report: str) -> list[dict[str, object]]:
    async with aiohttp.ClientSession() as http:
        await _ready(http, base_url)
        form = {"grant_type": "password", "username": "ehr", "password": password}
        async with http.post(f"{base_url}/auth/token", data=form) as answer:
            token = (await answer.json())["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        paths = {
            "read one report": f"DiagnosticReport/{report}",
            "search, 20 rows": "DiagnosticReport?_count=20&_sort=-_lastUpdated",
        }
        return [
            await _requests(http, headers, what, f"{base_url}/fhir/{path}")
            for what, path in paths.items()
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


async def _requests(
    http: aiohttp.ClientSession, headers: dict[str, str], what: str, url: str
) -> dict[str, object]:
    """Send requests from `CLIENTS` callers; the first second does not count."""
    took: list[float] = []
    start = time.perf_counter()

    async def call() -> None:
        while (begun := time.perf_counter()) < start + WARM_S + SECONDS:
            async with http.get(url, headers=headers) as answer:
                await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"bench: {what} answered {answer.status}")
            if begun > start + WARM_S:
                took.append(time.perf_counter() - begun)

    await asyncio.gather(*(call() for _ in range(CLIENTS)))
    took.sort()
    return {
        "request": what,
        "callers": CLIENTS,
        "per second": round(len(took) / SECONDS),
        "median ms": round(1000 * statistics.median(took), 1),
        "p99 ms": round(1000 * took[int(0.99 * len(took))], 1),
    }
