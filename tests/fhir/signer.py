"""A process that signs a report and waits at a chosen moment to be killed."""

import asyncio
import sys
from datetime import datetime
from pathlib import Path

from fhir.content.editing import Change, Edit, edit_report
from fhir.encoding.wire import parse
from node.domain.access import Identity, Role
from node.store import resources
from node.store.store import open_store
from tests.fhir.rig import make_settings


async def sign(dsn: str, key: str, at: str, report_id: str, moment: str) -> None:
    """Sign; say so on stdout `before` or `after` the commit, and wait."""
    now = datetime.fromisoformat(at)
    store = await open_store(dsn, Path(key), Path(key).parent / "objects", lambda: now)
    settings = make_settings("http://127.0.0.1:9/fhir")
    doctor = Identity("d", frozenset({Role.RADIOLOGIST}), "Dr", practitioner_id="doc-1")
    async with store.db.transaction() as tx:
        stored = await resources.read(tx, store, "DiagnosticReport", report_id)
        signed = {**parse(stored.body), "status": "final"}
        edit = Edit(report=Change(signed, stored.version))
        await edit_report(tx, store, settings, doctor, edit)
        if moment == "before":
            await _be_killed()
    await _be_killed()


async def _be_killed() -> None:
    print("signed", flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(sign(*sys.argv[1:6]))
