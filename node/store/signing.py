"""The keys with which the node signs what it says of a person (OpenID Connect).

The private half is sealed. A new key signs from the moment it is made; the one before
stays among the public ones for as long as something that it signed is valid.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

KEEP = timedelta(days=90)
SHOWN_AFTER = timedelta(days=1)


@dataclass(frozen=True)
class SigningKey:
    """A key pair as JWK; `private` has both halves."""

    kid: str
    public: Mapping[str, Any]
    private: Mapping[str, Any]


async def current(
    tx: "Transaction", store: "Store", make: Callable[[], SigningKey]
) -> SigningKey:
    """Return the key that signs; one is made when there is none or it is old."""
    now = store.clock()
    found = await _newest(tx, store, now)
    if found is None:
        # One process makes it; the others wait here and find it.
        await tx.execute("lock table signing_keys in share row exclusive mode")
        found = await _newest(tx, store, now) or await renew(tx, store, make())
    return found


async def renew(tx: "Transaction", store: "Store", key: SigningKey) -> SigningKey:
    """Let `key` sign from now on; the one before is shown for a day more."""
    now = store.clock()
    await tx.execute("delete from signing_keys where shown_until < $1", now)
    await tx.execute(
        "update signing_keys set shown_until = $1 where shown_until is null",
        now + SHOWN_AFTER,
    )
    sealed = store.ring.node.seal(json.dumps(key.private).encode(), **_place(key.kid))
    await tx.execute(
        "insert into signing_keys (kid, public_jwk, sealed, made_at)"
        " values ($1, $2, $3, $4)",
        key.kid,
        json.dumps(key.public),
        sealed,
        now,
    )
    return key


async def forget_earlier(tx: "Transaction") -> None:
    """Show none but the key that signs: another one is no longer to be trusted."""
    await tx.execute("delete from signing_keys where shown_until is not null")


async def shown(tx: "Transaction", *, now: datetime) -> list[Mapping[str, Any]]:
    """Return the public keys, the one that signs first."""
    rows = await tx.fetch(
        "select public_jwk from signing_keys"
        " where shown_until is null or shown_until > $1 order by made_at desc",
        now,
    )
    return [json.loads(row["public_jwk"]) for row in rows]


async def _newest(
    tx: "Transaction", store: "Store", now: datetime
) -> SigningKey | None:
    row = await tx.fetchrow(
        "select * from signing_keys where shown_until is null and made_at > $1",
        now - KEEP,
    )
    if row is None:
        return None
    opened = store.ring.node.open(bytes(row["sealed"]), **_place(row["kid"]))
    return SigningKey(row["kid"], json.loads(row["public_jwk"]), json.loads(opened))


def _place(kid: str) -> dict[str, str]:
    return {"table": "signing_keys", "row": kid, "column": "sealed"}
