"""A node as its settings make it, before pynetdicom's own programs, DCMTK and Orthanc.

Each plays the part that it has in a hospital: a machine that sends, a workstation that
searches and fetches, an archive that takes results.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from config.settings import load_settings
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.results.sr import to_part10
from dicom_scp.sending.scu import Destination, send_part10
from dicom_scp.statement.objects import full_order
from node.domain.order import OrderSource, Step
from node.domain.study import PatientIdentity
from node.parts import scp_settings_of, services_of
from node.store import studies
from node.store.database import Database
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.store import Store, open_store
from node.workflow.orders import Placement, patient_of_order, place_order
from tests.conformance.judges import dciodvfy, dcmtk, dsrdump
from tests.conformance.orthanc import Orthanc
from tests.conformance.test_result_objects import (
    make_explained,
    make_heat_map,
    make_key_images,
    make_pdf,
    make_rejection,
    make_segmentation,
)
from tests.conftest import run_apart
from tests.dicom_scp.instances import data_set_bytes, make_instance
from tests.dicom_scp.results.test_sr import make_verified
from tests.ports import free_port

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EVERYTHING = ["store", "commitment", "worklist", "mpps", "query", "retrieve"]
STUDY, TIMEOUT_S = "2.25.501", 30.0
RESULTS: Sequence[Callable[[], Dataset]] = (
    make_explained,
    make_verified,
    make_heat_map,
    make_segmentation,
    make_key_images,
    make_rejection,
    make_pdf,
)


@dataclass
class Node:
    """A node on a port, and where the workstation that it knows listens."""

    scp: StorageScp
    port: int
    workstation: int

    @property
    def store(self) -> Store:
        return self.scp._thread.store

    def file(self, uid: str) -> bytes:
        """Return the Part 10 file of a stored instance."""

        async def read() -> bytes:
            async with self.store.db.connection() as tx:
                instance = await studies.instance(tx, self.store, uid)
            assert instance is not None
            with studies.open_blob(self.store, instance) as reader:
                return reader.read()

        return self.scp._thread.call(read())


@pytest.fixture(scope="module")
def node(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder, workstation = tmp_path_factory.mktemp("node"), free_port()
    peers = [
        {
            "ae_title": title,
            "services": EVERYTHING,
            "host": "127.0.0.1",
            "port": workstation,
        }
        for title in ("STATION", "ORTHANC")
    ]
    settings = load_settings(
        {
            "SONONODE_DATA": str(folder),
            "SONONODE_DICOM__HOST": "127.0.0.1",
            "SONONODE_DICOM__PORT": str(free_port()),
            "SONONODE_DICOM__PEERS": json.dumps(peers),
            "SONONODE_STORAGE__MINIMUM_FREE_MB": "0",
        }
    )
    dsn = postgres_server.create_database("network_tools")
    create_root_key(folder / "root.key")

    async def prepare() -> None:
        database = await Database.connect(dsn)
        await migrate(database)
        await database.close()

    run_apart(prepare())
    scp = StorageScp(
        scp_settings_of(settings),
        partial(
            open_store,
            dsn,
            folder / "root.key",
            folder / "objects",
            lambda: datetime.now(UTC),
            pool_size=3,
        ),
        services_of(settings),
    )
    scp.start()
    yield Node(scp, scp.ports[0], workstation)
    scp.stop(grace_s=0)


@pytest.fixture(scope="module")
def orthanc(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that knows the node as `node`."""
    server = Orthanc(tmp_path_factory.mktemp("orthanc"))
    try:
        server.wait()
        server.put("/modalities/node", ["SONONODE", "127.0.0.1", node.port])
        yield server
    finally:
        server.kill()


# -- pynetdicom's programs -------------------------------------------------------------


