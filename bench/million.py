"""Searches in the index of a million reports: plans and times, by hand, not in CI.

Bodies are a few bytes, under the node's key: what is measured is finding. Run it
with `python -m bench.million`; it takes minutes and about 3 GB of disk.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from bench.searches import APART, REPORTS_A_PATIENT, START, claimed, name_of, queries
from node.store.database import Database, TooCostly, Transaction
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.search import pages
from node.store.search.criteria import (
    Query,
)
from node.store.store import Store, open_store

Asked = Callable[[int, int], dict[str, Query]]
_FILL = """
insert into resources (resource_type, resource_id, version, last_updated, patient_id,
                       sort_date, index_version)
select 'DiagnosticReport', md5('r' || n), 1, $2::timestamptz + n * interval '5 minutes',
       md5('p' || n / $3::integer)::uuid,
       date_trunc('day', $2::timestamptz + n * interval '5 minutes', 'UTC'), 1
from generate_series(1, $1::integer) as n
"""
# A draft for every 500 reports, one in 1,000 of category 5.
_TOKENS = """
insert into resource_tokens
select i.*, r.sort_date, r.last_updated from (
select 'DiagnosticReport', md5('r' || n), t.parameter, t.system, t.value
from generate_series(1, $1::integer) as n, lateral (values
    ('status', '', convert_to(
        case when n % 500 = 0 then 'partial' when n % 90 = 0 then 'amended'
             else 'final' end, 'utf8')),
    ('category', 'urn:category', convert_to(
        case when n % 1000 = 7 then 'CT' else 'US' end, 'utf8')),
    ('code', 'http://loinc.org', convert_to('24601-7', 'utf8')),
    ('_security', 'urn:security', convert_to('AIAST', 'utf8')),
    ('_profile', '', convert_to('urn:profile:report', 'utf8')),
    ('identifier', 'urn:accession', convert_to(md5('a' || n), 'utf8'))
) as t (parameter, system, value)
) as i (resource_type, resource_id, parameter, system, value)
join resources r using (resource_type, resource_id)
"""
_REFERENCES = """
insert into resource_references
select i.*, r.sort_date, r.last_updated from (
select 'DiagnosticReport', md5('r' || n), p.parameter, p.type, p.id
from generate_series(1, $1::integer) as n, lateral (values
    ('subject', 'Patient', md5('p' || n / $2::integer)),
    ('patient', 'Patient', md5('p' || n / $2::integer)),
    ('performer', 'Organization', 'department'),
    ('imaging-study', 'ImagingStudy', md5('s' || n)),
    ('based-on', 'ServiceRequest', md5('o' || n)),
    ('results-interpreter', 'Practitioner',
        case when n between 5000 and 25000 then 'retired' else 'doctor-' || n % 40 end),
    ('result', 'Observation', md5('f' || n))
) as p (parameter, type, id)
) as i (resource_type, resource_id, parameter, target_type, target_id)
join resources r using (resource_type, resource_id)
"""
_DATES = """
insert into resource_dates
select r.resource_type, r.resource_id, d.parameter, d.earliest, d.latest,
       r.sort_date, r.last_updated
from resources r, lateral (values
    ('DiagnosticReport', 'date', r.sort_date, r.sort_date + interval '1 day'),
    ('DiagnosticReport', 'issued', r.last_updated, r.last_updated + interval '1 s'),
    ('DiagnosticReport', 'issued:sort', r.last_updated, r.last_updated),
    ('ImagingStudy', 'started', r.sort_date, r.sort_date + interval '1 day'),
    ('Observation', 'date', r.sort_date, r.sort_date + interval '1 day'),
    ('Provenance', 'recorded', r.sort_date, r.sort_date + interval '1 day')
) as d (type, parameter, earliest, latest)
where d.type = r.resource_type
"""
# What lies around a report: its study, order, finding, and who wrote it.
_AROUND = """
insert into resources (resource_type, resource_id, version, last_updated, patient_id,
                       sort_date, index_version)
