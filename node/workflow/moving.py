"""A study that was filed under the wrong woman is filed anew under the right one.

As IHE IOCM has it for a wrong worklist entry: what stands is withdrawn, what is right
comes as new instances of a new study. The report names the wrong woman, so it is
withdrawn, signed or not: her phone shows nothing of it from then on, archives and
subscribers are told. Nothing of it is taken over: a signature stands for a woman too,
so the images are read anew and a physician signs anew before the right one is told.
"""

import hashlib
import json
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderStatus
from node.domain.report import Author, AuthorKind
from node.domain.study import PatientIdentity, StudyStatus
from node.store import audit, identities, merges, moves, orders, studies
from node.store.moves import Move
from node.workflow.reconciliation import (
    check_reason,
    compare,
    entry_of,
    words_of,
)
from node.workflow.reporting import disown_report

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

FILE_ANEW = "file_anew"
PUBLISH_DISOWNED = "publish_disowned"
_SETTLED = frozenset({StudyStatus.READ, StudyStatus.FAILED, StudyStatus.DISCONTINUED})


def seen_patient(patient_id: UUID, identity: PatientIdentity) -> str:
    """Return a digest of who was chosen, for an act that must mean exactly her."""
    text = json.dumps([str(patient_id), words_of(identity)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


async def find_patients(
    store: "Store", identity: Identity, number: str
) -> list[tuple[UUID, PatientIdentity]]:
    """Return the patients with this Patient ID, of whichever issuer; no erased ones."""
    identity.require(Action.RECONCILE)
    found: list[tuple[UUID, PatientIdentity]] = []
    if not number.strip():
        return found
    async with store.db.transaction() as tx:
        for one in await identities.find_patients_by_number(tx, store, number):
            try:
                found.append((one, await identities.patient(tx, store, one)))
            except NodeError as error:
                if error.kind is not ErrorKind.GONE:
                    raise
    return found


async def move_study(
    store: "Store",
    study_instance_uid: str,
    patient_id: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
    seen_target: str,
    order_id: UUID | None = None,
) -> Move:
    """File a study anew under another patient, as the answer to her order if given.

    Done already is done. CONFLICT while it is being received or read, when either side
    has changed since it was looked at, or when it was filed elsewhere; RULE when she
    is the same patient or has no Patient ID.
    """
    identity.require(Action.RECONCILE)
    check_reason(reason)
    async with store.db.transaction() as tx:
        study = await studies.study(tx, study_instance_uid, for_update=True)
        if study is None:
            raise NodeError("there is no such study", ErrorKind.NOT_FOUND)
        known = await moves.of_study(tx, store, study_instance_uid)
        if known is not None:
            return _same(known, patient_id)
        await _require_fit(tx, store, study_instance_uid, patient_id, seen, seen_target)
        uid = await _new_uid(tx, store, patient_id, order_id)
        move = await moves.add(
            tx,
            store,
            study_instance_uid,
            filed_as=uid,
            from_patient=study.patient_id,
            to_patient=patient_id,
            order_id=order_id,
            by=identity.user_id,
            reason=reason,
        )
        await _give_back_orders(tx, store, study_instance_uid)
        author = Author(
            AuthorKind.REGISTRAR,
            identity.practitioner_id or identity.user_id,
            identity.display,
        )
        report_id = await disown_report(
            store, tx, study_instance_uid, author=author, reason=reason
        )
        await _defer(store, tx, move, report_id)
        patients = f"{study.patient_id} {patient_id}"
        detail = {"patients": patients, "filed_as": uid}
        entity = f"study/{study_instance_uid}"
        entry = entry_of(store, identity, "study-move", entity, detail)
        await audit.record(tx, entry)
    return move


def _same(known: Move, patient_id: UUID) -> Move:
    if known.to_patient != patient_id:
        raise NodeError(
            "this study was filed anew under somebody else meanwhile",
            ErrorKind.CONFLICT,
        )
    return known


async def _require_fit(
    tx: "Transaction",
    store: "Store",
    study_instance_uid: str,
    patient_id: UUID,
    seen: str,
    seen_target: str,
) -> None:
    shown = await compare(store, tx, study_instance_uid)
    if shown.study.status not in _SETTLED:
        raise NodeError(
            "the study is still being received or read: try again in a while",
            ErrorKind.CONFLICT,
        )
    target = await identities.patient(tx, store, patient_id)
    if shown.seen != seen or seen_patient(patient_id, target) != seen_target:
        raise NodeError(
            "this has changed since you looked: compare both sides again",
            ErrorKind.CONFLICT,
        )
    if patient_id in await merges.rows_of(tx, shown.study.patient_id):
        raise NodeError(
            "the study is this patient's", ErrorKind.RULE, expression="patient_id"
        )
    if not target.patient_id.strip():
        raise NodeError(
            "a patient without a Patient ID cannot be named in images",
            ErrorKind.RULE,
            expression="patient_id",
        )


async def _new_uid(
    tx: "Transaction", store: "Store", patient_id: UUID, order_id: UUID | None
) -> str:
    """Return the UID of the study anew: the one of her order while nobody uses it."""
    if order_id is None:
        return f"2.25.{uuid4().int}"
    listed = await orders.find(tx, store, order_id, for_update=True)
    if listed is None or listed.order.patient_id != patient_id:
        raise NodeError(
            "the order is not this patient's", ErrorKind.RULE, expression="order_id"
        )
    uid = listed.order.step.study_instance_uid
    taken = await studies.study(tx, uid) if uid else None
    return uid if uid and taken is None else f"2.25.{uuid4().int}"


async def _give_back_orders(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> None:
    """Put the orders that a void study seemed to answer back on the worklist."""
    linked = await orders.of_study(tx, store, study_instance_uid)
    await orders.unlink_others(tx, study_instance_uid, [])
    for one in linked:
        order = one.order
        if one.agrees and not await orders.studies_of(tx, order.order_id):
            await orders.set_status(
                tx, order.order_id, OrderStatus.SCHEDULED, at=store.clock()
            )


async def _defer(
    store: "Store", tx: "Transaction", move: Move, report_id: UUID
) -> None:
    uid = move.study_instance_uid
    payload = {"study_instance_uid": uid, "report_id": str(report_id)}
    for kind in (PUBLISH_DISOWNED, FILE_ANEW):
        await store.jobs.defer(tx, kind, payload, key=uid, patient_id=move.owner)
