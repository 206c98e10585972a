"""C-ECHO and C-STORE against our SCP with other people's SCUs (PS3.4 annex A and B)."""

import asyncio
import random
import socket
import ssl
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind as STUDY_ROOT_FIND,
)

from dicom_scp.receiving.intake import HEAD_BYTES
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.receiving.storage import VERIFICATION
from dicom_scp.receiving.upper_layer import LOOK_AROUND_S
from dicom_scp.services import query
from dicom_scp.services.query import QuerySettings
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.imaging import StoredImage
from node.store import audit, identities, studies
from node.store.blobs import BlobWriter
from node.store.store import Store
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import (
    data_set_bytes,
    make_instance,
    stored,
    write_instance,
)

ENVIRONMENT = {"TCP_NODELAY": "1", "PATH": "/usr/bin:/bin"}


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of DCMTK's tools."""
    return subprocess.run(
        [str(a) for a in arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )


def associate(
    scp: StorageScp,
    *contexts: tuple[str, str],
    calling: str = "SCANNER",
    called: str = "SONONODE",
) -> Association:
    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    for sop_class, syntax in contexts or ((VERIFICATION, ImplicitVRLittleEndian),):
        entity.add_requested_context(sop_class, syntax)
    return entity.associate("127.0.0.1", scp.ports[0], ae_title=called)


def send(scp: StorageScp, *instances: Dataset) -> list[int]:
    """Send instances on one association; return the statuses."""
    wanted = {(i.SOPClassUID, i.file_meta.TransferSyntaxUID) for i in instances}
    association = associate(scp, *wanted)
    statuses = [association.send_c_store(i).Status for i in instances]
    association.release()
    return statuses


def send_raw(scp: StorageScp, instance: Dataset, data_set: bytes, **told: str) -> int:
    """Send `data_set` under the command that `instance` and `told` make."""
    syntax = instance.file_meta.TransferSyntaxUID
    association = associate(scp, (instance.SOPClassUID, syntax))
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = instance.SOPClassUID
    uid = told.get("sop_instance_uid", instance.file_meta.MediaStorageSOPInstanceUID)
    request._affected_sop_instance_uid = uid  # the setter would mend it
    request.AffectedSOPInstanceUID = uid if len(uid) <= 64 else uid[:64]
    request.DataSet = BytesIO(data_set)
    context = association.accepted_contexts[0].context_id
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    assert response is not None
    return int(response.Status)


def encoded(instance: Dataset) -> bytes:
    data_set = encode(instance, is_implicit_vr=False, is_little_endian=True)
    assert data_set is not None
    return data_set


async def count_of_instances(store: Store) -> int:
    async with store.db.transaction() as tx:
        return (await studies.counts(tx))["instances"]


def objects_on_disk(store: Store) -> list[Path]:
    return [path for path in store.blobs._root.rglob("*") if path.is_file()]


async def test_dcmtk_echo_is_answered(start_scp: StartScp) -> None:
    scp = await start_scp()
    assert (
        run_tool("echoscu", "-aec", "SONONODE", "127.0.0.1", scp.ports[0]).returncode
        == 0
    )


async def test_answer_is_not_held_up_by_the_wait_for_the_next_request(
    start_scp: StartScp,
) -> None:
    scp = await start_scp()
    association = associate(scp)
    seconds = []
    for _ in range(15):
        started = time.monotonic()
        assert association.send_c_echo().Status == 0x0000
        seconds.append(time.monotonic() - started)
    association.release()
    # A busy machine holds up some of them, the wait would hold up all.
    assert sorted(seconds)[2] < LOOK_AROUND_S / 2


async def test_instance_of_dcmtk_is_stored_as_it_was_sent(
    start_scp: StartScp, store: Store, tmp_path: Path
) -> None:
    scp = await start_scp()
    path = write_instance(tmp_path)
    done = run_tool("storescu", "-aec", "SONONODE", "127.0.0.1", scp.ports[0], path)
    assert done.returncode == 0, done.stderr
    sent = dcmread(path)
    instance = await stored(store, sent.SOPInstanceUID)
    assert instance is not None
    with studies.open_blob(store, instance) as reader:
        kept = reader.read()
    assert data_set_bytes(kept) == data_set_bytes(path.read_bytes())
    assert dcmread(BytesIO(kept)).file_meta.SourceApplicationEntityTitle == "STORESCU"
    async with store.db.transaction() as tx:
        identity = await identities.patient(tx, store, instance.patient_id)
        study = await studies.study(tx, "2.25.71")
    assert identity.name == "Zhang^San=张^三"
    assert study is not None
    assert study.patient_id == instance.patient_id


def compressed(folder: Path, syntax: str, **attributes: object) -> Path:
    """Return an instance in `syntax`, made by DCMTK or pydicom."""
    source = write_instance(folder, **attributes)
    target = folder / "compressed.dcm"
    converters: dict[str, tuple[object, ...]] = {
        ImplicitVRLittleEndian: ("dcmconv", "+ti"),
        ExplicitVRBigEndian: ("dcmconv", "+tb"),
        DeflatedExplicitVRLittleEndian: ("dcmconv", "+td"),
        RLELossless: ("dcmcrle",),
        JPEGBaseline8Bit: ("dcmcjpeg", "+eb", "+ud"),
    }
    if syntax == ExplicitVRLittleEndian:
        return source
    done = run_tool(*converters[syntax], source, target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGBaseline8Bit,
    ],
)
async def test_every_syntax_arrives_whole_and_its_frames_are_found(
    syntax: str, start_scp: StartScp, store: Store, tmp_path: Path
) -> None:
    scp = await start_scp()
    path = compressed(tmp_path, syntax, frames=3)
    sent = dcmread(path)
    assert sent.file_meta.TransferSyntaxUID == syntax
    status = send_raw(scp, sent, data_set_bytes(path.read_bytes()))
    instance = await stored(store, sent.SOPInstanceUID)
    assert status == 0x0000
    assert instance is not None
    assert len(instance.frame_table) == 3
    with studies.open_blob(store, instance) as reader:
        assert data_set_bytes(reader.read()) == data_set_bytes(path.read_bytes())
        image = StoredImage(reader, header=sent, frames=instance.frame_table)
        assert image.frame(2).shape == (64, 64, 3)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
