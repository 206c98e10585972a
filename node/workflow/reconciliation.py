"""Studies, orders and rows of patients that do not fit: listed, and mended by hand.

Nothing here happens by itself. What the exact rules of `match_study` leave open is a
list with reasons; a person who has compared both sides says what is right, and why.
Each act is one transaction, audited, and undone by its opposite. It carries `seen`, a
digest of what she was shown: when that has changed meanwhile she is told, and nothing
is done.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import Order, OrderStatus
from node.domain.study import PatientIdentity, StudyRecord
from node.store import (
    audit,
    identities,
    likeness,
    merges,
    moves,
    orders,
    reports,
    studies,
    unmatched,
)
from node.store.orders import ListedOrder, NamedBy, OrderQuery, Unmatched, Verdict
from node.workflow.orders import (
    is_same_patient,
    match_study,
    numbers_of,
    publish_links_later,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

LONGEST_REASON = 500
_CANDIDATES = 50
_EVERY = frozenset(OrderStatus)


@dataclass(frozen=True)
class UnmatchedStudy:
    """One line of the list: a study, whose it is here, and why it stands there."""

    study_instance_uid: str
    study_date: date | None
    opened_at: datetime
    why: Unmatched | None
    unknown_to_ehr: bool
    accession_number: str = field(repr=False)
    patient: PatientIdentity = field(repr=False)


@dataclass(frozen=True)
class LikePatients:
    """Two rows that may be one woman: what they share, and in what they differ."""

    one: UUID
    other: UUID
    shared: tuple[str, ...]
    differs: tuple[str, ...]
    identities: tuple[PatientIdentity, PatientIdentity] = field(repr=False)


@dataclass(frozen=True)
class Unreconciled:
    """The list. `orders_known` is False while no system has ever sent an order."""

    studies: tuple[UnmatchedStudy, ...]
    more: str
    patients: tuple[LikePatients, ...]
    orders_known: bool


@dataclass(frozen=True)
class Candidate:
    """An order beside a study: how the study names it, and in what both differ.

    `verdict` is what a person has said of the two, `refused` why they cannot be linked.
    """

    listed: ListedOrder
    named_by: NamedBy | None
    linked: bool
    verdict: Verdict | None
    differs: tuple[str, ...]
    refused: str


@dataclass(frozen=True)
class Comparison:
    """A study with its patient beside the orders that it may answer."""

    study: StudyRecord
    patient: PatientIdentity = field(repr=False)
    accession_number: str = field(repr=False)
    description: str = field(repr=False)
    report_status: str
    why: Unmatched | None
    settled: bool
    filed_as: str
    candidates: tuple[Candidate, ...] = field(repr=False)

    @property
    def seen(self) -> str:
        """Return a digest of both sides: an act on what has changed is refused."""
        shown: list[Any] = [
            self.study.study_instance_uid,
            str(self.study.patient_id),
            self.accession_number,
            words_of(self.patient),
            self.report_status,
            self.settled,
            self.filed_as,
        ]
        for one in self.candidates:
            order = one.listed.order
            verdict = None if one.verdict is None else one.verdict.value
            shown.append([str(order.order_id), one.linked, verdict])
            shown.append(words_of(one.listed.identity))
        text = json.dumps(shown, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


async def read_unreconciled(
    store: "Store", identity: Identity, *, after: str = "", limit: int = 50
) -> Unreconciled:
    """Return a page of the list, newest studies first."""
    identity.require(Action.RECONCILE)
    async with store.db.transaction() as tx:
        known = await unmatched.orders_known(tx)
        ehr = await unmatched.ehr_names_patients(tx)
        rows = await unmatched.page(tx, after=after, limit=limit + 1, ehr=ehr)
        lines = [await _line(tx, store, row) for row in rows[:limit]]
        alike = () if after else await _alike(tx, store)
    more = lines[-1].study_instance_uid if len(rows) > limit and lines else ""
    return Unreconciled(tuple(lines), more, alike, known)


async def find_studies(
    store: "Store", identity: Identity, number: str
) -> tuple[UnmatchedStudy, ...]:
    """Return the studies with this accession number or Study Instance UID.

    On the list or not: an act is undone where it was done.
    """
    identity.require(Action.RECONCILE)
    async with store.db.transaction() as tx:
        uids = [number.strip()]
        uids += await studies.find_studies_by_accession(tx, store, number)
        rows = await unmatched.named(tx, uids)
        lines = [await _line(tx, store, row) for row in rows]
    return tuple(lines)


async def _line(
    tx: "Transaction", store: "Store", row: unmatched.Row
) -> UnmatchedStudy:
    detail = await studies.study_detail(tx, store, row.study_instance_uid)
    return UnmatchedStudy(
        row.study_instance_uid,
        row.study_date,
        row.opened_at,
        row.why,
        row.unknown_to_ehr,
        detail.accession_number,
        await identities.patient(tx, store, row.patient_id),
    )


async def _alike(tx: "Transaction", store: "Store") -> tuple[LikePatients, ...]:
    found = []
    for pair in await likeness.pairs(tx, limit=_CANDIDATES):
        both = (
            await identities.patient(tx, store, pair.one),
            await identities.patient(tx, store, pair.other),
        )
        found.append(
            LikePatients(pair.one, pair.other, pair.kinds, differences(*both), both)
        )
    return tuple(found)


def differences(one: PatientIdentity, other: PatientIdentity) -> tuple[str, ...]:
    """Return the names of what both sides tell, and tell differently."""
    return tuple(
        name
        for name, value in asdict(one).items()
        if value and getattr(other, name) and value != getattr(other, name)
    )


async def compare(
    store: "Store", tx: "Transaction", study_instance_uid: str
) -> Comparison:
    """Return a study beside the orders that it names, has, or may answer.

    Candidates are what its headers name, what a person linked, all of its patient and
    all of the same number; NOT_FOUND without such a study.
    """
    study = await studies.study(tx, study_instance_uid)
    if study is None:
        raise NodeError("there is no such study", ErrorKind.NOT_FOUND)
    patient = await identities.patient(tx, store, study.patient_id)
    detail = await studies.study_detail(tx, store, study_instance_uid)
    decided = await orders.decisions(tx, study_instance_uid)
    move = await moves.of_study(tx, store, study_instance_uid)
    return Comparison(
        study=study,
        patient=patient,
        accession_number=detail.accession_number,
        description=detail.study_description,
        report_status=await reports.newest_status(tx, study_instance_uid),
        why=await unmatched.why(tx, study_instance_uid),
        settled=decided.get(None) is Verdict.NONE_EXPECTED,
        filed_as="" if move is None else move.filed_as,
        candidates=await _candidates(tx, store, study, patient, detail, decided),
    )


async def _candidates(
    tx: "Transaction",
    store: "Store",
    study: StudyRecord,
    patient: PatientIdentity,
    detail: studies.StudyDetail,
    decided: dict[UUID | None, Verdict],
) -> tuple[Candidate, ...]:
    linked = {
        one.order.order_id: one
        for one in await orders.of_study(tx, store, study.study_instance_uid)
    }
    found: dict[UUID, ListedOrder] = {}
    for order_id in [*linked, *(one for one in decided if one is not None)]:
        listed = await orders.find(tx, store, order_id)
        if listed is not None:
            found[order_id] = listed
    rows = await merges.rows_of(tx, study.patient_id)
    numbers = await numbers_of(store, tx, rows)
    for query in _queries(numbers, detail):
        for listed in await orders.search(tx, store, query, limit=_CANDIDATES):
            found.setdefault(listed.order.order_id, listed)
    return tuple(
        _candidate(rows, patient, listed, linked.get(order_id), decided.get(order_id))
        for order_id, listed in found.items()
    )


def _queries(numbers: set[str], detail: studies.StudyDetail) -> list[OrderQuery]:
    queries = [OrderQuery(statuses=_EVERY, patient_id=one) for one in sorted(numbers)]
    if detail.accession_number.strip():
        number = detail.accession_number.strip()
        queries.append(OrderQuery(statuses=_EVERY, accession_number=number))
    return queries


def _candidate(
    rows: frozenset[UUID],
    patient: PatientIdentity,
    listed: ListedOrder,
    link: orders.StudyOrder | None,
    verdict: Verdict | None,
) -> Candidate:
    return Candidate(
        listed,
        named_by=link.named_by if link is not None else None,
        linked=link is not None and link.agrees,
        verdict=verdict,
        differs=differences(patient, listed.identity),
        refused=_refused(rows, patient, listed),
    )


def _refused(
    rows: frozenset[UUID], patient: PatientIdentity, listed: ListedOrder
) -> str:
    """Return why an order cannot be this study's; empty when it can."""
    order = listed.order
    same = order.patient_id in rows or is_same_patient(listed.identity, patient)
    if not same:
        return "other-patient"
    if order.status is OrderStatus.CANCELLED:
        return "cancelled"
    return ""


