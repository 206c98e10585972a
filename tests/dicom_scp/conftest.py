"""A storage SCP in the test's process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from dicom_scp.scp import ScpSettings, StorageScp
from node.store.store import Store, open_store

StartScp = Callable[..., Awaitable[StorageScp]]

SETTINGS = ScpSettings(
    host="127.0.0.1",
    port=0,
    acse_timeout_s=1.0,
    network_timeout_s=5.0,
    tls_handshake_timeout_s=1.0,
    commit_timeout_s=5.0,
    grace_s=2.0,
    min_free_bytes=0,
)


@pytest.fixture
async def start_scp(store: Store) -> AsyncIterator[StartScp]:
    """Return a starter of SCPs on the same database and objects as `store`."""
    started: list[StorageScp] = []

    async def open_another() -> Store:
        return await open_store(
            store.db._dsn,
            store.ring._root_path,
            store.blobs._root,
            store.clock,
            pool_size=3,
        )

    async def start(**changes: object) -> StorageScp:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        scp = StorageScp(settings, open_another)
        await asyncio.to_thread(scp.start)
        started.append(scp)
        return scp

    yield start
    for scp in started:
        await asyncio.to_thread(scp.stop, grace_s=0)
