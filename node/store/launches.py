"""What waits for a browser to come back: from an EHR, a sign-on, or to agree."""

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.store import Store

LIFETIME = timedelta(minutes=10)


async def begin(
    tx: "Transaction",
    store: "Store",
    state: str,
    iss: str,
    secrets: Mapping[str, str],
) -> None:
    """Keep what is needed when the person comes back with `state`; sealed."""
    key, now = _hash(state), store.clock()
    await tx.execute("delete from ehr_launches where expires_at < $1", now)
    sealed = store.ring.node.seal(json.dumps(dict(secrets)).encode(), **_place(key))
    await tx.execute(
        "insert into ehr_launches (state_hash, iss, sealed, expires_at)"
        " values ($1, $2, $3, $4)",
        key,
        iss,
        sealed,
        now + LIFETIME,
    )


async def end(
    tx: "Transaction", store: "Store", state: str
) -> tuple[str, Mapping[str, str]] | None:
    """Return (iss, secrets) of a launch, once; None when it is unknown or too old."""
    key = _hash(state)
    row = await tx.fetchrow(
        "delete from ehr_launches where state_hash = $1 and expires_at > $2"
        " returning iss, sealed",
        key,
        store.clock(),
    )
    return None if row is None else _opened(store, key, row)


async def look(
    tx: "Transaction", store: "Store", state: str
) -> tuple[str, Mapping[str, str]] | None:
    """Return (iss, secrets) of what goes on waiting; None when it has ended."""
    key = _hash(state)
    row = await tx.fetchrow(
        "select iss, sealed from ehr_launches"
        " where state_hash = $1 and expires_at > $2",
        key,
        store.clock(),
    )
    return None if row is None else _opened(store, key, row)


def _place(key: bytes) -> dict[str, str]:
    return {"table": "ehr_launches", "row": key.hex(), "column": "sealed"}


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).digest()


def _opened(
    store: "Store", key: bytes, row: "asyncpg.Record"
) -> tuple[str, Mapping[str, str]]:
    opened = store.ring.node.open(bytes(row["sealed"]), **_place(key))
    return row["iss"], dict(json.loads(opened))