select a.type, md5(a.letter || n), 1, $2::timestamptz + n * interval '5 minutes',
       md5('p' || n / $3::integer)::uuid,
       date_trunc('day', $2::timestamptz + n * interval '5 minutes', 'UTC'), 1
from generate_series(1, $1::integer) as n, lateral (values
    ('ImagingStudy', 's'), ('ServiceRequest', 'o'), ('Observation', 'f'),
    ('Provenance', 'v')
) as a (type, letter)
"""
_AROUND_TOKENS = """
insert into resource_tokens
select i.*, r.sort_date, r.last_updated from (
select t.type, md5(t.letter || n), t.parameter, t.system, convert_to(t.value, 'utf8')
from generate_series(1, $1::integer) as n, lateral (values
    ('ImagingStudy', 's', 'identifier', 'urn:dicom:uid', md5('u' || n)),
    ('ImagingStudy', 's', 'status', '', 'available'),
    ('ImagingStudy', 's', 'modality', 'urn:modality',
        case when n % 1000 = 7 then 'CT' else 'US' end),
    ('ServiceRequest', 'o', 'identifier', 'urn:accession', md5('a' || n)),
    ('ServiceRequest', 'o', 'status', '', 'completed'),
    ('Observation', 'f', 'status', '', 'final'),
    ('Observation', 'f', 'category', 'urn:category', 'imaging'),
    ('Observation', 'f', 'value-concept', 'urn:birads',
        case when n % 500 = 3 then '5' when n % 90 = 3 then '4' else '2' end),
    ('Observation', 'f', 'code', 'urn:sct', '146611000146107')
) as t (type, letter, parameter, system, value)
) as i (resource_type, resource_id, parameter, system, value)
join resources r using (resource_type, resource_id)
"""
_AROUND_REFERENCES = """
insert into resource_references
select i.*, r.sort_date, r.last_updated from (
select p.type, md5(p.letter || n), p.parameter, p.target, p.id
from generate_series(1, $1::integer) as n, lateral (values
    ('ImagingStudy', 's', 'subject', 'Patient', md5('p' || n / $2::integer)),
    ('ImagingStudy', 's', 'patient', 'Patient', md5('p' || n / $2::integer)),
    ('ImagingStudy', 's', 'basedon', 'ServiceRequest', md5('o' || n)),
    ('ServiceRequest', 'o', 'subject', 'Patient', md5('p' || n / $2::integer)),
    ('ServiceRequest', 'o', 'patient', 'Patient', md5('p' || n / $2::integer)),
    ('Observation', 'f', 'subject', 'Patient', md5('p' || n / $2::integer)),
    ('Observation', 'f', 'patient', 'Patient', md5('p' || n / $2::integer)),
    ('ImagingStudy', 's', 'endpoint', 'Endpoint', 'dicom-web'),
    ('Observation', 'f', 'device', 'Device', 'model-1'),
    ('Observation', 'f', 'performer', 'Practitioner', 'doctor-' || n % 40),
    ('Observation', 'f', 'derived-from', 'ImagingStudy', md5('s' || n)),
    ('Provenance', 'v', 'target', 'DiagnosticReport', md5('r' || n)),
    ('Provenance', 'v', 'target', 'Observation', md5('f' || n)),
    ('Provenance', 'v', 'agent', 'Device', 'model-1')
) as p (type, letter, parameter, target, id)
) as i (resource_type, resource_id, parameter, target_type, target_id)
join resources r using (resource_type, resource_id)
"""
_PATIENTS = """
insert into resources (resource_type, resource_id, version, last_updated, patient_id,
                       sort_date, index_version)
