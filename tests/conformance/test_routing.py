"""Orthanc as destination: killed while it receives, and reached over DICOMweb.

Nothing is lost, nothing is there twice, and each study arrives in order.
"""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
from pydicom import dcmread

from dicom_scp.results.sr import to_part10
from dicom_scp.sending.delivery import Pace, send_instance
from dicom_scp.sending.probe import probe_archive, probe_stow
from dicom_scp.sending.routing import (
    SEND,
    RoutingTable,
    Rule,
    When,
    results_to,
    route_received,
)
from dicom_scp.sending.scu import Destination, DimseSender
from dicom_scp.sending.stow import StowDestination, StowSender
from node.domain.errors import NodeError
from node.store import audit, routes
from node.store.routes import DeliveryState
from node.store.store import Store
from tests.conformance.orthanc import Orthanc
from tests.conftest import FrozenClock
from tests.dicom_scp.results.test_results import make_image
from tests.dicom_scp.results.test_sr import make_ai, make_verified
from tests.intake import receive_object

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STUDIES, IMAGES = 2, 5


class Executioner(Pace):
    """Lets so many bytes leave, then kills the archive, once."""

    def __init__(self, orthanc: Orthanc, after_bytes: int) -> None:
        super().__init__(1e9, clock=lambda: 0.0)
        self.orthanc, self.left = orthanc, after_bytes
        self.done = False

    def wait_s(self, size: int) -> float:
        self.left -= size
        if self.left < 0 and not self.done:
            self.done = True
            self.orthanc.kill()
        return 0.0


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    plugins = [DICOMWEB] if DICOMWEB.exists() else []
    server = Orthanc(tmp_path, plugins=plugins)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


async def receive_studies(store: Store) -> dict[str, list[str]]:
    """Receive two studies, their images taking turns; return UIDs by study."""
    expected: dict[str, list[str]] = {}
    for number in range(IMAGES):
        for study in range(STUDIES):
            image = make_image()
            image.StudyInstanceUID = f"2.25.77{study}"
            image.SeriesInstanceUID = f"2.25.88{study}"
            image.SOPInstanceUID = f"2.25.99{study}{number}"
            await receive_object(store, image, to_part10(image))
            uids = expected.setdefault(image.StudyInstanceUID, [])
            uids.append(image.SOPInstanceUID)
    return expected


async def deliver(
    store: Store, sender: DimseSender, table: RoutingTable
) -> NodeError | None:
    """Do the next job as a worker does; return how it failed."""
    job = await store.jobs.claim([SEND], "worker", lane="PACS")
    if job is None:
        return None
    try:
        await send_instance(store, job.payload, {"PACS": sender}, table)
    except NodeError as error:
        await store.jobs.failed(job, error.message)
        return error
    await store.jobs.done(job)
    return None


async def test_an_archive_killed_while_it_receives_gets_everything_once_in_order(
    store: Store, clock: FrozenClock, orthanc: Orthanc
) -> None:
    rules = (Rule("all", ("PACS",), when=When.ARRIVAL),)
    table = RoutingTable(rules, results_to("PACS").outlets)
    expected = await receive_studies(store)
    assert await route_received(store, table) == STUDIES * IMAGES
    size = 600 * 800
    sender = DimseSender(
        Destination("ORTHANC", "127.0.0.1", orthanc.dicom),
        Executioner(orthanc, 3 * size + size // 2),
    )
    failures = []
    for _ in range(200):
        error = await deliver(store, sender, table)
        if error is not None:
            failures.append(error.message)
            clock.advance(seconds=120)
        if len(failures) == 4 and orthanc.process.poll() is not None:
            orthanc.start()
            orthanc.wait()
        if await counted(store) == {DeliveryState.SENT: STUDIES * IMAGES}:
            break
        clock.advance(seconds=1)
    await sender.close()
    assert "went away" in failures[0] or "broke" in failures[0]
    assert "does not answer" in failures[1]
    assert await counted(store) == {DeliveryState.SENT: STUDIES * IMAGES}
    assert arrivals(orthanc) == expected
    async with store.db.transaction() as tx:
        found = await routes.deliveries(tx)
        doubtful = {one.sop_instance_uid for one in found if one.times > 1}
        again = set()
        for uid in doubtful:
            for entry in await audit.entries(tx, entity=f"instance/{uid}"):
                if "again" in entry.detail:
                    again.add(uid)
    assert len(again) == 1  # the one that was under way when the archive died


async def counted(store: Store) -> dict[DeliveryState, int]:
    async with store.db.connection() as connection:
        found = [one.state for one in await routes.deliveries(connection)]
    return {state: found.count(state) for state in set(found)}


def arrivals(orthanc: Orthanc) -> dict[str, list[str]]:
    """Return the UIDs of every study in the order in which Orthanc stored them."""
    changes = json.loads(orthanc.get("/changes?limit=1000"))["Changes"]
    found: dict[str, list[str]] = {}
    for change in changes:
        if change["ChangeType"] == "NewInstance":
            file = orthanc.get(f"/instances/{change['ID']}/file")
            image = dcmread(BytesIO(file), stop_before_pixels=True)
            uids = found.setdefault(str(image.StudyInstanceUID), [])
            uids.append(str(image.SOPInstanceUID))
    return found


async def test_reports_arrive_over_dicomweb_as_over_c_store(
    orthanc: Orthanc, clock: FrozenClock
) -> None:
    if not DICOMWEB.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    url = f"http://127.0.0.1:{orthanc.http}/dicom-web"
    destination = StowDestination("WEB", url)
    async with aiohttp.ClientSession() as session:
        assert (await probe_stow(destination, session, now=clock())).well
        web = StowSender(destination, session)
        for document in (make_ai(), make_verified()):
            for _ in range(2):  # a second time is the same instance
                sent = await web.send(to_part10(document))
            kept = dcmread(BytesIO(orthanc.file(sent.sop_instance_uid)))
            assert kept == dcmread(BytesIO(to_part10(document)))
    assert len(orthanc.files()) == 2
    over_dimse = DimseSender(Destination("ORTHANC", "127.0.0.1", orthanc.dicom))
    await over_dimse.send(to_part10(make_ai()))
    await over_dimse.close()
    assert len(orthanc.files()) == 2


def test_orthanc_is_found_well(orthanc: Orthanc, clock: FrozenClock) -> None:
    archive = Destination("ORTHANC", "127.0.0.1", orthanc.dicom, commitment=True)
    probe = probe_archive(archive, now=clock())
    assert probe.well, probe.findings
    assert probe.commitment
    wrong = Destination("NOBODY", "127.0.0.1", orthanc.dicom)
    assert "does not go by" in probe_archive(wrong, now=clock()).findings[-1].told
