"""What the machine measured stands on the page of the report, as it was sent."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer
from playwright.async_api import expect
from pydicom.uid import generate_uid

from dicom_scp.receiving.machine_sr import read_machine_report
from dicom_scp.results.sr import to_part10
from dicom_scp.simulation.phantoms import PhantomLesion
from dicom_scp.simulation.scanner_report import (
    Calliper,
    MeasuredLesion,
    build_scanner_report,
)
from node.domain.access import Role
from node.domain.report import Report
from node.http import HttpSettings, make_app
from node.imaging import read_header
from node.store import studies
from node.store.store import Store
from review_ui.server import ReviewSettings, routes
from tests.fhir.rig import make_settings
from tests.intake import receive_object
from tests.review_ui.conftest import Open
from tests.review_ui.rig import LOGIN, PASSWORD, Case, Node, add_person

CASE = Case("Zhang^San=张^三", PhantomLesion(24, 14, 9.4, 6.2), "3", "0.084")


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient]:
    groups = routes(store, ReviewSettings(assets=tmp_path))
    app = make_app(store, HttpSettings(data_directory=tmp_path), groups)
    async with TestClient(TestServer(app)) as running:
        await add_person(store)
        await add_person(store, "admin", Role.ADMINISTRATOR)
        yield running


async def measured_report(node: Node, *millimetres: str | None) -> Report:
    """Take in a study whose machine measured a lesion."""
    report = await node.receive(CASE)
    async with node.store.db.transaction() as tx:
        (image, *_) = await studies.instances_of(
            tx, node.store, report.study_instance_uid
        )
    with studies.open_blob(node.store, image) as reader:
        header = read_header(reader.read())
    callipers = tuple(
        Calliper("long" if n == 0 else "short", header, ((1, 1), (9, 9)), value)
        for n, value in enumerate(millimetres)
    )
    document = build_scanner_report(
        [header],
        [MeasuredLesion("Lesion 1", callipers)],
        at=datetime(2026, 11, 21, tzinfo=UTC),
        uids=(generate_uid(), generate_uid()),
    )
    await receive_object(node.store, document, to_part10(document))
    payload = {"sop_instance_uid": str(document.SOPInstanceUID)}
    await read_machine_report(node.store, payload)
    return report


async def headers_of(client: TestClient, login: str) -> dict[str, str]:
    form = {"grant_type": "password", "username": login, "password": PASSWORD}
    answer = await client.post("/auth/token", data=form)
    return {"Authorization": f"Bearer {(await answer.json())['access_token']}"}


async def test_measurements_are_told_as_sent_to_whom_reads_reports(
    store: Store, client: TestClient
) -> None:
    node = Node(store, "http://node", make_settings("http://node/fhir"), [])
    report = await measured_report(node, "12.30", None)
    path = f"/review/measured/{report.id}"

    answer = await client.get(path, headers=await headers_of(client, LOGIN))
    refused = await client.get(path, headers=await headers_of(client, "admin"))
    unknown = await client.get(
        f"/review/measured/{uuid4()}", headers=await headers_of(client, LOGIN)
    )

    (told,) = (await answer.json())["reports"]
    assert [row["value"] for row in told["measurements"]] == ["12.30", None]
    assert told["measurements"][0]["name"] == {"zh": "长径", "en": "Long Axis"}
    assert told["algorithm"] is None
    assert refused.status == 403
    assert unknown.status == 404
    assert (await client.get(path)).status == 401


async def test_the_page_shows_what_the_machine_measured(
    node: Node, open_page: Open
) -> None:
    report = await measured_report(node, "12.30", None)

    page = await open_page()
    await page.goto(f"{node.url}/#/report/{report.id}")

    shown = page.locator(".measured")
    await expect(shown).to_contain_text("12.30 mm")
    await expect(shown.locator("tr").nth(1)).to_contain_text("—")
    await expect(shown.locator("caption")).to_contain_text("Lesion 1")
