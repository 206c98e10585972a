"""A bulk export of many resources: how long it takes, how much memory it needs.

By hand, not in CI: `python -m bench.bulk --resources 200000`. Bodies are as long as
a report's and sealed, four to a patient, each patient with a key of her own; the
process that exports has opened none of them before.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from fhir.export.requests import ExportRequest
from fhir.export.writing import export_resources
from node.domain.access import Role
from node.store import clients, exports
from node.store.database import Database
from node.store.exports import EXPORT_RESOURCES, LANE
from node.store.keys import Sealer, create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.store import Store, open_store
from tests.fhir.rig import make_settings

RESOURCES_A_PATIENT = 4
BODY_BYTES = 3000
AT = datetime(2026, 1, 1, tzinfo=UTC)
_HEADS = """
insert into resources (resource_type, resource_id, version, last_updated, patient_id,
                       sort_date, index_version)
select resource_type, resource_id, version, last_updated, patient_id, last_updated, 1
from resource_versions
"""
_KEYS_AT_ONCE = 500


async def _fill(store: Store, number: int) -> None:
    sealers: list[tuple[UUID, Sealer]] = []
    while len(sealers) * RESOURCES_A_PATIENT < number:
        async with store.db.transaction() as tx:
            for _ in range(_KEYS_AT_ONCE):
                patient_id = uuid4()
                sealers.append((patient_id, await store.ring.patient(tx, patient_id)))
    async with store.db.connection() as tx:
        await tx.copy_records_to_table(
            "resource_versions", records=_versions(sealers, number), timeout=3600
        )
        await tx.execute(_HEADS, timeout=3600)
        await tx.execute("vacuum analyze", timeout=3600)


def _versions(
    sealers: list[tuple[UUID, Sealer]], number: int
) -> Iterator[tuple[object, ...]]:
    # Half of it is random: text as it is packs better, digests do not at all.
    for n in range(number):
        patient_id, sealer = sealers[n // RESOURCES_A_PATIENT]
        name, words = str(uuid4()), os.urandom(BODY_BYTES // 4).hex()
        told = {"resourceType": "DiagnosticReport", "id": name, "conclusion": words}
        told["div"] = "no finding " * ((BODY_BYTES - len(words)) // 11)
        place = {"table": "resource_versions", "column": "body"}
        row = f"DiagnosticReport/{name}/1"
        body = sealer.seal(orjson.dumps(told), row=row, **place)
        yield "DiagnosticReport", name, 1, AT, patient_id, "PUT", body


async def _export(store: Store) -> dict[str, object]:
    settings = make_settings("http://127.0.0.1/fhir")
    request = ExportRequest("bench", ("DiagnosticReport",), "system/*.rs")
    async with store.db.transaction() as tx:
        client = await clients.register(
            tx,
            name="bench",
            roles=[Role.EHR],
            scopes="system/*.rs",
            now=store.clock(),
            jwks="{}",
        )
        export_id = await exports.begin(
            tx, store, client.client_id, request.to_json(), at_once=1
        )
    stalls = [0.0]
    ticking = asyncio.create_task(_tick(stalls))
    before, highest, first = _rss_mb(), 0.0, 0.0
    begun, busy = time.perf_counter(), time.process_time()
    while job := await store.jobs.claim([EXPORT_RESOURCES], "bench", lane=LANE):
        await export_resources(store, settings, job.payload)
        await store.jobs.done(job)
        highest = max(highest, _rss_mb())
        first = first or highest
    took, used = time.perf_counter() - begun, time.process_time() - busy
    ticking.cancel()
    async with store.db.connection() as tx:
        files = await exports.files(tx, export_id)
    number = sum(file.resources for file in files)
    return {
        "resources": number,
        "files": len(files),
        "seconds": round(took, 1),
        "per second": round(number / took),
        "per second of its processor": round(number / used),
        "NDJSON MB": round(sum(file.size for file in files) / 1e6),
        "stored MB": round(sum(file.packed_size for file in files) / 1e6),
        "MiB before": round(before),
        "after the first file": round(first),
        "highest": round(highest),
        "longest stall ms": round(1000 * max(stalls)),
    }


async def _tick(stalls: list[float]) -> None:
    """Note how long others on the event loop would have waited."""
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.01)
        stalls.append(time.perf_counter() - begun - 0.01)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def _run(number: int, folder: Path) -> dict[str, object]:
    server = EmbeddedPostgres(folder / "pg", {"fsync": "off", "max_wal_size": "4GB"})
    server.start()
    try:
        dsn = server.create_database("bench")
        database = await Database.connect(dsn)
        await migrate(database)
        await database.close()
        key = folder / "root.key"
        create_root_key(key)
        store = await open_store(dsn, key, folder / "objects", _now)
        await _fill(store, number)
        await store.close()
        fresh = await open_store(dsn, key, folder / "objects", _now)
        row = await _export(fresh)
        await fresh.close()
        return row
    finally:
        server.stop()


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    """Fill, export, print."""
    parser = argparse.ArgumentParser(prog="bench.bulk", description=__doc__)
    parser.add_argument("--resources", type=int, default=200_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sononode-bench-") as name:
        row = uvloop.run(_run(asked.resources, Path(name)))
    table = Table("", "", title="bulk export", show_header=False)
    for what, figure in row.items():
        table.add_row(what, str(figure))
    Console().print(table)


if __name__ == "__main__":
    main()
