"""A process that only delivers notifications, made to be killed by its test."""

import asyncio
import sys
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

import aiohttp

from fhir.subscriptions.hooks import Deliveries, ensure_relay_subscription
from node.store.store import open_store
from node.worker import Worker
from tests.fhir.rig import make_settings


async def deliver(dsn: str, key: str, relay_url: str, start: str) -> None:
    """Deliver until killed; the clock starts at `start` and runs on."""
    began, base = monotonic(), datetime.fromisoformat(start)

    def clock() -> datetime:
        return base + timedelta(seconds=monotonic() - began)

    store = await open_store(dsn, Path(key), Path(key).parent / "objects", clock)
    settings = make_settings("http://127.0.0.1:9/fhir", relay_url=relay_url)
    async with aiohttp.ClientSession() as session:
        deliveries = Deliveries(store, settings, session)
        await ensure_relay_subscription(store, settings)
        handlers = {"deliver_notifications": deliveries.deliver_notifications}
        await Worker(store.jobs, handlers).run()


if __name__ == "__main__":
    asyncio.run(deliver(*sys.argv[1:5]))
