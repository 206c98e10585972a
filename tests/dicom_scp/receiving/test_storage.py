"""What others send comes out as it went in: C-STORE, then WADO-RS (PS3.18 10.4).

DCMTK makes and sends what it can make; `dcmftest` judges what is given out.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    MPEG4HP41,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    EnhancedUSVolumeStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_scp.receiving.peers import Peer, Peers
from dicom_scp.receiving.scp import StorageScp
from dicom_scp.web import dicomweb
from inference.images import image_to_read
from inference.select import select_region
from node.domain.access import Role
from node.domain.finding import NotRead
from node.http import HttpSettings, RouteGroup, make_app
from node.imaging import read_header
from node.store import people
from node.store.people import SessionKind
from node.store.store import Store
from tests.dicom_scp.conftest import StartScp
from tests.dicom_scp.instances import data_set_bytes, make_instance, write_instance
from tests.dicom_scp.receiving.test_scp import run_tool, send

Client = TestClient[web.Request, web.Application]
Open = Callable[[Role], Awaitable[Client]]
ALL_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
MOVIE = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 5000
# How storescu offers a syntax, and what makes it.
SYNTAXES: dict[str, tuple[str, tuple[str, ...]]] = {
    "1.2.840.10008.1.2": ("-xi", ("dcmconv", "+ti")),
    "1.2.840.10008.1.2.1": ("-xe", ("dcmconv", "+te")),
    "1.2.840.10008.1.2.2": ("-xb", ("dcmconv", "+tb")),
    "1.2.840.10008.1.2.1.99": ("-xd", ("dcmconv", "+td")),
    "1.2.840.10008.1.2.5": ("-xr", ("dcmcrle",)),
    "1.2.840.10008.1.2.4.50": ("-xy", ("dcmcjpeg", "+eb", "+ud")),
    "1.2.840.10008.1.2.4.51": ("-xx", ("dcmcjpeg", "+ee", "+ud")),
    "1.2.840.10008.1.2.4.70": ("-xs", ("dcmcjpeg", "+e1", "+ud")),
    "1.2.840.10008.1.2.4.80": ("-xt", ("dcmcjpls", "+el", "+ud")),
    "1.2.840.10008.1.2.4.81": ("-xu", ("dcmcjpls", "+en", "+ud")),
}


@pytest.fixture
async def open_as(store: Store) -> AsyncIterator[Open]:
    """Return a function that opens a client of one role."""
    group = RouteGroup(
        prefix=dicomweb.PREFIX,
        routes=dicomweb.routes(store, base_url="https://node.example"),
        render_error=dicomweb.render_error,
    )
    server = TestServer(make_app(store, HttpSettings(), [group]))
    await server.start_server()
    clients: list[Client] = []

    async def open_client(role: Role) -> Client:
        async with store.db.transaction() as tx:
            user = await people.create_user(
                tx,
                login=role.value,
                password="a long enough password",
                display="Somebody",
                roles=[role],
                now=store.clock(),
            )
            token = await people.open_session(
                tx, user, SessionKind.BEARER, now=store.clock()
            )
        headers = {"Authorization": f"Bearer {token}"}
        clients.append(TestClient(server, headers=headers))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.close()
    await server.close()


def path_of(instance: Dataset) -> str:
    return (
        f"/dicom-web/studies/{instance.StudyInstanceUID}"
        f"/series/{instance.SeriesInstanceUID}/instances/{instance.SOPInstanceUID}"
    )


async def given_out(client: Client, instance: Dataset) -> bytes:
    """Return the Part 10 file that WADO-RS gives out."""
    answer = await client.get(path_of(instance), headers={"Accept": ALL_AS_STORED})
    assert answer.status == 200
    boundary = answer.headers["Content-Type"].rpartition("boundary=")[2].encode()
    _, part, _ = (await answer.read()).split(b"--" + boundary)
    head, _, body = part.removesuffix(b"\r\n").partition(b"\r\n\r\n")
    syntax = instance.file_meta.TransferSyntaxUID
    assert head.strip().decode() == (
        f"Content-Type: application/dicom; transfer-syntax={syntax}"
    )
    return body


def storescu(scp: StorageScp, *options: str, files: list[Path]) -> None:
    address = ("127.0.0.1", scp.ports[0])
    done = run_tool("storescu", "-v", *options, "-aec", "SONONODE", *address, *files)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(Success)") == len(files), done.stderr


async def test_every_syntax_that_dcmtk_makes_comes_out_as_it_went_in(
    start_scp: StartScp, open_as: Open, tmp_path: Path
) -> None:
    # storescu offers uncompressed syntaxes together: each peer prefers one of them.
    peers = Peers(
        Peer(flag, transfer_syntaxes=(s,)) for s, (flag, _) in SYNTAXES.items()
    )
    scp, client = await start_scp(peers=peers), await open_as(Role.PACS)
    files = []
    for syntax, (flag, converter) in SYNTAXES.items():
        folder = tmp_path / syntax
        folder.mkdir()
        source, target = write_instance(folder, frames=2), folder / "sent.dcm"
        done = run_tool(*converter, source, target)
        assert done.returncode == 0, done.stderr
        assert dcmread(target).file_meta.TransferSyntaxUID == syntax
        files.append(target)
        storescu(scp, flag, "-aet", flag, files=[target])
    judged = []
    for file in files:
        body = await given_out(client, dcmread(file, force=True))
        sent = data_set_bytes(file.read_bytes())
        # Sent deflated data sets have an even length (PS3.5 A.5), files any.
        assert data_set_bytes(body) == sent + bytes(len(sent) % 2)
        judged.append(tmp_path / f"{len(judged)}.dcm")
        judged[-1].write_bytes(body)
    answers = run_tool("dcmftest", *judged).stdout.splitlines()
    assert [line[:4] for line in answers] == ["yes:"] * len(files)


async def test_classes_that_dcmtk_sends_come_out_as_they_went_in(
    start_scp: StartScp, open_as: Open, tmp_path: Path
) -> None:
    scp, client = await start_scp(), await open_as(Role.PACS)
    files = [
        write_instance(tmp_path, SOPClassUID=sop_class)
        for sop_class in (
            "1.2.840.10008.5.1.4.1.1.6",  # retired
            SecondaryCaptureImageStorage,
            EnhancedUSVolumeStorage,
        )
    ]
    files.append(
        write_instance(
            tmp_path,
            frames=2,
            SOPClassUID=MultiFrameTrueColorSecondaryCaptureImageStorage,
        )
    )
    files += [
        write_instance(tmp_path, SOPClassUID=sop_class, PixelData=None, Modality="OT")
        for sop_class in (
            ComprehensiveSRStorage,
            KeyObjectSelectionDocumentStorage,
            EncapsulatedPDFStorage,
        )
    ]
    storescu(scp, "-R", "-xe", files=files)
    for file in files:
        body = await given_out(client, dcmread(file))
        assert data_set_bytes(body) == data_set_bytes(file.read_bytes())


# -- video -----------------------------------------------------------------------------


def video(stream: bytes = MOVIE, syntax: str = MPEG4HP41, parts: int = 1) -> Dataset:
    """Return a cine whose pixel data is a video stream."""
    instance = make_instance(frames=40)
    size = -(-len(stream) // parts // 2) * 2
    cut = [stream[at : at + size] for at in range(0, len(stream), size)]
    instance.PixelData = encapsulate(cut, has_bot=False)
    instance["PixelData"].VR = "OB"
    instance["PixelData"].is_undefined_length = True
    instance.file_meta.TransferSyntaxUID = syntax
    return instance


@pytest.mark.parametrize("parts", [1, 40])  # 40 fragments are still no frames
async def test_video_is_given_out_as_the_stream_it_is(
    parts: int, start_scp: StartScp, open_as: Open
) -> None:
    scp, client = await start_scp(), await open_as(Role.PACS)
    instance = video(parts=parts)
    assert send(scp, instance) == [0x0000]
    (header,) = await (await client.get(f"{path_of(instance)}/metadata")).json(
        content_type=None
    )
    assert header["00083002"]["Value"] == [MPEG4HP41]
    uri = header["7FE00010"]["BulkDataURI"]
    assert uri.startswith("https://node.example/dicom-web/studies/")
    path = uri.removeprefix("https://node.example")
    whole = await client.get(path)
    assert whole.content_type == "video/mp4"
    assert await whole.read() == MOVIE
    for asked, start, stop in (
        ("bytes=0-11", 0, 12),
        ("bytes=1279000-", 1_279_000, len(MOVIE)),
        ("bytes=-7", len(MOVIE) - 7, len(MOVIE)),
        ("bytes=70000-1200000", 70_000, 1_200_001),
    ):
        part = await client.get(path, headers={"Range": asked})
        assert part.status == 206
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(MOVIE)}"
        assert await part.read() == MOVIE[start:stop]
    beyond = await client.get(path, headers={"Range": f"bytes={len(MOVIE)}-"})
    assert beyond.status == 416
    rendered = await client.get(
        f"{path_of(instance)}/rendered", headers={"Accept": "video/mp4"}
    )
    assert rendered.content_type == "video/mp4"
    assert await rendered.read() == MOVIE
    parted = await client.get(
        path, headers={"Accept": 'multipart/related; type="video/mp4"'}
    )
    assert MOVIE in await parted.read()


async def test_video_is_not_shown_to_whom_names_are_masked(
    start_scp: StartScp, open_as: Open
) -> None:
    scp, doctor = await start_scp(), await open_as(Role.RADIOLOGIST)
    instance = video()
    assert send(scp, instance) == [0x0000]
    (header,) = await (await doctor.get(f"{path_of(instance)}/metadata")).json(
        content_type=None
    )
    assert "7FE00010" not in header
    refused = await doctor.get(f"{path_of(instance)}/bulkdata/7FE00010")
    assert refused.status == 403
    rendered = await doctor.get(f"{path_of(instance)}/rendered")
    assert rendered.status == 406
    assert "video" in (await rendered.json())["error"]


async def test_there_is_no_stream_where_there_are_frames(
    start_scp: StartScp, open_as: Open
) -> None:
    scp, client = await start_scp(), await open_as(Role.PACS)
    instance = make_instance()
    send(scp, instance)
    answer = await client.get(f"{path_of(instance)}/bulkdata/7FE00010")
    assert answer.status == 404


async def test_other_containers_go_under_their_own_name(
    start_scp: StartScp, open_as: Open
) -> None:
    scp, client = await start_scp(), await open_as(Role.PACS)
    for stream, syntax, expected in (
        (b"\x47" + bytes(187), MPEG4HP41, "video/mp2t"),
        (b"\0\0\1\xba" + bytes(100), MPEG2MPML, "video/mpeg"),
        (b"\0\0\0\1" + bytes(100), MPEG4HP41, "application/octet-stream"),
    ):
        instance = video(stream, syntax)
        assert send(scp, instance) == [0x0000]
        answer = await client.get(f"{path_of(instance)}/bulkdata/7FE00010")
        assert answer.content_type == expected


def test_video_is_named_as_not_read_and_never_opened() -> None:
    instance = video()
    instance.BodyPartExamined = "BREAST"

    def never() -> None:
        raise AssertionError("opened")

    image = image_to_read(read_header(instance), MPEG4HP41, never)  # type: ignore[arg-type]
    refused = select_region(image.header)
    assert isinstance(refused, NotRead)
    assert refused.reason == "video"
    assert "视频" in refused.zh
    plain = image_to_read(read_header(instance), ExplicitVRLittleEndian, never)  # type: ignore[arg-type]
    assert not isinstance(select_region(plain.header), NotRead)
