"""Instances on their way into the store, one by one or many in a round trip.

A row is written while its object is being flushed; what a killed process left between
the two is withdrawn. Which associations still feed a study is `associations`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Origin, ReceivedInstance
from node.store import audit
from node.store.studies import FRAME, StoredInstance, open_blob, open_instance

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

_INSERT_KNOWN = """
with arrived as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
        $6::text[], $7::int[], $8::bytea[], $9::bigint[], $10::text[], $11::bytea[],
        $12::bytea[], $13::bytea[], $14::text[], $15::text[], $16::uuid[],
        $17::timestamptz[], $18::text[], $19::text[], $20::text[], $21::text[],
        $22::text[], $23::text[], $24::bytea[])
    with ordinality as t(uid, study, series, sop_class, syntax, modality, frames,
        sha256, size, blob_name, blob_key, metadata, frame_table, calling_ae,
        association, patient, audit_at, actor, role, action, entity, outcome, detail,
        canonical, place)
), touched as (
    update studies s set last_instance_at = $26, ended_at = null, ended_how = null
    from (select distinct study, patient from arrived) a
    where s.study_instance_uid = a.study and s.patient_id = a.patient
        and s.status = 'receiving'
    returning s.study_instance_uid
), written as (
    insert into instances (sop_instance_uid, study_instance_uid, series_instance_uid,
        sop_class_uid, transfer_syntax_uid, modality, number_of_frames, origin, sha256,
        size, blob_name, blob_key, metadata, frame_table, calling_ae, association,
        received_at)
    select uid, study, series, sop_class, syntax, modality, frames, 'received', sha256,
        size, blob_name, blob_key, metadata, frame_table, calling_ae, association, $26
    from arrived join touched on study_instance_uid = study order by place
    on conflict (sop_instance_uid) do nothing
    returning blob_name as written_as
), held as (
    insert into open_associations
        (association, study_instance_uid, process, touched_at)
    select distinct association, study, $25, $26::timestamptz
    from arrived join written on written_as = blob_name
    where $25 <> ''
    on conflict (association, study_instance_uid)
        do update set touched_at = excluded.touched_at
)
select array_agg(blob_name) as names, audit_append_all(
    array_agg(audit_at order by place), array_agg(actor order by place),
    array_agg(role order by place), array_agg(action order by place),
    array_agg(entity order by place), array_agg(outcome order by place),
    array_agg(detail order by place), array_agg(canonical order by place))
