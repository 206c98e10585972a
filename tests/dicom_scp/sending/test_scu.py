"""C-STORE to an archive and what its answers mean (PS3.4 B.2.3, PS3.8 9.3.4)."""

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.transport import ThreadedAssociationServer

from dicom_scp.results.sr import SR_CLASSES, as_sop_class, to_part10
from dicom_scp.sending.delivery import Pace
from dicom_scp.sending.scu import Destination, DimseSender, send_part10
from node.domain.errors import ErrorKind, NodeError
from node.store import studies
from node.store.store import Store
from tests.dicom_scp.results.test_sr import make_ai, make_verified
from tests.dicom_scp.ultrasound import make_header
from tests.intake import receive_object
from tests.ports import free_port

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass
class Archive:
    """A PACS on this machine that answers what a test wants."""

    port: int = 0
    status: int = 0x0000
    received: list[Dataset] = field(default_factory=list)
    server: ThreadedAssociationServer | None = None

    def destination(self, **changes: object) -> Destination:
        return Destination("ARCHIVE", "127.0.0.1", self.port, **changes)  # type: ignore[arg-type]

    def associations(self) -> list[Association]:
        return [] if self.server is None else self.server.active_associations

    def store(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.received.append(dataset)
        return self.status


MakeArchive = Callable[..., Archive]


@pytest.fixture
def make_archive() -> Iterator[MakeArchive]:
    servers = []

    def make(
        classes: tuple[str, ...] = SR_CLASSES,
        *,
        syntaxes: tuple[str, ...] = (ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        calling: tuple[str, ...] = (),
        status: int = 0x0000,
        tls: ssl.SSLContext | None = None,
    ) -> Archive:
        archive = Archive(status=status)
        ae = AE(ae_title="ARCHIVE")
        ae.require_called_aet = True
        ae.require_calling_aet = list(calling)
        for sop_class_uid in classes:
            ae.add_supported_context(sop_class_uid, list(syntaxes))
        server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_C_STORE, archive.store)],
        )
        servers.append(server)
        archive.server = server
        archive.port = server.server_address[1]
        return archive

    yield make
    for server in servers:
        server.shutdown()


def failure_of(part10: bytes, destination: Destination) -> NodeError:
    with pytest.raises(NodeError) as caught:
        send_part10(part10, destination)
    return caught.value


def test_an_archive_gets_the_document_as_the_node_keeps_it(
    make_archive: MakeArchive,
) -> None:
    archive, document = make_archive(), make_verified()
    sent_as = send_part10(to_part10(document), archive.destination())
    assert sent_as == document.SOPInstanceUID
    assert archive.received == [dcmread(BytesIO(to_part10(document)))]


@pytest.mark.parametrize("classes", [SR_CLASSES[1:], SR_CLASSES[2:]])
def test_an_archive_without_the_richest_class_gets_the_best_it_takes(
    make_archive: MakeArchive, classes: tuple[str, ...]
) -> None:
    archive, document = make_archive(classes), make_ai()
    part10 = to_part10(document)
    sent_as = send_part10(part10, archive.destination())
    assert archive.received[0].SOPClassUID == classes[0]
    assert sent_as == as_sop_class(document, classes[0]).SOPInstanceUID
    assert send_part10(part10, archive.destination()) == sent_as


def test_an_archive_that_speaks_only_implicit_vr_gets_implicit_vr(
    make_archive: MakeArchive,
) -> None:
    archive, document = make_archive(syntaxes=(ImplicitVRLittleEndian,)), make_ai()
    send_part10(to_part10(document), archive.destination())
    assert archive.received[0].file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert archive.received[0].ContentSequence == document.ContentSequence


def test_an_archive_that_takes_no_document_is_a_final_failure(
    make_archive: MakeArchive,
) -> None:
    archive = make_archive(("1.2.840.10008.5.1.4.1.1.6.1",))
    error = failure_of(to_part10(make_ai()), archive.destination())
    assert error.kind is ErrorKind.UNSUPPORTED
    assert "ARCHIVE" in error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0xA700, ErrorKind.EXHAUSTED),
        (0xA702, ErrorKind.EXHAUSTED),
        (0x0110, ErrorKind.UNAVAILABLE),
        (0xA900, ErrorKind.INVALID),
        (0xC000, ErrorKind.INVALID),
        (0xC123, ErrorKind.INVALID),
        (0x0122, ErrorKind.UNSUPPORTED),
        (0x0124, ErrorKind.FORBIDDEN),
    ],
)
def test_a_refusal_says_whether_another_try_makes_sense(
    make_archive: MakeArchive, status: int, kind: ErrorKind
) -> None:
    archive = make_archive(status=status)
    error = failure_of(to_part10(make_ai()), archive.destination())
    assert error.kind is kind
    assert f"{status:04X}" in error.message
    assert "Wang" not in error.message


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_a_warning_and_a_duplicate_count_as_arrived(
    make_archive: MakeArchive, status: int
) -> None:
    archive = make_archive(status=status)
    send_part10(to_part10(make_ai()), archive.destination())
    assert len(archive.received) == 1


