"""Who patients are: sealed with the patient's key, found through blind indexes.

A patient is one (issuer, patient id); what scanners and the EHR tell of her is one row.
Functions take the open transaction first, so that a verb of `node.workflow` is one
commit.
"""

import json
import unicodedata
from datetime import date, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.audit import note_patient
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store import likeness

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import KeyRing, Sealer
    from node.store.store import Store

NAME_PREFIX_LENGTH = 16


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


async def note_likeness_of_older(store: "Store", count: int = 200) -> None:
    """Note whom patients are like who were written before that was noted."""
    while True:
        async with store.db.transaction() as tx:
            rows = await tx.fetch(
                "select patient_id from patients where traits = 0"
                " limit $1 for update skip locked",
                count,
            )
            for row in rows:
                patient_id = row["patient_id"]
                known = await _unless_erased(tx, store, patient_id)
                await likeness.note(tx, store, patient_id, known)
        if not rows:
            return


async def _unless_erased(
    tx: "Transaction", store: "Store", patient_id: UUID
) -> PatientIdentity | None:
    try:
        return await patient(tx, store, patient_id)
    except NodeError as error:
        if error.kind is not ErrorKind.GONE:
            raise
        return None


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
