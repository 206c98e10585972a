"""C-MOVE and C-GET at every level (PS3.4 C.4.2, C.4.3), by pynetdicom and by DCMTK."""

import asyncio
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread
from pydicom.uid import UID, JPEGBaseline8Bit, UltrasoundMultiFrameImageStorage
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.presentation import PresentationContext

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.receiving.tls import client_context
from dicom_scp.sending.scu import Destination
from dicom_scp.services import retrieve
from dicom_scp.services.retrieve import RetrieveSettings
from node.domain.audit import Outcome
from node.imaging import BytesReader, StoredImage
from node.store import audit
from node.store.store import Store
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import data_set_bytes, make_instance
from tests.dicom_scp.services import archive
from tests.dicom_scp.services.archive import (
    JANUARY,
    LI,
    MARCH,
    UNDATED,
    VIEWER,
    ZHANG,
    associated,
    identifier,
)
from tests.dicom_scp.web.test_dicomweb import instance as build
from tests.ports import free_port

PATIENT_MOVE, STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.1.2", "1.2.840.10008.5.1.4.1.2.2.2"
PATIENT_GET, STUDY_GET = "1.2.840.10008.5.1.4.1.2.1.3", "1.2.840.10008.5.1.4.1.2.2.3"
US, US_CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
JPEG = str(JPEGBaseline8Bit)
NEEDS_DCMTK = pytest.mark.skipif(
    shutil.which("getscu") is None, reason="DCMTK is not installed"
)

Counts = tuple[int, int, int, int]