from arrived join written on written_as = blob_name
"""


@dataclass(frozen=True)
class KnownInstance:
    """What is needed to tell a repeated instance from a different one."""

    study_instance_uid: str
    sha256: bytes
    origin: Origin


async def known_instance(
    tx: "Transaction", sop_instance_uid: str
) -> KnownInstance | None:
    """Return what is stored under this UID, without opening anything."""
    row = await tx.fetchrow(
        "select study_instance_uid, sha256, origin from instances"
        " where sop_instance_uid = $1",
        sop_instance_uid,
    )
    if row is None:
        return None
    return KnownInstance(
        row["study_instance_uid"], row["sha256"], Origin(row["origin"])
    )


async def insert_instance(
    tx: "Transaction",
    store: "Store",
    instance: ReceivedInstance,
    patient_id: UUID,
    *,
    blob_key: bytes,
    at: datetime,
) -> bool:
    """Write the row of an instance; False when the UID was taken in this instant."""
    sealer = await store.ring.patient(tx, patient_id)
    written = await tx.fetchval(
        "insert into instances (sop_instance_uid, study_instance_uid,"
        " series_instance_uid, sop_class_uid, transfer_syntax_uid, modality,"
        " number_of_frames, sha256, size, blob_name, blob_key, metadata,"
        " frame_table, calling_ae, association, origin, received_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " $16, $17) on conflict (sop_instance_uid) do nothing returning 1",
        *_columns(sealer, instance, blob_key),
        instance.origin.value,
        at,
    )
    return written is not None


def _columns(
    sealer: "Sealer", instance: ReceivedInstance, blob_key: bytes
) -> tuple[object, ...]:
    """Return what is kept of an instance, from its UID to its association."""
    uid = instance.sop_instance_uid
    return (
        uid,
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.sop_class_uid,
        instance.transfer_syntax_uid,
        instance.modality,
        instance.number_of_frames,
        instance.sha256,
        instance.size,
        instance.blob_name,
        sealer.seal(blob_key, table="instances", row=uid, column="blob_key"),
        sealer.seal(instance.metadata, table="instances", row=uid, column="metadata"),
        b"".join(FRAME.pack(*frame) for frame in instance.frame_table),
        instance.calling_ae,
        instance.association,
    )


@dataclass(frozen=True)
class KnownArrival:
    """The sealed rows of an instance for a study that this process has seen on disk."""

    blob_name: str
    row: tuple[object, ...] = field(repr=False)


def known_arrival(
    store: "Store",
    instance: ReceivedInstance,
    patient_id: UUID,
    entry: AuditEntry,
    *,
    blob_key: bytes,
) -> KnownArrival | None:
    """Return what `insert_known` takes; None when the patient's key is not at hand.

    No database is asked, so any thread may do the sealing.
    """
    sealer = store.ring.patient_at_hand(patient_id)
    if sealer is None:
        return None
    row = (
        *_columns(sealer, instance, blob_key),
        patient_id,
        *audit.arguments(entry),
    )
    return KnownArrival(instance.blob_name, row)


async def insert_known(
    tx: "Transaction",
    arrivals: Sequence[KnownArrival],
    *,
    process: str,
    at: datetime,
) -> set[str]:
    """Write instances, hold their studies open and audit it, all in one round trip.

    Returns the blob names of those that were written. The others are repeated, or
    belong to a study that is not open or not of that patient: look closer.
    """
    columns = zip(*(arrival.row for arrival in arrivals), strict=True)
    written = await tx.fetchrow(_INSERT_KNOWN, *columns, process, at)
    return set(written["names"] or ()) if written is not None else set()


async def withdraw_unacknowledged(
    tx: "Transaction", store: "Store", process: str
) -> list[str]:
    """Remove instances of interrupted associations whose objects never got durable.

    Their rows were committed while the object was being flushed; nobody was told
    that they are stored. That can only be the last one of each association: a peer
    that was answered had sent nothing else before. Its object is read whole, for a
    lost flush leaves a file with holes. Call it before `end_associations` forgets
    which associations they were.
    """
    rows = await tx.fetch(
        "select distinct on (i.association) i.*, s.patient_id"
        " from instances i join studies s using (study_instance_uid)"
        " where i.association in"
        " (select association from open_associations where process = $1)"
        " order by i.association, i.sequence desc",
        process,
    )
    lost = []
    for row in rows:
        try:
            stored = open_instance(row, await store.ring.patient(tx, row["patient_id"]))
            await asyncio.to_thread(_read_whole, store, stored)
        except NodeError as error:
            if error.kind not in (ErrorKind.NOT_FOUND, ErrorKind.INTEGRITY):
                raise
            lost.append(row)
    for row in lost:
        # The object first: should `tx` fail, its row is found again without one.
        await asyncio.to_thread(store.blobs.delete, row["blob_name"])
        await withdraw_instance(tx, row["sop_instance_uid"])
    return [row["sop_instance_uid"] for row in lost]


def _read_whole(store: "Store", stored: StoredInstance) -> None:
    with open_blob(store, stored) as reader:
        for _ in reader.chunks():
            pass


async def withdraw_instance(tx: "Transaction", sop_instance_uid: str) -> None:
    """Remove the row of an instance whose object could not be made durable."""
    await tx.execute(
        "delete from instances where sop_instance_uid = $1", sop_instance_uid
    )