def pynetdicom(node: Node, program: str, *arguments: str | Path, cwd: Path) -> None:
    """Run one of pynetdicom's programs against the node; it has to succeed."""
    command = [sys.executable, "-m", "pynetdicom", program]
    called = ["-aet", "STATION", "-aec", "SONONODE", "127.0.0.1", str(node.port)]
    ended = subprocess.run(
        [*command, *called, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0, told
    assert "E:" not in told, told


@pytest.fixture(scope="module")
def sent(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A still and a cine that pynetdicom's storescu has sent, by SOP Instance UID."""
    folder = tmp_path_factory.mktemp("sent")
    files = {}
    for number, frames in ((1, 1), (2, 3)):
        instance = make_instance(
            frames=frames,
            StudyInstanceUID=STUDY,
            SeriesInstanceUID=f"{STUDY}.1",
            SOPInstanceUID=f"{STUDY}.1.{number}",
            PatientID="TOOLS",
        )
        files[str(instance.SOPInstanceUID)] = to_part10(instance)
        (folder / f"{number}.dcm").write_bytes(to_part10(instance))
    pynetdicom(node, "storescu", "-cx", folder, cwd=folder)
    return files


def test_pynetdicom_echoes_and_stores(
    node: Node, sent: dict[str, bytes], tmp_path: Path
) -> None:
    pynetdicom(node, "echoscu", cwd=tmp_path)
    for uid, file in sent.items():
        assert data_set_bytes(node.file(uid)) == data_set_bytes(file)


def test_pynetdicom_finds_what_it_stored(
    node: Node, sent: dict[str, bytes], tmp_path: Path
) -> None:
    keys = ("QueryRetrieveLevel=STUDY", "PatientID=TOOLS", "PatientName=", "StudyDate=")
    asked = [part for key in keys for part in ("-k", key)]
    pynetdicom(node, "findscu", "-S", "-w", *asked, cwd=tmp_path)
    (answer,) = [dcmread(file, force=True) for file in tmp_path.glob("rsp*.dcm")]
    assert (answer.PatientID, answer.StudyDate) == ("TOOLS", "20261120")
    assert answer.PatientName == "Zhang^San=张^三"


def test_pynetdicom_finds_its_worklist(node: Node, tmp_path: Path) -> None:
    async def place() -> None:
        step = Step(
            scheduled_on=date(2026, 11, 22),
            accession_number="TOOLS-1",
            requested_procedure_description="乳腺超声",
            station_titles=("STATION",),
            requested_procedure_code=full_order().step.requested_procedure_code,
        )
        async with node.store.db.transaction() as tx:
            who = PatientIdentity("TOOLS-2", "Li^Mei=李^梅", date(1980, 1, 2), "F")
            patient_id = await patient_of_order(node.store, tx, who)
            placement = Placement("TOOLS-1", patient_id, OrderSource.REST, step)
            await place_order(node.store, tx, placement, by=None)

    node.scp._thread.call(place())
    day = "ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate=20261122"
    keys = (
        "SpecificCharacterSet=ISO_IR 192",
        day,
        "PatientName=",
        "AccessionNumber=",
        "StudyInstanceUID=",
    )
    asked = [part for key in keys for part in ("-k", key)]
    pynetdicom(node, "findscu", "-W", "-w", *asked, cwd=tmp_path)
    (item,) = [dcmread(file, force=True) for file in tmp_path.glob("rsp*.dcm")]
    assert (item.AccessionNumber, item.PatientName) == ("TOOLS-1", "Li^Mei=李^梅")
    assert item.StudyInstanceUID


@pytest.mark.parametrize("program", ["getscu", "movescu"])
def test_pynetdicom_fetches_what_it_stored(
    node: Node, sent: dict[str, bytes], tmp_path: Path, program: str
) -> None:
    place = ["-S", "-od", tmp_path]
    if program == "movescu":
        port = str(node.workstation)
        place += ["--store", "--store-port", port, "--store-aet", "STATION"]
        place += ["-aem", "STATION"]
    keys = ("QueryRetrieveLevel=STUDY", f"StudyInstanceUID={STUDY}")
    asked = [part for key in keys for part in ("-k", key)]
    pynetdicom(node, program, *place, *asked, cwd=tmp_path)
    fetched = [dcmread(file) for file in tmp_path.iterdir()]
    assert {str(one.SOPInstanceUID) for one in fetched} == sent.keys()
    for one in fetched:
        assert data_set_bytes(to_part10(one)) == data_set_bytes(
            sent[str(one.SOPInstanceUID)]
        )


# -- archives --------------------------------------------------------------------------


@contextmanager
def storescp(command: Sequence[str], port: int) -> Iterator[None]:
    """Run somebody's storage SCP until the block ends."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        until = time.monotonic() + TIMEOUT_S
        echo = [dcmtk("echoscu"), "-aec", "ARCHIVE", "127.0.0.1", str(port)]
        while subprocess.run(echo, capture_output=True).returncode:
            assert time.monotonic() < until, "it does not listen"
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait(timeout=TIMEOUT_S)


@pytest.mark.parametrize("maker", ["dcmtk", "pynetdicom"])
def test_storescp_takes_every_kind_of_result(maker: str, tmp_path: Path) -> None:
    port = free_port()
    program = {
        "dcmtk": [dcmtk("storescp"), "+xa", "+B"],
        "pynetdicom": [sys.executable, "-m", "pynetdicom", "storescp"],
    }[maker]
    command = [*program, "-aet", "ARCHIVE", "-od", str(tmp_path), str(port)]
    results = {str(d.SOPInstanceUID): to_part10(d) for d in (m() for m in RESULTS)}
    with storescp(command, port):
        archive = Destination("ARCHIVE", "127.0.0.1", port)
        for part10 in results.values():
            send_part10(part10, archive)
    kept = {str(dcmread(file).SOPInstanceUID): file for file in tmp_path.iterdir()}
    assert kept.keys() == results.keys()
    judged = subprocess.run(
        [dcmtk("dcmftest"), *map(str, kept.values())], capture_output=True, text=True
    )
    assert judged.returncode == 0, judged.stdout
    for uid, file in kept.items():
        assert data_set_bytes(file.read_bytes()) == data_set_bytes(results[uid])


def test_orthanc_sends_what_a_machine_sent_it(node: Node, orthanc: Orthanc) -> None:
    plain, compressed = (
        make_instance(
            StudyInstanceUID=generate_uid(),
            SOPInstanceUID=generate_uid(),
            PatientID="ORTHANC",
        )
        for _ in range(2)
    )
    compressed.compress(RLELossless, generate_instance_uid=False)
    for instance in (plain, compressed):
        written = BytesIO()
        instance.save_as(written, enforce_file_format=True)
        file = written.getvalue()
        name = json.loads(orthanc.get("/instances", file))["ID"]
        orthanc.get("/modalities/node/store", name.encode())
        kept = node.file(str(instance.SOPInstanceUID))
        assert data_set_bytes(kept) == data_set_bytes(file)


@pytest.mark.parametrize("make", [make_explained, make_verified])
def test_orthanc_gives_back_a_report_that_the_judges_accept(
    make: Callable[[], Dataset], orthanc: Orthanc, tmp_path: Path
) -> None:
    uid = send_part10(
        to_part10(make()), Destination("ORTHANC", "127.0.0.1", orthanc.dicom)
    )
    file = tmp_path / "report.dcm"
    file.write_bytes(orthanc.file(uid))
    assert dciodvfy(file) == []
    assert dsrdump(file) == []