async def test_frames_of_a_cine_beyond_the_memory_limit_are_found(
    syntax: str, start_scp: StartScp, store: Store, tmp_path: Path
) -> None:
    scp = await start_scp()
    path = compressed(tmp_path, syntax, frames=20, rows=512, columns=512)
    assert path.stat().st_size > HEAD_BYTES
    sent = dcmread(path)
    assert send_raw(scp, sent, data_set_bytes(path.read_bytes())) == 0x0000
    instance = await stored(store, sent.SOPInstanceUID)
    assert instance is not None
    assert len(instance.frame_table) == 20
    with studies.open_blob(store, instance) as reader:
        assert reader.size == instance.size
        image = StoredImage(reader, header=sent, frames=instance.frame_table)
        last = image.frame(19)
    assert (last[:, :, 0] == sent.pixel_array[19]).all()


async def test_echo_and_query_are_answered_between_two_stores(
    start_scp: StartScp, store: Store
) -> None:
    find = str(STUDY_ROOT_FIND)
    peers = Peers([Peer("SCANNER", services=frozenset(ServiceName))])
    scp = await start_scp(services=[query.service(QuerySettings())], peers=peers)
    contexts = (
        (UltrasoundImageStorage, ExplicitVRLittleEndian),
        (VERIFICATION, ImplicitVRLittleEndian),
        (find, ExplicitVRLittleEndian),
    )
    association = associate(scp, *contexts)
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", "2.25.71"
    asked.NumberOfStudyRelatedInstances = None
    for number in (1, 2, 3):
        assert association.send_c_store(make_instance()).Status == 0x0000
        assert association.send_c_echo().Status == 0x0000
        answers = [answer for _, answer in association.send_c_find(asked, find)]
        assert answers[0].NumberOfStudyRelatedInstances == number
    association.release()
    assert association.is_released


async def test_structured_report_is_stored(start_scp: StartScp, store: Store) -> None:
    scp = await start_scp()
    report = make_instance(SOPClassUID=ComprehensiveSRStorage, PixelData=None)
    assert send(scp, report) == [0x0000]


