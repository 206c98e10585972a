"""Two rows of patients that are one woman are merged, and taken apart again.

A merge is a link, not a move: it is the same woman, so no report is withdrawn, no
signature touched, and what was sent stays right. Everything stays with the row under
whose number it came; orders of each answer studies of either, and whoever asks for one
row finds both. Nothing new appears on any phone: a binding is one row's.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderStatus
from node.domain.study import PatientIdentity
from node.store import audit, identities, merges, orders
from node.store.merges import Decision, Verdict
from node.workflow.orders import match_study, publish_links_later
from node.workflow.reconciliation import (
    check_reason,
    differences,
    entry_of,
    words_of,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

PUBLISH_MERGE = "publish_merge"
TOLD_BY_EHR = "医院系统告知 / told by the EHR"


@dataclass(frozen=True)
class Row:
    """A row of a patient: who she is there, and how much hangs on it.

    `others` are the rows for which this one stands already.
    """

    patient_id: UUID
    identity: PatientIdentity = field(repr=False)
    studies: int
    named_by_ehr: bool
    others: tuple[PatientIdentity, ...] = field(repr=False)


@dataclass(frozen=True)
class BothRows:
    """Two rows side by side; `merged` tells which one gave way, None: neither."""

    one: Row
    other: Row
    merged: UUID | None
    verdict: Verdict | None

    @property
    def differs(self) -> tuple[str, ...]:
        """Return the names of what both tell, and tell differently."""
        return differences(self.one.identity, self.other.identity)

    @property
    def seen(self) -> str:
        """Return a digest of both sides: an act on what has changed is refused."""
        shown: list[Any] = [str(self.merged), str(self.verdict)]
        for row in sorted((self.one, self.other), key=lambda row: row.patient_id):
            others = [words_of(one) for one in row.others]
            told = [str(row.patient_id), words_of(row.identity), row.studies, others]
            shown.append(told)
        text = json.dumps(shown, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Said:
    """A decision that stands, beside who both rows are."""

    decision: Decision
    lost: PatientIdentity = field(repr=False)
    kept: PatientIdentity = field(repr=False)


async def compare_rows(
    store: "Store", tx: "Transaction", one: UUID, other: UUID
) -> BothRows:
    """Return two rows side by side; of women not yet one, the rows that stand for them.

    NOT_FOUND without such a row, GONE when she was erased, RULE for one row twice.
    """
    if one == other:
        raise NodeError("that is one row, twice", ErrorKind.RULE)
    if other not in await merges.rows_of(tx, one):
        one = await merges.survivor(tx, one)
        other = await merges.survivor(tx, other)
    links = [(row, await merges.links_of(tx, row)) for row in (one, other)]
    gave_way = [row for row, linked in links if linked.merged_into in (one, other)]
    return BothRows(
        await _row(store, tx, one),
        await _row(store, tx, other),
        gave_way[0] if gave_way else None,
        await merges.verdict_on(tx, one, other),
    )


async def _row(store: "Store", tx: "Transaction", patient_id: UUID) -> Row:
    if await merges.is_nobody(tx, patient_id):
        raise NodeError("this row is no woman's", ErrorKind.RULE)
    identity = await identities.patient(tx, store, patient_id)
    merged = (await merges.links_of(tx, patient_id)).merged
    count, by_ehr = await merges.weight_of(tx, patient_id)
    others = tuple([await identities.patient(tx, store, one) for one in merged])
    return Row(patient_id, identity, count, by_ehr, others)


async def read_said(store: "Store", identity: Identity) -> tuple[Said, ...]:
    """Return what people have said of two rows and still counts, newest first."""
    identity.require(Action.RECONCILE)
    async with store.db.transaction() as tx:
        found = []
        for decision in await merges.standing(tx, store, limit=50):
            lost = await identities.patient(tx, store, decision.lost)
            kept = await identities.patient(tx, store, decision.kept)
            found.append(Said(decision, lost, kept))
    return tuple(found)


# -- acts ------------------------------------------------------------------------------


async def merge_rows(
    store: "Store",
    lost: UUID,
    kept: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
) -> None:
    """Say that two rows are one woman, for whom `kept` stands from now on.

    Done already is done. CONFLICT when what was seen has changed, or when meanwhile
    somebody has merged either otherwise.
    """
    async with store.db.transaction() as tx:
        await _take_turn(tx, identity, reason)
        if (await merges.links_of(tx, lost)).merged_into == kept:
            return
        await _require_as_seen(store, tx, lost, kept, seen)
        if kept in await merges.rows_of(tx, lost):
            raise NodeError("these rows are one woman already", ErrorKind.CONFLICT)
        await _join(store, tx, lost, kept, identity, reason)


async def take_apart(
    store: "Store",
    lost: UUID,
    kept: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
) -> None:
    """Say that the rows of a merge are two women: as it was, in new versions.

    Done already is done. CONFLICT when what was seen has changed.
    """
    async with store.db.transaction() as tx:
        await _take_turn(tx, identity, reason)
        rows = await merges.rows_of(tx, lost)
        if (await merges.links_of(tx, lost)).merged_into is None:
            return
        await _require_as_seen(store, tx, lost, kept, seen)
        if (await merges.links_of(tx, lost)).merged_into != kept:
            raise NodeError("she was merged into another row", ErrorKind.CONFLICT)
        await merges.link(tx, lost, None)
        await _note(store, tx, lost, kept, Verdict.APART, identity, reason, rows)


async def keep_apart(
    store: "Store",
    one: UUID,
    other: UUID,
    *,
    identity: Identity,
    reason: str,
    seen: str,
) -> None:
    """Say that two rows are two women: they are never suggested as one again.

    Whoever learns better merges them all the same. RULE while they are merged.
    """
    async with store.db.transaction() as tx:
        await _take_turn(tx, identity, reason)
        if await merges.verdict_on(tx, one, other) is Verdict.DIFFERENT:
            return
        if other in await merges.rows_of(tx, one):
            raise NodeError(
                "they are merged: take them apart first", ErrorKind.CONFLICT
            )
        shown = await compare_rows(store, tx, one, other)
        if shown.seen != seen:
            raise _changed()
        told = (shown.one.patient_id, shown.other.patient_id)
        for lost, kept in {(one, other), told}:
            await _note(store, tx, lost, kept, Verdict.DIFFERENT, identity, reason, ())


async def merge_as_told(
    store: "Store", tx: "Transaction", lost: UUID, kept: UUID, *, identity: Identity
) -> None:
    """Merge two rows as the hospital's system says, whose patients they are.

    Its word needs no second look; it is undone as any merge. RULE when they are one
    already in another way, which it cannot know, and when a person has said that they
    are two: a system that repeats what it once sent must not overrule her.
    """
    identity.require(Action.WRITE_PATIENT)
    await merges.take_turn(tx)
    linked = (await merges.links_of(tx, lost)).merged_into
    if linked == kept:
        return
    if linked is not None or kept in await merges.rows_of(tx, lost):
        raise NodeError(
            "this row was merged otherwise: it is taken apart on the reconciliation"
            " page, or with `node reconcile unmerge`",
            ErrorKind.RULE,
        )
    if await merges.verdict_on(tx, lost, kept) in (Verdict.APART, Verdict.DIFFERENT):
        raise NodeError(
            "somebody here has said that these are two women: they are merged on the"
            " reconciliation page, or with `node reconcile merge`",
            ErrorKind.RULE,
        )
    for row in (lost, kept):
        await _row(store, tx, row)
    await _join(store, tx, lost, kept, identity, TOLD_BY_EHR)


async def _take_turn(tx: "Transaction", identity: Identity, reason: str) -> None:
    identity.require(Action.RECONCILE)
    check_reason(reason)
    await merges.take_turn(tx)


async def _require_as_seen(
    store: "Store", tx: "Transaction", lost: UUID, kept: UUID, seen: str
) -> None:
    shown = await compare_rows(store, tx, lost, kept)
    rows = {shown.one.patient_id, shown.other.patient_id}
    if shown.seen != seen or rows != {lost, kept}:
        raise _changed()


def _changed() -> NodeError:
    return NodeError(
        "this has changed since you looked: compare both sides again",
        ErrorKind.CONFLICT,
    )


async def _join(
    store: "Store",
    tx: "Transaction",
    lost: UUID,
    kept: UUID,
    identity: Identity,
    reason: str,
) -> None:
    await merges.link(tx, lost, kept)
    rows = await merges.rows_of(tx, kept)
    await _note(store, tx, lost, kept, Verdict.SAME, identity, reason, rows)


_ACTIONS = {
    Verdict.SAME: "patient-merge",
    Verdict.APART: "patient-unmerge",
    Verdict.DIFFERENT: "patient-different",
}


async def _note(
    store: "Store",
    tx: "Transaction",
    lost: UUID,
    kept: UUID,
    verdict: Verdict,
    identity: Identity,
    reason: str,
    touched: Collection[UUID],
) -> None:
    """Keep what was said, and let orders and readers follow it for `touched` rows."""
    number = await merges.decide(
        tx, store, lost, kept, verdict, by=identity.user_id, reason=reason
    )
    if touched:
        await match_anew(store, tx, touched)
        await store.jobs.defer(
            tx,
            PUBLISH_MERGE,
            {"decision": number},
            key=str(number),
            order_key=PUBLISH_MERGE,
        )
    detail = {"patients": f"{lost} {kept}", "decision": str(number)}
    action, entity = _ACTIONS[verdict], f"Patient/{lost}"
    await audit.record(tx, entry_of(store, identity, action, entity, detail))


async def match_anew(store: "Store", tx: "Transaction", rows: Collection[UUID]) -> None:
    """Match the studies of rows with the orders of all rows that are one woman now.

    Done with the merge, and once more after it: an order that was placed in the same
    moment knew nothing of it.

    An order that no study answers any more goes back on the worklist.
    """
    for uid in await merges.studies_of(tx, rows):
        before = await orders.of_study(tx, store, uid)
        after = await match_study(store, tx, uid)
        if before == after:
            continue
        hers = {one.order.order_id for one in after if one.agrees}
        for one in before:
            order = one.order
            if not one.agrees or order.order_id in hers:
                continue
            if not await orders.studies_of(tx, order.order_id):
                await orders.set_status(
                    tx, order.order_id, OrderStatus.SCHEDULED, at=store.clock()
                )
        await publish_links_later(store, tx, uid)
