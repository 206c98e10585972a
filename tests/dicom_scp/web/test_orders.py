"""Orders over plain HTTP: placed once, wrong ones told in a line, for the EHR only."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from dicom_scp.web.orders import route_group
from node.domain.access import Role
from node.domain.order import OrderStatus
from node.store import orders
from node.store.store import Store
from tests.fhir.rig import Rig, running_fhir

ORDER = {
    "patient": {
        "patient_id": "MRN-1",
        "name": "Wang^Fang=王^芳",
        "birth_date": "1980-02-03",
        "sex": "F",
    },
    "accession_number": "ACC-1",
    "requested_procedure_description": "乳腺超声",
    "requested_procedure_code": {
        "value": "47079000",
        "scheme": "SCT",
        "meaning": "Ultrasonography of breast",
    },
    "scheduled_start": "2026-11-22T01:30:00+00:00",
    "scheduled_station_ae_titles": ["US1"],
    "referring_physician": "Sun^Li",
}
ROUTES = [
    ("POST", "/orders"),
    ("GET", "/orders"),
    ("GET", "/orders/00000000-0000-0000-0000-000000000000"),
    ("POST", "/orders/00000000-0000-0000-0000-000000000000/cancel"),
]


@pytest.fixture
async def site(store: Store) -> AsyncIterator[Rig]:
    group = route_group(timedelta(hours=8))
    async with running_fhir(store, group, roles=tuple(Role)) as rig:
        yield rig


async def call(
    site: Rig, method: str, path: str, body: Any = None, role: Role | None = Role.EHR
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {site.tokens[role]}"} if role else {}
    url = f"{site.settings.base_url.removesuffix('/fhir')}{path}"
    async with site.session.request(method, url, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_an_order_is_placed_once_and_changed_under_the_same_number(
    site: Rig,
) -> None:
    status, made = await call(site, "POST", "/orders", ORDER)
    assert status == 201
    assert made["status"] == "SCHEDULED"
    assert made["scheduled_start"] == "2026-11-22T09:30:00"
    assert made["requested_procedure_id"] == "ACC-1"
    assert made["study_instance_uid"].startswith("2.25.")
    assert await call(site, "POST", "/orders", ORDER) == (200, made)
    later = {**ORDER, "scheduled_start": "2026-11-23"}
    status, changed = await call(site, "POST", "/orders", later)
    assert (status, changed["scheduled_start"]) == (200, "2026-11-23")
    given = {
        **ORDER,
        "scheduled_procedure_step_id": made["scheduled_procedure_step_id"],
    }
    status, same = await call(site, "POST", "/orders", given)
    assert (status, same["id"]) == (200, made["id"])
    assert (await call(site, "GET", f"/orders/{made['id']}"))[1] == same
    listed = (await call(site, "GET", "/orders"))[1]
    assert listed == {"orders": [same], "more": False}


async def test_one_order_that_is_sent_twice_at_once_is_placed_once(site: Rig) -> None:
    sent = [call(site, "POST", "/orders", ORDER) for _ in range(4)]
    answers = await asyncio.gather(*sent)
    assert sorted(status for status, _ in answers) == [200, 200, 200, 201]
    assert len({shown["id"] for _, shown in answers}) == 1


async def test_a_cancelled_order_is_no_longer_listed(site: Rig) -> None:
    made = (await call(site, "POST", "/orders", ORDER))[1]
    for _ in range(2):
        status, done = await call(site, "POST", f"/orders/{made['id']}/cancel")
        assert (status, done["status"]) == (200, "CANCELLED")
    assert (await call(site, "GET", "/orders"))[1]["orders"] == []
    for query in ("status=CANCELLED", "accession_number=ACC-1"):
        found = (await call(site, "GET", f"/orders?{query}"))[1]["orders"]
        assert [one["id"] for one in found] == [made["id"]], query


async def test_what_has_begun_can_be_neither_changed_nor_cancelled(site: Rig) -> None:
    made = (await call(site, "POST", "/orders", ORDER))[1]
    async with site.store.db.transaction() as tx:
        now = site.store.clock()
        await orders.set_status(tx, made["id"], OrderStatus.IN_PROGRESS, at=now)
    assert (await call(site, "POST", f"/orders/{made['id']}/cancel"))[0] == 409
    later = {**ORDER, "scheduled_start": "2026-11-23"}
    assert (await call(site, "POST", "/orders", later))[0] == 409
    assert (await call(site, "POST", "/orders", ORDER))[0] == 200


WRONG = [
    ({"accession_number": ""}, 400, "accession_number is missing"),
    ({"accession_number": "A" * 17}, 400, "accession_number has at most 16 characters"),
    ({"accession_number": 7}, 400, "accession_number is a text"),
    ({"accesion_number": "A"}, 400, "accesion_number is not known here"),
    ({"patient": None}, 400, "patient is missing"),
    ({"patient": {"patient_id": "1"}}, 400, "patient.name is missing"),
    ({"scheduled_start": "tomorrow"}, 400, "scheduled_start is a day or a time"),
    ({"scheduled_station_ae_titles": "US1"}, 400, "scheduled_station_ae_titles is a"),
    ({"scheduled_station_ae_titles": ["A" * 17]}, 400, "scheduled_station_ae_titles"),
    ({"requested_procedure_code": {"value": "1"}}, 400, "requested_procedure_code has"),
    ({"reason_for_requested_procedure": "x" * 65}, 400, "reason_for_requested"),
    ({"patient": {"patient_id": "MRN-2", "name": "Li^Na"}}, 409, "another patient's"),
]


async def test_what_is_wrong_is_told_in_one_line_that_names_the_field(
    site: Rig,
) -> None:
    await call(site, "POST", "/orders", ORDER)
    for changes, expected, told in WRONG:
        status, answer = await call(site, "POST", "/orders", ORDER | changes)
        assert status == expected, (changes, answer)
        assert told in answer["error"]
        assert "\n" not in answer["error"]
    for query in ("date=soon", "status=new", "patient=1"):
        assert (await call(site, "GET", f"/orders?{query}"))[0] == 400, query


async def test_only_a_hospital_system_places_and_reads_orders(site: Rig) -> None:
    for method, path in ROUTES:
        assert (await call(site, method, path, {}, None))[0] == 401
        for role in Role:
            status, _ = await call(site, method, path, {}, role)
            if role is Role.EHR:
                assert status in (200, 400, 404), (method, path)
            else:
                assert status == 403, (method, path, role)


async def test_placing_reading_and_cancelling_are_audited(site: Rig) -> None:
    made = (await call(site, "POST", "/orders", ORDER))[1]
    await call(site, "GET", f"/orders/{made['id']}")
    await call(site, "POST", f"/orders/{made['id']}/cancel")
    async with site.store.db.transaction() as tx:
        rows = await tx.fetch("select * from audit_entries order by sequence")
    entity = f"order/{made['id']}"
    acts = [row["action"] for row in rows if row["entity"] == entity]
    assert acts == ["order-place", "read", "order-cancel"]
    assert "Wang" not in repr([dict(row) for row in rows])