async def test_nothing_readable_is_on_the_disk(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    instance = make_instance()
    send(scp, instance)
    content = b"".join(path.read_bytes() for path in objects_on_disk(store))
    assert content
    assert b"Zhang" not in content
    assert instance.PixelData[:32] not in content


async def test_retried_c_store_is_stored_once(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    instance = make_instance()
    assert send(scp, instance) == [0x0000]
    before = objects_on_disk(store)
    assert send(scp, instance) == [0x0000]
    assert objects_on_disk(store) == before
    assert await count_of_instances(store) == 1


async def test_other_content_under_the_same_uid_is_refused_and_audited(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    first = make_instance()
    other = make_instance(SOPInstanceUID=first.SOPInstanceUID, PatientSex="O")
    assert send(scp, first, other) == [0x0000, 0x0111]
    assert len(objects_on_disk(store)) == 1
    async with store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"instance/{first.SOPInstanceUID}")
    assert [e.outcome for e in entries] == [Outcome.SUCCESS, Outcome.REFUSED]


async def test_log_of_what_was_refused_names_no_patient(
    start_scp: StartScp, capfd: pytest.CaptureFixture[str]
) -> None:
    scp = await start_scp()
    first = make_instance()
    send(scp, first, make_instance(SOPInstanceUID=first.SOPInstanceUID, Rows=32))
    send_raw(scp, first, encoded(first)[:200])
    told = "".join(capfd.readouterr())
    assert first.SOPInstanceUID in told
    for private in ("Zhang", "张", "P-0001", "19700131"):
        assert private not in told


async def test_study_of_another_patient_is_refused(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    assert send(scp, make_instance(), make_instance(PatientID="P-2")) == [0, 0x0111]


async def test_two_unidentified_patients_stay_two(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    assert send(
        scp,
        make_instance(PatientID=""),
        make_instance(PatientID="", StudyInstanceUID="2.25.73"),
    ) == [0, 0]
    async with store.db.transaction() as tx:
        assert (await studies.counts(tx))["patients"] == 2


@pytest.mark.parametrize("end", [10, 200, -2000, -1])
async def test_truncated_data_set_is_refused(
    end: int, start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    instance = make_instance()
    assert send_raw(scp, instance, encoded(instance)[:end]) == 0xC000
    assert objects_on_disk(store) == []


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian])
async def test_truncated_compressed_data_set_is_refused(
    syntax: str, start_scp: StartScp, store: Store, tmp_path: Path
) -> None:
    scp = await start_scp()
    path = compressed(tmp_path, syntax, frames=3)
    cut = data_set_bytes(path.read_bytes())[:-20]
    assert send_raw(scp, dcmread(path), cut) == 0xC000
    assert objects_on_disk(store) == []


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        ({"StudyInstanceUID": None}, 0xC000),
        ({"SeriesInstanceUID": ""}, 0xC000),
        ({"StudyInstanceUID": "../../etc/passwd"}, 0xC000),
        ({"StudyInstanceUID": "1." * 32 + "12"}, 0xC000),
        ({"SOPClassUID": UltrasoundMultiFrameImageStorage}, 0xA900),
        ({"SOPInstanceUID": "2.25.9"}, 0xA900),
    ],
)
async def test_data_set_that_cannot_be_filed_is_refused(
    attributes: dict[str, object], status: int, start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    told = make_instance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sent = make_instance(**{"SOPInstanceUID": told.SOPInstanceUID, **attributes})
        assert send_raw(scp, told, encoded(sent)) == status
    assert objects_on_disk(store) == []


async def test_undecodable_frame_is_kept_for_people_to_look_at(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    assert send(scp, make_instance(PixelData=b"\0" * 10, NumberOfFrames=0)) == [0x0000]


async def test_unknown_transfer_syntax_is_a_rejected_context(
    start_scp: StartScp,
) -> None:
    scp = await start_scp()
    association = associate(
        scp,
        (VERIFICATION, ImplicitVRLittleEndian),
        (UltrasoundImageStorage, "1.2.3.4.5"),
        ("1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian),  # CT
    )
    results = {c.abstract_syntax: c.result for c in association.rejected_contexts}
    association.release()
    assert results == {UltrasoundImageStorage: 4, "1.2.840.10008.5.1.4.1.1.2": 3}


async def test_lossless_is_chosen_where_a_scanner_offers_both(
    start_scp: StartScp,
) -> None:
    scp = await start_scp()
    entity = AE("SCANNER")
    entity.add_requested_context(
        UltrasoundImageStorage, [JPEGBaseline8Bit, RLELossless]
    )
    association = entity.associate("127.0.0.1", scp.ports[0], ae_title="SONONODE")
    chosen = association.accepted_contexts[0].transfer_syntax
    association.release()
    assert chosen == [RLELossless]


@pytest.mark.parametrize(
    ("calling", "called", "expected"),
    [("SCANNER", "OTHER", (1, 1, 7)), ("STRANGER", "SONONODE", (1, 1, 3))],
)
async def test_wrong_ae_title_is_rejected_and_audited(
    calling: str,
    called: str,
    expected: tuple[int, int, int],
    start_scp: StartScp,
    store: Store,
) -> None:
    scp = await start_scp(peers=Peers(allowed_titles=["SCANNER"]))
    association = associate(scp, calling=calling, called=called)
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == expected
    entries: Sequence[AuditEntry] = ()
    async with asyncio.timeout(60):
        while not entries:  # it is written behind the answer
            async with store.db.transaction() as tx:
                entries = await audit.entries(tx, entity="ae/SONONODE")
    assert [(e.actor, e.outcome) for e in entries] == [(calling, Outcome.REFUSED)]


async def test_one_association_too_many_is_rejected_for_now(
    start_scp: StartScp,
) -> None:
    scp = await start_scp(max_associations=1)
    first, second = associate(scp), associate(scp)
    assert first.is_established
    assert second.is_rejected
    answer = second.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (2, 3, 2)
    first.release()


async def test_one_address_cannot_take_all_connections(start_scp: StartScp) -> None:
    scp = await start_scp(connections_per_address=2)
    address = ("127.0.0.1", scp.ports[0])
    with (
        socket.create_connection(address),
        socket.create_connection(address),
        socket.create_connection(address, 5) as third,
    ):
        assert third.recv(1) == b""
    end = time.monotonic() + 60
    while scp._listeners[0]._counted and time.monotonic() < end:
        time.sleep(0.02)
    assert associate(scp).is_established


async def test_full_disk_asks_the_modality_to_come_again(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp(min_free_bytes=1 << 62)
    assert send(scp, make_instance()) == [0xA700]
    assert objects_on_disk(store) == []


async def test_disk_that_fills_up_in_an_instance_keeps_nothing_of_it(
    start_scp: StartScp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scp = await start_scp()

    def refuse(writer: BlobWriter, data: bytes) -> None:
        raise NodeError("the disk is full", ErrorKind.EXHAUSTED)

    with monkeypatch.context() as full:
        full.setattr(BlobWriter, "_put", refuse)
        assert send(scp, make_instance(frames=20, rows=512, columns=512)) == [0xA700]
    assert objects_on_disk(store) == []
    assert send(scp, make_instance()) == [0x0000]


async def test_object_that_cannot_be_made_durable_leaves_no_row(
    start_scp: StartScp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    scp = await start_scp()

    def refuse(writer: BlobWriter) -> None:
        writer.abort()
        raise NodeError("the disk is full", ErrorKind.EXHAUSTED)

    with monkeypatch.context() as full:
        full.setattr(BlobWriter, "sync", refuse)
        assert send(scp, make_instance()) == [0xA700]
    assert await count_of_instances(store) == 0
    assert send(scp, make_instance()) == [0x0000]


async def test_instance_beyond_the_limit_is_refused(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp(max_instance_bytes=1000)
    assert send(scp, make_instance()) == [0xA700]
    assert objects_on_disk(store) == []


async def test_garbage_in_an_association_ends_that_association_only(
    start_scp: StartScp, store: Store
) -> None:
    scp = await start_scp()
    instance = make_instance()
    context = (instance.SOPClassUID, instance.file_meta.TransferSyntaxUID)
    dice = random.Random(7)
    for _ in range(40):
        association = associate(scp, context)
        assert association.is_established
        content = dice.randbytes(dice.randrange(1, 200))
        shape = dice.randrange(4)
        if shape == 0:  # anything at all
            garbage = content
        elif shape == 1:  # a P-DATA-TF of garbage
            garbage = struct.pack(">BxL", 4, len(content)) + content
        elif shape == 2:  # a PDV of garbage
            pdv = struct.pack(">LBB", len(content) + 2, 1, dice.randrange(4)) + content
            garbage = struct.pack(">BxL", 4, len(pdv)) + pdv
        else:  # a C-STORE-RQ whose data set never comes, then a second command
            command = struct.pack("<HHLH", 0, 0x0100, 2, 1) * 2
            pdv = struct.pack(">LBB", len(command) + 2, 1, 3) + command
            garbage = (struct.pack(">BxL", 4, len(pdv)) + pdv) * 2
        with suppress(OSError, AttributeError):  # it may have hung up already
            association.dul.socket.socket.sendall(garbage)
            association.dul.socket.socket.shutdown(socket.SHUT_WR)
    assert send(scp, instance) == [0x0000]
    end = time.monotonic() + 60
    while len(scp.associations) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(scp.associations) == 0
    assert len(objects_on_disk(store)) == 1


async def test_taken_port_names_the_setting(start_scp: StartScp) -> None:
    scp = await start_scp()
    with pytest.raises(NodeError, match=r"dicom\.port: .* is taken"):
        await start_scp(port=scp.ports[0])


async def test_instance_is_received_over_tls_but_not_over_an_old_one(
    start_scp: StartScp, tls_certificate: Path
) -> None:
    scp = await start_scp(
        tls_certificate=tls_certificate, tls_key=tls_certificate, tls_port=0
    )
    assert run_tool("echoscu", "-aec", "SONONODE", "127.0.0.1", scp.ports[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    instance = make_instance(frames=3)
    entity = AE("SCANNER")
    entity.add_requested_context(
        instance.SOPClassUID, instance.file_meta.TransferSyntaxUID
    )
    association = entity.associate(
        "127.0.0.1", scp.ports[1], ae_title="SONONODE", tls_args=(context, "localhost")
    )
    assert association.send_c_store(instance).Status == 0x0000
    association.release()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", scp.ports[1])) as connection,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(connection)


def test_receiving_process_never_loads_torch() -> None:
    code = "import sys, dicom_scp.receiving.scp; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
