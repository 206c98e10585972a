"""Two rows of one woman are merged by who has compared them, and taken apart."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderStatus
from node.store import audit, identities, merges, studies
from node.store.erasure import shred_patient
from node.store.merges import Verdict
from node.store.store import Store
from node.workflow.merging import (
    BothRows,
    compare_rows,
    keep_apart,
    merge_rows,
    read_said,
    take_apart,
)
from node.workflow.reconciliation import compare, link_order, read_unreconciled
from tests.factories import make_patient
from tests.node.workflow.test_orders import OTHER, STEP, matched, placed, read, received

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
DOCTOR = Identity(str(uuid4()), frozenset({Role.RADIOLOGIST}), "Wang")
STUDY = "2.25.77"
NEW_NUMBER = make_patient(patient_id="H-9", issuer="urn:oid:2.25.77")


async def row(store: Store, **told: object) -> UUID:
    async with store.db.transaction() as tx:
        identity = replace(NEW_NUMBER, **told)  # type: ignore[arg-type]
        return await identities.upsert_patient(tx, store, identity, at=store.clock())


async def shown(store: Store, one: UUID, other: UUID) -> BothRows:
    async with store.db.transaction() as tx:
        return await compare_rows(store, tx, one, other)


async def act(
    store: Store, what: Callable[..., Any], lost: UUID, kept: UUID, **changes: object
) -> None:
    seen = (await shown(store, lost, kept)).seen
    told = {"identity": CLERK, "reason": "same ID card", "seen": seen}
    await what(store, lost, kept, **(told | changes))


async def rows_of(store: Store, one: UUID) -> set[UUID]:
    async with store.db.transaction() as tx:
        return set(await merges.rows_of(tx, one))


async def suggested(store: Store) -> list[set[UUID]]:
    found = (await read_unreconciled(store, CLERK)).patients
    return [{pair.one, pair.other} for pair in found]


async def test_merged_rows_are_suggested_no_more_and_stand_among_the_decisions(
    store: Store,
) -> None:
    lost, kept = await row(store, patient_id="MRN-1", issuer=""), await row(store)
    assert await suggested(store) == [{lost, kept}]
    await act(store, merge_rows, lost, kept)
    assert await suggested(store) == []
    (said,) = await read_said(store, CLERK)
    assert (said.decision.verdict, said.decision.reason) == (
        Verdict.SAME,
        "same ID card",
    )
    assert (said.lost.patient_id, said.kept.patient_id) == ("MRN-1", "H-9")
    await act(store, merge_rows, lost, kept)  # done already
    await act(store, take_apart, lost, kept, reason="two sisters")
    assert await rows_of(store, lost) == {lost}
    assert await suggested(store) == [{lost, kept}]
    assert await read_said(store, CLERK) == ()
    async with store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"Patient/{lost}")
        body = await tx.fetchval("select reason from patient_decisions limit 1")
    actions = [one.action for one in entries]
    assert actions == ["patient-merge", "patient-unmerge"]
    assert b"ID card" not in body


async def test_two_women_are_never_suggested_as_one_again(store: Store) -> None:
    one, other = await row(store, patient_id="MRN-1"), await row(store)
    await act(store, keep_apart, one, other)
    await act(store, keep_apart, other, one)
    assert await suggested(store) == []
    await row(store, patient_id="MRN-1", phone="13900009000")  # traits written anew
    assert await suggested(store) == []
    (said,) = await read_said(store, CLERK)
    assert said.decision.verdict is Verdict.DIFFERENT
    await act(store, merge_rows, one, other)  # whoever learns better
    assert await rows_of(store, one) == {one, other}
    with pytest.raises(NodeError) as refused:
        await act(store, keep_apart, one, other)
    assert refused.value.kind is ErrorKind.CONFLICT


async def test_rows_hang_together_through_all_links_and_come_apart_where_they_are_cut(
    store: Store,
) -> None:
    a, b, c = [await row(store, patient_id=f"H-{n}") for n in "123"]
    await act(store, merge_rows, a, b)
    # The row that stands for the first is compared, and merged.
    stands = await shown(store, a, c)
    assert {stands.one.patient_id, stands.other.patient_id} == {b, c}
    await act(store, merge_rows, b, c)
    for one in (a, b, c):
        assert await rows_of(store, one) == {a, b, c}
    with pytest.raises(NodeError) as cycle:
        await act(store, merge_rows, c, a)
    assert cycle.value.kind is ErrorKind.CONFLICT
    await act(store, take_apart, b, c)
    assert await rows_of(store, a) == {a, b}
    assert await rows_of(store, c) == {c}


async def test_an_act_needs_a_reason_the_right_and_eyes_that_saw_both_as_they_are(
    store: Store,
) -> None:
    lost, kept = await row(store, patient_id="MRN-1"), await row(store)
    for changes, kind in (
        ({"reason": " "}, ErrorKind.INVALID),
        ({"identity": DOCTOR}, ErrorKind.FORBIDDEN),
        ({"seen": "0" * 32}, ErrorKind.CONFLICT),
    ):
        for what in (merge_rows, keep_apart):
            with pytest.raises(NodeError) as refused:
                await act(store, what, lost, kept, **changes)
            assert refused.value.kind is kind
    seen = (await shown(store, lost, kept)).seen
    await received(store, identity=NEW_NUMBER)
    with pytest.raises(NodeError) as refused:
        await act(store, merge_rows, lost, kept, seen=seen)
    assert refused.value.kind is ErrorKind.CONFLICT
    assert await rows_of(store, lost) == {lost}


async def test_orders_of_each_row_answer_studies_of_either_until_they_are_apart(
    store: Store,
) -> None:
    order, _ = await placed(store, identity=NEW_NUMBER)
    await received(store, accession="ACC-1")
    (link,) = await matched(store)
    assert not link.agrees
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
    assert study is not None
    await act(store, merge_rows, study.patient_id, order.patient_id)
    (link,) = await matched(store)
    assert link.agrees
    assert (await read(store, order.order_id)).status is OrderStatus.IN_PROGRESS
    await act(store, take_apart, study.patient_id, order.patient_id)
    async with store.db.transaction() as tx:
        why = await tx.fetchval("select unmatched from studies")
    assert why == "other-patient"
    assert (await read(store, order.order_id)).status is OrderStatus.SCHEDULED


async def test_an_order_of_the_other_row_is_linked_by_hand(store: Store) -> None:
    order, _ = await placed(store, identity=NEW_NUMBER)
    await received(store, accession="ACC-9")
    await matched(store)
    async with store.db.transaction() as tx:
        study = await studies.study(tx, STUDY)
        assert study is not None
    await act(store, merge_rows, study.patient_id, order.patient_id)
    async with store.db.transaction() as tx:
        both = await compare(store, tx, STUDY)
    (candidate,) = both.candidates
    assert candidate.refused == ""
    await link_order(
        store,
        STUDY,
        order.order_id,
        identity=CLERK,
        reason="mistyped",
        seen=both.seen,
    )
    (link,) = await matched(store)
    assert link.agrees


async def test_an_accession_number_may_be_on_orders_of_both_rows(store: Store) -> None:
    first, _ = await placed(store, identity=NEW_NUMBER)
    other = replace(STEP, step_id="B")
    with pytest.raises(NodeError):
        await placed(store, other, key="2")
    hers = await row(store, patient_id="MRN-0042", issuer="")
    await act(store, merge_rows, hers, first.patient_id)
    second, _ = await placed(store, other, key="2")
    assert second.patient_id == hers


async def test_a_decision_goes_with_either_woman(store: Store) -> None:
    one, other = await row(store, patient_id="MRN-1"), await row(store)
    third = await row(store, patient_id=OTHER.patient_id, name=OTHER.name)
    await act(store, keep_apart, one, other)
    await act(store, keep_apart, one, third)
    await shred_patient(store.db, store.ring, other)
    (said,) = await read_said(store, CLERK)
    assert {said.decision.lost, said.decision.kept} == {one, third}
