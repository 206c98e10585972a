"""/review/reconciliation: who may look and act, what is asked, what is told."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from aiohttp.test_utils import TestClient, TestServer

from node.domain.access import Action, Identity, Role
from node.http import HttpSettings, make_app
from node.store.store import Store
from node.workflow.completion import close_due_studies
from review_ui import reconciliation
from tests.factories import make_patient
from tests.fhir.rig import sign_in
from tests.node.workflow.test_orders import OTHER, STEP, placed, received
from tests.node.workflow.test_reconciliation import AT_ONCE, STUDY

PATH = reconciliation.PREFIX
OTHERS = replace(STEP, accession_number="ACC-2")


@pytest.fixture
async def client(store: Store, tmp_path) -> AsyncIterator[TestClient]:
    settings = HttpSettings(data_directory=tmp_path)
    app = make_app(store, settings, [reconciliation.route_group()])
    async with TestClient(TestServer(app)) as running:
        yield running


async def bearer(store: Store, role: Role = Role.TECHNOLOGIST) -> dict[str, str]:
    return {"Authorization": f"Bearer {await sign_in(store, role)}"}


@pytest.mark.parametrize("role", list(Role))
async def test_technologists_and_administrators_see_the_list_and_nobody_else(
    client, store, role
) -> None:
    headers = await bearer(store, role)
    allowed = role in {Role.TECHNOLOGIST, Role.ADMINISTRATOR}
    for path in (PATH, f"{PATH}/studies/{STUDY}"):
        answer = await client.get(path, headers=headers)
        missing = 404 if path != PATH else 200
        assert answer.status == (missing if allowed else 403)
    people = await client.get(f"{PATH}/patients?number=1", headers=headers)
    assert people.status == (200 if allowed else 403)
    for act in ("link", "unlink", "settle", "move"):
        answer = await client.post(f"{PATH}/studies/{STUDY}/{act}", headers=headers)
        assert answer.status == (400 if allowed else 403)  # no body at all
    assert Identity("u", frozenset({role}), "x").may(Action.RECONCILE) is allowed


async def test_without_signing_in_there_is_nothing(client) -> None:
    assert (await client.get(PATH)).status == 401
    assert (await client.post(f"{PATH}/studies/1.2/link")).status == 401


async def test_both_sides_are_shown_in_full_and_linked_with_a_reason(
    client, store, clock
) -> None:
    order, _ = await placed(store)
    await received(store, accession="ACC-9")
    clock.advance(seconds=1)
    await close_due_studies(store, AT_ONCE)
    headers = await bearer(store)
    listed = await (await client.get(PATH, headers=headers)).json()
    assert listed["studies"][0]["why"] == "unknown-accession"
    assert listed["studies"][0]["patient"]["name"] == "Zhang^San=张^三"
    path = f"{PATH}/studies/{STUDY}"
    shown = await (await client.get(path, headers=headers)).json()
    (candidate,) = shown["orders"]
    assert (candidate["linked"], candidate["refused"]) == (False, "")
    told: dict[str, Any] = {"order_id": str(order.order_id), "seen": shown["seen"]}
    silent = await client.post(f"{path}/link", json=told, headers=headers)
    assert silent.status == 400
    told["reason"] = "typed wrong"
    done = await client.post(f"{path}/link", json=told, headers=headers)
    assert done.status == 200
    assert (await done.json())["orders"][0]["linked"] is True
    late = await client.post(f"{path}/unlink", json=told, headers=headers)
    assert late.status == 409
    assert (await (await client.get(PATH, headers=headers)).json())["studies"] == []


async def test_another_patients_order_is_refused_over_http_too(
    client, store, clock
) -> None:
    order, _ = await placed(store, identity=OTHER)
    await received(store, accession="ACC-1")
    clock.advance(seconds=1)
    await close_due_studies(store, AT_ONCE)
    headers = await bearer(store)
    path = f"{PATH}/studies/{STUDY}"
    shown = await (await client.get(path, headers=headers)).json()
    assert shown["orders"][0]["refused"] == "other-patient"
    told = {
        "order_id": str(order.order_id),
        "seen": shown["seen"],
        "reason": "I am sure",
    }
    answer = await client.post(f"{path}/link", json=told, headers=headers)
    assert answer.status == 422


async def test_a_study_is_filed_anew_over_http_and_then_stands_for_nothing(
    client, store, clock
) -> None:
    await placed(store, identity=OTHER)
    await received(store)
    clock.advance(seconds=1)
    await close_due_studies(store, AT_ONCE)
    async with store.db.transaction() as tx:
        await tx.execute("update studies set status = 'read'")
    headers = await bearer(store)
    path = f"{PATH}/studies/{STUDY}"
    query = {"number": OTHER.patient_id}
    found = await client.get(f"{PATH}/patients", params=query, headers=headers)
    (target,) = (await found.json())["patients"]
    shown = await (await client.get(path, headers=headers)).json()
    told = {"patient": target["id"], "seen": shown["seen"], "reason": "wrong entry"}
    blind = await client.post(f"{path}/move", json=told, headers=headers)
    assert blind.status == 409
    told["seen_target"] = target["seen"]
    done = await client.post(f"{path}/move", json=told, headers=headers)
    assert done.status == 200
    again = await client.post(f"{path}/move", json=told, headers=headers)
    assert await again.json() == await done.json()
    void = await (await client.get(path, headers=headers)).json()
    assert void["filed_as"] == (await done.json())["filed_as"]
    late = {"seen": void["seen"], "reason": "x"}
    settled = await client.post(f"{path}/settle", json=late, headers=headers)
    assert settled.status == 409


@pytest.mark.parametrize(
    "told",
    [
        {"order_id": 7, "reason": "x", "seen": "x"},
        {"order_id": "no", "reason": "x", "seen": "x"},
        {"reason": ["x"], "order_id": "0" * 32, "seen": "x"},
        [],
    ],
)
async def test_a_malformed_act_is_told_so(client, store, told) -> None:
    answer = await client.post(
        f"{PATH}/studies/{STUDY}/link", json=told, headers=await bearer(store)
    )
    assert answer.status == 400


async def two_rows(store: Store, client: TestClient, headers: dict) -> list[str]:
    await placed(store)
    await placed(store, identity=make_patient(patient_id="H-9"), key="2", step=OTHERS)
    listed = await (await client.get(PATH, headers=headers)).json()
    (pair,) = listed["patients"]
    return list(pair["ids"])


async def test_two_rows_are_merged_over_http_and_taken_apart(client, store) -> None:
    headers = await bearer(store)
    lost, kept = await two_rows(store, client, headers)
    path = f"{PATH}/rows/{lost}/{kept}"
    shown = await (await client.get(path, headers=headers)).json()
    assert {row["patient"]["patient_id"] for row in shown["rows"]} == {
        "MRN-0042",
        "H-9",
    }
    assert (shown["merged"], shown["differs"]) == (None, ["patient_id"])
    told = {"seen": shown["seen"]}
    silent = await client.post(f"{path}/merge", json=told, headers=headers)
    assert silent.status == 400
    told["reason"] = "same ID card"
    done = await client.post(f"{path}/merge", json=told, headers=headers)
    assert (await done.json())["merged"] == lost
    late = await client.post(f"{path}/different", json=told, headers=headers)
    assert late.status == 409
    (said,) = (await (await client.get(f"{PATH}/rows", headers=headers)).json())["said"]
    assert (said["ids"], said["verdict"]) == ([lost, kept], "same")
    told["seen"] = (await done.json())["seen"]
    apart = await client.post(f"{path}/unmerge", json=told, headers=headers)
    assert (await apart.json())["merged"] is None


async def test_only_who_may_reconcile_compares_rows(client, store) -> None:
    doctor = await bearer(store, Role.RADIOLOGIST)
    path = f"{PATH}/rows/{uuid4()}/{uuid4()}"
    assert (await client.get(f"{PATH}/rows", headers=doctor)).status == 403
    assert (await client.get(path, headers=doctor)).status == 403
    for act in ("merge", "unmerge", "different"):
        answer = await client.post(f"{path}/{act}", headers=doctor)
        assert answer.status == 403
    clerk = await bearer(store)
    assert (await client.get(path, headers=clerk)).status == 404
    assert (await client.get(f"{PATH}/rows/1/2", headers=clerk)).status == 404
