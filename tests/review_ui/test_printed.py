"""The signed report on paper: who may print it, what it holds, what is audited."""

from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pypdf import PdfReader

from dicom_scp.results.encode_report import encode_report
from dicom_scp.simulation.phantoms import PhantomLesion
from node.domain.access import Role
from node.domain.report import Report, ReportStatus
from node.http import HttpSettings, make_app
from node.store import audit
from node.store.store import Store
from review_ui.server import ReviewSettings, routes
from tests.fhir.rig import make_settings
from tests.review_ui.rig import LOGIN, PASSWORD, RESULTS, Case, Node, add_person

CASE = Case(
    "Zhang^San=张^三",
    PhantomLesion(24, 14, 9.4, 6.2, assessment_category="3"),
    "3",
    "0.084",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def node(store: Store) -> Node:
    return Node(store, "http://node", make_settings("http://node/fhir"), [])


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient]:
    groups = routes(store, ReviewSettings(assets=tmp_path))
    app = make_app(store, HttpSettings(data_directory=tmp_path), groups)
    async with TestClient(TestServer(app)) as running:
        await add_person(store)
        yield running


async def headers_of(client: TestClient, login: str = LOGIN) -> dict[str, str]:
    form = {"grant_type": "password", "username": login, "password": PASSWORD}
    answer = await client.post("/auth/token", data=form)
    return {"Authorization": f"Bearer {(await answer.json())['access_token']}"}


async def encode(node: Node, report: Report) -> Report:
    payload = {"report_id": str(report.id), "version": report.current.number}
    await encode_report(node.store, payload, RESULTS)
    return report


async def test_a_doctor_prints_the_newest_signed_version_and_it_is_audited(
    node: Node, client: TestClient
) -> None:
    report = await encode(node, await node.sign(await node.draft(CASE)))
    report = await encode(node, await node.sign(report, ReportStatus.CORRECTED))
    answer = await client.get(
        f"/review/printed/{report.id}", headers=await headers_of(client)
    )
    assert answer.status == 200
    assert answer.content_type == "application/pdf"
    assert answer.headers["Cache-Control"] == "no-store"
    (page,) = PdfReader(BytesIO(await answer.read())).pages
    text = page.extract_text()
    assert "张三 (Zhang San)" in text
    assert "更正报告" in text
    assert len(page.images) == 2  # the image and the heat map
    async with node.store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"report/{report.id}/3")
    (entry,) = [e for e in entries if e.action == "print report"]
    assert entry.role == "radiologist"


async def test_only_who_may_print_gets_the_name(node: Node, client: TestClient) -> None:
    report = await encode(node, await node.sign(await node.draft(CASE)))
    url = f"/review/printed/{report.id}"
    assert (await client.get(url)).status == 401
    for role in Role:
        await add_person(node.store, role.value, role)
        answer = await client.get(url, headers=await headers_of(client, role.value))
        granted = role in {Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST}
        assert answer.status == (200 if granted else 403)


async def test_a_draft_an_unprinted_and_a_withdrawn_report_are_not_printed(
    node: Node, client: TestClient
) -> None:
    headers = await headers_of(client)
    report = await encode(node, await node.draft(CASE))
    url = f"/review/printed/{report.id}"
    assert (await client.get(url, headers=headers)).status == 404
    report = await node.sign(report)
    assert (await client.get(url, headers=headers)).status == 404
    await encode(node, report)
    assert (await client.get(url, headers=headers)).status == 200
    await node.sign(report, ReportStatus.ENTERED_IN_ERROR)
    assert (await client.get(url, headers=headers)).status == 410
    unknown = await client.get("/review/printed/nothing", headers=headers)
    assert unknown.status == 404
