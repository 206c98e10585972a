"""Patients, studies and instances on disk, and which associations still feed a study.

Identities, headers and the keys of the stored objects are sealed with the patient's
key; names, patient ids and accession numbers are found through blind indexes. Functions
take the open transaction first, so that a verb of `node.workflow` is one commit.
"""

import asyncio
import json
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.audit import AuditEntry, note_patient
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import (
    Origin,
    PatientIdentity,
    ReceivedInstance,
    StudyRecord,
    StudyStatus,
)
from node.store import audit, likeness

if TYPE_CHECKING:
    import asyncpg

    from node.store.blobs import BlobReader
    from node.store.database import Transaction
    from node.store.keys import KeyRing, Sealer
    from node.store.store import Store

NAME_PREFIX_LENGTH = 16
_FRAME = struct.Struct(">QQ")
_STUDY = "select * from studies where study_instance_uid = $1"
_STUDY_FOR_UPDATE = "select * from studies where study_instance_uid = $1 for update"


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


class EndedHow(StrEnum):
    """How the last association that fed a study ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    LOST = "lost"  # the receiving process itself was killed


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
class KnownInstance:
    """What is needed to tell a repeated instance from a different one."""

    study_instance_uid: str
    sha256: bytes
    origin: Origin


@dataclass(frozen=True)
class StudyDetail:
    """The words of a study that may name the patient's case."""

    accession_number: str
    study_description: str


# -- patients --------------------------------------------------------------------------


async def upsert_patient(
    tx: "Transaction",
    store: "Store",
    identity: PatientIdentity,
    *,
    at: datetime,
    replace: bool = False,
    alone_in: str = "",
) -> UUID:
    """Return the id of the patient with this (issuer, patient id), made when new.

    What is on file stays unless `replace`, which is for the EHR: a scanner's
    typing error must not rename a patient, it may only fill what is empty.
    `alone_in` is the study of an instance without Patient ID, so that two
    unidentified women never become one.
    """
    blind = identity_blind(store.ring, identity, alone_in=alone_in)
    patient_id = await tx.fetchval(
        "select patient_id from patients where identity_blind = $1", blind
    )
    if patient_id is None:
        patient_id = await _insert_patient(tx, store, identity, blind, at)
    if patient_id is None:  # somebody else made it in this instant
        patient_id = await tx.fetchval(
            "select patient_id from patients where identity_blind = $1", blind
        )
    else:
        await _complete_patient(tx, store, patient_id, identity, at, replace)
    if replace:
        await tx.execute(
            "update patients set named_by_ehr = true"
            " where patient_id = $1 and not named_by_ehr",
            patient_id,
        )
    return UUID(str(patient_id))


async def find_patient(
    tx: "Transaction", store: "Store", *, issuer: str, patient_id: str
) -> UUID | None:
    """Return the id of the patient with exactly this identifier."""
    wanted = PatientIdentity(patient_id=patient_id, name="", issuer=issuer)
    found = await tx.fetchval(
        "select patient_id from patients where identity_blind = $1",
        identity_blind(store.ring, wanted),
    )
    return None if found is None else UUID(str(found))


async def patient_named(
    tx: "Transaction", store: "Store", identity: PatientIdentity, *, alone_in: str
) -> UUID | None:
    """Return the id of the patient whom a header of the study `alone_in` names."""
    found = await tx.fetchval(
        "select patient_id from patients where identity_blind = $1",
        identity_blind(store.ring, identity, alone_in=alone_in),
    )
    return None if found is None else UUID(str(found))


async def find_patients_by_number(
    tx: "Transaction", store: "Store", number: str
) -> list[UUID]:
    """Return the patients with this number, whoever gave it out."""
    rows = await tx.fetch(
        "select patient_id from patients where number_blind = $1",
        number_blind(store.ring, number),
    )
    return [row["patient_id"] for row in rows]