# -- acts ------------------------------------------------------------------------------


async def link_order(
    store: "Store",
    study_instance_uid: str,
    order_id: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
) -> None:
    """Say that a study answers an order of the same patient, whatever its headers name.

    Done already is done. RULE for an order of another patient: a link never moves a
    study from one woman to another. CONFLICT when what she saw has changed.
    """
    async with store.db.transaction() as tx:
        shown = await _turn(store, tx, study_instance_uid, identity, reason, seen)
        one = _of(shown, order_id)
        if one.linked and one.verdict is not Verdict.UNLINKED:
            return
        if one.refused:
            raise NodeError(
                "the order was cancelled"
                if one.refused == "cancelled"
                else "the order is another patient's: it is never linked",
                ErrorKind.RULE,
                expression="order_id",
            )
        await _decide(
            store, tx, shown, order_id, Verdict.LINKED, identity, reason, "order-link"
        )


async def unlink_order(
    store: "Store",
    study_instance_uid: str,
    order_id: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
) -> None:
    """Say that a study does not answer an order, whatever its headers name.

    An order that no other study answers goes back on the worklist: the woman for whom
    it was placed has not been examined.
    """
    async with store.db.transaction() as tx:
        shown = await _turn(store, tx, study_instance_uid, identity, reason, seen)
        one = _of(shown, order_id)
        if one.verdict is Verdict.UNLINKED:
            return
        was_hers = one.linked
        await _decide(
            store,
            tx,
            shown,
            order_id,
            Verdict.UNLINKED,
            identity,
            reason,
            "order-unlink",
            give_back=one.listed.order if was_hers else None,
        )


