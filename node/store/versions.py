"""Other versions that came under a SOP Instance UID that was taken.

The first version is the instance, served to everybody; the others are numbered from 2,
sealed with the patient's key as all of hers is, and read by an administrator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import ReceivedInstance
from node.store import studies

if TYPE_CHECKING:
    from node.store.blobs import BlobReader
    from node.store.database import Transaction
    from node.store.store import Store


@dataclass(frozen=True)
class KeptVersion:
    """One version beside the served one; `number` from 2, `size` in bytes."""

    sop_instance_uid: str
    study_instance_uid: str
    number: int
    sha256: bytes
    size: int
    transfer_syntax_uid: str
    calling_ae: str
    received_at: datetime


async def insert(
    tx: "Transaction",
    store: "Store",
    instance: ReceivedInstance,
    patient_id: UUID,
    *,
    blob_key: bytes,
    process: str,
    at: datetime,
) -> int | None:
    """Write the row of a version; return its number, None when these bytes are kept.

    The caller holds the study: two versions never get one number.
    """
    sealer = await store.ring.patient(tx, patient_id)
    number: int | None = await tx.fetchval(
        "insert into kept_version (blob_name, sop_instance_uid, number, sha256, size,"
        " sop_class_uid, transfer_syntax_uid, blob_key, calling_ae, process,"
        " received_at)"
        " select $1, $2, 1 + coalesce(max(number), 1), $3, $4, $5, $6, $7, $8, $9, $10"
        " from kept_version where sop_instance_uid = $2"
        " on conflict (sop_instance_uid, sha256) do nothing returning number",
        instance.blob_name,
        instance.sop_instance_uid,
        instance.sha256,
        instance.size,
        instance.sop_class_uid,
        instance.transfer_syntax_uid,
        sealer.seal(
            blob_key, table="kept_version", row=instance.blob_name, column="blob_key"
        ),
        instance.calling_ae,
        process,
        at,
    )
    return number


async def kept(
    tx: "Transaction", *, study_instance_uid: str | None = None
) -> list[KeptVersion]:
    """Return all versions, or those of a study, as they came."""
    rows = await tx.fetch(
        "select v.*, i.study_instance_uid from kept_version v"
        " join instances i using (sop_instance_uid)"
        " where $1::text is null or i.study_instance_uid = $1"
        " order by v.received_at, v.sop_instance_uid, v.number",
        study_instance_uid,
    )
    return [
        KeptVersion(
            sop_instance_uid=row["sop_instance_uid"],
            study_instance_uid=row["study_instance_uid"],
            number=row["number"],
            sha256=row["sha256"],
            size=row["size"],
            transfer_syntax_uid=row["transfer_syntax_uid"],
            calling_ae=row["calling_ae"],
            received_at=row["received_at"],
        )
        for row in rows
    ]


async def count(tx: "Transaction") -> int:
    """Return how many versions there are."""
    return int(await tx.fetchval("select count(*) from kept_version"))


async def open_version(
    tx: "Transaction", store: "Store", sop_instance_uid: str, number: int
) -> "BlobReader":
    """Return random access to the Part 10 file of a version; NOT_FOUND without it."""
    row = await tx.fetchrow(
        "select v.blob_name, v.blob_key, s.patient_id from kept_version v"
        " join instances using (sop_instance_uid)"
        " join studies s using (study_instance_uid)"
        " where sop_instance_uid = $1 and number = $2",
        sop_instance_uid,
        number,
    )
    if row is None:
        raise NodeError(
            f"instance {sop_instance_uid} has no version {number}", ErrorKind.NOT_FOUND
        )
    sealer = await store.ring.patient(tx, row["patient_id"])
    key = sealer.open(
        row["blob_key"], table="kept_version", row=row["blob_name"], column="blob_key"
    )
    return store.blobs.reader(
        row["blob_name"],
        key=key,
        associated_data=studies.associated_data(sop_instance_uid),
    )


async def of_process(tx: "Transaction", process: str) -> list[str]:
    """Return the objects of the versions that a process received."""
    rows = await tx.fetch(
        "select blob_name from kept_version where process = $1", process
    )
    return [row["blob_name"] for row in rows]


async def withdraw(tx: "Transaction", blob_names: Sequence[str]) -> None:
    """Remove the rows of versions whose objects are not there."""
    await tx.execute(
        "delete from kept_version where blob_name = any($1)", list(blob_names)
    )