async def find_patients_by_name(
    tx: "Transaction", store: "Store", prefix: str
) -> list[UUID]:
    """Return patients one of whose name components may start with `prefix`.

    A prefix longer than the index gives candidates only: open and compare.
    """
    wanted = store.ring.blind("name_prefix", prefix[:NAME_PREFIX_LENGTH])
    rows = await tx.fetch(
        "select patient_id from patients where name_blinds @> array[$1::bytea]", wanted
    )
    return [row["patient_id"] for row in rows]


async def patient(
    tx: "Transaction", store: "Store", patient_id: UUID
) -> PatientIdentity:
    """Return who the patient is; NOT_FOUND when there is none."""
    body = await tx.fetchval(
        "select body from patients where patient_id = $1", patient_id
    )
    if body is None:
        raise NodeError(f"there is no patient {patient_id}", ErrorKind.NOT_FOUND)
    note_patient(patient_id)
    sealer = await store.ring.patient(tx, patient_id)
    return open_identity(sealer, patient_id, body)


def identity_blind(
    ring: "KeyRing", identity: PatientIdentity, *, alone_in: str = ""
) -> bytes:
    """Return the blind index of (issuer, patient id).

    The value is hex so that case survives: `a1` and `A1` are two patients.
    """
    patient_id = identity.patient_id.strip()
    told = [identity.issuer.strip(), patient_id] if patient_id else ["", "", alone_in]
    return ring.blind("patient_identity", json.dumps(told).encode().hex())


def number_blind(ring: "KeyRing", patient_id: str) -> bytes:
    """Return the blind index of a Patient ID of any issuer."""
    return ring.blind("patient_number", patient_id.strip())


def name_prefixes(name: str) -> list[str]:
    """Return every prefix by which a DICOM PN is found, in all groups (PS3.5 6.2.1).

    Components and their concatenation count, so `ZHANG`, `SAN`, `张` and `张三`
    all find `ZHANG^SAN=张^三`; `MULLER` finds `Müller` too.
    """
    words: set[str] = set()
    for group in [*name.split("="), *unaccented(name).split("=")]:
        components = [part.strip() for part in group.split("^") if part.strip()]
        words.update([*components, "".join(components), " ".join(components)])
    lengths = range(1, NAME_PREFIX_LENGTH + 1)
    return sorted({word[:n] for word in words for n in lengths if word[:n]})


def unaccented(text: str) -> str:
    """Return `text` with plain letters, as names may be compared."""
    apart = unicodedata.normalize("NFKD", text)
    kept = "".join(sign for sign in apart if not unicodedata.combining(sign))
    return unicodedata.normalize("NFKC", kept)


async def _insert_patient(
    tx: "Transaction",
    store: "Store",
    identity: PatientIdentity,
    blind: bytes,
    at: datetime,
) -> UUID | None:
    patient_id = uuid4()
    # The row first: a key for a patient who lost the race would stay behind for ever.
    written = await tx.fetchval(
        "insert into patients"
        " (patient_id, identity_blind, name_blinds, body, created_at, updated_at)"
        " values ($1, $2, '{}', '', $3, $3) on conflict do nothing returning 1",
        patient_id,
        blind,
        at,
    )
    if written is None:
        return None
    await _write_identity(tx, store, patient_id, identity, at)
    return patient_id


async def _complete_patient(
    tx: "Transaction",
    store: "Store",
    patient_id: UUID,
    identity: PatientIdentity,
    at: datetime,
    replace: bool,
) -> None:
    on_file = await patient(tx, store, patient_id)
    merged = identity if replace else _filled(on_file, identity)
    if merged != on_file:
        await _write_identity(tx, store, patient_id, merged, at)


async def _write_identity(
    tx: "Transaction",
    store: "Store",
    patient_id: UUID,
    identity: PatientIdentity,
    at: datetime,
) -> None:
    sealer = await store.ring.patient(tx, patient_id)
    await tx.execute(
        "update patients set body = $2, name_blinds = $3, number_blind = $5,"
        " updated_at = $4 where patient_id = $1",
        patient_id,
        _seal_identity(sealer, patient_id, identity),
        [store.ring.blind("name_prefix", p) for p in name_prefixes(identity.name)],
        at,
        number_blind(store.ring, identity.patient_id),
    )
    await likeness.note(tx, store, patient_id, identity)


