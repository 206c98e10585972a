"""Instances enter the node: one transaction each, acknowledged only after it."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry, Outcome, by_the_node
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import (
    Duplicates,
    Origin,
    PatientIdentity,
    ReceivedInstance,
    StudyStatus,
)
from node.store import (
    associations,
    audit,
    identities,
    merges,
    receiving,
    studies,
    versions,
)

if TYPE_CHECKING:
    from node.store.blobs import BlobWriter
    from node.store.database import Transaction
    from node.store.store import Store

MODALITY_ROLE = "modality"


class Received(Enum):
    """What became of an instance."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the same bytes were here already; nothing was written
    KEPT = "kept"  # beside other bytes of the same UID, which stay the ones served


@dataclass(frozen=True)
class Arrival:
    """An instance whose object is safe, on its way to its row.

    `process` is the stable name of the process that holds the association open;
    empty for instances that come over no association (STOW-RS). `coerced` tells
    which attributes were changed by which rule, without values. `duplicates` says
    what becomes of it when its UID holds other bytes. `prepared` are its sealed rows
    where `prepare` could make them.
    """

    instance: ReceivedInstance
    blob_key: bytes = field(repr=False)
    process: str = ""
    coerced: Sequence[str] = ()
    duplicates: Duplicates = Duplicates.REJECT
    prepared: receiving.KnownArrival | None = None


@dataclass(frozen=True)
class KeptObject:
    """An object in the blob store under a key of its own, which no row holds yet."""

    blob_name: str
    size: int
    sha256: bytes
    key: bytes = field(repr=False)


def new_object(
    store: "Store", sop_instance_uid: str
) -> "tuple[BlobWriter, str, bytes]":
    """Return a writer for the Part 10 file of an instance, its blob name and key."""
    fresh = os.urandom(16 + 32)
    name, key = f"instances/{fresh[:16].hex()}", fresh[16:]
    writer = store.blobs.writer(
        name, key=key, associated_data=studies.associated_data(sop_instance_uid)
    )
    return writer, name, key


def keep_object(store: "Store", sop_instance_uid: str, part10: bytes) -> KeptObject:
    """Write a whole Part 10 file durably. Blocks: call it in a thread.

    The digest covers the data set only, so that another file meta (another
    sending AE title) does not make another object.
    """
    at, whole = data_set_offset(part10), memoryview(part10)
    return keep_pieces(store, sop_instance_uid, whole[:at], [whole[at:]])


def keep_pieces(
    store: "Store",
    sop_instance_uid: str,
    file_meta: bytes | memoryview,
    data_set: Iterable[bytes | memoryview],
) -> KeptObject:
    """Write a Part 10 file durably as its pieces come. Blocks as `keep_object`."""
    writer, name, key = new_object(store, sop_instance_uid)
    digest, size = hashlib.sha256(), len(file_meta)
    try:
        writer.write(file_meta)
        for piece in data_set:
            writer.write(piece)
            digest.update(piece)
            size += len(piece)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return KeptObject(blob_name=name, size=size, sha256=digest.digest(), key=key)


def data_set_offset(part10: bytes) -> int:
    """Return where the data set of a Part 10 file starts (PS3.10 7.1)."""
    if part10[128:132] != b"DICM" or part10[132:138] != b"\x02\x00\x00\x00UL":
        raise NodeError("no file meta information", ErrorKind.INVALID)
    return 144 + int.from_bytes(part10[140:144], "little")


class KnownStudies:
    """Whose study this process has seen on disk: such instances take a short way."""

    LIMIT = 1024

    def __init__(self) -> None:
        self._patients: OrderedDict[tuple[str, PatientIdentity], UUID] = OrderedDict()

    def patient_of(self, instance: ReceivedInstance) -> UUID | None:
        """Return the patient when exactly this identity has come with this study."""
        return self._patients.get((instance.study_instance_uid, instance.patient))

    def remember(self, instance: ReceivedInstance, patient_id: UUID) -> None:
        """Note what is on disk."""
        key = (instance.study_instance_uid, instance.patient)
        self._patients[key] = patient_id
        self._patients.move_to_end(key)
        if len(self._patients) > self.LIMIT:
            self._patients.popitem(last=False)


async def receive_instance(
    store: "Store", arrival: Arrival, known: KnownStudies | None = None
) -> Received:
    """Write the rows of one instance; when this returns they are on disk.

    The same bytes under the same UID are DUPLICATE; other bytes are KEPT beside
    them where the site wants it. Raises NodeError CONFLICT, audited, when it does
    not, or when the study belongs to another patient: the first one stays.
    """
    try:
        async with store.db.transaction() as tx:
            received, patient_id = await _receive(tx, store, arrival)
    except NodeError as error:
        if error.kind is ErrorKind.CONFLICT:
            await _audit_refusal(store, arrival, error)
        raise
    if known is not None and patient_id is not None:
        known.remember(arrival.instance, patient_id)
    return received


