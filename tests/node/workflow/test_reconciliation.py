"""Studies without their order, and the acts of a person who has compared both sides."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from node.domain.access import Identity, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import OrderStatus
from node.domain.study import PatientIdentity
from node.store import identities, likeness, orders
from node.store.erasure import shred_patient
from node.store.orders import NamedBy, Unmatched, Verdict
from node.store.store import Store
from node.workflow.completion import CompletionSettings, close_due_studies
from node.workflow.reconciliation import (
    Comparison,
    Unreconciled,
    compare,
    link_order,
    read_unreconciled,
    settle_study,
    unlink_order,
)
from tests.factories import make_patient
from tests.node.workflow.test_orders import (
    OTHER,
    STEP,
    matched,
    placed,
    read,
    received,
)

CLERK = Identity(str(uuid4()), frozenset({Role.TECHNOLOGIST}), "Li")
DOCTOR = Identity(str(uuid4()), frozenset({Role.RADIOLOGIST}), "Wang")
STUDY = "2.25.77"
AT_ONCE = CompletionSettings(quiet_period_s=0, quiet_after_release_s=0)


async def closed(store: Store, clock: object, **told: object) -> None:
    """Receive a study and let its time go by."""
    await received(store, **told)  # type: ignore[arg-type]
    clock.advance(seconds=1)  # type: ignore[attr-defined]
    assert await close_due_studies(store, AT_ONCE) >= 1


async def listed(store: Store) -> Unreconciled:
    return await read_unreconciled(store, CLERK)


async def shown(store: Store, study: str = STUDY) -> Comparison:
    async with store.db.transaction() as tx:
        return await compare(store, tx, study)


Act = Callable[..., Awaitable[None]]


async def act(
    store: Store, what: Act, order_id: UUID, *, study: str = STUDY, **changes: object
) -> None:
    told = {
        "identity": CLERK,
        "reason": "the number was typed wrong",
        "seen": (await shown(store, study)).seen,
    }
    await what(store, study, order_id, **(told | changes))


async def test_a_study_without_any_number_is_missed_an_order_where_there_are_orders(
    store: Store, clock: object
) -> None:
    await closed(store, clock)
    nothing = await listed(store)
    assert (nothing.studies, nothing.orders_known) == ((), False)
    await placed(store, identity=OTHER)
    (line,) = (await listed(store)).studies
    assert (line.why, line.unknown_to_ehr) == (Unmatched.NO_ORDER, True)
    assert line.patient.name == make_patient().name


async def test_the_list_says_why_each_study_stands_there(
    store: Store, clock: object
) -> None:
    await placed(store, identity=OTHER)
    await closed(store, clock, study="2.25.1", accession="ACC-1")
    await closed(store, clock, study="2.25.2", accession="ACC-9")
    await closed(store, clock, study="2.25.3", accession="ACC-1", identity=OTHER)
    why = {s.study_instance_uid: s.why for s in (await listed(store)).studies}
    assert why == {
        "2.25.2": Unmatched.UNKNOWN_ACCESSION,
        "2.25.1": Unmatched.OTHER_PATIENT,
    }


async def test_a_study_that_is_still_received_is_not_on_the_list(store: Store) -> None:
    await placed(store, identity=OTHER)
    await received(store, accession="ACC-9")
    await matched(store)
    assert (await listed(store)).studies == ()


async def test_the_list_goes_on_where_the_page_before_ended(
    store: Store, clock: object
) -> None:
    await placed(store, identity=OTHER)
    for number in range(5):
        await closed(store, clock, study=f"2.25.{number}", accession="ACC-9")
    seen, after = [], ""
    while True:
        page = await read_unreconciled(store, CLERK, after=after, limit=2)
        seen += [one.study_instance_uid for one in page.studies]
        after = page.more
        if not after:
            break
    assert seen == [f"2.25.{number}" for number in (4, 3, 2, 1, 0)]


async def test_an_order_that_comes_after_its_study_takes_it_off_the_list(
    store: Store, clock: object
) -> None:
    await placed(store, replace(STEP, accession_number="ACC-2"), identity=OTHER)
    await closed(store, clock, accession="ACC-1")
    assert [s.why for s in (await listed(store)).studies] == [
        Unmatched.UNKNOWN_ACCESSION
    ]
    order, _ = await placed(store, key="2")
    assert (await listed(store)).studies == ()
    assert (await read(store, order.order_id)).status is OrderStatus.IN_PROGRESS


async def test_a_person_links_a_study_to_an_order_of_the_same_patient_and_undoes_it(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store)
    await closed(store, clock, accession="ACC-9")
    await act(store, link_order, order.order_id)
    (one,) = await matched(store)
    assert (one.order.order_id, one.named_by, one.agrees) == (
        order.order_id,
        NamedBy.PERSON,
        True,
    )
    assert (await listed(store)).studies == ()
    assert (await read(store, order.order_id)).status is OrderStatus.IN_PROGRESS
    await act(store, unlink_order, order.order_id)
    assert await matched(store) == []
    # She has not been examined for it: machines find it again.
    assert (await read(store, order.order_id)).status is OrderStatus.SCHEDULED
    await act(store, link_order, order.order_id)
    assert len(await matched(store)) == 1


async def test_an_order_of_another_patient_is_never_linked(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store, identity=OTHER)
    await closed(store, clock, accession="ACC-1")
    with pytest.raises(NodeError) as refused:
        await act(store, link_order, order.order_id)
    assert refused.value.kind is ErrorKind.RULE
    (candidate,) = (await shown(store)).candidates
    assert candidate.refused == "other-patient"
    assert {"patient_id", "name", "birth_date"} <= set(candidate.differs)


async def test_what_the_headers_name_stays_undone_when_matched_again(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store)
    await closed(store, clock, accession="ACC-1")
    assert len(await matched(store)) == 1
    await act(store, unlink_order, order.order_id)
    assert await matched(store) == []
    assert (await shown(store)).why is Unmatched.UNKNOWN_ACCESSION


async def test_a_study_for_which_nobody_placed_an_order_leaves_the_list_and_returns(
    store: Store, clock: object
) -> None:
    await placed(store, identity=OTHER)
    await closed(store, clock)

    async def settle(expected: bool) -> None:
        await settle_study(
            store,
            STUDY,
            identity=CLERK,
            reason="she walked in",
            seen=(await shown(store)).seen,
            expected=expected,
        )

    await settle(False)
    assert (await listed(store)).studies == ()
    await settle(True)
    assert len((await listed(store)).studies) == 1


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
async def test_an_act_needs_a_reason_that_somebody_will_read(
    store: Store, clock: object, reason: str
) -> None:
    order, _ = await placed(store)
    await closed(store, clock)
    with pytest.raises(NodeError) as refused:
        await act(store, link_order, order.order_id, reason=reason)
    assert refused.value.expression == "reason"


async def test_who_has_not_seen_both_sides_as_they_are_now_is_told(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store)
    await closed(store, clock)
    seen = (await shown(store)).seen
    await act(store, link_order, order.order_id, seen=seen)
    with pytest.raises(NodeError) as late:
        await act(store, unlink_order, order.order_id, seen=seen)
    assert late.value.kind is ErrorKind.CONFLICT
    assert len(await matched(store)) == 1


async def test_only_who_may_reconcile_sees_the_list_or_acts(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store)
    await closed(store, clock)
    with pytest.raises(NodeError) as refused:
        await read_unreconciled(store, DOCTOR)
    assert refused.value.kind is ErrorKind.FORBIDDEN
    with pytest.raises(NodeError) as refused:
        await act(store, link_order, order.order_id, identity=DOCTOR)
    assert refused.value.kind is ErrorKind.FORBIDDEN


async def test_the_trail_says_who_did_what_and_no_name(
    store: Store, clock: object
) -> None:
    order, _ = await placed(store)
    await closed(store, clock)
    await act(store, link_order, order.order_id, reason="Zhang San is right")
    async with store.db.transaction() as tx:
        rows = await tx.fetch(
            "select actor, entity, detail::text as detail from audit_entries"
            " where action = 'order-link'"
        )
        kept = await tx.fetchrow("select sequence, reason from order_decisions")
        told = await orders.decision(tx, store, kept["sequence"])
    (row,) = rows
    assert (row["actor"], row["entity"]) == (CLERK.user_id, f"study/{STUDY}")
    assert str(order.order_id) in row["detail"]
    assert "Zhang" not in row["detail"]
    assert b"Zhang" not in kept["reason"]
    assert (told.verdict, told.reason) == (Verdict.LINKED, "Zhang San is right")


async def test_two_rows_that_may_be_one_woman_are_suggested_with_what_differs(
    store: Store,
) -> None:
    here = make_patient(issuer="")
    there = replace(here, issuer="urn:ehr", phone="1")
    namesake = replace(here, patient_id="EHR-9", issuer="urn:ehr", sex="O")
    async with store.db.transaction() as tx:
        ids = [
            await identities.upsert_patient(tx, store, one, at=store.clock())
            for one in (here, there, namesake, OTHER)
        ]
    found = {frozenset((p.one, p.other)): p for p in (await listed(store)).patients}
    assert set(found) == {frozenset(ids[:2]), frozenset(ids[::2]), frozenset(ids[1:3])}
    assert found[frozenset(ids[:2])].shared == ("number", "person")
    assert set(found[frozenset(ids[1:3])].differs) == {"patient_id", "sex", "phone"}
    async with store.db.transaction() as tx:
        assert await tx.fetchval("select count(*) from patients") == 4
    await shred_patient(store.db, store.ring, ids[0])
    (left,) = (await listed(store)).patients
    assert {left.one, left.other} == set(ids[1:3])


async def test_a_number_that_a_machine_gives_everybody_suggests_nobody(
    store: Store,
) -> None:
    async with store.db.transaction() as tx:
        for number in range(likeness.MOST_ALIKE + 5):
            told = PatientIdentity("0", f"N{number}", issuer=f"urn:{number}")
            await identities.upsert_patient(tx, store, told, at=store.clock())
        last = await tx.fetchval(
            "select count(*) from patient_pairs where kind = 'number'"
        )
    assert last <= likeness.MOST_ALIKE * (likeness.MOST_ALIKE - 1) / 2


async def test_patients_of_an_earlier_release_are_met_again_once_they_are_indexed(
    store: Store,
) -> None:
    here = make_patient(issuer="")
    async with store.db.transaction() as tx:
        for told in (here, replace(here, issuer="urn:ehr")):
            await identities.upsert_patient(tx, store, told, at=store.clock())
        await tx.execute("delete from patient_pairs")
        await tx.execute("delete from patient_traits")
        await tx.execute("update patients set traits = 0")
    assert (await listed(store)).patients == ()
    await identities.note_likeness_of_older(store)
    assert len((await listed(store)).patients) == 1