async def settle_study(
    store: "Store",
    study_instance_uid: str,
    *,
    identity: Identity,
    reason: str,
    seen: str,
    expected: bool = False,
) -> None:
    """Say that nobody placed an order for a study; with `expected` take that back."""
    verdict = Verdict.EXPECTED if expected else Verdict.NONE_EXPECTED
    action = "order-expect" if expected else "order-none"
    async with store.db.transaction() as tx:
        shown = await _turn(store, tx, study_instance_uid, identity, reason, seen)
        if shown.settled is not expected:
            return
        await _decide(store, tx, shown, None, verdict, identity, reason, action)


async def _turn(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    identity: Identity,
    reason: str,
    seen: str,
) -> Comparison:
    """Return both sides, held until `tx` ends; refuses who may not, and stale eyes."""
    identity.require(Action.RECONCILE)
    check_reason(reason)
    await studies.study(tx, study_instance_uid, for_update=True)
    shown = await compare(store, tx, study_instance_uid)
    if shown.filed_as:
        raise NodeError(
            "the study was filed anew: it stands for nothing any more",
            ErrorKind.CONFLICT,
        )
    if shown.seen != seen:
        raise NodeError(
            "this has changed since you looked: compare both sides again",
            ErrorKind.CONFLICT,
        )
    return shown


def check_reason(reason: str) -> None:
    """Refuse an act without a reason, or with one that nobody will read."""
    if not reason.strip():
        raise NodeError("say why", ErrorKind.INVALID, expression="reason")
    if len(reason) > LONGEST_REASON:
        raise NodeError(
            f"the reason has at most {LONGEST_REASON} characters",
            ErrorKind.INVALID,
            expression="reason",
        )


def _of(shown: Comparison, order_id: UUID) -> Candidate:
    for one in shown.candidates:
        if one.listed.order.order_id == order_id:
            return one
    raise NodeError("the order is none of those beside the study", ErrorKind.NOT_FOUND)


async def _decide(
    store: "Store",
    tx: "Transaction",
    shown: Comparison,
    order_id: UUID | None,
    verdict: Verdict,
    identity: Identity,
    reason: str,
    action: str,
    *,
    give_back: Order | None = None,
) -> None:
    uid = shown.study.study_instance_uid
    number = await orders.decide(
        tx, store, uid, order_id, verdict, by=identity.user_id, reason=reason
    )
    await match_study(store, tx, uid)
    if give_back is not None and not await orders.studies_of(tx, give_back.order_id):
        await orders.set_status(
            tx, give_back.order_id, OrderStatus.SCHEDULED, at=store.clock()
        )
    await publish_links_later(store, tx, uid, number)
    detail = {"decision": str(number), "patient": str(shown.study.patient_id)}
    if order_id is not None:
        detail["order"] = str(order_id)
    await _record(tx, store, identity, action, f"study/{uid}", detail)


async def _record(
    tx: "Transaction",
    store: "Store",
    identity: Identity,
    action: str,
    entity: str,
    detail: dict[str, str],
) -> None:
    await audit.record(tx, entry_of(store, identity, action, entity, detail))


def entry_of(
    store: "Store",
    identity: Identity,
    action: str,
    entity: str,
    detail: dict[str, str],
) -> AuditEntry:
    """Return what the trail says of an act of reconciliation."""
    return AuditEntry(
        at=store.clock(),
        actor=identity.user_id,
        role=" ".join(sorted(role.value for role in identity.roles)),
        action=action,
        entity=entity,
        detail=detail,
    )


def words_of(identity: PatientIdentity) -> dict[str, Any]:
    """Return who a patient is as a JSON value."""
    return {
        name: value.isoformat() if isinstance(value, date) else value
        for name, value in asdict(identity).items()
    }