def _filled(on_file: PatientIdentity, told: PatientIdentity) -> PatientIdentity:
    return PatientIdentity(
        patient_id=on_file.patient_id,
        issuer=on_file.issuer,
        name=on_file.name or told.name,
        birth_date=on_file.birth_date or told.birth_date,
        sex=on_file.sex or told.sex,
        id_number=on_file.id_number or told.id_number,
        phone=on_file.phone or told.phone,
    )


def _seal_identity(
    sealer: "Sealer", patient_id: UUID, identity: PatientIdentity
) -> bytes:
    birth = identity.birth_date
    told = {
        "patient_id": identity.patient_id,
        "issuer": identity.issuer,
        "name": identity.name,
        "birth_date": None if birth is None else birth.isoformat(),
        "sex": identity.sex,
        "id_number": identity.id_number,
        "phone": identity.phone,
    }
    text = json.dumps(told, ensure_ascii=False).encode()
    return sealer.seal(text, table="patients", row=str(patient_id), column="body")


def open_identity(sealer: "Sealer", patient_id: UUID, body: bytes) -> PatientIdentity:
    """Return who a row of `patients` stands for."""
    text = sealer.open(body, table="patients", row=str(patient_id), column="body")
    told = json.loads(text)
    birth = told["birth_date"]
    return PatientIdentity(
        **{**told, "birth_date": None if birth is None else date.fromisoformat(birth)}
    )


# -- studies ---------------------------------------------------------------------------


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


