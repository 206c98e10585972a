"""Similar confirmed cases: masked, only for doctors, and how cases ended."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from dicom_scp.simulation.phantoms import PhantomLesion
from node.domain.access import PERMISSIONS, Action, Role
from node.domain.finding import PixelBox
from node.domain.report import Report, ReportStatus
from node.domain.study import UltrasoundRegion
from node.http import HttpSettings, make_app
from node.store import audit
from node.store.store import Store
from review_ui.server import ReviewSettings, routes
from review_ui.similar import shown_area
from tests.fhir.rig import make_settings
from tests.review_ui.rig import LOGIN, PASSWORD, Case, Node, add_person

LESION = PhantomLesion(24, 14, 9.4, 6.2, assessment_category="3")


def case_of(number: int, patient: int | None = None) -> Case:
    return Case(
        f"Zhang^San{number}=张^三{number}",
        LESION,
        "3",
        "0.084",
        patient_number=patient or number,
    )


@pytest.fixture
def node(store: Store) -> Node:
    return Node(store, "http://node", make_settings("http://node/fhir"), [])


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient]:
    settings = ReviewSettings(assets=tmp_path)
    groups = routes(store, settings)
    app = make_app(store, HttpSettings(data_directory=tmp_path), groups)
    async with TestClient(TestServer(app)) as running:
        await add_person(store)
        yield running


async def headers_of(client: TestClient, login: str = LOGIN) -> dict[str, str]:
    form = {"grant_type": "password", "username": login, "password": PASSWORD}
    answer = await client.post("/auth/token", data=form)
    return {"Authorization": f"Bearer {(await answer.json())['access_token']}"}


async def received(node: Node, case: Case, *vector: float) -> Report:
    """Take in a study whose lesion looks like `vector`."""
    report = await node.draft(case)
    await node.keep_vector(report, *vector)
    return report


async def test_a_doctor_sees_three_masked_cases_with_category_and_outcome(
    node: Node, client: TestClient
) -> None:
    known = [await node.sign(await received(node, case_of(1), 1, 0.1))]
    known += [await node.sign(await received(node, case_of(2), 1, 0.5))]
    known += [await node.sign(await received(node, case_of(3), 1, 1))]
    await node.sign(await received(node, case_of(4), -1))
    withdrawn = await node.sign(await received(node, case_of(5), 1))
    await node.sign(withdrawn, ReportStatus.ENTERED_IN_ERROR)
    await received(node, case_of(6), 1)
    await node.sign(await received(node, case_of(7, patient=8), 1))
    own = await received(node, case_of(8), 1)
    headers = await headers_of(client)
    told = {"report": str(known[0].id), "outcome": "malignant", "method": "biopsy"}
    answer = await client.post("/review/outcomes", json=told, headers=headers)
    assert answer.status == 201

    answer = await client.get(f"/review/similar/{own.id}", headers=headers)
    assert answer.status == 200
    body = await answer.json()
    rows = body["cases"]
    assert [row["report"] for row in rows] == [str(report.id) for report in known]
    assert [row["place"] for row in rows] == [1, 2, 3]
    assert [row["similarity"] for row in rows] == [0.995, 0.894, 0.707]
    assert {row["category"] for row in rows} == {"3"}
    assert {row["signed_on"] for row in rows} == {"2026-11"}
    assert rows[0]["outcome"] == {"outcome": "malignant", "method": "biopsy"}
    assert [row["outcome"] for row in rows[1:]] == [None, None]
    assert (body["fewer"], body["outcome"]) == (None, None)
    for report in known:
        (lesion,) = report.current.findings.lesions
        image = lesion.image
        assert image is not None
        secrets = (
            report.study_instance_uid,
            str(report.patient_id),
            lesion.tracking_uid,
            image.sop_instance_uid,
        )
        text = json.dumps(body)
        assert not any(secret in text for secret in secrets)
    for name in ("Zhang", "张", "SIM", "2026-11-"):
        assert name not in json.dumps(body, ensure_ascii=False)

    picture = await client.get(rows[0]["image"], headers=headers)
    assert picture.status == 200
    assert picture.headers["Cache-Control"] == "no-store"
    with Image.open(io.BytesIO(await picture.read())) as image:
        assert image.format == "JPEG"
        assert 40 < min(image.size) <= max(image.size) <= 320
        assert not image.getexif()
    async with node.store.db.transaction() as tx:
        own_entries = await audit.entries(tx, entity=f"report/{own.id}")
        case_entries = await audit.entries(tx, entity=f"report/{known[0].id}")
        await audit.verify(tx)
    assert str(known[0].id) in own_entries[-1].detail["cases"]
    assert [entry.action for entry in case_entries[-2:]] == [
        "record outcome",
        "read image of confirmed case",
    ]


async def test_the_page_is_told_why_there_are_fewer_than_three(
    node: Node, client: TestClient
) -> None:
    headers = await headers_of(client)
    own = await received(node, case_of(1), 1)
    answer = await client.get(f"/review/similar/{own.id}", headers=headers)
    assert await answer.json() == {"cases": [], "fewer": "few", "outcome": None}
    unkept = await node.draft(case_of(2))
    answer = await client.get(f"/review/similar/{unkept.id}", headers=headers)
    assert (await answer.json())["fewer"] == "not_kept"


async def test_a_lesion_that_is_not_there_is_refused(
    node: Node, client: TestClient
) -> None:
    own = await received(node, case_of(1), 1)
    headers = await headers_of(client)
    for number in ("0", "2", "x", "-1", "²"):
        path = f"/review/similar/{own.id}"
        answer = await client.get(path, params={"lesion": number}, headers=headers)
        assert answer.status == 400, number


async def test_unknown_reports_and_cases_are_not_found(client: TestClient) -> None:
    headers = await headers_of(client)
    for path in (
        f"/review/similar/{uuid4()}",
        "/review/similar/x",
        f"/review/similar/cases/{uuid4()}/image",
    ):
        assert (await client.get(path, headers=headers)).status == 404


@pytest.mark.parametrize("role", [*Role, None])
async def test_only_doctors_compare_and_record(
    store: Store, client: TestClient, role: Role | None
) -> None:
    headers = {}
    if role is not None:
        await add_person(store, "somebody", role)
        headers = await headers_of(client, "somebody")
    doctor = role in {Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST}
    refused = 401 if role is None else 403
    for path in (
        f"/review/similar/{uuid4()}",
        f"/review/similar/cases/{uuid4()}/image",
    ):
        answer = await client.get(path, headers=headers)
        assert answer.status == (404 if doctor else refused)
    body = {"report": str(uuid4()), "outcome": "benign", "method": "biopsy"}
    answer = await client.post("/review/outcomes", json=body, headers=headers)
    assert answer.status == (404 if doctor else refused)
    if role is not None:
        may = {Action.COMPARE_CASES, Action.RECORD_OUTCOME} & PERMISSIONS[role]
        assert len(may) == (2 if doctor else 0)


async def test_an_outcome_belongs_to_a_signed_report_and_may_be_taken_back(
    node: Node, client: TestClient
) -> None:
    headers = await headers_of(client)
    report = await received(node, case_of(1), 1)
    told = {
        "report": str(report.id),
        "lesion": 1,
        "outcome": "benign",
        "method": "follow-up",
    }
    answer = await client.post("/review/outcomes", json=told, headers=headers)
    assert answer.status == 422
    await node.sign(report)
    for body, status in (
        (told, 201),
        ({**told, "outcome": "unclear"}, 400),
        ({**told, "method": None}, 400),
        ({**told, "report": "x"}, 400),
        ({**told, "lesion": 2}, 400),
    ):
        answer = await client.post("/review/outcomes", json=body, headers=headers)
        assert answer.status == status, body
    path = f"/review/similar/{report.id}"
    body = await (await client.get(path, headers=headers)).json()
    assert body["outcome"] == {"outcome": "benign", "method": "follow-up"}
    back = {**told, "outcome": None, "method": None}
    await client.post("/review/outcomes", json=back, headers=headers)
    body = await (await client.get(path, headers=headers)).json()
    assert body["outcome"] is None


# --- what a picture shows -----------------------------------------------------------


def region(x0: int, y0: int, x1: int, y1: int) -> UltrasoundRegion:
    return UltrasoundRegion(x0, y0, x1, y1, 1, 1, 3, 3, 0.01, 0.01)


FRAME = np.zeros((300, 400, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("regions", "shown"),
    [
        ([region(50, 40, 349, 259)], PixelBox(88, 78, 152, 142)),
        # Not beyond the region, however near the lesion lies to its edge.
        ([region(98, 95, 349, 259)], PixelBox(98, 95, 152, 142)),
        # A region of another size of the image, or beside the lesion, is no guide.
        ([region(50, 40, 500, 259)], PixelBox(100, 100, 140, 120)),
        ([region(110, 40, 349, 259)], PixelBox(100, 100, 140, 120)),
        ([], PixelBox(100, 100, 140, 120)),
    ],
)
def test_a_picture_never_shows_the_border_of_the_screen(
    regions: list[UltrasoundRegion], shown: PixelBox
) -> None:
    assert shown_area(PixelBox(100, 100, 140, 120), regions, FRAME) == shown


def test_a_box_that_reaches_beyond_the_frame_is_cut() -> None:
    area = shown_area(PixelBox(390, 290, 500, 500), [], FRAME)
    assert area == PixelBox(390, 290, 400, 300)
