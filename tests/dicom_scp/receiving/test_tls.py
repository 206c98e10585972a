"""DIMSE over TLS: BCP 195 (PS3.15 B.12, RFC 9325), both ways, renewed in service."""

import socket
import ssl
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom.uid import UltrasoundImageStorage
from pynetdicom.presentation import build_context

from config.settings import load_settings
from dicom_scp.receiving import scp as listening
from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.receiving.storage import VERIFICATION
from dicom_scp.receiving.tls import client_context, fingerprint_shown, server_context
from dicom_scp.sending.scu import Destination, associate
from node import parts
from node.administration import examine
from node.domain.errors import ErrorKind, NodeError
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.dicom_scp.certificates import Authority
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.receiving.test_peers import refusals
from tests.dicom_scp.receiving.test_scp import run_tool


@pytest.fixture
def hospital(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "Stranger")


async def started(
    start_scp: StartScp, hospital: Authority, **changes: object
) -> StorageScp:
    """Return an SCP with a TLS port that asks for certificates of the hospital."""
    certificate, _ = hospital.issue("node")
    wanted = {
        "tls_certificate": certificate,
        "tls_port": 0,
        "tls_client_ca": hospital.file,
        **changes,
    }
    return await start_scp(**wanted)


def echo(
    scp: StorageScp,
    hospital: Authority,
    *,
    certificate: Path | None = None,
    calling: str = "SCANNER",
) -> bool:
    """Tell whether C-ECHO over TLS is answered."""
    tls = client_context(trusted=hospital.file, certificate=certificate)
    destination = Destination(
        "SONONODE", "127.0.0.1", scp.ports[1], calling_ae_title=calling, tls=tls
    )
    try:
        association = associate(destination, [build_context(VERIFICATION)])
    except NodeError:
        return False
    answered = association.send_c_echo().Status == 0x0000
    association.release()
    return bool(answered)


async def told(store: Store, *, count: int = 1) -> list[str]:
    """Return the audited reasons."""
    return [detail["reason"] for detail in await refusals(store, count)]


# -- callers and their certificates ----------------------------------------------------


async def test_dcmtk_echoes_over_mutual_tls(
    start_scp: StartScp, hospital: Authority
) -> None:
    scp = await started(start_scp, hospital)
    mine, _ = hospital.issue("scanner")
    address = ("127.0.0.1", scp.ports[1])
    trusted = ("+cf", hospital.file, "-aec", "SONONODE", *address)
    assert run_tool("echoscu", "+tls", mine, mine, *trusted).returncode == 0
    assert run_tool("echoscu", "+tla", *trusted).returncode != 0


async def test_caller_without_a_certificate_is_refused_and_audited(
    start_scp: StartScp, hospital: Authority, store: Store
) -> None:
    scp = await started(start_scp, hospital)
    assert not echo(scp, hospital)
    assert await told(store) == ["TLS handshake: no certificate"]


async def test_certificate_of_another_authority_is_refused_and_audited(
    start_scp: StartScp, hospital: Authority, stranger: Authority, store: Store
) -> None:
    scp = await started(start_scp, hospital)
    theirs, _ = stranger.issue("scanner")
    assert not echo(scp, hospital, certificate=theirs)
    assert await told(store) == [
        "TLS handshake: a certificate that is not trusted here"
    ]


async def test_where_certificates_are_optional_only_a_wrong_one_is_refused(
    start_scp: StartScp, hospital: Authority, stranger: Authority, store: Store
) -> None:
    scp = await started(start_scp, hospital, tls_client_required=False)
    theirs, _ = stranger.issue("scanner")
    assert echo(scp, hospital)
    assert not echo(scp, hospital, certificate=theirs)
    assert len(await told(store)) == 1


async def test_machine_is_known_by_its_own_certificate(
    start_scp: StartScp, hospital: Authority, store: Store
) -> None:
    mine, fingerprint = hospital.issue("scanner")
    theirs, other = hospital.issue("other")
    peers = Peers([Peer("SCANNER", certificates=frozenset({fingerprint}))])
    scp = await started(start_scp, hospital, peers=peers, tls_client_required=False)
    assert echo(scp, hospital, certificate=mine)
    assert not echo(scp, hospital, certificate=theirs)
    assert not echo(scp, hospital)
    details = await refusals(store, 2)
    assert [(d["answer"], d["reason"]) for d in details] == [
        ("1,1,3", listening.WRONG_CERTIFICATE.reason),
        ("1,1,3", listening.NO_CERTIFICATE.reason),
    ]
    assert details[0]["certificate"] == other  # what the site would have to enter


