"""Storage commitment with machines and with archives (PS3.4 Annex J)."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association

from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.results.sr import SR_CLASSES, as_sop_class, to_part10
from dicom_scp.sending.delivery import send_instance
from dicom_scp.sending.routing import RoutingTable
from dicom_scp.sending.scu import Destination, DimseSender
from dicom_scp.services.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    CommitmentSettings,
    commitment_service,
    report_commitment,
    request_commitment,
)
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, commitments, studies
from node.store.commitments import Delivery, DeliveryState, Reference
from node.store.erasure import shred
from node.store.jobs import MAX_FAILURES_BY_KIND, DeadLetter
from node.store.store import Store, open_store
from node.worker import Worker
from node.workflow import commitment
from node.workflow.commitment import (
    LANE,
    MAX_REQUESTS,
    MAX_SENDS,
    REDELIVER_INSTANCE,
    REPORT_COMMITMENT,
    REQUEST_COMMITMENT,
    ask_for_missing_reports,
    instance_sent,
    receive_report,
    redeliver_instance,
)
from tests.conftest import FrozenClock
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import make_instance
from tests.dicom_scp.results.test_sr import make_ai
from tests.intake import receive_object

MACHINE, ARCHIVE = "LOGIQ", "ARCHIVE"
SETTINGS = CommitmentSettings(grace_s=60)
US = "1.2.840.10008.5.1.4.1.1.6.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
SYNTAXES = [ImplicitVRLittleEndian, ExplicitVRLittleEndian]


@dataclass
class Machine:
    """An ultrasound machine, or an archive: takes reports and answers as told."""

    ae_title: str = MACHINE
    port: int = 0
    status: int = 0x0000
    abort: bool = False
    reports: list[tuple[int, Dataset]] = field(default_factory=list)
    roles: list[tuple[bool, bool]] = field(default_factory=list)
    came: threading.Event = field(default_factory=threading.Event)
    server: Any = None

    def take(self, event: evt.Event) -> tuple[int, None]:
        if self.abort:
            event.assoc.abort()
        self.reports.append((event.event_type, event.event_information))
        (context,) = event.assoc.accepted_contexts
        self.roles.append((context.as_scu, context.as_scp))
        self.came.set()
        return self.status, None

    def listen(self) -> None:
        ae = AE(self.ae_title)
        ae.add_supported_context(PUSH_MODEL, SYNTAXES, scu_role=False, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.take)]
        self.server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers
        )
        self.port = self.server.server_address[1]

    def close(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server = None

    def leave(self) -> None:
        """Close without waiting for it."""
        threading.Thread(target=self.close).start()

    @property
    def addresses(self) -> dict[str, Destination]:
        return {self.ae_title: Destination(self.ae_title, "127.0.0.1", self.port)}

    def connect(self, scp: StorageScp) -> Association:
        ae = AE(self.ae_title)
        ae.add_requested_context(PUSH_MODEL, SYNTAXES)
        handlers = [(evt.EVT_N_EVENT_REPORT, self.take)]
        association = ae.associate(
            "127.0.0.1", scp.ports[0], ae_title="SONONODE", evt_handlers=handlers
        )
        assert association.is_established
        return association

    def ask(self, scp: StorageScp, information: Dataset | None, **how: Any) -> Dataset:
        """Return the answer to one N-ACTION on an association of its own."""
        association = self.connect(scp)
        answer = ask_on(association, information, **how)
        association.release()
        return answer


def ask_on(
    association: Association,
    information: Dataset | None,
    *,
    action: int = 1,
    instance: str = PUSH_MODEL_INSTANCE,
) -> Dataset:
    answer, _ = association.send_n_action(information, action, PUSH_MODEL, instance)
    return answer


def item(sop_class: str, sop_instance: str) -> Dataset:
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = sop_class, sop_instance
    return made


def request_for(*uids: str, transaction: str = "2.25.900") -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = [item(US, uid) for uid in uids]
    return information


def named(report: Dataset, keyword: str = "ReferencedSOPSequence") -> list[str]:
    return sorted(i.ReferencedSOPInstanceUID for i in report.get(keyword, ()))


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    machine.listen()
    yield machine
    machine.leave()


Start = Callable[..., Any]


@pytest.fixture
def start(start_scp: StartScp, machine: Machine) -> Start:
    """Start our port with the machine as a peer."""

    async def start(**changes: object) -> StorageScp:
        peer = Peer(
            **{
                "ae_title": MACHINE,
                "host": "127.0.0.1",
                "port": machine.port,
                **changes,
            }  # type: ignore[arg-type]
        )
        return await start_scp(
            services=[commitment_service(SETTINGS)], peers=Peers([peer, Peer(ARCHIVE)])
        )

    return start


async def keep(store: Store, *uids: str, **attributes: Any) -> None:
    """Store instances as if a machine had sent them."""
    for uid in uids:
        instance = make_instance(SOPInstanceUID=uid, **attributes)
        await receive_object(store, instance, to_part10(instance))


async def work(store: Store, handlers: Mapping[str, Any]) -> None:
    """Do all commitment jobs that are due now."""
    worker = Worker(store.jobs, handlers, lane=LANE)
    while job := await store.jobs.claim(list(handlers), "w1", lane=LANE):
        await worker._carry_out(job)


async def report(store: Store, machine: Machine) -> None:
    await work(
        store,
        {
            REPORT_COMMITMENT: partial(
                report_commitment,
                store,
                settings=SETTINGS,
                addresses=machine.addresses,
            )
        },
    )


async def dead(store: Store) -> list[DeadLetter]:
    async with store.db.transaction() as tx:
        return await store.jobs.dead(tx)


async def open_reports(store: Store, clock: FrozenClock) -> int:
    soon = clock() + timedelta(seconds=1)
    async with store.db.transaction() as tx:
        return len(await commitments.overdue_reports(tx, soon))


# -- what machines ask of us -----------------------------------------------------------


async def test_what_is_kept_is_promised_on_an_association_of_our_own(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1", "2.25.2")
    answer = await asyncio.to_thread(machine.ask, scp, request_for("2.25.1", "2.25.2"))
    assert answer.Status == 0x0000
    assert machine.reports == []  # never from inside the request
    assert await open_reports(store, clock) == 1  # but it is on disk already
    await report(store, machine)
    ((event_type, told),) = machine.reports
    assert event_type == 1
    assert told.TransactionUID == "2.25.900"
    assert told.RetrieveAETitle == "SONONODE"
    assert named(told) == ["2.25.1", "2.25.2"]
    assert "FailedSOPSequence" not in told
    assert machine.roles == [(True, False)]  # the machine stayed the SCU of the class
    assert await open_reports(store, clock) == 0
    async with store.db.transaction() as tx:
        trail = await audit.entries(tx, entity="commitment/2.25.900")
    assert [(e.actor, e.action) for e in trail] == [
        (MACHINE, "commitment-request"),
        ("sononode", "commitment-report"),
    ]


async def test_what_is_not_kept_is_named_with_its_reason(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1", "2.25.2", "2.25.3")
    await keep(store, "2.25.4", rows=1200, columns=1200)  # of two encrypted segments
    async with store.db.transaction() as tx:
        kept = await commitments.kept_instances(tx, store, ["2.25.3", "2.25.4"])
    store.blobs.delete(kept["2.25.3"].blob_name)
    spoil_the_end(store, kept["2.25.4"].blob_name)
    information = request_for("2.25.1", "2.25.3", "2.25.4", "2.25.404")
    information.ReferencedSOPSequence.append(item(SC, "2.25.2"))
    await asyncio.to_thread(machine.ask, scp, information)
    clock.advance(seconds=61)
    await report(store, machine)
    ((event_type, told),) = machine.reports
    assert event_type == 2
    assert named(told) == ["2.25.1"]
    reasons = {
        i.ReferencedSOPInstanceUID: (i.ReferencedSOPClassUID, i.FailureReason)
        for i in told.FailedSOPSequence
    }
    assert reasons == {
        "2.25.2": (SC, 0x0119),
        "2.25.3": (US, 0x0110),
        "2.25.4": (US, 0x0110),
        "2.25.404": (US, 0x0112),
    }


def spoil_the_end(store: Store, blob_name: str) -> None:
    path = store.blobs._path(blob_name)
    sealed = bytearray(path.read_bytes())
    sealed[-1] ^= 1
    path.write_bytes(sealed)


async def test_an_erased_patients_images_are_not_promised(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    async with store.db.transaction() as tx:
        study = await studies.study(tx, "2.25.71")
        assert study is not None
        await shred(tx, store.ring, study.patient_id)
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    clock.advance(seconds=61)
    await store.ring.forget_shredded()
    await report(store, machine)
    ((event_type, told),) = machine.reports
    assert (event_type, named(told, "FailedSOPSequence")) == (2, ["2.25.1"])


async def test_what_is_still_on_its_way_is_waited_for(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1", "2.25.2"))
    await report(store, machine)
    clock.advance(seconds=20)
    await report(store, machine)
    assert machine.reports == []
    await keep(store, "2.25.2")
    clock.advance(seconds=20)
    await report(store, machine)
    ((event_type, told),) = machine.reports
    assert (event_type, named(told)) == (1, ["2.25.1", "2.25.2"])


async def test_the_list_is_evidence_that_its_study_is_complete(
    store: Store, start: Start, machine: Machine
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1", "2.25.2"))
    async with store.db.transaction() as tx:
        told = await tx.fetch(
            "select calling_ae, reference, source, sop_instance_uid"
            " from announced_instances order by sop_instance_uid"
        )
    assert [tuple(row) for row in told] == [
        (MACHINE, "2.25.900", "commitment", "2.25.1"),
        (MACHINE, "2.25.900", "commitment", "2.25.2"),
    ]


async def test_a_machine_that_asks_again_gets_its_report_again(
    store: Store, start: Start, machine: Machine
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    for _ in range(2):  # before the first report is out
        answer = await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
        assert answer.Status == 0x0000
    await report(store, machine)
    assert len(machine.reports) == 1
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    await report(store, machine)
    assert [event_type for event_type, _ in machine.reports] == [1, 1]


async def test_a_transaction_uid_stands_for_one_list(
    store: Store, start: Start, machine: Machine
) -> None:
    scp = await start()
    await keep(store, "2.25.1", "2.25.2")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    answer = await asyncio.to_thread(machine.ask, scp, request_for("2.25.2"))
    assert answer.Status == 0x0115
    await report(store, machine)
    assert [named(told) for _, told in machine.reports] == [["2.25.1"]]


def without(keyword: str) -> Dataset:
    information = request_for("2.25.1")
    delattr(information, keyword)
    return information


def wrong_item(**values: str) -> Dataset:
    information = request_for("2.25.1")
    for keyword, value in values.items():
        setattr(information.ReferencedSOPSequence[0], keyword, value)
    return information


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
async def test_a_request_that_is_not_whole_is_refused_with_its_reason(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    no_item = request_for()
    no_class = request_for("2.25.1")
    del no_class.ReferencedSOPSequence[0].ReferencedSOPClassUID
    cases: list[tuple[Dataset | None, dict[str, Any], int]] = [
        (without("TransactionUID"), {}, 0x0120),
        (without("ReferencedSOPSequence"), {}, 0x0120),
        (no_item, {}, 0x0121),
        (no_class, {}, 0x0120),
        (wrong_item(ReferencedSOPInstanceUID="../etc/passwd"), {}, 0x0115),
        (wrong_item(ReferencedSOPClassUID=""), {}, 0x0121),
        (None, {}, 0x0120),
        (request_for("2.25.1"), {"action": 2}, 0x0123),
        (request_for("2.25.1"), {"instance": "1.2.3"}, 0x0112),
    ]

    def ask_all() -> list[int]:
        association = machine.connect(scp)
        told = [
            int(ask_on(association, information, **how).Status)
            for information, how, _ in cases
        ]
        association.release()
        return told

    assert await asyncio.to_thread(ask_all) == [status for *_, status in cases]
    assert await open_reports(store, clock) == 0


async def test_without_an_address_the_machine_is_refused_and_the_setting_named(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start(host="")
    answer = await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    assert answer.Status == 0x0110
    assert "dicom.peers host" in answer.ErrorComment
    assert await open_reports(store, clock) == 0
    await asyncio.to_thread(scp.stop, grace_s=1)
    async with store.db.transaction() as tx:
        (entry,) = await audit.entries(tx, entity="commitment/2.25.900")
    assert "dicom.peers host" in entry.detail["reason"]


async def test_while_the_database_is_away_nothing_is_promised(
    store: Store, start: Start, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise NodeError("the database is away", ErrorKind.UNAVAILABLE)

    monkeypatch.setattr(commitment, "receive_request", away)
    answer = await asyncio.to_thread(machine.ask, await start(), request_for("2.25.1"))
    assert answer.Status == 0x0110


async def test_a_machine_that_is_off_gets_its_report_when_it_is_back(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    await asyncio.to_thread(scp.stop, grace_s=1)
    machine.close()
    for _ in range(10):
        await report(store, machine)
        clock.advance(seconds=60)
    assert machine.reports == []
    machine.listen()  # the same port; and we, too, were started again
    clock.advance(seconds=600)
    again = await open_store(
        store.db._dsn, store.ring._root_path, store.blobs._root, clock
    )
    try:
        await report(again, machine)
        await report(again, machine)
    finally:
        await again.close()
    assert [(event, named(told)) for event, told in machine.reports] == [
        (1, ["2.25.1"])
    ]
    assert MAX_FAILURES_BY_KIND[REPORT_COMMITMENT] >= 80  # three days


async def test_a_report_that_is_not_taken_is_sent_again(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1"))
    machine.status = 0x0110
    await report(store, machine)
    machine.status, machine.abort = 0x0000, True
    clock.advance(seconds=5)
    await report(store, machine)
    assert await open_reports(store, clock) == 1
    machine.abort = False
    clock.advance(seconds=5)
    await report(store, machine)
    assert await open_reports(store, clock) == 0
    assert [event_type for event_type, _ in machine.reports] == [1, 1, 1]


async def test_a_machine_that_wants_it_is_told_on_the_same_association(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start(commitment_reply="same")
    await keep(store, "2.25.1")

    def ask() -> None:
        association = machine.connect(scp)
        assert ask_on(association, request_for("2.25.1")).Status == 0x0000
        assert machine.came.wait(60)
        association.release()

    machine.close()  # nobody listens
    await asyncio.to_thread(ask)
    await asyncio.to_thread(scp.stop, grace_s=1)
    assert [event for event, _ in machine.reports] == [1]
    clock.advance(seconds=11)
    await report(store, machine)
    assert (await open_reports(store, clock), len(machine.reports)) == (0, 1)


async def test_a_machine_that_hangs_up_is_told_on_a_new_association(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start(commitment_reply="same")
    await keep(store, "2.25.1")
    await asyncio.to_thread(machine.ask, scp, request_for("2.25.1", "2.25.2"))
    await asyncio.to_thread(scp.stop, grace_s=1)
    await keep(store, "2.25.2")
    clock.advance(seconds=11)
    await report(store, machine)
    assert [event for event, _ in machine.reports] == [1]


# -- what we ask of archives -----------------------------------------------------------


@dataclass
class Archive:
    """A PACS that commits itself to what it is told to keep, when it is told to."""

    port: int = 0
    status: int = 0x0000
    asked: list[Dataset] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    on_the_same: bool = False
    stored: list[str] = field(default_factory=list)
    server: Any = None

    def listen(self, sop_class: str = PUSH_MODEL) -> None:
        ae = AE(ARCHIVE)
        ae.add_supported_context(sop_class, SYNTAXES)
        ae.add_supported_context(US, SYNTAXES)
        self.server = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_N_ACTION, self.take),
                (evt.EVT_C_STORE, self.store),
            ],
        )
        self.port = self.server.server_address[1]

    def take(self, event: evt.Event) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.on_the_same:
            event.assoc.bind(evt.EVT_DIMSE_SENT, self.report_here)
        return self.status, None

    def store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    def report_here(self, event: evt.Event) -> None:
        event.assoc.unbind(evt.EVT_DIMSE_SENT, self.report_here)
        arguments = (event.assoc, self.asked[-1])
        threading.Thread(target=self.report_on, args=arguments).start()

    def report_on(self, association: Association, asked: Dataset) -> int:
        """Send a report; return the answer's status."""
        told = Dataset()
        told.TransactionUID = asked.TransactionUID
        kept, failed = [], []
        for wanted in asked.ReferencedSOPSequence:
            uid = wanted.ReferencedSOPInstanceUID
            one = item(wanted.ReferencedSOPClassUID, uid)
            if uid in self.missing:
                one.FailureReason = self.missing[uid]
                failed.append(one)
            else:
                kept.append(one)
        if kept:
            told.ReferencedSOPSequence = kept
        if failed:
            told.FailedSOPSequence = failed
        answer, _ = association.send_n_event_report(
            told, 2 if failed else 1, PUSH_MODEL, PUSH_MODEL_INSTANCE
        )
        return int(answer.Status)

    def report_to(self, scp: StorageScp, asked: Dataset) -> int:
        """Report on a new association, as SCP of the class; return the status."""
        ae = AE(ARCHIVE)
        ae.add_requested_context(PUSH_MODEL, SYNTAXES)
        association = ae.associate(
            "127.0.0.1",
            scp.ports[0],
            ae_title="SONONODE",
            ext_neg=[build_role(PUSH_MODEL, scu_role=False, scp_role=True)],
        )
        (context,) = association.accepted_contexts
        assert (context.as_scu, context.as_scp) == (False, True)
        status = self.report_on(association, asked)
        association.release()
        return status

    @property
    def destinations(self) -> dict[str, Destination]:
        wait_s = 5.0 if self.on_the_same else 0.0
        archive = Destination(
            ARCHIVE, "127.0.0.1", self.port, commitment=True, commitment_wait_s=wait_s
        )
        return {"PACS": archive}


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive()
    archive.listen()
    yield archive
    if archive.server is not None:
        threading.Thread(target=archive.server.shutdown).start()


