"""Studies, and the instances stored of them: rows, headers and objects on disk.

Headers, words and the keys of the stored objects are sealed with the patient's key;
accession numbers are found through a blind index. How instances come is `receiving`.
Functions take the open transaction first, so that a verb of `node.workflow` is one
commit.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import note_patient
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Origin, ReceivedInstance, StudyRecord, StudyStatus

if TYPE_CHECKING:
    import asyncpg

    from node.store.blobs import BlobReader
    from node.store.database import Transaction
    from node.store.keys import KeyRing, Sealer
    from node.store.store import Store

# Where the pixels of a frame begin in the object, and how many bytes they are.
FRAME = struct.Struct(">QQ")
_STUDY = "select * from studies where study_instance_uid = $1"
_STUDY_FOR_UPDATE = "select * from studies where study_instance_uid = $1 for update"


@dataclass(frozen=True)
class StoredInstance:
    """One instance as stored, its header and the key of its object opened."""

    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    number_of_frames: int
    origin: Origin
    sha256: bytes
    size: int
    blob_name: str
    frame_table: tuple[tuple[int, int], ...]
    patient_id: UUID
    calling_ae: str
    received_at: datetime
    metadata: bytes = field(repr=False)
    blob_key: bytes = field(repr=False)


@dataclass(frozen=True)
class StudyDetail:
    """The words of a study that may name the patient's case."""

    accession_number: str
    study_description: str


async def study(
    tx: "Transaction", study_instance_uid: str, *, for_update: bool = False
) -> StudyRecord | None:
    """Return the study or None; `for_update` locks it until `tx` ends."""
    row = await tx.fetchrow(
        _STUDY_FOR_UPDATE if for_update else _STUDY,
        study_instance_uid,
    )
    return None if row is None else _record(row)


