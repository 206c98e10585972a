"""DICOMweb against a real store (PS3.18 8.7, 10.4, 10.6): what each caller may see."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from dicomweb_client.web import DICOMwebClient
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from dicom_scp.simulation.scanner import Patient, View, build_instance
from dicom_scp.simulation.simulator import GE_LIKE, MINDRAY_LIKE
from dicom_scp.web import dicomweb
from node.domain.access import Role
from node.http import HttpSettings, RouteGroup, make_app
from node.imaging import BytesReader, StoredImage, ultrasound_regions
from node.store import audit, people
from node.store.people import SessionKind
from node.store.store import Store
from tests.intake import receive_object

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
STUDY, SERIES = "2.25.100", "2.25.200"
GREY, CINE, RLE = "2.25.301", "2.25.302", "2.25.303"
BASE = f"/dicom-web/studies/{STUDY}/series/{SERIES}/instances"
SECRETS = ("Zhang", "San", "张三", "三", "SIM-000001", "990000", "19790412")

Client = TestClient[web.Request, web.Application]
Open = Callable[[Role], Awaitable[Client]]


def patient() -> Patient:
    return Patient("Zhang^San=张^三", "SIM-000001", "19790412", "990000197904120011")


def picture(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(40, 200, (60, 80), dtype=np.uint8).repeat(5, 0).repeat(5, 1)


def instance(number: int, syntax: UID, frames: int = 1) -> Dataset:
    return build_instance(
        View(
            frames=tuple(picture(n) for n in range(frames)),
            mm_per_pixel=0.1,
            transfer_syntax=syntax,
            colour=syntax != ExplicitVRLittleEndian,
        ),
        patient(),
        GE_LIKE if syntax == ExplicitVRLittleEndian else MINDRAY_LIKE,
        at=NOW,
        uids=(STUDY, SERIES, f"2.25.30{number}"),
        accession_number="SIM2611210001",
        description="Breast US",
        instance_number=number,
    )


def part10(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


async def receive(store: Store, dataset: Dataset) -> bytes:
    content = part10(dataset)
    await receive_object(store, dataset, content)
    return content


@pytest.fixture
async def stored(store: Store) -> dict[str, bytes]:
    """Receive a still, a JPEG cine and an RLE still of one patient."""
    made = {
        GREY: instance(1, ExplicitVRLittleEndian),
        CINE: instance(2, JPEGBaseline8Bit, frames=3),
        RLE: instance(3, RLELossless),
    }
    return {uid: await receive(store, dataset) for uid, dataset in made.items()}


@pytest.fixture
async def open_as(store: Store, stored: dict[str, bytes]) -> AsyncIterator[Open]:
    """Return a function that opens a client of one role."""
    group = RouteGroup(
        prefix=dicomweb.PREFIX,
        routes=dicomweb.routes(store),
        render_error=dicomweb.render_error,
        describe=dicomweb.describe,
    )
    server = TestServer(make_app(store, HttpSettings(), [group]))
    await server.start_server()
    clients: list[Client] = []

    async def open_client(role: Role) -> Client:
        async with store.db.transaction() as tx:
            user = await people.create_user(
                tx,
                login=f"{role.value}-{len(clients)}",
                password="a long enough password",
                display="Somebody",
                roles=[role],
                now=NOW,
            )
            token = await people.open_session(tx, user, SessionKind.BEARER, now=NOW)
        client: Client = TestClient(
            server, headers={"Authorization": f"Bearer {token}"}
        )
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        await client.close()
    await server.close()


async def test_doctor_gets_headers_without_identity(open_as: Open) -> None:
    client = await open_as(Role.RADIOLOGIST)
    answer = await client.get(f"/dicom-web/studies/{STUDY}/metadata")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    text = await answer.text()
    assert [word for word in SECRETS if word in text] == []
    told = await answer.json(content_type=None)
    assert len(told) == 3
    first = told[0]
    assert first["00100010"]["Value"] == [{"Alphabetic": "张*"}]
    assert first["00083002"]["Value"] == ["1.2.840.10008.1.2.1"]
    assert first["00186011"]["Value"][0]["00186024"]["Value"] == [3]
    assert "00100020" not in first
    assert "00080050" not in first
    assert "7FE00010" not in first
    assert first["00080018"]["Value"] == [GREY]
    assert first["00200011"]["Value"] == [1]


async def test_machine_gets_the_whole_header(open_as: Open) -> None:
    client = await open_as(Role.EHR)
    answer = await client.get(f"{BASE}/{GREY}/metadata")
    (header,) = await answer.json(content_type=None)
    assert header["00100020"]["Value"] == ["SIM-000001"]
    assert header["00100010"]["Value"][0]["Ideographic"] == "张^三"


@pytest.mark.parametrize("path", [f"{BASE}/{CINE}", f"{BASE}/{CINE}/frames/1"])
async def test_stored_bytes_are_for_machines_only(open_as: Open, path: str) -> None:
    doctor, archive = await open_as(Role.SENIOR_RADIOLOGIST), await open_as(Role.PACS)
    anything = {"Accept": "*/*"}
    assert (await doctor.get(path, headers=anything)).status == 403
    assert (await archive.get(path, headers=anything)).status == 200


async def test_nobody_unknown_and_no_administrator_sees_images(open_as: Open) -> None:
    administrator = await open_as(Role.ADMINISTRATOR)
    path = f"{BASE}/{GREY}/rendered"
    assert (await administrator.get(path)).status == 403
    unknown = await administrator.get(path, headers={"Authorization": "Bearer x"})
    assert unknown.status == 401


async def test_rendered_frame_is_black_around_the_region_for_a_doctor(
    open_as: Open, stored: dict[str, bytes]
) -> None:
    client = await open_as(Role.RADIOLOGIST)
    for uid in stored:
        truth = StoredImage.open(BytesReader(stored[uid]))
        (region,) = ultrasound_regions(truth.header)
        answer = await client.get(f"{BASE}/{uid}/frames/1/rendered")
        assert answer.status == 200
        assert answer.content_type == "image/png"
        shown = np.asarray(Image.open(BytesIO(await answer.read())).convert("RGB"))
        inside = (slice(region.y0, region.y1 + 1), slice(region.x0, region.x1 + 1))
        assert np.array_equal(shown[inside], truth.frame(0)[inside])
        rest = shown.copy()
        rest[inside] = 0
        assert rest.max() == 0
        assert truth.frame(0)[: region.y0].max() > 100  # the name is burned in here


async def test_machine_gets_the_stored_jpeg_itself(
    open_as: Open, stored: dict[str, bytes]
) -> None:
    client = await open_as(Role.PACS)
    answer = await client.get(f"{BASE}/{CINE}/frames/2/rendered")
    assert answer.content_type == "image/jpeg"
    image = StoredImage.open(BytesReader(stored[CINE]))
    assert await answer.read() == image.stored_frame(1)
    png = {"Accept": "image/png"}
    answer = await client.get(f"{BASE}/{CINE}/frames/2/rendered", headers=png)
    shown = np.asarray(Image.open(BytesIO(await answer.read())).convert("RGB"))
    assert np.array_equal(shown, image.frame(1))


async def test_picture_is_not_sent_twice(open_as: Open) -> None:
    client = await open_as(Role.RADIOLOGIST)
    for path in (f"{BASE}/{GREY}/rendered", f"{BASE}/{GREY}/metadata"):
        first = await client.get(path)
        again = await client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert again.status == 304
        assert await again.read() == b""


async def test_masked_and_open_pictures_have_different_tags(open_as: Open) -> None:
    doctor, archive = await open_as(Role.RADIOLOGIST), await open_as(Role.PACS)
    path = f"{BASE}/{GREY}/rendered"
    tags = {(await client.get(path)).headers["ETag"] for client in (doctor, archive)}
    assert len(tags) == 2


async def test_frames_come_in_parts_as_stored(
    open_as: Open, stored: dict[str, bytes]
) -> None:
    client = await open_as(Role.PACS)
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    answer = await client.get(f"{BASE}/{CINE}/frames/1,3", headers={"Accept": accept})
    content_type = answer.headers["Content-Type"]
    boundary = re.search(r"boundary=(\w{1,70})$", content_type)
    assert boundary is not None
    parts = (await answer.read()).split(f"--{boundary[1]}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    image = StoredImage.open(BytesReader(stored[CINE]))
    for part, frame in zip(parts[1:-1], (0, 2), strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert b"Content-Type: " in head
        assert b"transfer-syntax=1.2.840.10008.1.2.4.50" in head
        assert body.removesuffix(b"\r\n") == image.stored_frame(frame)


ACCEPTED = [
    ("multipart/related; type=image/jpeg", 200, "multipart/related"),
    ('multipart/related; type="*/*"; transfer-syntax=*', 200, "multipart/related"),
    ("image/jpeg", 200, "image/jpeg"),
    ("text/plain", 406, "application/json"),
    ("multipart/related; type=application/octet-stream", 406, "application/json"),
    ("image/jls, image/jpeg;q=0.1", 200, "image/jpeg"),
]


async def test_accept_decides_how_a_frame_comes(open_as: Open) -> None:
    client = await open_as(Role.PACS)
    path = f"{BASE}/{CINE}/frames/1"
    for accept, status, media_type in ACCEPTED:
        answer = await client.get(path, headers={"Accept": accept})
        assert (answer.status, answer.content_type) == (status, media_type), accept
        parameter = await client.get(
            path, params={"accept": accept}, headers={"Accept": "text/plain"}
        )
        assert parameter.status == status, accept


ABSENT = [
    (f"{BASE}/{GREY}/frames/2/rendered", 404),
    (f"{BASE}/{GREY}/frames/0/rendered", 404),
    (f"{BASE}/{GREY}/frames/x/rendered", 400),
    (f"{BASE}/2.25.999/rendered", 404),
    (f"{BASE}/../../etc/rendered", 404),
    (f"{BASE}/abc/rendered", 400),
    (f"/dicom-web/studies/2.25.1/series/{SERIES}/instances/{GREY}/rendered", 404),
    ("/dicom-web/studies/2.25.1/metadata", 404),
    ("/dicom-web/studies/2.25.1/series", 204),
    (f"{BASE}/{GREY}/rendered?viewport=0,4", 400),
]


async def test_what_is_not_there_is_said_in_json(open_as: Open) -> None:
    client = await open_as(Role.RADIOLOGIST)
    for path, status in ABSENT:
        answer = await client.get(path)
        assert answer.status == status, path
        if status >= 400:
            assert answer.content_type == "application/json"
            assert "error" in await answer.json()


async def test_series_are_found_page_by_page(open_as: Open) -> None:
    client = await open_as(Role.RADIOLOGIST)
    path = f"/dicom-web/studies/{STUDY}/series"
    (row,) = await (await client.get(path)).json(content_type=None)
    assert row["0020000E"]["Value"] == [SERIES]
    assert row["00201209"]["Value"] == [3]
    for query, status in {
        "offset=1": 204,
        "Modality=US": 200,
        "Modality=MR": 204,
        "limit=-1": 400,
        "Nonsense=1": 400,
        "includefield=all&limit=5": 200,
    }.items():
        assert (await client.get(f"{path}?{query}")).status == status, query
    fuzzy = await client.get(f"{path}?fuzzymatching=true")
    assert fuzzy.headers["Warning"].startswith("299")


async def test_thumbnail_is_small_and_masked(open_as: Open) -> None:
    client = await open_as(Role.TECHNOLOGIST)
    for path in (f"/dicom-web/studies/{STUDY}", f"{BASE}/{CINE}"):
        answer = await client.get(f"{path}/thumbnail")
        image = Image.open(BytesIO(await answer.read()))
        assert answer.content_type == "image/jpeg"
        assert max(image.size) == 160
        assert np.asarray(image.convert("L"))[:3].max() < 30


async def test_retrieval_and_reading_of_headers_are_in_the_audit_trail(
    open_as: Open, store: Store
) -> None:
    archive = await open_as(Role.PACS)
    await archive.get(f"{BASE}/{GREY}")
    await archive.get(f"/dicom-web/studies/{STUDY}/metadata")
    async with store.db.transaction() as tx:
        instance_entries = await audit.entries(tx, entity=f"instance/{GREY}")
        study_entries = await audit.entries(tx, entity=f"study/{STUDY}")
    assert [e.action for e in instance_entries] == ["create", "dicom-web retrieve"]
    assert [e.action for e in study_entries] == ["dicom-web metadata"]


async def test_dicomweb_client_reads_everything(
    open_as: Open, stored: dict[str, bytes]
) -> None:
    archive = await open_as(Role.PACS)
    url = str(archive.make_url("/dicom-web"))
    client = DICOMwebClient(url, headers=dict(archive.session.headers))

    def retrieve() -> None:
        assert len(client.retrieve_study_metadata(STUDY)) == 3
        whole = client.retrieve_instance(STUDY, SERIES, CINE)
        assert part10(whole) == stored[CINE]
        frames = client.retrieve_instance_frames(
            STUDY, SERIES, CINE, [1, 2], media_types=("image/jpeg",)
        )
        image = StoredImage.open(BytesReader(stored[CINE]))
        assert frames == [image.stored_frame(0), image.stored_frame(1)]
        raw = client.retrieve_instance_frames(STUDY, SERIES, GREY, [1])
        assert raw == [StoredImage.open(BytesReader(stored[GREY])).stored_frame(0)]
        shown = client.retrieve_instance_frames_rendered(
            STUDY, SERIES, GREY, [1], media_types=("image/png",)
        )
        assert shown.startswith(b"\x89PNG")
        assert len(client.search_for_series(STUDY)) == 1

    await asyncio.to_thread(retrieve)