async def send(store: Store, *uids: str, commitment: bool = True) -> None:
    """Note that instances were sent to the archive, as `send_instance` does."""
    async with store.db.transaction() as tx:
        for uid in uids:
            await instance_sent(
                store,
                tx,
                sop_instance_uid=uid,
                destination="PACS",
                sent=Reference(US, uid),
                commitment=commitment,
            )


async def ask(store: Store, archive: Archive, clock: FrozenClock) -> None:
    """Do what is due, five seconds later."""
    clock.advance(seconds=6)
    handlers = {
        REQUEST_COMMITMENT: partial(
            request_commitment, store, destinations=archive.destinations
        ),
        REDELIVER_INSTANCE: partial(redeliver_instance, store),
    }
    await work(store, handlers)


async def delivered(store: Store) -> dict[str, Delivery]:
    async with store.db.transaction() as tx:
        found = await commitments.deliveries_of_study(tx, "2.25.71")
    return {delivery.sop_instance_uid: delivery for delivery in found}


async def state_of(store: Store, uid: str = "2.25.1") -> DeliveryState:
    return (await delivered(store))[uid].state


async def answer(
    store: Store, asked: Dataset, *, kept: tuple[str, ...] = (), **failed: int
) -> None:
    reasons = {uid.replace("_", ".")[1:]: reason for uid, reason in failed.items()}
    await receive_report(
        store,
        sender=ARCHIVE,
        transaction_uid=asked.TransactionUID,
        committed=kept,
        failed=reasons,
    )