async def study_detail(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> StudyDetail:
    """Return accession number and description; NOT_FOUND without such a study."""
    row = await tx.fetchrow(
        "select patient_id, body from studies where study_instance_uid = $1",
        study_instance_uid,
    )
    if row is None:
        raise NodeError(f"there is no study {study_instance_uid}", ErrorKind.NOT_FOUND)
    sealer = await store.ring.patient(tx, row["patient_id"])
    return open_detail(sealer, study_instance_uid, row["body"])


def open_detail(sealer: "Sealer", study_instance_uid: str, body: bytes) -> StudyDetail:
    """Return the words of the study of a row."""
    text = sealer.open(body, table="studies", row=study_instance_uid, column="body")
    return StudyDetail(**json.loads(text))


async def open_study(
    tx: "Transaction",
    store: "Store",
    instance: ReceivedInstance,
    patient_id: UUID,
    *,
    at: datetime,
) -> StudyRecord:
    """Return the study of `instance`, locked; made when this is its first instance."""
    known = await study(tx, instance.study_instance_uid, for_update=True)
    if known is not None:
        return known
    sealer = await store.ring.patient(tx, patient_id)
    detail = {
        "accession_number": instance.accession_number,
        "study_description": instance.study_description,
    }
    await tx.execute(
        "insert into studies (study_instance_uid, patient_id, status, study_date,"
        " accession_blind, body, opened_at, last_instance_at)"
        " values ($1, $2, 'receiving', $3, $4, $5, $6, $6) on conflict do nothing",
        instance.study_instance_uid,
        patient_id,
        instance.study_date,
        accession_blind(store.ring, instance.accession_number),
        sealer.seal(
            json.dumps(detail, ensure_ascii=False).encode(),
            table="studies",
            row=instance.study_instance_uid,
            column="body",
        ),
        at,
    )
    made = await study(tx, instance.study_instance_uid, for_update=True)
    if made is None:
        raise NodeError("the study vanished", ErrorKind.CONFLICT)
    return made


async def find_studies_by_accession(
    tx: "Transaction", store: "Store", accession_number: str
) -> list[str]:
    """Return the UIDs of the studies with this accession number, newest first."""
    rows = await tx.fetch(
        "select study_instance_uid from studies where accession_blind = $1"
        " order by opened_at desc",
        accession_blind(store.ring, accession_number),
    )
    return [row["study_instance_uid"] for row in rows]


async def touch_study(
    tx: "Transaction", study_instance_uid: str, *, at: datetime
) -> None:
    """Note that an instance has come: the study is open (again) from now on."""
    await tx.execute(
        "update studies set status = 'receiving', last_instance_at = $2,"
        " ended_at = null, ended_how = null where study_instance_uid = $1",
        study_instance_uid,
        at,
    )


async def close_study(
    tx: "Transaction",
    study_instance_uid: str,
    *,
    at: datetime,
    evidence: str,
    status: StudyStatus = StudyStatus.CLOSED,
) -> StudyRecord | None:
    """Close an open study under the next generation; None when it is not open."""
    row = await tx.fetchrow(
        "update studies set status = $4, closed_at = $2, evidence = $3,"
        " generation = generation + 1"
        " where study_instance_uid = $1 and status = 'receiving' returning *",
        study_instance_uid,
        at,
        evidence,
        status.value,
    )
    return None if row is None else _record(row)


async def mark_study(
    tx: "Transaction", study_instance_uid: str, status: StudyStatus, *, generation: int
) -> bool:
    """Set what became of the reading; False when the study moved on meanwhile."""
    done = await tx.fetchval(
        "update studies set status = $2 where study_instance_uid = $1"
        " and generation = $3 and status <> 'receiving' returning 1",
        study_instance_uid,
        status.value,
        generation,
    )
    return done is not None


async def counts(tx: "Transaction") -> Mapping[str, int]:
    """Return how many patients, studies by status, and instances there are."""
    rows = await tx.fetch("select status, count(*) from studies group by status")
    by_status = {row["status"]: int(row["count"]) for row in rows}
    return {
        **{status.value: by_status.get(status.value, 0) for status in StudyStatus},
        "patients": await tx.fetchval("select count(*) from patients"),
        "studies": sum(by_status.values()),
        "instances": await tx.fetchval("select count(*) from instances"),
    }


def accession_blind(ring: "KeyRing", accession_number: str) -> bytes | None:
    """Return the blind index of an accession number, None without one."""
    number = accession_number.strip()
    return ring.blind("accession_number", number) if number else None


def _record(row: "asyncpg.Record") -> StudyRecord:
    return StudyRecord(
        study_instance_uid=row["study_instance_uid"],
        patient_id=row["patient_id"],
        status=StudyStatus(row["status"]),
        study_date=row["study_date"],
        opened_at=row["opened_at"],
        last_instance_at=row["last_instance_at"],
        closed_at=row["closed_at"],
        evidence=row["evidence"],
        generation=row["generation"],
        incomplete=row["incomplete"],
    )


async def instance(
    tx: "Transaction", store: "Store", sop_instance_uid: str
) -> StoredInstance | None:
    """Return the instance with its header opened, or None."""
    row = await tx.fetchrow(
        "select i.*, s.patient_id from instances i join studies s"
        " using (study_instance_uid) where sop_instance_uid = $1",
        sop_instance_uid,
    )
    if row is None:
        return None
    note_patient(row["patient_id"])
    return open_instance(row, await store.ring.patient(tx, row["patient_id"]))


async def instances_of(
    tx: "Transaction",
    store: "Store",
    study_instance_uid: str,
    origin: Origin | None = None,
) -> list[StoredInstance]:
    """Return the instances of a study as they came, of one origin if asked."""
    rows = await tx.fetch(
        "select i.*, s.patient_id from instances i join studies s"
        " using (study_instance_uid) where study_instance_uid = $1"
        " and ($2::text is null or origin = $2) order by i.sequence",
        study_instance_uid,
        None if origin is None else origin.value,
    )
    if not rows:
        return []
    note_patient(rows[0]["patient_id"])
    sealer = await store.ring.patient(tx, rows[0]["patient_id"])
    return [open_instance(row, sealer) for row in rows]


async def blobs_in_use(tx: "Transaction", names: Sequence[str]) -> set[str]:
    """Return those of `names` that an instance, version, page or export refers to.

    Whatever is writing instances ends first, also what a killed process has left
    running in the database: a name that is not in use now never will be.
    """
    await tx.execute(
        "lock table instances, kept_version, report_page, export_files"
        " in share row exclusive mode"
    )
    rows = await tx.fetch(
        "select blob_name from instances where blob_name = any($1)"
        " union select blob_name from kept_version where blob_name = any($1)"
        " union select blob_name from report_page where blob_name = any($1)"
        " union select blob_name from export_files where blob_name = any($1)",
        list(names),
    )
    return {row["blob_name"] for row in rows}


def associated_data(sop_instance_uid: str) -> bytes:
    """Return what binds a stored object to its instance."""
    return f"instances/{sop_instance_uid}".encode()


def open_blob(store: "Store", instance: StoredInstance) -> "BlobReader":
    """Return random access to the Part 10 file of an instance."""
    return store.blobs.reader(
        instance.blob_name,
        key=instance.blob_key,
        associated_data=associated_data(instance.sop_instance_uid),
    )


def open_instance(row: "asyncpg.Record", sealer: "Sealer") -> StoredInstance:
    """Return the instance of a row that tells its patient too."""
    uid = row["sop_instance_uid"]
    return StoredInstance(
        sop_instance_uid=uid,
        study_instance_uid=row["study_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        transfer_syntax_uid=row["transfer_syntax_uid"],
        modality=row["modality"],
        number_of_frames=row["number_of_frames"],
        origin=Origin(row["origin"]),
        sha256=row["sha256"],
        size=row["size"],
        blob_name=row["blob_name"],
        frame_table=tuple(FRAME.iter_unpack(row["frame_table"])),
        patient_id=row["patient_id"],
        calling_ae=row["calling_ae"],
        received_at=row["received_at"],
        metadata=sealer.open(
            row["metadata"], table="instances", row=uid, column="metadata"
        ),
        blob_key=sealer.open(
            row["blob_key"], table="instances", row=uid, column="blob_key"
        ),
    )