def prepare(
    store: "Store", arrival: Arrival, known: KnownStudies
) -> receiving.KnownArrival | None:
    """Return the sealed rows of an instance whose study is `known`, from any thread."""
    patient_id = known.patient_of(arrival.instance)
    if patient_id is None:
        return None
    return receiving.known_arrival(
        store,
        arrival.instance,
        patient_id,
        _entry(store, arrival, patient_id, reopened=False),
        blob_key=arrival.blob_key,
    )


async def receive_instances(
    store: "Store",
    arrivals: Sequence[Arrival],
    known: KnownStudies,
    *,
    connection: "Transaction | None" = None,
) -> list[Received | Exception]:
    """Write the rows of several instances of one process; return results in order.

    Those of studies that are open and `known` share one round trip and one
    commit. Each of the others gets its own transaction, so that one that cannot
    be stored does not take others with it. A `connection` that is held from call
    to call, outside any transaction, saves what a pool does between two users.
    """
    results: list[Received | Exception] = []
    try:
        written = await _receive_known(store, arrivals, known, connection)
    except NodeError as error:
        if error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.EXHAUSTED):
            return [error for _ in arrivals]
        written = set()
    except Exception:
        if connection is None or connection.is_closed():
            raise
        written = set()  # one of them was too much for all: each for itself
    for arrival in arrivals:
        if arrival.instance.blob_name in written:
            results.append(Received.STORED)
            continue
        try:
            results.append(await receive_instance(store, arrival, known))
        except Exception as error:
            results.append(error)
    return results


async def withdraw(store: "Store", sop_instance_uid: str) -> None:
    """Take back an instance whose object could not be made durable."""
    async with store.db.transaction() as tx:
        await receiving.withdraw_instance(tx, sop_instance_uid)
        await audit.record(
            tx,
            by_the_node(
                store.clock(),
                "delete",
                f"instance/{sop_instance_uid}",
                {"reason": "its object could not be written"},
            ),
        )


async def withdraw_version(store: "Store", blob_name: str) -> None:
    """Take back a kept version whose object could not be made durable."""
    async with store.db.transaction() as tx:
        await versions.withdraw(tx, [blob_name])


async def forget_unfinished_versions(store: "Store", process: str) -> int:
    """Take back versions of a killed process whose objects never got durable.

    Nobody was told that they are stored. Returns how many there were.
    """
    async with store.db.transaction() as tx:
        held = await versions.of_process(tx, process)
        lost = [name for name in held if not store.blobs.exists(name)]
        await versions.withdraw(tx, lost)
    return len(lost)


async def _receive_known(
    store: "Store",
    arrivals: Sequence[Arrival],
    known: KnownStudies,
    connection: "Transaction | None",
) -> set[str]:
    rows = [
        row
        for arrival in arrivals
        if (row := arrival.prepared or prepare(store, arrival, known)) is not None
    ]
    if not rows:
        return set()
    process, at = arrivals[0].process, store.clock()
    if connection is not None:
        return await receiving.insert_known(connection, rows, process=process, at=at)
    async with store.db.connection() as another:
        return await receiving.insert_known(another, rows, process=process, at=at)


async def settle_abandoned(store: "Store") -> int:
    """Keep or remove the objects that killed processes left; return how many.

    One that an instance refers to was on its way to its place. Nobody was ever told
    of the others.
    """
    with store.blobs.abandoned() as left:
        if left:
            async with store.db.transaction() as tx:
                used = await studies.blobs_in_use(tx, [one.name for one in left])
            for one in left:
                if one.name in used:
                    one.keep()
                else:
                    one.remove()
        return len(left)


async def store_result(
    store: "Store", tx: "Transaction", result: ReceivedInstance, *, blob_key: bytes
) -> Received:
    """Add an instance that the node itself made to its study, which stays closed.

    Its UID derives from the job that made it, so one that is here already is a
    retry, DUPLICATE, whatever the clock in its header says.
    """
    if result.origin is Origin.RECEIVED:
        raise NodeError("a result has an origin of its own", ErrorKind.RULE)
    study = await studies.study(tx, result.study_instance_uid, for_update=True)
    if study is None:
        raise NodeError(
            f"there is no study {result.study_instance_uid}", ErrorKind.NOT_FOUND
        )
    known = await receiving.known_instance(tx, result.sop_instance_uid)
    if known is not None:
        same = (known.study_instance_uid, known.origin)
        if same == (result.study_instance_uid, result.origin):
            return Received.DUPLICATE
        raise _taken()
    at = store.clock()
    if not await receiving.insert_instance(
        tx, store, result, study.patient_id, blob_key=blob_key, at=at
    ):
        raise _taken()
    await audit.record(
        tx,
        by_the_node(
            at,
            "create",
            f"instance/{result.sop_instance_uid}",
            {
                "study_instance_uid": result.study_instance_uid,
                "origin": result.origin.value,
            },
        ),
    )
    return Received.STORED


