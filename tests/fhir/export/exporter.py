"""A process that only writes exports, made to be killed by its test."""

import asyncio
import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic

from fhir.export.writing import Size, export_resources
from node.store.exports import EXPORT_RESOURCES, LANE
from node.store.store import open_store
from node.worker import Worker
from tests.fhir.rig import make_settings


async def export(dsn: str, key: str, start: str) -> None:
    """Export until killed; the clock starts at `start` and runs on."""
    began, base = monotonic(), datetime.fromisoformat(start)

    def clock() -> datetime:
        return base + timedelta(seconds=monotonic() - began)

    store = await open_store(dsn, Path(key), Path(key).parent / "objects", clock)
    settings = make_settings("http://127.0.0.1:9/fhir")
    write = partial(export_resources, store, settings, size=Size(2, page=1))
    await Worker(store.jobs, {EXPORT_RESOURCES: write}, lane=LANE, width=1).run()


if __name__ == "__main__":
    asyncio.run(export(*sys.argv[1:4]))
