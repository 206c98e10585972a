"""What stands around resources: what they refer to, who refers to them, hers all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.store import merges
from node.store.opened import OpenedBodies, load
from node.store.resources import NEVER, Stored
from node.store.search.women import HERS, PATIENT

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


async def referred(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    ids: Sequence[str],
    parameter: str,
    target_type: str | None = None,
    *,
    limit: int,
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return up to `limit` resources to which `ids` refer (_include)."""
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        " from (select distinct x.target_type, x.target_id from resource_references x"
        " where x.resource_type = $1 and x.resource_id = any($2) and x.parameter = $3"
        " and ($4::text is null or x.target_type = $4)) as x"
        " join resources r"
        " on r.resource_type = x.target_type and r.resource_id = x.target_id"
        " order by r.resource_type, r.resource_id limit $5",
        resource_type,
        list(ids),
        parameter,
        target_type,
        limit,
    )
    return await load(tx, store, rows, bodies)


async def referring(
    tx: "Transaction",
    store: "Store",
    resource_type: str,
    parameter: str,
    target_type: str,
    ids: Sequence[str],
    *,
    limit: int,
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return up to `limit` resources that refer to one of `ids` (_revinclude)."""
    if target_type == PATIENT and parameter in HERS:
        rows_of = await merges.named_with(tx, ids)
        ids = [*ids, *(one for others in rows_of.values() for one in others)]
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        # Of each no more than can be shown: all may refer to one device.
        " from (select distinct x.resource_type, x.resource_id"
        " from unnest($4::text[]) as target (id) cross join lateral"
        " (select resource_type, resource_id from resource_references"
        " where resource_type = $1 and parameter = $2 and target_type = $3"
        " and target_id = target.id order by sort_date desc, resource_id desc"
        " limit $5) as x) as x"
        " join resources r using (resource_type, resource_id)"
        " order by r.resource_id limit $5",
        resource_type,
        parameter,
        target_type,
        list(ids),
        limit,
    )
    return await load(tx, store, rows, bodies)


@dataclass(frozen=True)
class Belonging:
    """Which resources of a patient are wanted: by last update and clinical time.

    What has no clinical time belongs to all of them.
    """

    since: datetime
    start: datetime
    end: datetime


async def of_patient(
    tx: "Transaction",
    store: "Store",
    patient_ids: Sequence[UUID],
    wanted: Belonging,
    *,
    types: Sequence[str],
    after: tuple[str, str] | None,
    count: int,
    bodies: OpenedBodies | None = None,
) -> tuple[list[Stored], tuple[str, str] | None]:
    """Return a page of all that belongs to a patient, and after what the next begins.

    The Patient comes first, every row of her, then type by type.
    """
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version from resources r"
        " where r.patient_id = any($1) and r.resource_type = any($2)"
        " and r.last_updated >= $3"
        " and (r.sort_date = $4 or r.sort_date >= $5 and r.sort_date < $6)"
        " and ($7::text is null or"
        " (r.resource_type <> 'Patient', r.resource_type, r.resource_id)"
        " > ($7 <> 'Patient', $7, $8::text))"
        " order by r.resource_type <> 'Patient', r.resource_type, r.resource_id"
        " limit $9",
        list(patient_ids),
        list(types),
        wanted.since,
        NEVER,
        wanted.start,
        wanted.end,
        *(after or (None, None)),
        count + 1,
    )
    following = None
    if len(rows) > count:
        last = rows[count - 1]
        following = (last["resource_type"], last["resource_id"])
    return await load(tx, store, rows[:count], bodies), following


async def shared(
    tx: "Transaction",
    store: "Store",
    sources: Sequence[Stored],
    *,
    types: Sequence[str],
    bodies: OpenedBodies | None = None,
) -> list[Stored]:
    """Return what `sources` refer to that is no patient's own: devices, people."""
    rows = await tx.fetch(
        "select r.resource_type, r.resource_id, r.version"
        " from (select distinct x.target_type, x.target_id"
        " from unnest($1::text[], $2::text[]) as source (type, id)"
        " join resource_references x"
        " on x.resource_type = source.type and x.resource_id = source.id"
        " where x.target_type = any($3)) as x"
        " join resources r"
        " on r.resource_type = x.target_type and r.resource_id = x.target_id"
        " where r.patient_id is null order by r.resource_type, r.resource_id",
        [one.resource_type for one in sources],
        [one.resource_id for one in sources],
        list(types),
    )
    return await load(tx, store, rows, bodies)


# --- criteria as SQL ----------------------------------------------------------
