"""STOW-RS to an archive: the request, and what its answers mean (PS3.18 10.5)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydicom.uid import ComprehensiveSRStorage

from dicom_scp.results.sr import SR_CLASSES, as_sop_class, to_part10
from dicom_scp.sending.delivery import Pace, Unconfirmed
from dicom_scp.sending.stow import StowDestination, StowSender, basic_of, bearer_of
from node.domain.errors import ErrorKind, NodeError
from tests.dicom_scp.results.test_sr import make_ai

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

Answer = Callable[["Archive", str], web.Response]


@dataclass
class Archive:
    """A DICOMweb archive on this machine that answers what a test wants."""

    answer: Answer
    requests: list[web.Request] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    async def store(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            assert isinstance(part, aiohttp.BodyPartReader)
            assert part.headers["Content-Type"] == "application/dicom"
            self.parts.append(bytes(await part.read()))
        return self.answer(self, "")


def stored(_archive: Archive, _: str) -> web.Response:
    return web.json_response({}, content_type="application/dicom+json")


def refused(*reasons: int) -> Answer:
    """Answer one request after the other with a Failure Reason; 0 = stored."""
    left = list(reasons)

    def answer(archive: Archive, _: str) -> web.Response:
        reason = left.pop(0)
        if not reason:
            return stored(archive, "")
        failed = {"00081197": {"vr": "US", "Value": [reason]}}
        body = json.dumps({"00081198": {"vr": "SQ", "Value": [failed]}})
        return web.Response(
            status=409, text=body, content_type="application/dicom+json"
        )

    return answer


def plain(status: int, **headers: str) -> Answer:
    return lambda _archive, _: web.Response(status=status, headers=headers)


Start = Callable[..., Awaitable[tuple[Archive, StowSender]]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers: list[TestServer] = []
    sessions: list[aiohttp.ClientSession] = []

    async def begin(
        answer: Answer = stored, **changes: Any
    ) -> tuple[Archive, StowSender]:
        archive = Archive(answer)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/dicom-web/studies", archive.store)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        session = aiohttp.ClientSession()
        sessions.append(session)
        pace = changes.pop("pace", None)
        url = str(server.make_url("/dicom-web"))
        destination = StowDestination("WEB", url, **changes)
        return archive, StowSender(destination, session, pace)

    yield begin
    for session in sessions:
        await session.close()
    for server in servers:
        await server.close()


async def failure(sender: StowSender) -> NodeError:
    with pytest.raises(NodeError) as caught:
        await sender.send(to_part10(make_ai()))
    assert "Wang" not in caught.value.message
    return caught.value


async def test_an_archive_gets_the_file_as_the_node_keeps_it(start: Start) -> None:
    archive, sender = await start()
    document = make_ai()
    sent = await sender.send(to_part10(document))
    assert archive.parts == [to_part10(document)]
    assert (sent.sop_class_uid, sent.sop_instance_uid) == (
        document.SOPClassUID,
        document.SOPInstanceUID,
    )
    (request,) = archive.requests
    assert request.headers["Accept"] == "application/dicom+json"
    assert request.headers["Content-Type"].startswith(
        'multipart/related; type="application/dicom"; boundary='
    )
    assert request.headers["Transfer-Encoding"] == "chunked"


async def test_a_boundary_in_the_data_is_no_boundary(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Number:
        def __init__(self, text: str) -> None:
            self.hex = text

    part10 = to_part10(make_ai())
    numbers = iter([Number("DICM"), Number("somethingelse")])
    monkeypatch.setattr("dicom_scp.sending.stow.uuid4", lambda: next(numbers))
    archive, sender = await start()
    await sender.send(part10)
    assert archive.parts == [part10]
    assert archive.requests[0].headers["Content-Type"].endswith("=somethingelse")


async def test_a_refused_class_is_not_tried_for_every_document(start: Start) -> None:
    archive, sender = await start(refused(0x0122, 0, 0))
    document = make_ai()
    for _ in range(2):
        sent = await sender.send(to_part10(document))
        assert sent.sop_class_uid == ComprehensiveSRStorage == SR_CLASSES[1]
        other = as_sop_class(document, SR_CLASSES[1])
        assert sent.sop_instance_uid == other.SOPInstanceUID
    assert len(archive.requests) == 3


async def test_a_document_goes_again_under_the_uid_of_before(start: Start) -> None:
    _, sender = await start()
    document = make_ai()
    before = str(as_sop_class(document, SR_CLASSES[2]).SOPInstanceUID)
    sent = await sender.send(to_part10(document), before=before)
    assert sent.sop_instance_uid == before


@pytest.mark.parametrize("reason", [0x0111, 0xB000, 45070])
async def test_what_is_there_already_has_arrived(start: Start, reason: int) -> None:
    _, sender = await start(refused(reason))
    await sender.send(to_part10(make_ai()))


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refused(0xA700), ErrorKind.EXHAUSTED, "A700"),
        (refused(0xC000), ErrorKind.INVALID, "C000"),
        (refused(0x0122, 0x0122, 0x0122), ErrorKind.UNSUPPORTED, "0122"),
        (plain(401), ErrorKind.FORBIDDEN, "look at the token"),
        (plain(404), ErrorKind.SETTING, "under this URL"),
        (plain(409), ErrorKind.INVALID, "does not say why"),
        (plain(429), ErrorKind.UNAVAILABLE, "wait"),
        (plain(503), ErrorKind.UNAVAILABLE, "503"),
        (plain(418), ErrorKind.INVALID, "418"),
    ],
)
async def test_an_answer_says_whether_another_try_makes_sense(
    start: Start, answer: Answer, kind: ErrorKind, words: str
) -> None:
    _, sender = await start(answer)
    error = await failure(sender)
    assert error.kind is kind
    assert words in error.message
    assert not isinstance(error, Unconfirmed)


async def test_data_do_not_follow_a_redirect(start: Start) -> None:
    other, _ = await start()
    archive, sender = await start(plain(307, Location="http://127.0.0.1:1/x"))
    assert (await failure(sender)).kind is ErrorKind.SETTING
    assert (len(archive.requests), len(other.requests)) == (1, 0)


async def test_a_line_that_breaks_after_the_request_may_have_delivered(
    start: Start,
) -> None:
    def hang_up(archive: Archive, _: str) -> web.Response:
        transport = archive.requests[-1].transport
        assert transport is not None
        transport.close()
        return web.Response()

    _, sender = await start(hang_up)
    assert isinstance(await failure(sender), Unconfirmed)


async def test_an_archive_that_is_down_has_certainly_nothing() -> None:
    async with aiohttp.ClientSession() as session:
        sender = StowSender(StowDestination("WEB", "http://127.0.0.1:1/x"), session)
        error = await failure(sender)
    assert error.kind is ErrorKind.UNAVAILABLE
    assert not isinstance(error, Unconfirmed)


async def test_a_renewed_token_counts_at_once(start: Start, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    archive, sender = await start(authorize=bearer_of(token))
    await sender.send(to_part10(make_ai()))
    token.write_text("two")
    await sender.send(to_part10(make_ai()))
    told = [request.headers["Authorization"] for request in archive.requests]
    assert told == ["Bearer one", "Bearer two"]
    token.unlink()
    assert (await failure(sender)).kind is ErrorKind.SETTING
    assert basic_of("node", _written(tmp_path, "x"))() == "Basic bm9kZTp4"


def _written(folder: Path, text: str) -> Path:
    file = folder / "password"
    file.write_text(text)
    return file


async def test_it_leaves_no_faster_than_the_site_allows(start: Start) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    _, sender = await start(pace=Pace(8, clock=lambda: 0.0))  # 1 kB/s
    sender.sleep = pause
    part10 = to_part10(make_ai())
    await sender.send(part10)
    assert pauses[-1] == pytest.approx(len(part10) / 1000 - 1, abs=0.01)