async def test_noise_on_the_port_is_not_audited(
    start_scp: StartScp, hospital: Authority, store: Store
) -> None:
    scp = await started(start_scp, hospital)
    for noise in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100):
        with socket.create_connection(("127.0.0.1", scp.ports[1])) as connection:
            connection.sendall(noise)
    assert not echo(scp, hospital)  # what is audited comes last
    assert await told(store) == ["TLS handshake: no certificate"]


# -- the profile -----------------------------------------------------------------------


def speaks(scp: StorageScp, context: ssl.SSLContext) -> str:
    """Return the cipher suite that is agreed on; "" when the handshake fails."""
    try:
        with (
            socket.create_connection(("127.0.0.1", scp.ports[1])) as connection,
            context.wrap_socket(connection) as secure,
        ):
            return str((secure.cipher() or ("",))[0])
    except (ssl.SSLError, ConnectionError):
        return ""


@pytest.fixture
def any_client() -> Iterator[ssl.SSLContext]:
    """A client that trusts everybody and knows every version and cipher."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        yield context


async def test_only_tls_1_2_and_1_3_with_forward_secrecy_are_spoken(
    start_scp: StartScp,
    hospital: Authority,
    any_client: ssl.SSLContext,
    store: Store,
) -> None:
    scp = await started(start_scp, hospital, tls_client_ca=None)
    assert speaks(scp, any_client).startswith("TLS_")  # 1.3
    any_client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert speaks(scp, any_client) == "ECDHE-ECDSA-AES128-GCM-SHA256"
    for old in ("ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "ECDHE+CHACHA20"):
        any_client.set_ciphers(f"{old}:@SECLEVEL=0")
        assert speaks(scp, any_client) == ""
    any_client.set_ciphers("ALL:@SECLEVEL=0")
    any_client.maximum_version = ssl.TLSVersion.TLSv1_1
    assert speaks(scp, any_client) == ""
    reasons = await told(store, count=4)  # of four threads, in any order
    assert sorted(reasons) == [
        "TLS handshake: a version of TLS before 1.2",
        *["TLS handshake: no cipher of the BCP 195 profile"] * 3,
    ]


# -- when we call ----------------------------------------------------------------------


async def test_archive_that_nobody_vouches_for_is_not_told_anything(
    start_scp: StartScp, hospital: Authority, stranger: Authority
) -> None:
    scp = await started(start_scp, hospital, tls_client_required=False)
    assert echo(scp, hospital)
    assert not echo(scp, stranger)


async def test_certificate_stands_for_the_host_that_it_names(
    start_scp: StartScp, hospital: Authority
) -> None:
    elsewhere, _ = hospital.issue("pacs", host="pacs.example")
    scp = await started(
        start_scp, hospital, tls_certificate=elsewhere, tls_client_required=False
    )
    context = build_context(UltrasoundImageStorage)
    for check, reached in ((True, False), (False, True)):
        tls = client_context(trusted=hospital.file, check_names=check)
        destination = Destination("SONONODE", "127.0.0.1", scp.ports[1], tls=tls)
        if reached:
            associate(destination, [context]).release()
        else:
            with pytest.raises(NodeError, match="no certificate that we trust"):
                associate(destination, [context])


# -- renewal ---------------------------------------------------------------------------


def shown_by(scp: StorageScp, any_client: ssl.SSLContext) -> str:
    with (
        socket.create_connection(("127.0.0.1", scp.ports[1])) as connection,
        any_client.wrap_socket(connection) as secure,
    ):
        return fingerprint_shown(secure)


async def test_renewed_certificate_counts_from_the_next_connection_on(
    start_scp: StartScp,
    hospital: Authority,
    any_client: ssl.SSLContext,
    capfd: pytest.CaptureFixture[str],
) -> None:
    scp = await started(start_scp, hospital, tls_client_ca=None)
    first = shown_by(scp, any_client)
    file, renewed = hospital.issue("node")
    assert shown_by(scp, any_client) == renewed != first
    capfd.readouterr()
    file.write_text("half a certifi")
    assert shown_by(scp, any_client) == renewed  # the one before goes on
    assert shown_by(scp, any_client) == renewed
    assert "".join(capfd.readouterr()).count("dicom.certificates_not_loaded") == 1
    file.unlink()
    assert shown_by(scp, any_client) == renewed
    _, mended = hospital.issue("node")
    assert shown_by(scp, any_client) == mended


async def test_authority_that_is_taken_away_vouches_for_nobody_any_more(
    start_scp: StartScp, hospital: Authority, stranger: Authority
) -> None:
    scp = await started(start_scp, hospital)
    mine, _ = hospital.issue("scanner")
    assert echo(scp, hospital, certificate=mine)
    hospital.file.rename(hospital.folder / "kept.pem")
    hospital.file.write_bytes(stranger.file.read_bytes())
    tls = client_context(trusted=hospital.folder / "kept.pem", certificate=mine)
    destination = Destination("SONONODE", "127.0.0.1", scp.ports[1], tls=tls)
    with pytest.raises(NodeError):
        associate(destination, [build_context(VERIFICATION)])


def test_client_follows_its_files_too(hospital: Authority) -> None:
    tls = client_context(trusted=hospital.file)
    before = tls.current()
    assert tls.current() is before
    hospital.file.write_bytes(hospital.file.read_bytes() * 2)
    assert tls.current() is not before


# -- settings and doctor ---------------------------------------------------------------


def test_file_that_cannot_be_used_is_named_by_its_setting(
    hospital: Authority, tmp_path: Path
) -> None:
    good, _ = hospital.issue("node")
    other, _ = hospital.issue("other")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for setting, make in (
        ("dicom.tls_certificate", lambda: server_context(empty, None)),
        ("dicom.tls_certificate", lambda: server_context(good, other)),
        ("dicom.tls_certificate", lambda: server_context(tmp_path / "no", None)),
        ("dicom.tls_client_ca", lambda: server_context(good, None, client_ca=empty)),
        ("dicom.tls_trusted", lambda: client_context(trusted=empty)),
        ("dicom.tls_calling_certificate", lambda: client_context(certificate=empty)),
    ):
        with pytest.raises(NodeError, match=f"^{setting}: ") as caught:
            make()
        assert caught.value.kind is ErrorKind.SETTING


async def test_doctor_tells_expiry_and_files_that_cannot_be_used(
    hospital: Authority, tmp_path: Path, store: Store, clock: FrozenClock
) -> None:
    hospital.issue("node", days=400)
    environment = {
        "SONONODE_DATA": str(tmp_path),
        "SONONODE_DICOM__TLS_CERTIFICATE": "node.pem",
        "SONONODE_DICOM__TLS_CLIENT_CA": "Hospital.pem",
        "SONONODE_PACS__AE_TITLE": "PACS",
        "SONONODE_PACS__TLS": "true",
        "SONONODE_DICOM__TLS_TRUSTED": "Hospital.pem",
    }
    settings = load_settings(environment)
    assert parts.scp_settings_of(settings).tls_client_required

    async def findings() -> dict[str, tuple[bool, str]]:
        looked = await examine(store, settings)
        return {f.what: (f.well, f.told) for f in looked if "ls" in f.what.lower()}

    clock.now = datetime.now(UTC)  # certificates are made by it
    well = await findings()
    assert set(well) == {
        "dicom.tls_certificate",
        "dicom.tls_client_ca",
        "dicom.tls_trusted",
    }
    assert all(fine for fine, _ in well.values())
    clock.advance(seconds=380 * 86400)
    late = await findings()
    assert not late["dicom.tls_certificate"][0]
    assert "renew it, no restart is needed" in late["dicom.tls_certificate"][1]
    assert late["dicom.tls_client_ca"][1].startswith("expired on ")
    (tmp_path / "node.pem").write_text("broken")
    broken = await findings()
    assert "a running node goes on with the one before" in broken["TLS"][1]
    assert not broken["dicom.tls_certificate"][0]
