"""The audit trail at a million entries and at ten: append, search, verify.

By hand, not in CI: `python -m bench.trail --entries 1000000 10000000`. The entries are
made by SQL, but appended by the function that the node uses, so that the chain, its
indexes and the places of their pages are real. Who looks at whom is drawn evenly, which
is the worst for every index: in a hospital most looks at a woman fall on a few days.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import uvloop
from rich.console import Console
from rich.table import Table

from node.domain.audit import AuditEntry, Outcome
from node.store import audit
from node.store.audit import Anchor, Sought
from node.store.database import Database
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres

PATIENTS = 50_000
REPORTS = 100_000
ACTORS = 60
AT = datetime(2026, 1, 1, tzinfo=UTC)
_AT_ONCE = 5000
_APPENDED = 16
_ROUNDS = 300
_VERIFIED = 100_000
_FILL = """
with numbered as (
    select i, timestamptz '2026-01-01 00:00:00+00' + i * interval '1 second' as at,
        'dr-' || (random() * $3)::int as actor,
        md5('report' || (random() * $4)::int)::uuid as report,
        md5('patient' || (random() * $5)::int)::uuid as patient,
        case when i % 100 = 0 then '4' else '0' end as outcome
    from generate_series($1::bigint, $2::bigint) as i
), told as (
    select *, 'DiagnosticReport/' || report as entity, case when outcome = '4'
        then format('{"address": "10.0.0.7", "request": "r-%s", "status": "403"}', i)
        else format('{"address": "10.0.0.7", "patients": "%s", "request": "r-%s",'
                    ' "status": "200"}', patient, i) end as detail
    from numbered
)
select audit_append_all(
    array_agg(at order by i), array_agg(actor order by i),
    array_agg('radiologist'::text order by i), array_agg('fhir read'::text order by i),
    array_agg(entity order by i), array_agg(outcome order by i),
    array_agg(detail order by i),
    array_agg(convert_to(format(
        '{"action":"fhir read","actor":"%s","at":"%s","detail":%s,'
        '"entity":"%s","outcome":"%s","role":"radiologist"}', actor,
        to_char(at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'),
        replace(replace(detail, ': ', ':'), ', ', ','), entity, outcome), 'UTF8')
        order by i))
from told
"""


async def _fill(database: Database, until: int) -> None:
    async with database.connection() as tx:
        first = (await audit.head(tx)).sequence + 1
        await tx.execute("set synchronous_commit = off")
        for begin in range(first, until + 1, _AT_ONCE):
            end = min(begin + _AT_ONCE - 1, until)
            await tx.fetchval(_FILL, begin, end, ACTORS, REPORTS, PATIENTS, timeout=600)
        await tx.execute("vacuum analyze audit_entries", timeout=3600)
        await tx.execute("vacuum analyze audit_patients", timeout=3600)


async def _measure(database: Database, superuser: str) -> dict[str, object]:
    async with database.connection() as tx:
        head = await audit.head(tx)
        report = await tx.fetchval(
            "select entity from audit_entries where sequence = $1", head.sequence // 2
        )
        patient = await tx.fetchval("select md5('patient7')::uuid")
        size = await tx.fetchval(
            "select pg_total_relation_size('audit_entries')"
            " + pg_total_relation_size('audit_patients')"
        )
    day = AT + timedelta(seconds=head.sequence // 2)
    row: dict[str, object] = {
        "entries": f"{head.sequence:,}",
        "GB": round(size / 1e9, 2),
    }
    row |= await _searches(database, patient, str(report), day)
    row["verify, entries a second"] = await _verify(database, head)
    for of, women in (("the women of these days", 300), ("any women", PATIENTS)):
        # After a checkpoint each page goes to the log whole when it is first touched.
        connection = await asyncpg.connect(superuser)
        await connection.execute("checkpoint", timeout=600)
        await connection.close()
        for when in ("right after a checkpoint", "then"):
            row |= await _append(database, women, f"{of}, {when}")
    return row


async def _searches(
    database: Database, patient: UUID, report: str, day: datetime
) -> dict[str, object]:
    until = day + timedelta(days=1)
    asked = {
        "all": Sought(),
        "patient": Sought(patients=(patient,)),
        "patient, refused or failed": Sought(
            patients=(patient,), outcomes=("4", "8", "12")
        ),
        "actor": Sought(actors=("dr-7",)),
        "actor, a day": Sought(actors=("dr-7",), since=day, until=until),
        "actor, refused": Sought(actors=("dr-7",), outcomes=("4",)),
        "report": Sought(entities=(report,)),
        "program (none)": Sought(programs=("3f2504e0-4f89-41d3-9a0c-0305e82c3301",)),
        "a day": Sought(since=day, until=until),
        "refused": Sought(outcomes=("4",)),
        "refused, a day": Sought(outcomes=("4",), since=day, until=until),
        "refused actions of an actor without any": Sought(
            actors=("sononode",), outcomes=("4",)
        ),
        "failed (none)": Sought(outcomes=("8", "12")),
        "actor unknown (none)": Sought(actors=("nobody",), outcomes=("4",)),
    }
    row: dict[str, object] = {
        f"page by {what}, ms": await _median(database, _page_of(sought))
        for what, sought in asked.items()
    }
    row["actors, ms"] = await _median(database, audit.actors)
    return row


def _page_of(sought: Sought) -> Callable[..., Awaitable[object]]:
    return lambda tx: audit.search(tx, sought, limit=51)


async def _median(database: Database, ask: Callable[..., Awaitable[object]]) -> str:
    took = []
    async with database.connection() as tx:
        for _ in range(15):
            begun = time.perf_counter()
            await ask(tx)
            took.append(1000 * (time.perf_counter() - begun))
    return f"{statistics.median(took):.1f} (first {took[0]:.1f})"


async def _verify(database: Database, head: Anchor) -> str:
    """Verify a stretch in the middle, as a check of the whole chain does."""
    begin = max(0, head.sequence // 2 - _VERIFIED)
    async with database.transaction() as tx:
        found = await audit.following(tx, max(0, begin - 1), 1)
        anchor = Anchor(found[0].sequence, found[0].hash) if begin else Anchor()
        begun = time.perf_counter()
        last = await audit.verify_from(
            tx, anchor, until=anchor.sequence + min(_VERIFIED, head.sequence)
        )
        took = time.perf_counter() - begun
    return f"{(last.sequence - anchor.sequence) / took:,.0f}"


async def _append(database: Database, women: int, what: str) -> dict[str, object]:
    """Append as requests do: sixteen entries, each batch a transaction of its own."""
    took = []
    async with database.connection() as tx:
        number = (await audit.head(tx)).sequence
        before = await tx.fetchval("select pg_current_wal_insert_lsn()::text")
        for begin in range(number, number + _ROUNDS * _APPENDED, _APPENDED):
            batch = [_entry(begin + n, women) for n in range(_APPENDED)]
            begun = time.perf_counter()
            await audit.append(tx, batch)
            took.append(1000 * (time.perf_counter() - begun))
        wal = await tx.fetchval(
            "select pg_current_wal_insert_lsn() - $1::text::pg_lsn", before
        )
    took.sort()
    return {
        f"append 16, ms p50, {what}": round(statistics.median(took), 2),
        f"append 16, ms p95, {what}": round(took[int(len(took) * 0.95)], 2),
        f"log, KB an entry, {what}": round(int(wal) / (_ROUNDS * _APPENDED) / 1e3, 2),
    }


def _entry(number: int, women: int) -> AuditEntry:
    patient = _id(f"patient{random.randrange(women)}")
    return AuditEntry(
        AT + timedelta(seconds=number),
        f"dr-{random.randrange(ACTORS)}",
        "radiologist",
        "fhir read",
        f"DiagnosticReport/{_id(f'report{random.randrange(2 * women)}')}",
        Outcome.SUCCESS,
        {"address": "10.0.0.7", "patients": str(patient), "status": "200"},
    )


def _id(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


async def _run(marks: list[int], folder: Path, cache: str) -> list[dict[str, object]]:
    own = {"max_wal_size": "2GB", "shared_buffers": cache}
    server = EmbeddedPostgres(folder / "pg", own)
    superuser = await asyncio.to_thread(server.start)
    rows = []
    try:
        database = await Database.connect(server.create_database("bench"))
        await migrate(database)
        for mark in sorted(marks):
            await _fill(database, mark)
            rows.append(await _measure(database, superuser))
            Console().print(rows[-1])
        await database.close()
    finally:
        server.stop()
    return rows


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="bench.trail", description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--folder", type=Path, help="Keep the files there.")
    parser.add_argument("--cache", default="128MB", help="PostgreSQL's shared_buffers.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sononode-bench-") as name:
        folder = asked.folder or Path(name)
        rows = uvloop.run(_run(asked.entries, folder, asked.cache))
    table = Table("", *(str(row["entries"]) for row in rows), title="audit trail")
    for what in rows[0]:
        table.add_row(what, *(str(row[what]) for row in rows))
    Console().print(table)


if __name__ == "__main__":
    main()
