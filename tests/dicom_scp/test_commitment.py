"""Storage commitment with machines and with archives (PS3.4 Annex J)."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association

from dicom_scp.commitment import (
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    CommitmentSettings,
    commitment_service,
    report_commitment,
)
from dicom_scp.peers import Peer, Peers
from dicom_scp.scp import StorageScp
from dicom_scp.scu import Destination
from dicom_scp.sr import to_part10
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, commitments, studies
from node.store.jobs import MAX_FAILURES_BY_KIND, DeadLetter
from node.store.store import Store, open_store
from node.worker import Worker
from node.workflow import commitment
from node.workflow.commitment import (
    LANE,
    REPORT_COMMITMENT,
)
from tests.conftest import FrozenClock
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import make_instance
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


def request_for(*uids: str, transaction: str = "2.25.900", **classes: str) -> Dataset:
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
    machine.close()


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


async def keep(store: Store, *uids: str) -> None:
    """Store instances as if a machine had sent them."""
    for uid in uids:
        instance = make_instance(SOPInstanceUID=uid)
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
    async with store.db.transaction() as tx:
        return len(await commitments.overdue_reports(tx, clock() + clock_step(1)))


def clock_step(seconds: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=seconds)


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
    await keep(store, "2.25.1", "2.25.2", "2.25.3", "2.25.4")
    async with store.db.transaction() as tx:
        kept = await commitments.kept_instances(tx, store, ["2.25.3", "2.25.4"])
    store.blobs.delete(kept["2.25.3"].blob_name)
    cut_off(store, kept["2.25.4"].blob_name)
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


def cut_off(store: Store, blob_name: str) -> None:
    path = store.blobs._path(blob_name)
    path.write_bytes(path.read_bytes()[:-1])


async def test_an_erased_patients_images_are_not_promised(
    store: Store, start: Start, machine: Machine, clock: FrozenClock
) -> None:
    scp = await start()
    await keep(store, "2.25.1")
    async with store.db.transaction() as tx:
        study = await studies.study(tx, "2.25.71")
        assert study is not None
        await store.ring.shred(tx, study.patient_id)
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

    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
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
        assert machine.came.wait(10)
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
