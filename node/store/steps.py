"""Performed procedure steps on disk (PS3.4 F.7): what they say is sealed.

Open stand UIDs, the state and who told it; an accession number is a blind index.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.completion import StepStatus
from node.store import completion, studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

JsonModel = Mapping[str, Any]


@dataclass(frozen=True)
class PerformedStep:
    """A performed procedure step; `body` is its data set in DICOM JSON (PS3.18 F.2).

    `images` are the SOP Instance UIDs that it lists, of kinds that we store;
    `not_taken` counts those of other kinds.
    """

    sop_instance_uid: str
    patient_id: UUID
    calling_ae: str
    status: StepStatus
    created_at: datetime
    changed_at: datetime
    studies: tuple[str, ...]
    images: tuple[str, ...] = ()
    not_taken: int = 0
    body: JsonModel = field(default_factory=dict, repr=False)


async def insert(
    tx: "Transaction",
    store: "Store",
    step: PerformedStep,
    accession_numbers: Sequence[str],
) -> bool:
    """Write a new step; False when its UID is taken.

    `accession_numbers` has one for each of its `studies`, empty where none is told.
    """
    written = await tx.fetchval(
        "insert into performed_steps (sop_instance_uid, patient_id, calling_ae, status,"
        " created_at, changed_at, images, not_taken, body)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " on conflict do nothing returning true",
        step.sop_instance_uid,
        step.patient_id,
        step.calling_ae,
        step.status.value,
        step.created_at,
        step.changed_at,
        list(step.images),
        step.not_taken,
        await _sealed(tx, store, step),
    )
    if not written:
        return False
    pairs = zip(step.studies, accession_numbers, strict=True)
    await tx.executemany(
        "insert into performed_step_orders"
        " (sop_instance_uid, number, study_instance_uid, accession_blind)"
        " values ($1, $2, $3, $4)",
        [
            (
                step.sop_instance_uid,
                number,
                study,
                studies.accession_blind(store.ring, accession),
            )
            for number, (study, accession) in enumerate(pairs, start=1)
        ],
    )
    return True


async def find_for_update(
    tx: "Transaction", store: "Store", sop_instance_uid: str
) -> PerformedStep | None:
    """Return a step, locked until `tx` ends, or None."""
    row = await tx.fetchrow(
        "select *, array(select study_instance_uid from performed_step_orders o"
        " where o.sop_instance_uid = p.sop_instance_uid order by number) as studies"
        " from performed_steps p where sop_instance_uid = $1 for update",
        sop_instance_uid,
    )
    if row is None:
        return None
    sealer = await store.ring.patient(tx, row["patient_id"])
    body = sealer.open(
        row["body"], table="performed_steps", row=sop_instance_uid, column="body"
    )
    return PerformedStep(
        sop_instance_uid=sop_instance_uid,
        patient_id=row["patient_id"],
        calling_ae=row["calling_ae"],
        status=StepStatus(row["status"]),
        created_at=row["created_at"],
        changed_at=row["changed_at"],
        studies=tuple(row["studies"]),
        images=tuple(row["images"]),
        not_taken=row["not_taken"],
        body=json.loads(body),
    )


async def update(tx: "Transaction", store: "Store", step: PerformedStep) -> None:
    """Write what a step says now, and have its closed studies weighed again."""
    await tx.execute(
        "update performed_steps set status = $2, changed_at = $3, images = $4,"
        " not_taken = $5, body = $6 where sop_instance_uid = $1",
        step.sop_instance_uid,
        step.status.value,
        step.changed_at,
        list(step.images),
        step.not_taken,
        await _sealed(tx, store, step),
    )
    await completion.reconsider(tx, step.studies)


async def performed_steps_of(
    tx: "Transaction", study_instance_uid: str
) -> list[tuple[str, StepStatus]]:
    """Return (SOP Instance UID, state) of the steps of a study, oldest first."""
    rows = await tx.fetch(
        "select p.sop_instance_uid, p.status from performed_steps p"
        " where sop_instance_uid in (select sop_instance_uid"
        "  from performed_step_orders where study_instance_uid = $1)"
        " order by created_at, sop_instance_uid",
        study_instance_uid,
    )
    return [(row["sop_instance_uid"], StepStatus(row["status"])) for row in rows]


async def steps_of_order(
    tx: "Transaction", store: "Store", accession_number: str
) -> list[tuple[str, StepStatus]]:
    """Return (SOP Instance UID, state) of the steps that name an accession number."""
    rows = await tx.fetch(
        "select p.sop_instance_uid, p.status from performed_steps p"
        " where sop_instance_uid in (select sop_instance_uid"
        "  from performed_step_orders where accession_blind = $1)"
        " order by created_at, sop_instance_uid",
        studies.accession_blind(store.ring, accession_number),
    )
    return [(row["sop_instance_uid"], StepStatus(row["status"])) for row in rows]


async def _sealed(tx: "Transaction", store: "Store", step: PerformedStep) -> bytes:
    sealer = await store.ring.patient(tx, step.patient_id)
    return sealer.seal(
        json.dumps(dict(step.body), ensure_ascii=False).encode(),
        table="performed_steps",
        row=step.sop_instance_uid,
        column="body",
    )
