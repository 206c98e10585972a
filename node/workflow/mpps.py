"""Performed procedure steps: what a machine says it does, and has done (PS3.4 F.7).

A step moves its order on the worklist, and its end says whether a study is whole:
`node.workflow.completion` weighs it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry, Outcome
from node.domain.completion import StepStatus
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderStatus
from node.domain.study import PatientIdentity
from node.store import audit, identities, merges, orders, steps, studies
from node.store.steps import JsonModel, PerformedStep
from node.workflow.intake import MODALITY_ROLE
from node.workflow.orders import (
    RequestIds,
    find_named_orders,
    move_order,
    numbers_of,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_ORDER_STATUS = {
    StepStatus.IN_PROGRESS: OrderStatus.IN_PROGRESS,
    StepStatus.COMPLETED: OrderStatus.COMPLETED,
    StepStatus.DISCONTINUED: OrderStatus.DISCONTINUED,
}


@dataclass(frozen=True)
class Scheduled:
    """One item of Scheduled Step Attributes Sequence: the study and its order (PHI)."""

    study_instance_uid: str
    ids: RequestIds = field(repr=False)


@dataclass(frozen=True)
class ToldStep:
    """What a machine says of a step, now that it begins or at any time later."""

    status: StepStatus
    patient: PatientIdentity = field(repr=False)
    scheduled: tuple[Scheduled, ...]
    images: tuple[str, ...] = ()
    not_taken: int = 0
    body: JsonModel = field(default_factory=dict, repr=False)


async def begin_step(
    store: "Store", *, sop_instance_uid: str, calling_ae: str, told: ToldStep
) -> None:
    """Keep a step that a machine begins; CONFLICT when its UID is taken."""
    async with store.db.transaction() as tx:
        patient_id = await _patient_of(tx, store, told)
        step = PerformedStep(
            sop_instance_uid=sop_instance_uid,
            patient_id=patient_id,
            calling_ae=calling_ae,
            status=told.status,
            created_at=store.clock(),
            changed_at=store.clock(),
            studies=tuple(item.study_instance_uid for item in told.scheduled),
            images=told.images,
            not_taken=told.not_taken,
            body=told.body,
        )
        accessions = [item.ids.accession_number for item in told.scheduled]
        if not await steps.insert(tx, store, step, accessions):
            raise NodeError(
                "there is a step with this SOP Instance UID", ErrorKind.CONFLICT
            )
        await _move_orders(tx, store, told)
        await _record(tx, store, "create", step)


async def change_step(
    store: "Store",
    *,
    sop_instance_uid: str,
    calling_ae: str,
    change: Callable[[JsonModel], ToldStep],
) -> None:
    """Keep what a machine says of a step that it began: `change` gets what is known.

    NOT_FOUND without such a step, FORBIDDEN when another machine began it, RULE when
    it has ended: what was concluded from it would no longer hold.
    """
    async with store.db.transaction() as tx:
        known = await steps.find_for_update(tx, store, sop_instance_uid)
        if known is None:
            raise NodeError("there is no such step", ErrorKind.NOT_FOUND)
        if known.calling_ae != calling_ae:
            raise NodeError("another machine began this step", ErrorKind.FORBIDDEN)
        if known.status is not StepStatus.IN_PROGRESS:
            raise NodeError(
                "Performed Procedure Step Object may no longer be updated",
                ErrorKind.RULE,
            )
        told = change(known.body)
        step = replace(
            known,
            status=told.status,
            changed_at=store.clock(),
            images=told.images,
            not_taken=told.not_taken,
            body=told.body,
        )
        await steps.update(tx, store, step)
        await _move_orders(tx, store, told)
        await _record(tx, store, "update", step)


async def refuse_step(
    store: "Store", *, sop_instance_uid: str, calling_ae: str, action: str, reason: str
) -> None:
    """Record what was refused; `sop_instance_uid` may be empty."""
    async with store.db.transaction() as tx:
        await audit.record(
            tx,
            AuditEntry(
                at=store.clock(),
                actor=calling_ae,
                role=MODALITY_ROLE,
                action=action,
                entity=f"performed-step/{sop_instance_uid or 'unknown'}",
                outcome=Outcome.REFUSED,
                detail={"reason": reason},
            ),
        )


async def _patient_of(tx: "Transaction", store: "Store", told: ToldStep) -> UUID:
    """Return whose step it is: who is on file for its study stands above all.

    A machine may leave the name and number of the patient empty (PS3.4 F.7.2.1).
    """
    uids = [item.study_instance_uid for item in told.scheduled]
    for uid in uids:
        study = await studies.study(tx, uid)
        if study is not None:
            return study.patient_id
    if not told.patient.patient_id.strip():
        query = orders.OrderQuery(
            statuses=frozenset(OrderStatus), study_instance_uids=tuple(uids)
        )
        for listed in await orders.search(tx, store, query, limit=1):
            return listed.order.patient_id
    return await identities.upsert_patient(
        tx, store, told.patient, at=store.clock(), alone_in=uids[0]
    )


async def _move_orders(tx: "Transaction", store: "Store", told: ToldStep) -> None:
    """Let the orders that a step names follow it, if they are this patient's."""
    for item in told.scheduled:
        named = await find_named_orders(
            store,
            tx,
            study_instance_uid=item.study_instance_uid,
            named=[item.ids],
        )
        for listed, _ in named:
            if await _is_hers(tx, store, told.patient, listed.order.patient_id):
                await move_order(store, tx, listed.order, _ORDER_STATUS[told.status])


async def _is_hers(
    tx: "Transaction", store: "Store", told: PatientIdentity, patient_id: UUID
) -> bool:
    """Tell whether a machine names the patient of an order, by any number of hers."""
    hers = await numbers_of(store, tx, await merges.rows_of(tx, patient_id))
    return told.patient_id.strip() in {"", *(number.strip() for number in hers)}


async def _record(
    tx: "Transaction", store: "Store", action: str, step: PerformedStep
) -> None:
    detail = {
        "status": step.status.value,
        "studies": " ".join(dict.fromkeys(step.studies)),
        "patient": str(step.patient_id),
        "images": str(len(step.images)),
    }
    if step.not_taken:
        detail["not_taken"] = str(step.not_taken)
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=step.calling_ae,
            role=MODALITY_ROLE,
            action=action,
            entity=f"performed-step/{step.sop_instance_uid}",
            detail=detail,
        ),
    )