# -- instances -------------------------------------------------------------------------


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
    uid = instance.sop_instance_uid
    written = await tx.fetchval(
        "insert into instances (sop_instance_uid, study_instance_uid,"
        " series_instance_uid, sop_class_uid, transfer_syntax_uid, modality,"
        " number_of_frames, origin, sha256, size, blob_name, blob_key, metadata,"
        " frame_table, calling_ae, association, received_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " $16, $17) on conflict (sop_instance_uid) do nothing returning 1",
        uid,
        instance.study_instance_uid,
        instance.series_instance_uid,
        instance.sop_class_uid,
        instance.transfer_syntax_uid,
        instance.modality,
        instance.number_of_frames,
        instance.origin.value,
        instance.sha256,
        instance.size,
        instance.blob_name,
        sealer.seal(blob_key, table="instances", row=uid, column="blob_key"),
        sealer.seal(instance.metadata, table="instances", row=uid, column="metadata"),
        b"".join(_FRAME.pack(*frame) for frame in instance.frame_table),
        instance.calling_ae,
        instance.association,
        at,
    )
    return written is not None


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
    uid = instance.sop_instance_uid
    row = (
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
        b"".join(_FRAME.pack(*frame) for frame in instance.frame_table),
        instance.calling_ae,
        instance.association,
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
            stored = _stored(row, await store.ring.patient(tx, row["patient_id"]))
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
    return _stored(row, await store.ring.patient(tx, row["patient_id"]))


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
    return [_stored(row, sealer) for row in rows]


async def blobs_in_use(tx: "Transaction", names: Sequence[str]) -> set[str]:
    """Return those of `names` that an instance, kept version or export refers to.

    Whatever is writing instances ends first, also what a killed process has left
    running in the database: a name that is not in use now never will be.
    """
    await tx.execute(
        "lock table instances, kept_version, export_files in share row exclusive mode"
    )
    rows = await tx.fetch(
        "select blob_name from instances where blob_name = any($1)"
        " union select blob_name from kept_version where blob_name = any($1)"
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


def _stored(row: "asyncpg.Record", sealer: "Sealer") -> StoredInstance:
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
        frame_table=tuple(_FRAME.iter_unpack(row["frame_table"])),
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


# -- open associations -----------------------------------------------------------------


async def hold_open(
    tx: "Transaction",
    *,
    association: str,
    study_instance_uid: str,
    process: str,
    at: datetime,
) -> None:
    """Note that an association feeds a study."""
    await tx.execute(
        "insert into open_associations"
        " (association, study_instance_uid, process, touched_at)"
        " values ($1, $2, $3, $4) on conflict (association, study_instance_uid)"
        " do update set touched_at = excluded.touched_at",
        association,
        study_instance_uid,
        process,
        at,
    )


async def hold_open_by_repeat(
    tx: "Transaction",
    *,
    association: str,
    study_instance_uid: str,
    calling_ae: str,
    process: str,
    at: datetime,
) -> None:
    """Note that an association repeats what is here of a study that is still open.

    A machine that was cut off sends all again: its orderly end then counts, even
    if nothing of what it sent was new.
    """
    await tx.execute(
        "insert into open_associations"
        " (association, study_instance_uid, process, touched_at, calling_ae)"
        " select $1, study_instance_uid, $3, $4, $5 from studies"
        " where study_instance_uid = $2 and status = 'receiving'"
        " on conflict (association, study_instance_uid)"
        " do update set touched_at = excluded.touched_at",
        association,
        study_instance_uid,
        process,
        at,
        calling_ae,
    )


async def end_associations(
    tx: "Transaction",
    *,
    how: EndedHow,
    at: datetime,
    association: str | None = None,
    process: str | None = None,
) -> list[str]:
    """Forget one association, or all of a process; return the open studies they fed.

    A transfer that broke off is made good only by one of the same sender that
    began later and was released: it had its chance to send the rest.
    """
    gone = await tx.fetch(
        "delete from open_associations a where ($1::text is null or association = $1)"
        " and ($2::text is null or process = $2)"
        " returning study_instance_uid as study, overlapped,"
        # Who held it open: its row says so, or what came over it.
        " coalesce(a.calling_ae, (select i.calling_ae from instances i"
        "  where i.study_instance_uid = a.study_instance_uid"
        "  and i.association = a.association limit 1)) as sender",
        association,
        process,
    )
    if not gone:
        return []
    rows = await tx.fetch(
        "update studies set ended_at = $2, ended_how = $3"
        " where study_instance_uid = any($1) and status = 'receiving'"
        " returning study_instance_uid",
        sorted({row["study"] for row in gone}),
        at,
        how.value,
    )
    still_open = {row["study_instance_uid"] for row in rows}
    ends = [row for row in gone if row["study"] in still_open and row["sender"]]
    if how is EndedHow.RELEASED:
        await _mend_transfers(tx, [row for row in ends if not row["overlapped"]])
    else:
        await _break_transfers(tx, ends, how, at)
    return sorted(still_open)


async def _mend_transfers(tx: "Transaction", ends: "Sequence[asyncpg.Record]") -> None:
    await tx.execute(
        "delete from broken_transfers b using unnest($1::text[], $2::text[]) e(s, ae)"
        " where b.study_instance_uid = e.s and b.calling_ae = e.ae",
        [row["study"] for row in ends],
        [row["sender"] for row in ends],
    )


async def _break_transfers(
    tx: "Transaction", ends: "Sequence[asyncpg.Record]", how: EndedHow, at: datetime
) -> None:
    pairs = sorted({(row["study"], row["sender"]) for row in ends})
    uids, senders = [study for study, _ in pairs], [sender for _, sender in pairs]
    await tx.execute(
        "insert into broken_transfers (study_instance_uid, calling_ae, how, at)"
        " select s, ae, $3, $4 from unnest($1::text[], $2::text[]) e(s, ae)"
        " on conflict (study_instance_uid, calling_ae)"
        " do update set how = excluded.how, at = excluded.at",
        uids,
        senders,
        how.value,
        at,
    )
    await tx.execute(
        "update open_associations a set overlapped = true"
        " from unnest($1::text[], $2::text[]) e(s, ae)"
        " where a.study_instance_uid = e.s and (a.calling_ae = e.ae or exists"
        "  (select from instances i where i.study_instance_uid = e.s"
        "  and i.association = a.association and i.calling_ae = e.ae))",
        uids,
        senders,
    )
