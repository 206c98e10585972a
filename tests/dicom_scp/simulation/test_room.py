"""A simulated room against the node: what a machine does around its images."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from pydicom import dcmread

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.sending.scu import Destination
from dicom_scp.services.commitment import (
    CommitmentSettings,
    commitment_service,
    report_commitment,
)
from dicom_scp.services.worklist import WorklistSettings, worklist_service
from dicom_scp.simulation.load import send_load
from dicom_scp.simulation.machines import PROFILES
from dicom_scp.simulation.messages import Scheduled
from dicom_scp.simulation.phantoms import PhantomLesion
from dicom_scp.simulation.room import Examination, Node, Room, Step
from dicom_scp.simulation.simulator import PATIENTS, invented_patient
from node.domain.errors import NodeError
from node.domain.study import Origin
from node.store import identities, studies
from node.store.store import Store
from node.worker import Worker
from node.workflow.commitment import LANE, REPORT_COMMITMENT
from tests.conformance.judges import dciodvfy
from tests.conftest import FrozenClock
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.services.test_worklist import WANG, make_step, place
from tests.ports import free_port

TITLE = "US1"
LESION = PhantomLesion(22, 15, 14, 8)
SMALL = Examination(images=2, rows=300, columns=380, lesions=(LESION,))
COMMITMENT = CommitmentSettings(grace_s=0)
_numbers = itertools.count(1)


def new_uid() -> str:
    return f"2.25.77{next(_numbers):08d}"


@dataclass
class Site:
    """A node with its services, and a room beside it."""

    store: Store
    scp: StorageScp
    listen: int

    def room(self, profile: str, **changes: Any) -> Room:
        node = Node(
            "127.0.0.1",
            self.scp.ports[0],
            calling_ae=TITLE,
            listen=self.listen,
            patience_s=60,
        )
        for name, value in changes.items():
            object.__setattr__(node, name, value)
        return Room(node, PROFILES[profile], clock=self.store.clock, uid=new_uid)


@pytest.fixture
async def site(
    store: Store, clock: FrozenClock, start_scp: StartScp
) -> AsyncIterator[Site]:
    listen = free_port()
    services_of_room = frozenset(ServiceName)
    peer = Peer(TITLE, services=services_of_room, host="127.0.0.1", port=listen)
    services = [worklist_service(WorklistSettings()), commitment_service(COMMITMENT)]
    scp = await start_scp(services=services, peers=Peers([peer]))
    addresses = {TITLE: Destination(TITLE, "127.0.0.1", listen)}
    worker = Worker(
        store.jobs,
        {
            REPORT_COMMITMENT: partial(
                report_commitment,
                store,
                settings=COMMITMENT,
                addresses=addresses,
            )
        },
        lane=LANE,
    )
    working = asyncio.create_task(worker.run())
    yield Site(store, scp, listen)
    worker.stop()
    await working


async def examined(
    room: Room, clock: FrozenClock, examination: Examination = SMALL
) -> dict[str, Step]:
    """Return the steps of an examination by name; time goes on meanwhile."""
    examining = asyncio.create_task(
        asyncio.to_thread(lambda: list(room.run(PATIENTS[0], examination)))
    )
    while not examining.done():
        await asyncio.wait({examining}, timeout=0.05)
        clock.advance(seconds=0.2)
    return {step.name: step for step in await examining}


async def test_a_scheduled_woman_is_examined_as_in_a_real_room(
    site: Site, clock: FrozenClock
) -> None:
    await place(site.store, [(WANG, make_step(1, 21, 9, station_titles=(TITLE,)))])

    steps = await examined(site.room("mindray"), clock)

    assert steps["verification"].well
    assert steps["worklist"].told == "1 scheduled; takes ACC1"
    assert steps["images"].told == "3 of 3 acknowledged"  # two images and an SR
    assert steps["commitment"].told == "3 of 3 committed"
    async with site.store.db.transaction() as tx:
        (study,) = await studies.find_studies_by_accession(tx, site.store, "ACC1")
        record = await studies.study(tx, study)
        assert record is not None
        patient = await identities.patient(tx, site.store, record.patient_id)
        kept = await studies.instances_of(tx, site.store, study, Origin.RECEIVED)
    assert (patient.name, patient.patient_id) == (WANG.name, WANG.patient_id)
    assert [i.modality for i in kept] == ["US", "US", "SR"]


async def test_without_a_worklist_entry_the_examination_is_unscheduled(
    site: Site, clock: FrozenClock
) -> None:
    steps = await examined(site.room("old"), clock)

    assert steps["worklist"].told == "nobody is scheduled: unscheduled"
    assert steps["images"].well
    assert "commitment" not in steps


async def test_a_room_that_nobody_can_call_back_says_what_is_missing(
    site: Site, clock: FrozenClock
) -> None:
    room = site.room("mindray", listen=None, patience_s=0.2)

    steps = await examined(room, clock)

    assert (
        steps["commitment"].told
        == "asked, but no report came; name a port with --listen"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"calling_ae": "NOBODY"}, "the node does not know the title NOBODY"),
        ({"ae_title": "ORTHANC"}, "the node does not go by ORTHANC"),
    ],
)
async def test_a_wrong_title_is_named(
    site: Site, changes: dict[str, str], told: str
) -> None:
    room = site.room("mindray", **changes)

    with pytest.raises(NodeError) as raised:
        await asyncio.to_thread(room.verify)

    assert raised.value.message == told


@pytest.mark.parametrize("profile", PROFILES)
def test_every_machine_sends_valid_objects(
    profile: str, tmp_path: Any, clock: Callable[[], Any]
) -> None:
    room = Room(Node("", 0), PROFILES[profile], clock=clock, uid=new_uid)
    scheduled = Scheduled(new_uid(), PATIENTS[2], "A1", "RP1", "SPS1", "Breast US")

    for number, instance in enumerate(room.acquire(scheduled, SMALL)):
        path = tmp_path / f"{number}.dcm"
        instance.save_as(path, enforce_file_format=True)
        assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
        syntax = dcmread(path).file_meta.TransferSyntaxUID
        assert instance.file_meta.TransferSyntaxUID == syntax


async def test_a_load_tells_what_was_stored_and_how_long_it_took(site: Site) -> None:
    room = site.room("logiq")
    numbers = itertools.count(1)
    counted: list[None] = []

    load = await asyncio.to_thread(
        send_load,
        Node("127.0.0.1", site.scp.ports[0], calling_ae=TITLE),
        room,
        lambda: Scheduled(new_uid(), invented_patient(next(numbers)), "", "", "", "x"),
        studies=3,
        images=4,
        associations=2,
        progress=lambda: counted.append(None),
    )

    assert (load.stored, load.refused, len(counted)) == (12, {}, 12)
    assert load.wait_ms(0.5) is not None
    async with site.store.db.transaction() as tx:
        assert (await studies.counts(tx))["studies"] == 3


async def test_a_load_that_nobody_takes_is_told(site: Site) -> None:
    node = Node("127.0.0.1", free_port())
    with pytest.raises(NodeError, match="nobody answers"):
        await asyncio.to_thread(
            send_load,
            node,
            site.room("logiq"),
            lambda: Scheduled(new_uid(), invented_patient(1), "", "", "", "x"),
            studies=1,
            images=1,
            associations=1,
            progress=lambda: None,
        )