async def resent(store: Store) -> list[str]:
    """Do the sendings that are due as if they succeeded; return what was sent."""
    sent = []
    while job := await store.jobs.claim(["send_instance"], "w2", lane="PACS"):
        sent.append(job.payload["sop_instance_uid"])
        await send(store, sent[-1])
        await store.jobs.done(job)
    return sent


async def test_a_result_is_delivered_when_the_archive_has_committed_itself(
    store: Store, start: Start, archive: Archive, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1", "2.25.2")
    await send(store, "2.25.1", "2.25.2")
    await ask(store, archive, clock)
    (asked,) = archive.asked  # one request for all that was sent of the study
    assert named(asked) == ["2.25.1", "2.25.2"]
    assert await state_of(store) is DeliveryState.SENT
    for _ in range(2):  # a repeated report is harmless
        status = await asyncio.to_thread(archive.report_to, scp, asked)
        assert status == 0x0000
    assert {d.state for d in (await delivered(store)).values()} == {
        DeliveryState.COMMITTED
    }
    async with store.db.transaction() as tx:
        trail = await audit.entries(tx, entity=f"commitment/{asked.TransactionUID}")
        counts = await commitments.delivery_counts(tx)
        assert await store.jobs.counts(tx) == {}  # one job for each, one request
    assert [entry.action for entry in trail[:2]] == [
        "commitment-ask",
        "commitment-answer",
    ]
    assert counts == {("PACS", "committed"): 2}


async def test_what_was_sent_and_lost_is_stored_again_and_then_kept(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    sender = DimseSender(archive.destinations["PACS"], keep_s=0)
    handler = partial(
        send_instance, store, senders={"PACS": sender}, table=RoutingTable()
    )
    await handler({"sop_instance_uid": "2.25.1", "destination": "PACS"})
    await ask(store, archive, clock)
    await answer(store, archive.asked[0], _2_25_1=0x0112)
    clock.advance(seconds=61)
    worker = Worker(store.jobs, {"send_instance": handler}, lane="PACS")
    job = await store.jobs.claim(["send_instance"], "w1", lane="PACS")
    assert job is not None
    await worker._carry_out(job)
    assert archive.stored == ["2.25.1", "2.25.1"]
    await ask(store, archive, clock)
    await answer(store, archive.asked[1], kept=("2.25.1",))
    assert await state_of(store) is DeliveryState.COMMITTED


async def test_a_report_on_the_association_that_asked_counts(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    archive.on_the_same = True
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    await ask(store, archive, clock)
    assert await state_of(store) is DeliveryState.COMMITTED


async def test_an_archive_is_asked_for_what_it_has_got(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    document = make_ai()
    lesser = as_sop_class(document, SR_CLASSES[1])
    await receive_object(store, document, to_part10(document))
    async with store.db.transaction() as tx:
        await instance_sent(
            store,
            tx,
            sop_instance_uid=document.SOPInstanceUID,
            destination="PACS",
            sent=Reference(str(lesser.SOPClassUID), str(lesser.SOPInstanceUID)),
            commitment=True,
        )
    await ask(store, archive, clock)
    (asked,) = archive.asked
    (wanted,) = asked.ReferencedSOPSequence
    assert wanted.ReferencedSOPClassUID == SR_CLASSES[1]
    assert wanted.ReferencedSOPInstanceUID == lesser.SOPInstanceUID
    await answer(store, asked, kept=(str(lesser.SOPInstanceUID),))
    async with store.db.transaction() as tx:
        found = await commitments.delivery(tx, document.SOPInstanceUID, "PACS")
    assert found is not None
    assert found.state is DeliveryState.COMMITTED


async def test_an_archive_that_is_not_asked_has_it_when_it_said_so(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    await send(store, "2.25.1", commitment=False)
    await ask(store, archive, clock)
    assert archive.asked == []
    async with store.db.transaction() as tx:
        assert await commitments.delivery_counts(tx) == {("PACS", "sent"): 1}


async def test_what_the_archive_lost_is_sent_again_and_then_told_to_people(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1", "2.25.2")
    await send(store, "2.25.1", "2.25.2")
    for sending in range(MAX_SENDS):
        await ask(store, archive, clock)
        kept = ("2.25.2",) if sending == 0 else ()
        await answer(store, archive.asked[-1], kept=kept, _2_25_1=0x0112)
        clock.advance(seconds=61)
        again = await resent(store)
        assert again == (["2.25.1"] if sending < MAX_SENDS - 1 else [])
    assert [named(asked) for asked in archive.asked] == [
        ["2.25.1", "2.25.2"],
        ["2.25.1"],
        ["2.25.1"],
    ]
    assert (await delivered(store))["2.25.2"].state is DeliveryState.COMMITTED
    assert (await delivered(store))["2.25.1"].reason == "no such object instance (0112)"
    await ask(store, archive, clock)
    (letter,) = await dead(store)
    assert letter.kind == REDELIVER_INSTANCE
    assert "PACS does not keep it: no such object instance" in letter.error
    assert letter.payload["study_instance_uid"] == "2.25.71"
    async with store.db.transaction() as tx:
        await store.jobs.replay(tx, letter.id)
    await ask(store, archive, clock)
    assert await resent(store) == ["2.25.1"]
    await ask(store, archive, clock)
    await answer(store, archive.asked[-1], kept=("2.25.1",))
    assert await state_of(store) is DeliveryState.COMMITTED


async def test_what_sending_again_cannot_mend_is_told_at_once(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    await ask(store, archive, clock)
    await answer(store, archive.asked[0], _2_25_1=0x0119)
    assert await state_of(store) is DeliveryState.FAILED
    await ask(store, archive, clock)
    (letter,) = await dead(store)
    assert "(0119)" in letter.error


async def test_an_archive_that_never_reports_is_asked_again_and_then_told_to_people(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    for _ in range(MAX_REQUESTS):
        await ask(store, archive, clock)
        assert await ask_for_missing_reports(store, patience_s=3600) == 0
        clock.advance(seconds=3601)
        assert await ask_for_missing_reports(store, patience_s=3600) == 1
    uids = {asked.TransactionUID for asked in archive.asked}
    assert len(uids) == MAX_REQUESTS
    assert await state_of(store) is DeliveryState.FAILED
    await answer(store, archive.asked[0], kept=("2.25.1",))  # it did, only late
    assert await state_of(store) is DeliveryState.COMMITTED
    await ask(store, archive, clock)
    assert await dead(store) == []


async def test_what_a_report_does_not_mention_is_asked_for_again(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1", "2.25.2")
    await send(store, "2.25.1", "2.25.2")
    await ask(store, archive, clock)
    await answer(store, archive.asked[0], kept=("2.25.1",))
    await ask(store, archive, clock)
    assert [named(asked) for asked in archive.asked] == [
        ["2.25.1", "2.25.2"],
        ["2.25.2"],
    ]


async def test_an_old_failure_does_not_undo_a_newer_promise(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    await ask(store, archive, clock)
    await answer(store, archive.asked[0], _2_25_1=0x0112)
    clock.advance(seconds=61)
    await resent(store)
    await ask(store, archive, clock)
    await answer(store, archive.asked[0], _2_25_1=0x0112)  # told twice
    assert await state_of(store) is DeliveryState.SENT
    await answer(store, archive.asked[1], kept=("2.25.1",))
    await answer(store, archive.asked[1], _2_25_1=0x0112)
    assert await state_of(store) is DeliveryState.COMMITTED
    assert await resent(store) == []


async def test_a_report_that_nobody_asked_for_is_refused(
    store: Store, start: Start, archive: Archive
) -> None:
    scp = await start()
    strange = request_for("2.25.1", transaction="2.25.666")
    assert await asyncio.to_thread(archive.report_to, scp, strange) == 0x0115


async def test_an_archive_that_is_away_is_asked_when_it_is_back(
    store: Store, archive: Archive, clock: FrozenClock
) -> None:
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    archive.server.shutdown()
    await ask(store, archive, clock)
    archive.listen()
    archive.status = 0x0110
    await ask(store, archive, clock)
    archive.status = 0x0000
    clock.advance(seconds=10)
    await ask(store, archive, clock)
    first, second = archive.asked
    assert first.TransactionUID == second.TransactionUID  # the same request
    assert await dead(store) == []


@pytest.mark.parametrize("refusal", ["context", "status"])
async def test_an_archive_that_does_not_commit_itself_is_failed_work_at_once(
    store: Store, archive: Archive, clock: FrozenClock, refusal: str
) -> None:
    if refusal == "context":
        archive.server.shutdown()
        archive.listen(sop_class="1.2.840.10008.1.1")
    archive.status = 0x0122
    await keep(store, "2.25.1")
    await send(store, "2.25.1")
    await ask(store, archive, clock)
    (letter,) = await dead(store)
    assert letter.kind == REQUEST_COMMITMENT
    assert "archive ARCHIVE" in letter.error
