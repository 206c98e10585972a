"""A process that only delivers notifications, made to be killed by its test."""

import asyncio
import sys
from datetime import datetime, timedelta
from pathlib import Path
from time import monotonic

import aiohttp

from fhir.subscriptions.delivery import Dispatcher
from fhir.subscriptions.relay import ensure_relay_subscription
from node.store.store import open_store
from tests.fhir.rig import make_settings


async def deliver(dsn: str, key: str, relay_url: str, start: str) -> None:
    """Deliver until killed; the clock starts at `start` and runs on."""
    began, base = monotonic(), datetime.fromisoformat(start)

    def clock() -> datetime:
        return base + timedelta(seconds=monotonic() - began)

    store = await open_store(dsn, Path(key), Path(key).parent / "objects", clock)
    settings = make_settings("http://127.0.0.1:9/fhir", relay_url=relay_url)
    async with aiohttp.ClientSession() as session:
        await ensure_relay_subscription(store, settings)
        await Dispatcher(store, settings, session, session).run()


if __name__ == "__main__":
    asyncio.run(deliver(*sys.argv[1:5]))