class Receiver:
    """A storage SCP of pynetdicom; answers what `status` says."""

    def __init__(
        self, *syntaxes: str, tls: ssl.SSLContext | None = None, classes: Any = None
    ) -> None:
        self.received: list[tuple[Dataset, bytes]] = []
        self.status: Callable[[str], int] = lambda _uid: 0x0000
        self.requests: list[Any] = []
        ae = AE(ae_title=VIEWER)
        for sop_class in classes or (US, US_CINE):
            ae.add_supported_context(sop_class, list(syntaxes) or [EXPLICIT])
        self._server: Any = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_C_STORE, self.store)],
        )
        self.port = self._server.server_address[1]

    def store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.requests.append(event.request)
        status = self.status(uid)
        if status == 0x0000:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.received.append((dataset, event.request.DataSet.getvalue()))
        return status

    @property
    def uids(self) -> list[str]:
        return [str(dataset.SOPInstanceUID) for dataset, _ in self.received]

    def stop(self) -> None:
        self._server.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where DCMTK writes what it receives."""
    made = tmp_path / "received"
    made.mkdir()
    return made


@pytest.fixture
async def filled(store: Store) -> dict[str, bytes]:
    return await archive.fill(store)


async def serve(
    start_scp: StartScp, receiver: Receiver | None = None, **settings: Any
) -> StorageScp:
    if receiver is not None:
        place = Destination(VIEWER, "127.0.0.1", receiver.port)
        settings.setdefault("destinations", {VIEWER: place})
    return await start_scp(
        services=[retrieve.service(RetrieveSettings(**settings))],
        peers=archive.peers(ServiceName.RETRIEVE),
    )


def counts(status: Dataset) -> Counts:
    names = ("Completed", "Failed", "Warning", "Remaining")
    told = [status.get(f"NumberOf{name}Suboperations", -1) for name in names]
    return (told[0], told[1], told[2], told[3])


async def move(
    scp: StorageScp, asked: Dataset, model: str = STUDY_MOVE, to: str = VIEWER
) -> list[tuple[Dataset, Dataset | None]]:
    def ask() -> list[tuple[Dataset, Dataset | None]]:
        association = associated(scp.ports[0], build_context(model))
        told = list(association.send_c_move(asked, to, model))
        association.release()
        return told

    return await asyncio.to_thread(ask)


async def get(
    scp: StorageScp,
    asked: Dataset,
    contexts: list[PresentationContext],
    model: str = STUDY_GET,
    status: int = 0x0000,
) -> tuple[list[tuple[Dataset, Dataset | None]], list[tuple[Dataset, bytes]]]:
    received: list[tuple[Dataset, bytes]] = []

    def keep(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        received.append((dataset, event.request.DataSet.getvalue()))
        return status

    def ask() -> list[tuple[Dataset, Dataset | None]]:
        roles = [build_role(c.abstract_syntax, scp_role=True) for c in contexts]
        association = associated(
            scp.ports[0],
            build_context(model),
            *contexts,
            ext_neg=list({r.sop_class_uid: r for r in roles}.values()),
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        told = list(association.send_c_get(asked, model))
        association.release()
        return told

    return await asyncio.to_thread(ask), received


# -- C-MOVE ----------------------------------------------------------------------------


async def test_study_is_moved_byte_by_byte_with_counts_that_add_up(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    scp = await serve(start_scp, receiver)
    told = await move(scp, identifier("STUDY", StudyInstanceUID=JANUARY))
    statuses = [status for status, _ in told]
    assert [s.Status for s in statuses] == [0xFF00] * 3 + [0x0000]
    assert [counts(s) for s in statuses[:3]] == [
        (1, 0, 0, 3),
        (2, 0, 0, 2),
        (3, 0, 0, 1),
    ]
    assert counts(statuses[-1]) == (4, 0, 0, -1)
    for dataset, encoded in receiver.received:
        assert encoded == data_set_bytes(filled[str(dataset.SOPInstanceUID)])
    assert len(receiver.received) == 4
    request = receiver.requests[0]
    assert request.MoveOriginatorApplicationEntityTitle == VIEWER
    assert request.MoveOriginatorMessageID == 1


@pytest.mark.parametrize(
    ("model", "asked", "moved"),
    [
        (
            PATIENT_MOVE,
            {"level": "PATIENT", "PatientID": ZHANG},
            [JANUARY, MARCH, UNDATED],
        ),
        (
            STUDY_MOVE,
            {"level": "STUDY", "StudyInstanceUID": [MARCH, UNDATED]},
            [MARCH, UNDATED],
        ),
        (
            PATIENT_MOVE,
            {
                "level": "SERIES",
                "PatientID": ZHANG,
                "StudyInstanceUID": JANUARY,
                "SeriesInstanceUID": f"{JANUARY}.2",
            },
            [f"{JANUARY}.2"],
        ),
        (
            STUDY_MOVE,
            {
                "level": "IMAGE",
                "StudyInstanceUID": JANUARY,
                "SeriesInstanceUID": f"{JANUARY}.2",
                "SOPInstanceUID": [f"{JANUARY}.2.2", f"{JANUARY}.2.9"],
            },
            [f"{JANUARY}.2.2"],
        ),
        (
            PATIENT_MOVE,
            {"level": "STUDY", "PatientID": "P-0002", "StudyInstanceUID": MARCH},
            [],
        ),
    ],
)
async def test_every_level_moves_what_it_names(
    start_scp: StartScp,
    filled: dict[str, bytes],
    receiver: Receiver,
    model: str,
    asked: dict[str, Any],
    moved: list[str],
) -> None:
    scp = await serve(start_scp, receiver)
    told = await move(scp, identifier(**asked), model)
    assert told[-1][0].Status == 0x0000
    expected = [u for u in filled if any(f"{u}.".startswith(f"{m}.") for m in moved)]
    assert sorted(receiver.uids) == sorted(expected)


async def test_what_is_found_by_either_number_of_a_woman_is_moved_by_it(
    start_scp: StartScp, store: Store, filled: dict[str, bytes], receiver: Receiver
) -> None:
    await archive.merge(store, ZHANG, LI)
    scp = await serve(start_scp, receiver)
    asked = identifier("STUDY", PatientID=LI, StudyInstanceUID=MARCH)
    told = await move(scp, asked, PATIENT_MOVE)
    assert counts(told[-1][0]) == (2, 0, 0, -1)
    for dataset, encoded in receiver.received:  # as they are: none is rewritten
        assert encoded == data_set_bytes(filled[str(dataset.SOPInstanceUID)])


async def test_failed_and_warned_sub_operations_are_counted_and_named(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    answers = {f"{JANUARY}.1.2": 0xA700, f"{JANUARY}.2.1": 0xB000}
    receiver.status = lambda uid: answers.get(uid, 0x0000)
    scp = await serve(start_scp, receiver)
    told = await move(scp, identifier("STUDY", StudyInstanceUID=JANUARY))
    final, failed = told[-1]
    assert (final.Status, counts(final)) == (0xB000, (2, 1, 1, -1))
    assert failed is not None
    assert failed.FailedSOPInstanceUIDList == f"{JANUARY}.1.2"


async def test_move_is_cancelled_between_two_instances(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    scp = await serve(start_scp, receiver)
    begun, ready = threading.Event(), threading.Event()

    def wait(uid: str) -> int:
        begun.set()
        assert ready.wait(60)
        return 0x0000

    receiver.status = wait

    def ask() -> list[Dataset]:
        association = associated(scp.ports[0], build_context(STUDY_MOVE))
        asked = identifier("STUDY", StudyInstanceUID=JANUARY)
        responses = association.send_c_move(asked, VIEWER, STUDY_MOVE, msg_id=9)
        assert begun.wait(60)
        association.send_c_cancel(9, query_model=STUDY_MOVE)
        (acceptor,) = scp.associations.acceptors()
        end = time.monotonic() + 60
        while 9 not in acceptor.dimse.cancel_req and time.monotonic() < end:
            time.sleep(0.001)
        ready.set()
        told = [status for status, _ in responses]
        association.release()
        return told

    final = (await asyncio.to_thread(ask))[-1]
    assert (final.Status, counts(final)) == (0xFE00, (1, 0, 0, 3))
    assert len(receiver.received) == 1


async def test_unknown_destination_is_refused_and_so_is_that_of_others(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver, store: Store
) -> None:
    place = Destination("PACS", "127.0.0.1", receiver.port)
    scp = await serve(start_scp, destinations={"PACS": place})
    for to in ("NOBODY", "PACS", VIEWER):
        ((status, _),) = await move(
            scp, identifier("STUDY", StudyInstanceUID=MARCH), to=to
        )
        assert (status.Status, counts(status)[:3]) == (0xA801, (0, 0, 0))
    assert receiver.received == []
    await asyncio.to_thread(scp.stop, grace_s=1)
    async with store.db.connection() as tx:
        (entry,) = await audit.entries(tx, entity="ae/PACS")
    assert (entry.action, entry.outcome) == ("retrieve", Outcome.REFUSED)


async def test_peer_moves_to_another_one_where_the_site_says_so(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    place = Destination(VIEWER, "127.0.0.1", receiver.port)
    settings = RetrieveSettings(destinations={"PACS": place})
    scp = await start_scp(
        services=[retrieve.service(settings)],
        peers=archive.peers(ServiceName.RETRIEVE, move_to=("PACS",)),
    )
    told = await move(scp, identifier("STUDY", StudyInstanceUID=MARCH), to="PACS")
    assert told[-1][0].Status == 0x0000
    assert len(receiver.received) == 2


async def test_destination_that_is_away_is_a_failure_with_all_uids(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    nobody = Destination(VIEWER, "127.0.0.1", 1)
    scp = await serve(start_scp, destinations={VIEWER: nobody})
    told = await move(scp, identifier("STUDY", StudyInstanceUID=MARCH))
    final, failed = told[-1]
    assert (final.Status, counts(final)) == (0xA702, (0, 2, 0, -1))
    assert failed is not None
    assert set(failed.FailedSOPInstanceUIDList) == {f"{MARCH}.1.1", f"{MARCH}.1.2"}


async def test_receiver_that_breaks_off_is_asked_again_for_the_next_instance(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    def abort_once(uid: str) -> int:
        if uid == f"{JANUARY}.1.2":
            for association in receiver._server.active_associations:
                association.abort()
        return 0x0000

    receiver.status = abort_once
    scp = await serve(start_scp, receiver)
    told = await move(scp, identifier("STUDY", StudyInstanceUID=JANUARY))
    final, _ = told[-1]
    assert (final.Status, counts(final)) == (0xB000, (3, 1, 0, -1))


async def test_request_that_does_not_say_what_is_refused(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver
) -> None:
    scp = await serve(start_scp, receiver)
    for asked in (
        identifier("STUDY", StudyInstanceUID=""),
        identifier("IMAGE", SOPInstanceUID=f"{MARCH}.1.1"),
        identifier("PATIENT", PatientID=ZHANG),
    ):
        ((status, _),) = await move(scp, asked)
        assert status.Status == 0xA900
        assert status.OffendingElement
    assert receiver.received == []


async def test_rejected_instances_stay_here(
    start_scp: StartScp, filled: dict[str, bytes], receiver: Receiver, store: Store
) -> None:
    await archive.reject(store, MARCH, [f"{MARCH}.1.1"])
    scp = await serve(start_scp, receiver)
    asked = identifier("SERIES", StudyInstanceUID=MARCH, SeriesInstanceUID=f"{MARCH}.1")
    await move(scp, asked)
    assert receiver.uids == [f"{MARCH}.1.2"]


async def test_move_over_tls_shows_and_checks_certificates(
    start_scp: StartScp, filled: dict[str, bytes], tls_certificate: Path
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls_certificate)
    receiver = Receiver(tls=server)
    calling = client_context(trusted=tls_certificate, check_names=False)
    place = Destination(VIEWER, "127.0.0.1", receiver.port, tls=calling)
    scp = await serve(start_scp, destinations={VIEWER: place})
    told = await move(scp, identifier("STUDY", StudyInstanceUID=MARCH))
    receiver.stop()
    assert told[-1][0].Status == 0x0000
    assert len(receiver.received) == 2


# -- transfer syntaxes -----------------------------------------------------------------


async def test_jpeg_cine_goes_native_to_who_cannot_read_it(
    start_scp: StartScp, store: Store
) -> None:
    original = build(2, JPEGBaseline8Bit, frames=3)
    content = await archive.keep(store, original)
    image = StoredImage.open(BytesReader(content))
    expected = np.stack([image.frame(number) for number in range(3)])
    study = str(original.StudyInstanceUID)
    for syntaxes in ([IMPLICIT], [EXPLICIT], [JPEG, EXPLICIT]):
        receiver = Receiver(*syntaxes)
        scp = await serve(start_scp, receiver)
        told = await move(scp, identifier("STUDY", StudyInstanceUID=study))
        receiver.stop()
        assert told[-1][0].Status == 0x0000
        ((dataset, encoded),) = receiver.received
        if JPEG in syntaxes:
            assert encoded == data_set_bytes(content)
        else:
            assert dataset.PhotometricInterpretation == "RGB"
            assert np.array_equal(dataset.pixel_array, expected)


async def test_video_is_one_failed_sub_operation_among_the_others(
    start_scp: StartScp, store: Store, filled: dict[str, bytes]
) -> None:
    video = make_instance(
        frames=2,
        rows=4,
        columns=4,
        StudyInstanceUID=MARCH,
        SeriesInstanceUID=f"{MARCH}.1",
        SOPInstanceUID=f"{MARCH}.1.9",
        IssuerOfPatientID="HIS",
    )
    video.PixelData = encapsulate([b"\0\0\1\xb3not a movie!"])
    video["PixelData"].is_undefined_length = True
    video.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    await archive.keep(store, video)
    receiver = Receiver(EXPLICIT)
    scp = await serve(start_scp, receiver)
    told = await move(scp, identifier("STUDY", StudyInstanceUID=MARCH))
    receiver.stop()
    final, failed = told[-1]
    assert (final.Status, counts(final)) == (0xB000, (2, 1, 0, -1))
    assert failed is not None
    assert failed.FailedSOPInstanceUIDList == f"{MARCH}.1.9"


# -- C-GET -----------------------------------------------------------------------------


async def test_study_is_got_on_the_same_association(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp)
    told, received = await get(
        scp,
        identifier("STUDY", StudyInstanceUID=JANUARY),
        [build_context(US, EXPLICIT)],
    )
    assert [s.Status for s, _ in told] == [0xFF00] * 3 + [0x0000]
    assert counts(told[-1][0]) == (4, 0, 0, -1)
    assert len(received) == 4
    for dataset, encoded in received:
        assert encoded == data_set_bytes(filled[str(dataset.SOPInstanceUID)])


async def test_class_without_the_role_cannot_be_got(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp)
    told, received = await get(
        scp,
        identifier("PATIENT", PatientID=ZHANG),
        [build_context(UltrasoundMultiFrameImageStorage, EXPLICIT)],
        PATIENT_GET,
    )
    final, failed = told[-1]
    assert (final.Status, counts(final)) == (0xA702, (0, 8, 0, -1))
    assert failed is not None
    assert len(failed.FailedSOPInstanceUIDList) == 8
    assert received == []


async def test_large_cine_streams_through_a_small_pdu(
    start_scp: StartScp, store: Store
) -> None:
    cine = make_instance(frames=40, rows=400, columns=500, SOPInstanceUID="2.25.5")
    content = await archive.keep(store, cine)
    scp = await serve(start_scp)
    told, ((_, encoded),) = await get(
        scp,
        identifier("STUDY", StudyInstanceUID=str(cine.StudyInstanceUID)),
        [build_context(US_CINE, EXPLICIT)],
    )
    assert told[-1][0].Status == 0x0000
    assert encoded == data_set_bytes(content)


async def test_who_may_only_retrieve_may_not_store(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await serve(start_scp)

    def ask() -> set[str]:
        association = associated(
            scp.ports[0], build_context(STUDY_GET), build_context(US, EXPLICIT)
        )
        accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
        association.release()
        return accepted

    assert await asyncio.to_thread(ask) == {STUDY_GET}


async def test_context_in_which_a_peer_receives_takes_nothing_from_it(
    start_scp: StartScp, filled: dict[str, bytes], store: Store
) -> None:
    scp = await serve(start_scp)

    def push() -> bool:
        association = associated(
            scp.ports[0],
            build_context(STUDY_GET),
            build_context(US, EXPLICIT),
            ext_neg=[build_role(US, scp_role=True)],
        )
        (context,) = [c for c in association.accepted_contexts if c.as_scp]
        context._as_scu = True  # a peer that does not keep to what was agreed
        told = association.send_c_store(make_instance(SOPInstanceUID="2.25.666"))
        return "Status" in told

    assert not await asyncio.to_thread(push)


async def test_peer_without_the_service_gets_no_context(
    start_scp: StartScp, filled: dict[str, bytes]
) -> None:
    scp = await start_scp(
        services=[retrieve.service(RetrieveSettings())],
        peers=Peers([Peer(VIEWER, services=frozenset({ServiceName.QUERY}))]),
    )

    def ask() -> bool:
        association = associated(
            scp.ports[0], build_context("1.2.840.10008.1.1"), build_context(STUDY_GET)
        )
        accepted = {str(c.abstract_syntax) for c in association.accepted_contexts}
        association.release()
        return STUDY_GET not in accepted

    assert await asyncio.to_thread(ask)


async def test_retrieval_is_audited_study_by_study(
    start_scp: StartScp, filled: dict[str, bytes], store: Store
) -> None:
    scp = await serve(start_scp)
    await get(
        scp,
        identifier("STUDY", StudyInstanceUID=JANUARY),
        [build_context(US, EXPLICIT)],
    )
    await asyncio.to_thread(scp.stop, grace_s=1)
    async with store.db.connection() as tx:
        (begun,) = await audit.entries(tx, entity=f"study/{JANUARY}")
        (ended,) = await audit.entries(tx, entity=f"ae/{VIEWER}")
    assert (begun.actor, begun.action) == (VIEWER, "retrieve")
    assert begun.detail["instances"] == "4"
    assert (ended.detail["completed"], ended.detail["failed"]) == ("4", "0")


# -- DCMTK -----------------------------------------------------------------------------


def dcmtk(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@contextmanager
def storescp(folder: Path, port: int) -> Iterator[None]:
    program = subprocess.Popen(
        ["storescp", "-aet", VIEWER, "+B", "-od", str(folder), str(port)],
        env={"PATH": "/usr/bin:/bin", "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        program.terminate()
        program.wait(60)


@NEEDS_DCMTK
async def test_getscu_gets_the_bytes_that_were_sent(
    start_scp: StartScp, store: Store, filled: dict[str, bytes], folder: Path
) -> None:
    """Of a woman who was merged: all that is hers by the number that gave way."""
    await archive.merge(store, LI, ZHANG)
    scp = await serve(start_scp)
    await asyncio.to_thread(
        dcmtk,
        folder,
        *("getscu", "-P", "+B", "-aet", VIEWER, "-aec", "SONONODE"),
        *("-k", "QueryRetrieveLevel=PATIENT", "-k", f"PatientID={LI}"),
        *("127.0.0.1", str(scp.ports[0])),
    )
    files = list(folder.iterdir())
    assert len(files) == len(filled)
    for file in files:
        uid = str(dcmread(file).SOPInstanceUID)
        assert data_set_bytes(file.read_bytes()) == data_set_bytes(filled[uid])


@NEEDS_DCMTK
async def test_movescu_moves_to_storescp(
    start_scp: StartScp, filled: dict[str, bytes], folder: Path
) -> None:
    port = free_port()
    place = Destination(VIEWER, "127.0.0.1", port)
    scp = await serve(start_scp, destinations={VIEWER: place})
    with storescp(folder, port):
        await asyncio.to_thread(
            dcmtk,
            folder,
            *("movescu", "-P", "-aet", VIEWER, "-aec", "SONONODE", "-aem", VIEWER),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", f"PatientID={ZHANG}"),
            *("-k", f"StudyInstanceUID={MARCH}"),
            *("127.0.0.1", str(scp.ports[0])),
        )
    files = list(folder.iterdir())
    assert len(files) == 2
    for file in files:
        uid = str(dcmread(file).SOPInstanceUID)
        assert data_set_bytes(file.read_bytes()) == data_set_bytes(filled[uid])
