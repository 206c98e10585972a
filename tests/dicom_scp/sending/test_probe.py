"""What `doctor pacs` says of an archive: each trouble by its name and with its mend."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
)
from pynetdicom import AE, evt

from dicom_scp.results.sr import SR_CLASSES
from dicom_scp.sending.delivery import BELIEVED, send_instance
from dicom_scp.sending.probe import (
    PUSH_MODEL,
    VERIFICATION,
    Probe,
    ask,
    ask_again,
    probe_archive,
    probe_stow,
    targets_of,
)
from dicom_scp.sending.scu import Destination
from dicom_scp.sending.stow import StowDestination
from node.domain.errors import ErrorKind, NodeError
from node.store import routes
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.dicom_scp.sending.test_routing import ALL, Memory, payload, receive
from tests.dicom_scp.sending.test_scu import make_certificate
from tests.ports import free_port

NOW = datetime.now(UTC)
Listen = Callable[..., Destination]
RESULTS = (VERIFICATION, *SR_CLASSES, SecondaryCaptureImageStorage)


@pytest.fixture
def listen() -> Iterator[Listen]:
    servers = []

    def begin(
        *classes: str,
        calling: str = "SONONODE",
        tls: ssl.SSLContext | None = None,
        jpeg: bool = False,
    ) -> Destination:
        ae = AE(ae_title="ARCHIVE")
        ae.require_called_aet = True
        ae.require_calling_aet = [calling]
        for sop_class_uid in classes:
            ae.add_supported_context(
                sop_class_uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
            )
        if jpeg:
            ae.add_supported_context(UltrasoundImageStorage, JPEGBaseline8Bit)
        server = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0x0000)],
        )
        servers.append(server)
        port = server.server_address[1]
        return Destination("ARCHIVE", "127.0.0.1", port, association_timeout_s=2.0)

    yield begin
    for server in servers:
        server.shutdown()


def told(probe: Probe) -> dict[str, tuple[bool, str]]:
    return {f.step: (f.well, f.told) for f in reversed(probe.findings)}


def last(probe: Probe) -> tuple[str, str]:
    """Return step and words of the one thing that is to be mended, the last step."""
    assert [f.well for f in probe.findings[:-1]] == [True] * (len(probe.findings) - 1)
    finding = probe.findings[-1]
    assert not finding.well
    return finding.step, finding.told


def test_an_archive_that_takes_all_is_well(listen: Listen) -> None:
    probe = probe_archive(listen(*RESULTS, PUSH_MODEL, jpeg=True), now=NOW)
    assert probe.well
    assert probe.commitment
    found = told(probe)
    assert found["reports"] == (True, "go as Comprehensive 3D SR")
    assert found["echo"] == (True, "answered")
    assert "JPEG Baseline" in found["images"][1]
    assert probe.accepted[str(UltrasoundImageStorage)] == (str(JPEGBaseline8Bit),)
    assert probe.accepted["1.2.840.10008.5.1.4.1.1.66.4"] == ()


def test_the_best_class_that_it_takes_is_named(listen: Listen) -> None:
    archive = listen(VERIFICATION, *SR_CLASSES[1:], SecondaryCaptureImageStorage)
    well, words = told(probe_archive(archive, now=NOW))["reports"]
    assert well
    assert "go as Comprehensive SR" in words
    assert "does not take Comprehensive 3D SR" in words


def test_an_archive_without_reports_and_pictures_is_told_what_to_switch_on(
    listen: Listen,
) -> None:
    probe = probe_archive(listen(VERIFICATION), now=NOW)
    ill = [f for f in probe.findings if not f.well]
    assert [f.step for f in ill] == ["reports", "heat maps"]
    assert "Comprehensive SR" in ill[0].told
    assert "Secondary Capture Image" in ill[1].told


def test_commitment_that_is_wanted_but_not_offered_is_told(listen: Listen) -> None:
    archive = listen(*RESULTS)
    wanted = Destination("ARCHIVE", archive.host, archive.port, commitment=True)
    assert last(probe_archive(wanted, now=NOW))[0] == "storage commitment"


def test_an_unknown_calling_title_is_told_with_where_to_enter_it(
    listen: Listen,
) -> None:
    step, words = last(probe_archive(listen(*RESULTS, calling="OTHER"), now=NOW))
    assert step == "association"
    assert "does not know the calling AE title SONONODE: enter it there" in words


def test_a_wrong_called_title_is_told(listen: Listen) -> None:
    port = listen(*RESULTS).port
    step, words = last(probe_archive(Destination("NOBODY", "127.0.0.1", port), now=NOW))
    assert step == "association"
    assert "does not go by the AE title NOBODY" in words


def test_a_closed_port_a_silent_one_and_an_unknown_name_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dicom_scp.sending.probe.CONNECT_S", 0.2)
    port = free_port()
    step, words = last(probe_archive(Destination("A", "127.0.0.1", port), now=NOW))
    assert (step, words.split(":")[0]) == ("connection", "refused")

    def silent(*_: object, **__: object) -> socket.socket:
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr("dicom_scp.sending.probe.socket.create_connection", silent)
        step, words = last(probe_archive(Destination("A", "127.0.0.1", port), now=NOW))
    assert step == "connection"
    assert "firewall" in words
    step, words = last(probe_archive(Destination("A", "no.such.invalid", 1), now=NOW))
    assert step == "name"


def test_a_port_that_is_no_dicom_is_told() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]

        def hang_up() -> None:
            for _ in range(2):
                server.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        step, words = last(probe_archive(Destination("A", "127.0.0.1", port), now=NOW))
    assert step == "association"
    assert "another service" in words


def test_certificates_are_told_by_name_and_end(listen: Listen, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    archive = listen(*RESULTS, tls=server)

    def secured(context: ssl.SSLContext) -> Destination:
        return Destination("ARCHIVE", archive.host, archive.port, tls=context)

    step, words = last(probe_archive(secured(ssl.create_default_context()), now=NOW))
    assert step == "certificate"
    assert "not trusted" in words
    assert "127.0.0.1" in words
    trusting = ssl.create_default_context(cafile=str(certificate))
    probe = probe_archive(secured(trusting), now=NOW)
    assert told(probe)["certificate"][0] is False  # it ends within the hour
    assert "renewed" in told(probe)["certificate"][1]
    assert told(probe)["association"][0]
    early = probe_archive(secured(trusting), now=NOW - timedelta(days=60))
    assert early.well


def test_tls_to_a_port_without_tls_is_told(listen: Listen) -> None:
    archive = listen(*RESULTS)
    context = ssl.create_default_context()
    secured = Destination("ARCHIVE", archive.host, archive.port, tls=context)
    step, words = last(probe_archive(secured, now=NOW))
    assert step == "certificate"
    assert "tls = false" in words


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (200, None),
        (409, None),
        (401, "credentials"),
        (404, "service"),
        (302, "service"),
    ],
)
async def test_a_dicomweb_archive_is_asked_with_a_request_that_holds_nothing(
    status: int, step: str | None
) -> None:
    bodies: list[bytes] = []

    async def store(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response(status=status, headers={"Location": "https://other/x"})

    app = web.Application()
    app.router.add_post("/dicom-web/studies", store)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        destination = StowDestination("WEB", str(server.make_url("/dicom-web")))
        probe = await probe_stow(destination, session, now=NOW)
    assert bodies == [b"--nothing--\r\n"]
    if step is None:
        assert probe.well
    else:
        assert last(probe)[0] == step


# --- what is remembered -------------------------------------------------------------


async def test_an_answer_is_kept_for_a_day_and_asked_anew_when_doubted(
    store: Store, clock: FrozenClock, listen: Listen
) -> None:
    archive = listen(*RESULTS)
    async with aiohttp.ClientSession() as session:
        targets = targets_of({"A": archive}, {}, session)
        assert await ask_again(store, targets) == 1
        assert await ask_again(store, targets) == 0
        async with store.db.transaction() as tx:
            await routes.doubt_probe(tx, "A")
        assert await ask_again(store, targets) == 0
        clock.advance(seconds=601)
        assert await ask_again(store, targets) == 1
        clock.advance(seconds=3600 * 23)
        assert await ask_again(store, targets) == 0
        clock.advance(seconds=3601)
        assert await ask_again(store, targets) == 1
        moved = targets_of({"A": listen(*RESULTS)}, {}, session)
        assert await ask_again(store, moved) == 1
    async with store.db.connection() as connection:
        answer = await routes.probe_answer(connection, "A")
    assert answer is not None
    assert answer.well
    assert answer.accepted[ComprehensiveSRStorage]


async def test_what_was_just_refused_is_not_tried_for_every_object(
    store: Store, clock: FrozenClock, listen: Listen
) -> None:
    await receive(store)  # an ultrasound image, which this archive does not take
    async with aiohttp.ClientSession() as session:
        (target,) = targets_of({"A": listen(*RESULTS)}, {}, session)
        await ask(target, store)
    archive = Memory()
    with pytest.raises(NodeError, match="doctor pacs A") as caught:
        await send_instance(store, payload(), {"A": archive}, ALL)
    assert caught.value.kind is ErrorKind.UNSUPPORTED
    assert archive.got == []
    clock.advance(seconds=BELIEVED.total_seconds() + 1)
    await send_instance(store, payload(), {"A": archive}, ALL)
    assert len(archive.got) == 1
