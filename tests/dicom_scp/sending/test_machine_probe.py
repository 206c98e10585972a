"""A machine that does not get in is told why, and what to change where."""

import asyncio
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from pynetdicom import AE

from dicom_scp.receiving import scp as listening
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.sending.machine_probe import Around, examine_machine
from dicom_scp.sending.probe import Finding, probe_machine
from dicom_scp.sending.scu import Destination
from dicom_scp.services.worklist import (
    WORKLIST_FIND,
    WorklistSettings,
    worklist_service,
)
from node.store import callers
from node.store.callers import ACCEPTED, MOST, Call
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.dicom_scp.conftest import StartScp

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
STORER = Peer("LOGIQ", services=frozenset({ServiceName.STORE}))
AROUND = Around("SONONODE", Peers([STORER]), {WORKLIST_FIND: ServiceName.WORKLIST})


def call(outcome: str = ACCEPTED, **changes: Any) -> Call:
    told: dict[str, Any] = {
        "calling_ae": "LOGIQ",
        "address": "10.1.2.15",
        "outcome": outcome,
        "called_ae": "SONONOD",
        "refused_classes": (),
        "at": NOW - timedelta(minutes=3),
    }
    return Call(**{**told, **changes})


def ill(findings: list[Finding]) -> dict[str, str]:
    return {f.step: f.told for f in findings if not f.well}


def test_a_machine_that_gets_in_needs_no_change() -> None:
    findings = examine_machine("LOGIQ", [call()], [], AROUND, now=NOW)

    assert ill(findings) == {}
    assert findings[-1].told == "3 minutes ago from 10.1.2.15: accepted"


@pytest.mark.parametrize("rejection", listening.REJECTIONS)
def test_every_rejection_has_its_mend(rejection: listening.Rejection) -> None:
    findings = examine_machine("LOGIQ", [call(rejection.reason)], [], AROUND, now=NOW)

    assert rejection.reason in ill(findings)["calls"]
    assert "See the log" not in ill(findings)["calls"]


def test_a_wrong_called_title_is_quoted() -> None:
    reason = listening.NOT_CALLED.reason

    findings = examine_machine("LOGIQ", [call(reason)], [], AROUND, now=NOW)

    assert "It calls 'SONONOD'" in ill(findings)["calls"]


def test_who_is_not_entered_is_told_what_to_enter() -> None:
    shut = examine_machine("EPIQ", [], [], AROUND, now=NOW)
    open_door = Around("SONONODE", Peers(), {})
    anybody = examine_machine("EPIQ", [], [], open_door, now=NOW)

    assert 'ae_title = "EPIQ"' in ill(shut)["entered"]
    assert "like everybody" in ill(anybody)["entered"]


def test_strangers_are_named_while_the_machine_itself_never_called() -> None:
    stranger = call(listening.UNKNOWN_CALLER.reason, calling_ae="logiq")

    findings = examine_machine("LOGIQ", [], [stranger], AROUND, now=NOW)

    assert "nobody has called as LOGIQ" in ill(findings)["calls"]
    assert ill(findings)["stranger"].startswith("logiq called from 10.1.2.15")


@pytest.mark.parametrize(
    ("uid", "mend"),
    [
        (WORKLIST_FIND, 'add "worklist" to services'),
        ("1.2.840.113619.4.2.77", "to sop_classes of its entry"),
        ("1.2.840.10008.5.1.4.34.6.1", "does not offer it"),
    ],
)
def test_a_class_asked_for_in_vain_says_how_to_get_it(uid: str, mend: str) -> None:
    calls = [call(refused_classes=(uid,))]

    findings = examine_machine("LOGIQ", calls, [], AROUND, now=NOW)

    assert mend in ill(findings)["asks in vain for"]


def associate(scp: StorageScp, title: str, called: str = "SONONODE") -> None:
    entity = AE(title)
    entity.add_requested_context("1.2.840.10008.1.1")
    entity.add_requested_context(WORKLIST_FIND)
    association = entity.associate("127.0.0.1", scp.ports[0], ae_title=called)
    if association.is_established:
        association.release()


async def noted(store: Store, title: str, count: int) -> list[Call]:
    """Return the calls under a title as soon as there are `count` of them."""
    async with asyncio.timeout(60):
        while True:
            async with store.db.connection() as connection:
                calls = await callers.of_title(connection, title)
            if len(calls) >= count:
                return calls
            await asyncio.sleep(0.01)


async def test_calls_are_noted_with_what_they_asked_for_in_vain(
    store: Store, start_scp: StartScp
) -> None:
    peer = Peer(
        "LOGIQ",
        services=frozenset({ServiceName.STORE}),
        addresses=(ip_network("127.0.0.0/8"),),
    )
    elsewhere = Peer("EPIQ", addresses=(ip_network("10.0.0.0/8"),))
    scp = await start_scp(
        services=[worklist_service(WorklistSettings())], peers=Peers([peer, elsewhere])
    )

    for title, called in [
        ("LOGIQ", "SONONODE"),
        ("LOGIQ", "OTHER"),
        ("EPIQ", "SONONODE"),
    ]:
        await asyncio.to_thread(associate, scp, title, called)

    accepted, rejected = sorted(await noted(store, "LOGIQ", 2), key=lambda c: c.outcome)
    assert (accepted.outcome, accepted.refused_classes) == (ACCEPTED, (WORKLIST_FIND,))
    assert (rejected.outcome, rejected.called_ae) == (
        listening.NOT_CALLED.reason,
        "OTHER",
    )
    (other,) = await noted(store, "EPIQ", 1)
    assert other.outcome == listening.WRONG_ADDRESS.reason


async def test_a_busy_machine_is_noted_once_in_a_while(
    store: Store, start_scp: StartScp, clock: FrozenClock
) -> None:
    scp = await start_scp()
    for _ in range(3):
        await asyncio.to_thread(associate, scp, "LOGIQ")
    first = (await noted(store, "LOGIQ", 1))[0].at
    clock.advance(seconds=60)

    await asyncio.to_thread(associate, scp, "LOGIQ")

    async with asyncio.timeout(60):
        while (await noted(store, "LOGIQ", 1))[0].at == first:
            await asyncio.sleep(0.01)


async def test_only_the_latest_callers_are_kept(
    store: Store, clock: FrozenClock
) -> None:
    async with store.db.transaction() as tx:
        await tx.execute(
            "insert into callers select 'S' || n, '10.0.0.1', 'x', '', '{}',"
            " $1::timestamptz - n * interval '1 second',"
            " $1::timestamptz - n * interval '1 second'"
            " from generate_series(1, $2) n",
            clock(),
            MOST + 50,
        )
        await callers.note(tx, call(at=clock()))
        assert await tx.fetchval("select count(*) from callers") <= MOST + 1
        assert await callers.of_title(tx, f"S{MOST + 50}") == []


async def test_a_machine_that_we_reach_is_told_so(start_scp: StartScp) -> None:
    scp = await start_scp()
    machine = Destination("SONONODE", "127.0.0.1", scp.ports[0])

    findings = await asyncio.to_thread(probe_machine, machine, now=NOW)

    assert [f.step for f in findings] == ["connection", "association", "echo"]
    assert all(f.well for f in findings)


async def test_a_machine_that_nobody_hears_of_is_told_so() -> None:
    machine = Destination("LOGIQ", "127.0.0.1", 1)

    (finding,) = await asyncio.to_thread(probe_machine, machine, now=NOW)

    assert not finding.well
    assert "refused" in finding.told