def test_a_wrong_ae_title_is_named_in_plain_words(make_archive: MakeArchive) -> None:
    archive, part10 = make_archive(calling=("OTHER",)), to_part10(make_ai())
    error = failure_of(part10, archive.destination())
    assert error.kind is ErrorKind.FORBIDDEN
    assert "does not know the calling AE title SONONODE" in error.message
    wrong = Destination("NOBODY", "127.0.0.1", archive.port, calling_ae_title="OTHER")
    assert "does not go by the AE title NOBODY" in failure_of(part10, wrong).message


def test_an_archive_that_is_down_is_tried_again() -> None:
    port = free_port()
    error = failure_of(to_part10(make_ai()), Destination("ARCHIVE", "127.0.0.1", port))
    assert error.kind is ErrorKind.UNAVAILABLE


def test_an_archive_that_never_answers_does_not_hold_the_job_for_ever() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        destination = Destination(
            "ARCHIVE",
            "127.0.0.1",
            silent.getsockname()[1],
            association_timeout_s=0.2,
        )
        error = failure_of(to_part10(make_ai()), destination)
    assert error.kind is ErrorKind.UNAVAILABLE


def test_messages_are_not_held_back_by_nagles_algorithm(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_options: list[tuple[int, int, int]] = []
    real = socket.socket.setsockopt

    def note(self: socket.socket, *arguments: int) -> None:
        set_options.append(arguments)  # type: ignore[arg-type]
        real(self, *arguments)

    monkeypatch.setattr(socket.socket, "setsockopt", note)
    send_part10(to_part10(make_ai()), make_archive().destination())
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in set_options


def make_image(number: int, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return an ultrasound image as a file, native or in RLE."""
    image = make_header(f"2.25.{number}")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = 60, 80
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = bytes(range(240)) * 20
    image["PixelData"].VR = "OB"
    part10 = to_part10(image)
    if syntax == ExplicitVRLittleEndian:
        return part10
    image = dcmread(BytesIO(part10))
    image.compress(syntax, generate_instance_uid=False)
    file = BytesIO()
    image.save_as(file)
    return file.getvalue()


IMAGES = ("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1")


async def test_a_study_goes_over_one_association(make_archive: MakeArchive) -> None:
    archive = make_archive((*SR_CLASSES, *IMAGES))
    sender = DimseSender(archive.destination())
    for number in range(5):
        await sender.send(make_image(number))
    await sender.send(to_part10(make_ai()))
    assert len(archive.received) == 6
    assert sender.opened == 1
    await sender.close()
    await sender.send(make_image(9))
    assert sender.opened == 2
    await sender.close()


async def test_an_association_that_the_archive_closed_meanwhile_is_no_failure(
    make_archive: MakeArchive,
) -> None:
    archive = make_archive(IMAGES)
    sender = DimseSender(archive.destination())
    await sender.send(make_image(1))
    for association in archive.associations():
        association.abort()
    await sender.send(make_image(2))
    assert [str(d.SOPInstanceUID) for d in archive.received] == ["2.25.1", "2.25.2"]
    await sender.close()


async def test_a_compressed_image_goes_decompressed_where_its_syntax_is_refused(
    make_archive: MakeArchive, store: Store
) -> None:
    part10 = make_image(1, RLELossless)
    await receive_object(store, dcmread(BytesIO(part10)), part10)
    async with store.db.connection() as connection:
        instance = await studies.instance(connection, store, "2.25.1")
    plain, rich = make_archive(IMAGES), make_archive(IMAGES, syntaxes=(RLELossless,))
    for archive in (plain, rich):
        sender = DimseSender(archive.destination(), keep_s=0)
        await sender.send(part10, instance=instance)
    (native,), (stored,) = plain.received, rich.received
    assert native.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert stored.file_meta.TransferSyntaxUID == RLELossless
    assert native.PixelData == bytes(range(240)) * 20
    assert native.SOPInstanceUID == stored.SOPInstanceUID


def test_bytes_leave_no_faster_than_the_site_allows(
    make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("dicom_scp.sending.scu.time.sleep", pauses.append)
    pace = Pace(8, clock=lambda: 0.0)  # 1 kB/s
    sender = DimseSender(make_archive(IMAGES).destination(), pace, keep_s=0)
    part10 = make_image(1)
    sender.send_part10(part10)
    assert max(pauses) > len(part10) / 1000 - 1


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 and its key, both new PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "archive")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "archive.pem", folder / "archive.key"
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return certificate_file, key_file


def test_tls_reaches_the_archive_that_is_trusted_and_no_other(
    make_archive: MakeArchive, tmp_path: Path
) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    archive, part10 = make_archive(tls=server), to_part10(make_ai())
    trusting = ssl.create_default_context(cafile=str(certificate))
    send_part10(part10, archive.destination(tls=trusting))
    assert len(archive.received) == 1
    wary = archive.destination(tls=ssl.create_default_context())
    assert failure_of(part10, wary).kind is ErrorKind.UNAVAILABLE
    assert len(archive.received) == 1