select 'Patient', md5('p' || n), 1, $2::timestamptz, md5('p' || n)::uuid, $2, 1
from generate_series(0, $1::integer) as n
"""
# One patient in twelve has the most frequent family name.
_NUMBERS = """
insert into resource_tokens
select i.*, r.sort_date, r.last_updated from (
select 'Patient', md5('p' || n), t.parameter, t.system, convert_to(t.value, 'utf8')
from generate_series(0, $1::integer) as n, lateral (values
    ('identifier', 'urn:mrn', md5('m' || n)),
    ('gender', '', case when n % 300 = 0 then 'male' else 'female' end),
    ('active', '', 'true'),
    ('name', '', case n % 12 when 0 then 'wang' else substr(md5('n' || n), 1, 3) end),
    ('family', '', case n % 12 when 0 then 'wang' else substr(md5('n' || n), 1, 3) end)
) as t (parameter, system, value)
) as i (resource_type, resource_id, parameter, system, value)
join resources r using (resource_type, resource_id)
"""
_DEPARTMENTS = """
insert into resource_references
select i.*, r.sort_date, r.last_updated from (
select 'Patient', md5('p' || n), 'organization', 'Organization', 'hospital'
from generate_series(0, $1::integer) as n
) as i (resource_type, resource_id, parameter, target_type, target_id)
join resources r using (resource_type, resource_id)
"""


_INDEXES = """
select indexname, indexdef from pg_indexes
where tablename in ('resource_tokens', 'resource_references', 'resource_dates')
"""
_WITH_BODIES = {
    "DiagnosticReport": "r",
    "ImagingStudy": "s",
    "Observation": "f",
    "Patient": "p",
}


async def fill(store: Store, reports: int) -> None:
    """Write the index rows of `reports` reports and their patients."""
    patients = reports // REPORTS_A_PATIENT
    async with store.db.connection() as tx:
        # Indexes are made anew from what is there, which takes a tenth of the time.
        indexes = await tx.fetch(_INDEXES)
        for index in indexes:
            await tx.execute(f"drop index {index['indexname']}")
        await tx.execute(_FILL, reports, START, REPORTS_A_PATIENT, timeout=3600)
        for kind, letter in _WITH_BODIES.items():
            number = patients if kind == "Patient" else reports
            await tx.copy_records_to_table(
                "resource_versions",
                records=_versions(store, kind, letter, number),
                timeout=3600,
            )
        await tx.execute(_TOKENS, reports, timeout=3600)
        await tx.execute(_REFERENCES, reports, REPORTS_A_PATIENT, timeout=3600)
        await tx.execute(_PATIENTS, patients, START, timeout=3600)
        await tx.execute(_NUMBERS, patients, timeout=3600)
        await tx.execute(_DEPARTMENTS, patients, timeout=3600)
        await tx.execute(_AROUND, reports, START, REPORTS_A_PATIENT, timeout=3600)
        await tx.execute(_AROUND_TOKENS, reports, timeout=3600)
        await tx.execute(_AROUND_REFERENCES, reports, REPORTS_A_PATIENT, timeout=3600)
        await tx.execute(_DATES, timeout=3600)
        for index in indexes:
            await tx.execute(index["indexdef"], timeout=3600)
        await tx.execute("vacuum analyze", timeout=3600)


def _versions(
    store: Store, kind: str, letter: str, reports: int
) -> Iterator[tuple[object, ...]]:
    for n in range(1, reports + 1):
        name = name_of(letter, n)
        place = {"table": "resource_versions", "column": "body"}
        row = f"{kind}/{name}/1"
        body = store.ring.node.seal(b'{"resourceType":"x"}', row=row, **place)
        yield kind, name, 1, START + n * APART, None, "PUT", body


class _Recorder:
    """Passes statements on and remembers those that find, not those that read."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self.told: list[tuple[str, tuple[object, ...]]] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        self._note(sql, arguments)
        return await self._tx.fetch(sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        self._note(sql, arguments)
        return await self._tx.fetchrow(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: object) -> object:
        self._note(sql, arguments)
        return await self._tx.fetchval(sql, *arguments)

    def _note(self, sql: str, arguments: tuple[object, ...]) -> None:
        if "resource_versions" not in sql and not sql.startswith("explain"):
            self.told.append((sql, arguments))


async def explain(store: Store, query: Query) -> list[str]:
    """Return the plan of a search as it was carried out."""
    async with store.db.reading() as tx:
        recorder = _Recorder(tx)
        await pages.search(cast("Transaction", recorder), store, query)
        plan: list[str] = []
        for sql, arguments in recorder.told:
            rows = await tx.fetch(f"explain (analyze, buffers) {sql}", *arguments)
            plan += [row[0] for row in rows]
    return plan


def _pages(plan: list[str]) -> int:
    """Return how many pages of 8 KB a plan looked at, in memory or not."""
    pages, counts = 0, True
    for line in plan:
        if "Buffers: shared" in line and counts:
            pages += sum(int(n) for n in re.findall(r"(?:hit|read)=(\d+)", line))
            counts = False  # what follows is part of it
        counts = counts or line.startswith("Execution Time")
    return pages


async def measure(
    store: Store, asked_in: Asked, reports: int, rounds: int
) -> list[dict[str, object]]:
    """Search for each kind `rounds` times, one at a time; return times in ms.

    `pages` do not depend on what else the machine does.
    Two rounds before the first do not count: they connect and prepare statements.
    """
    took: dict[str, list[float]] = {}
    found: dict[str, str] = {}
    for step in range(-2, rounds):
        for name, query in asked_in(reports, step + 3).items():
            begun = time.perf_counter()
            try:
                async with store.db.reading() as tx:
                    page = await pages.search(tx, store, query)
                found[name] = str(len(page.matches))
            except TooCostly:
                found[name] = "refused"
            if step >= 0:
                ms = 1000 * (time.perf_counter() - begun)
                took.setdefault(name, []).append(ms)
    looked_at = {
        name: _pages(await explain(store, query)) if found[name] != "refused" else ""
        for name, query in asked_in(reports, rounds + 3).items()
    }
    return [
        {
            "search": name,
            "rows": found[name],
            "pages": looked_at[name],
            "p50 ms": round(statistics.median(times), 2),
            "p99 ms": round(sorted(times)[int(0.99 * len(times))], 2),
        }
        for name, times in took.items()
    ]


async def _run(
    asked_in: Asked, reports: int, rounds: int, folder: Path, plans: bool
) -> None:
    server = EmbeddedPostgres(folder / "pg", {"fsync": "off", "max_wal_size": "4GB"})
    server.start()
    console = Console()
    try:
        dsn = server.create_database("bench")
        database = await Database.connect(dsn)
        await migrate(database)
        await database.close()
        key = folder / "root.key"
        if not key.exists():
            create_root_key(key)
        store = await open_store(dsn, key, folder / "blobs", lambda: datetime.now(UTC))
        begun = time.perf_counter()
        filled = folder / "filled"
        if not filled.exists():
            await fill(store, reports)
            console.print(f"filled in {time.perf_counter() - begun:.0f} s")
            filled.touch()
        rows = await measure(store, asked_in, reports, rounds)
        if plans:
            for name, query in asked_in(reports, rounds + 3).items():
                console.rule(name)
                for line in await explain(store, query):
                    console.print(line, markup=False, highlight=False)
        table = Table(title=f"{reports} reports")
        for column in rows[0]:
            table.add_column(column)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
        await store.close()
    finally:
        server.stop()


def main() -> None:
    """Fill, measure, explain."""
    parser = argparse.ArgumentParser(prog="bench.million", description=__doc__)
    parser.add_argument("--reports", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument(
        "--claimed", action="store_true", help="every parameter and order of the types"
    )
    parser.add_argument("--plans", action="store_true")
    parser.add_argument(
        "--folder", type=Path, help="fill this one once, and keep it for the next run"
    )
    asked = parser.parse_args()
    asked_in = claimed if asked.claimed else queries
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        uvloop.run(
            _run(asked_in, asked.reports, asked.rounds, asked.folder, asked.plans)
        )
        return
    with tempfile.TemporaryDirectory(prefix="sononode-bench-") as name:
        uvloop.run(_run(asked_in, asked.reports, asked.rounds, Path(name), asked.plans))


if __name__ == "__main__":
    main()
