"""The audit trail: append-only, chained, and every change of it is noticed."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import asyncpg
import pytest

from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.store import audit
from node.store.store import Store

PATIENT = "00000000-0000-4000-8000-000000000007"
AT = datetime(2026, 11, 21, 8, 0, 0, 123456, tzinfo=UTC)


def entry(number: int = 0) -> AuditEntry:
    return AuditEntry(
        at=AT + timedelta(seconds=number),
        actor="dr-li",
        role="radiologist",
        action="read",
        entity=f"DiagnosticReport/{number}",
        outcome=Outcome.REFUSED if number % 2 else Outcome.SUCCESS,
        detail={"why": "急诊", "by": str(number), "patients": PATIENT},
    )


async def record(store: Store, *numbers: int) -> None:
    for number in numbers:
        async with store.db.transaction() as tx:
            await audit.record(tx, entry(number))


async def verify(store: Store) -> int:
    async with store.db.transaction() as tx:
        return await audit.verify(tx)


async def test_entries_come_back_as_they_were_recorded(store: Store) -> None:
    await record(store, 1, 2)
    async with store.db.transaction() as tx:
        assert await audit.entries(tx, entity="DiagnosticReport/1") == [entry(1)]
    assert await verify(store) == 2


async def test_an_empty_trail_is_whole(store: Store) -> None:
    assert await verify(store) == 0


async def test_a_time_of_another_zone_is_the_same_instant(store: Store) -> None:
    shanghai = timezone(timedelta(hours=8))
    async with store.db.transaction() as tx:
        await audit.record(tx, AuditEntry(AT.astimezone(shanghai), "a", "b", "c", "d"))
    assert await verify(store) == 1


async def test_concurrent_writers_make_one_chain(store: Store) -> None:
    await asyncio.gather(*(record(store, n, n + 100) for n in range(10)))
    assert await verify(store) == 20


async def test_an_entry_of_a_rolled_back_act_leaves_no_gap(store: Store) -> None:
    await record(store, 1)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with store.db.transaction() as tx:
            await audit.record(tx, entry(2))
            raise ZeroDivisionError
    await record(store, 3)
    assert await verify(store) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_entries set actor = 'somebody'",
        "delete from audit_entries",
        "truncate audit_entries",
        "update audit_patients set sequence = 0",
        "delete from audit_patients",
        "truncate audit_patients",
    ],
)
async def test_the_database_refuses_to_change_the_trail(
    store: Store, statement: str
) -> None:
    await record(store, 1)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        async with store.db.transaction() as tx:
            await tx.execute(statement)
    assert await verify(store) == 1


@pytest.mark.parametrize(
    "tampering",
    [
        "update audit_entries set actor = 'somebody' where sequence = 2",
        "update audit_entries set at = at + interval '1 us' where sequence = 2",
        "update audit_entries set outcome = '8' where sequence = 2",
        "update audit_entries set detail = '{}' where sequence = 2",
        "update audit_entries set hash = sha256('x') where sequence = 4",
        "delete from audit_entries where sequence = 2",
        "delete from audit_entries where sequence = 1",
        "update audit_entries set sequence = sequence + 10 where sequence = 4",
        "update audit_entries set entity = (array['', 'DiagnosticReport/3',"
        " 'DiagnosticReport/2', ''])[sequence] where sequence in (2, 3)",
    ],
)
async def test_what_somebody_with_power_over_the_database_changed_is_found(
    store: Store, tampering: str
) -> None:
    await record(store, 1, 2, 3, 4)
    async with store.db.transaction() as tx:
        await tx.execute("alter table audit_entries disable trigger user")
        await tx.execute(tampering)
    with pytest.raises(NodeError, match="audit entry") as told:
        await verify(store)
    assert told.value.kind is ErrorKind.INTEGRITY
