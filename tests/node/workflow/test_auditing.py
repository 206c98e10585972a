"""An auditor finds a woman by her number, and has the chain verified piece by piece."""

import pytest

from node.domain.access import Identity, Role
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, identities, merges
from node.store.store import Store
from node.workflow import auditing
from node.workflow.auditing import (
    CHECK_TRAIL,
    check_trail,
    find_women,
    note_export,
    read_actors,
    read_chain,
    start_check,
)
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.node.workflow.test_orders import received

AUDITOR = Identity("an-auditor", frozenset({Role.AUDITOR}), "Auditor")


async def work(store: Store) -> int:
    """Do the verifications that wait; return how many there were."""
    done = 0
    while job := await store.jobs.claim([CHECK_TRAIL], "here"):
        await check_trail(store, job.payload)
        await store.jobs.done(job)
        done += 1
    return done


async def told(store: Store) -> list[AuditEntry]:
    async with store.db.connection() as tx:
        return [one.entry for one in await audit.following(tx, 0, 10_000)]


async def filled(store: Store, count: int) -> None:
    one = AuditEntry(store.clock(), "dr", "radiologist", "read", "report/1")
    async with store.db.transaction() as tx:
        await audit.record_all(tx, [one] * count)


async def forged(store: Store, statement: str) -> None:
    async with store.db.transaction() as tx:
        await tx.execute("alter table audit_entries disable trigger audit_no_change")
        await tx.execute(statement)


async def test_a_number_or_an_accession_number_finds_all_rows_of_a_woman(
    store: Store,
) -> None:
    await received(store, study="2.25.1", accession="ACC-7")
    async with store.db.transaction() as tx:
        (her,) = await identities.find_patients_by_number(
            tx, store, make_patient().patient_id
        )
        other = await identities.upsert_patient(
            tx, store, make_patient(patient_id="H-9"), at=store.clock()
        )
    for number in (f" {make_patient().patient_id} ", "ACC-7"):
        (found,) = await find_women(store, AUDITOR, number)
        assert found.patients == (her,)
        assert found.masked == "张*"
    async with store.db.transaction() as tx:
        await merges.link(tx, her, other)
    (found,) = await find_women(store, AUDITOR, "H-9")
    assert found.patients == (other, her)
    assert await find_women(store, AUDITOR, "nobody") == ()
    looks = [one for one in await told(store) if one.action == "audit-who"]
    assert looks[-1].detail["patients"] == f"{other} {her}"
    assert "H-9" not in str(looks)


async def test_two_women_with_one_number_are_both_told(store: Store) -> None:
    async with store.db.transaction() as tx:
        for issuer in ("urn:a", "urn:b"):
            one = make_patient(patient_id="7", issuer=issuer)
            await identities.upsert_patient(tx, store, one, at=store.clock())
    assert len(await find_women(store, AUDITOR, "7")) == 2


async def test_nobody_else_asks_the_trail(store: Store) -> None:
    for role in Role:
        if role is Role.AUDITOR:
            continue
        caller = Identity("x", frozenset({role}), "X")
        for asked in (
            find_women(store, caller, "7"),
            read_actors(store, caller),
            read_chain(store, caller),
            start_check(store, caller, whole=True),
            note_export(store, caller, "csv", 1, 2, 2),
        ):
            with pytest.raises(NodeError) as refused:
                await asked
            assert refused.value.kind is ErrorKind.FORBIDDEN


async def test_everybody_in_the_trail_is_told_with_a_name(store: Store) -> None:
    await filled(store, 2)
    await note_export(store, AUDITOR, "csv", 1, 2, 2)
    found = await read_actors(store, AUDITOR)
    assert [(one.id, one.kind) for one in found] == [
        ("an-auditor", "other"),
        ("dr", "other"),
    ]


async def test_the_chain_is_verified_in_pieces_and_then_what_is_new(
    store: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PIECE", 10)
    await filled(store, 35)
    await start_check(store, AUDITOR, whole=True)
    await start_check(store, AUDITOR, whole=True)  # beside one that runs: the same
    running = (await read_chain(store, AUDITOR)).running
    assert running is not None
    assert (running.first, running.last, running.reached.sequence) == (1, 35, 0)
    assert await work(store) == 1
    first = await read_chain(store, AUDITOR)
    assert first.running is None
    assert first.newest is not None
    assert (first.newest.reached.sequence, first.newest.fault) == (35, "")
    clock.advance(seconds=60)
    await start_check(store, AUDITOR, whole=False)
    await work(store)
    newest = (await read_chain(store, AUDITOR)).newest
    assert newest is not None
    assert (newest.first, newest.last) == (36, 38)  # two questions and what was found
    found = [one for one in await told(store) if one.actor == "sononode"]
    assert [one.detail["held"] for one in found] == ["1-35", "36-38"]
    assert found[0].detail["hash"] == first.newest.reached.hash.hex()


async def test_a_verification_goes_on_where_a_killed_worker_left_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "PIECE", 10)
    await filled(store, 35)
    await start_check(store, AUDITOR, whole=True)
    running = (await read_chain(store, AUDITOR)).running
    assert running is not None
    await auditing._check_piece(store, running.check_id)
    half = (await read_chain(store, AUDITOR)).running
    assert half is not None
    assert half.reached.sequence == 10
    # Whatever is behind it is not looked at twice.
    await forged(store, "update audit_entries set actor = 'x' where sequence = 3")
    await work(store)
    newest = (await read_chain(store, AUDITOR)).newest
    assert newest is not None
    assert (newest.reached.sequence, newest.fault) == (35, "")


@pytest.mark.parametrize(
    ("forgery", "held", "named"),
    [
        ("update audit_entries set actor = 'x' where sequence = 13", 10, "13"),
        ("delete from audit_entries where sequence = 35", 30, "34"),
        ("delete from audit_entries where sequence > 5", 0, "5"),
    ],
)
async def test_what_does_not_hold_is_told_and_ends_the_check(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    forgery: str,
    held: int,
    named: str,
) -> None:
    monkeypatch.setattr(audit, "PIECE", 10)
    await filled(store, 34)
    await start_check(store, AUDITOR, whole=True)
    await filled(store, 1)
    async with store.db.transaction() as tx:
        await tx.execute("update audit_checks set last = 35")
    await forged(store, forgery)
    await work(store)
    state = await read_chain(store, AUDITOR)
    assert state.running is None
    assert state.newest is not None
    assert named in state.newest.fault
    assert held <= state.newest.reached.sequence < 35
    # After a fault the whole chain is looked at, whatever was asked.
    await start_check(store, AUDITOR, whole=False)
    running = (await read_chain(store, AUDITOR)).running
    assert running is not None
    assert running.first == 1