async def _receive(
    tx: "Transaction", store: "Store", arrival: Arrival
) -> tuple[Received, UUID | None]:
    instance, at = arrival.instance, store.clock()
    known = await receiving.known_instance(tx, instance.sop_instance_uid)
    if known is not None:
        same = (known.study_instance_uid, known.sha256)
        if same == (instance.study_instance_uid, instance.sha256):
            await _hold_open_again(tx, arrival, at)
            return Received.DUPLICATE, None
        return await _keep_version(tx, store, arrival, known), None
    patient_id = await identities.upsert_patient(
        tx,
        store,
        instance.patient,
        at=at,
        alone_in=instance.study_instance_uid,
    )
    study = await studies.open_study(tx, store, instance, patient_id, at=at)
    if study.patient_id != patient_id:
        raise await _of_another(tx, study.patient_id, patient_id)
    if not await receiving.insert_instance(
        tx, store, instance, patient_id, blob_key=arrival.blob_key, at=at
    ):
        raise _taken()
    await studies.touch_study(tx, instance.study_instance_uid, at=at)
    if arrival.process:
        await associations.hold_open(
            tx,
            association=instance.association,
            study_instance_uid=instance.study_instance_uid,
            process=arrival.process,
            at=at,
        )
    reopened = study.status is not StudyStatus.RECEIVING
    await audit.record(tx, _entry(store, arrival, patient_id, reopened=reopened))
    return Received.STORED, patient_id


async def _of_another(tx: "Transaction", known: UUID, told: UUID) -> NodeError:
    """Return why an instance is not taken into a study of another row.

    Of one woman's rows neither: should they be two women after all, images of the
    one would stand in a study of the other, sealed with her key.
    """
    message = "the study belongs to another patient"
    if told in await merges.rows_of(tx, known):
        message = "the study began under another Patient ID of this patient"
    return NodeError(message, ErrorKind.CONFLICT)


async def _hold_open_again(tx: "Transaction", arrival: Arrival, at: datetime) -> None:
    """Let the end of an association count although it brought nothing new.

    A study that is closed stays closed: all that was sent again is here.
    """
    if arrival.process:
        await associations.hold_open_by_repeat(
            tx,
            association=arrival.instance.association,
            study_instance_uid=arrival.instance.study_instance_uid,
            calling_ae=arrival.instance.calling_ae,
            process=arrival.process,
            at=at,
        )


async def _keep_version(
    tx: "Transaction",
    store: "Store",
    arrival: Arrival,
    known: receiving.KnownInstance,
) -> Received:
    """Keep other bytes under a UID that is taken, if the site wants them.

    Only a machine's own second version of its image is kept: what names another
    study or patient, or the UID of a result of ours, is never taken in so.
    """
    instance = arrival.instance
    theirs = (known.origin, known.study_instance_uid)
    if arrival.duplicates is Duplicates.REJECT or theirs != (
        Origin.RECEIVED,
        instance.study_instance_uid,
    ):
        raise _taken()
    patient_id = await identities.patient_named(
        tx, store, instance.patient, alone_in=instance.study_instance_uid
    )
    study = await studies.study(tx, instance.study_instance_uid, for_update=True)
    if study is None or study.patient_id != patient_id:
        raise NodeError("the study belongs to another patient", ErrorKind.CONFLICT)
    number = await versions.insert(
        tx,
        store,
        instance,
        patient_id,
        blob_key=arrival.blob_key,
        process=arrival.process,
        at=store.clock(),
    )
    if number is None:
        return Received.DUPLICATE
    entry = _entry(store, arrival, patient_id, reopened=False)
    told = {**entry.detail, "kept_version": str(number)}
    await audit.record(tx, replace(entry, detail=told))
    return Received.KEPT


def _entry(
    store: "Store", arrival: Arrival, patient_id: UUID, *, reopened: bool
) -> AuditEntry:
    instance = arrival.instance
    detail = {
        "study_instance_uid": instance.study_instance_uid,
        "patient": str(patient_id),
        "association": instance.association,
    }
    if arrival.coerced:
        detail["coerced"] = "; ".join(arrival.coerced)
    return AuditEntry(
        at=store.clock(),
        actor=instance.calling_ae,
        role=MODALITY_ROLE,
        action="create",
        entity=f"instance/{instance.sop_instance_uid}",
        detail={**detail, "reopened": "late instance"} if reopened else detail,
    )


def _taken() -> NodeError:
    return NodeError(
        "another object holds this SOP Instance UID",
        ErrorKind.CONFLICT,
        expression="SOPInstanceUID",
    )


async def _audit_refusal(store: "Store", arrival: Arrival, error: NodeError) -> None:
    instance = arrival.instance
    async with store.db.transaction() as tx:
        await audit.record(
            tx,
            AuditEntry(
                at=store.clock(),
                actor=instance.calling_ae,
                role=MODALITY_ROLE,
                action="create",
                entity=f"instance/{instance.sop_instance_uid}",
                outcome=Outcome.REFUSED,
                detail={
                    "study_instance_uid": instance.study_instance_uid,
                    "reason": error.message,
                },
            ),
        )
