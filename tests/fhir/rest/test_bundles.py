"""Several requests at once: batches, and transactions of an EHR (FHIR R4 3.1.0.11)."""

import asyncio
from base64 import b64encode
from datetime import datetime
from typing import Any

import pytest

from fhir.encoding.wire import to_bytes
from fhir.rest.bundled import LONGEST, MAX_SEARCHES
from fhir.rest.transaction import MAX_ENTRIES
from node.domain.access import Role
from node.store import audit
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.rest.test_rest import ACSN_TYPE, make_ehr_patient
from tests.fhir.rig import ACCESSION, Answer, Rig, receive_study

PATIENT = "urn:uuid:3a1b4c52-9d0f-4c55-8f4e-0a1b2c3d4e5f"
DOCTOR = "urn:uuid:7f8e9d10-1a2b-4c3d-8e9f-a0b1c2d3e4f5"
ORDER = "urn:uuid:0f0e0d0c-0b0a-4908-8706-050403020100"
MRN = "urn:oid:2.25.41"


def entry(method: str, url: str, resource: Any = None, **more: Any) -> dict[str, Any]:
    """Return an entry; `fullUrl` and conditions of the request come by name."""
    made: dict[str, Any] = {"request": {"method": method, "url": url}}
    if resource is not None:
        made["resource"] = resource
    if "fullUrl" in more:
        made["fullUrl"] = more.pop("fullUrl")
    made["request"] |= more
    return made


def make_order(subject: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "ServiceRequest",
        "status": "active",
        "intent": "order",
        "identifier": [
            {"type": ACSN_TYPE, "system": "urn:oid:2.25.42", "value": ACCESSION}
        ],
        "subject": {"reference": subject},
        "occurrenceDateTime": "2026-11-23",
        **more,
    }


def make_practitioner() -> dict[str, Any]:
    return {"resourceType": "Practitioner", "name": [{"family": "王", "given": ["芳"]}]}


async def send(
    rig: Rig,
    kind: str,
    *entries: Any,
    role: Role = Role.EHR,
    headers: dict[str, str] | None = None,
) -> Answer:
    bundle = {"resourceType": "Bundle", "type": kind, "entry": list(entries)}
    return await rig.ask("POST", "", bundle, role=role, headers=headers)


def statuses(answer: Answer) -> list[int]:
    assert answer.status == 200, answer.raw
    return [int(e["response"]["status"][:3]) for e in answer.body["entry"]]


# --- transactions -----------------------------------------------------------


async def test_an_ehr_sends_patient_doctor_and_order_in_one_transaction(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    order = make_order(PATIENT, requester={"reference": DOCTOR})
    # The order stands first: what it refers to has to come before it all the same.
    answer = await send(
        rig,
        "transaction",
        entry("POST", "ServiceRequest", order, fullUrl=ORDER),
        entry("GET", "ServiceRequest?patient.identifier=MRN-0099"),
        entry(
            "POST",
            "Patient",
            make_ehr_patient(),
            fullUrl=PATIENT,
            ifNoneExist=f"identifier={MRN}|MRN-0099",
        ),
        entry("POST", "Practitioner", make_practitioner(), fullUrl=DOCTOR),
        headers={"Prefer": "return=representation"},
    )
    assert statuses(answer) == [201, 200, 201, 201]
    assert answer.body["type"] == "transaction-response"
    order, found, patient, doctor = (e["resource"] for e in answer.body["entry"])
    assert order["subject"]["reference"] == f"Patient/{patient['id']}"
    assert order["requester"]["reference"] == f"Practitioner/{doctor['id']}"
    assert [e["resource"]["id"] for e in found["entry"]] == [order["id"]]
    told = answer.body["entry"][0]["response"]
    address = f"{rig.settings.base_url}/ServiceRequest/{order['id']}"
    assert told["location"] == f"{address}/_history/1"
    assert told["etag"] == 'W/"1"'
    assert told["lastModified"] == order["meta"]["lastUpdated"]
    assert await rig.read(f"/ServiceRequest/{order['id']}", role=Role.EHR) == order
    # The scanner's study of this order is hers.
    patient_id = await receive_study(rig.store, make_patient(patient_id="MRN-0099"))
    assert str(patient_id) == patient["id"]
    async with rig.store.db.transaction() as tx:
        for kind, one in (("Patient", patient), ("ServiceRequest", order)):
            recorded = await audit.entries(tx, entity=f"{kind}/{one['id']}")
            assert "fhir-create" in [told.action for told in recorded]


async def test_a_transaction_that_fails_leaves_nothing_and_names_the_entry(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    patient = entry("POST", "Patient", make_ehr_patient(), fullUrl=PATIENT)
    order = make_order(PATIENT)
    nobody = make_order("urn:uuid:00000000-0000-4000-8000-000000000000")
    faults: list[tuple[list[Any], int, str]] = [
        (
            [entry("POST", "ServiceRequest", nobody)],
            422,
            "Bundle.entry[1].resource",
        ),
        (
            [entry("POST", "ServiceRequest", make_order("Patient/none"))],
            422,
            "Bundle.entry[1].resource.subject",
        ),
        (
            [entry("POST", "ServiceRequest", make_order("Patient?identifier=nobody"))],
            412,
            "Bundle.entry[1].resource",
        ),
        ([entry("PUT", "Patient/x", make_ehr_patient() | {"id": "x"})], 428, ""),
        (
            [
                entry(
                    "PUT",
                    "ServiceRequest/x",
                    make_order("Patient/x") | {"id": "x"},
                    ifMatch='W/"3"',
                )
            ],
            405,
            "Bundle.entry[1]",
        ),
        ([entry("GET", "Patient/none")], 404, "Bundle.entry[1]"),
        ([entry("DELETE", "Patient/none")], 405, "Bundle.entry[1]"),
        ([entry("POST", "Device", {"resourceType": "Device"})], 422, ""),
        ([entry("POST", "Subscription/$status")], 404, "Bundle.entry[1].request.url"),
        (
            [entry("POST", "Patient", make_ehr_patient("MRN-2"), fullUrl=PATIENT)],
            422,
            "Bundle",
        ),
        (
            [
                entry(
                    "POST",
                    "ServiceRequest",
                    make_order(PATIENT, basedOn=[{"reference": DOCTOR}]),
                    fullUrl=ORDER,
                ),
                entry(
                    "POST",
                    "ServiceRequest",
                    make_order(PATIENT, basedOn=[{"reference": ORDER}]),
                    fullUrl=DOCTOR,
                ),
            ],
            422,
            "",
        ),
        (
            [entry("GET", "Patient?gender=female")] * (MAX_SEARCHES + 1),
            422,
            f"Bundle.entry[{MAX_SEARCHES + 1}]",
        ),
        ([entry("GET", "Patient/x")] * MAX_ENTRIES, 422, "Bundle.entry"),
    ]
    for more, status, where in faults:
        answer = await send(rig, "transaction", patient, *more)
        assert answer.status == status, (more[0], answer.raw)
        assert answer.body["resourceType"] == "OperationOutcome"
        assert not where or answer.expressions == [where], (more[0], answer.raw)
    assert "entry" not in await rig.read("/Patient", role=Role.EHR)
    # And whole it goes in.
    told = await send(
        rig, "transaction", patient, entry("POST", "ServiceRequest", order)
    )
    assert statuses(told) == [201, 201]


async def test_references_by_search_and_by_the_senders_own_addresses_are_resolved(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    made = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    reference = f"Patient/{made.body['id']}"
    ehr = "https://ehr.example/fhir"
    by_search = make_order(f"Patient?identifier={MRN}|MRN-0099")
    by_address = make_order(
        reference,
        identifier=[{"value": "2"}],
        requester={"reference": "Practitioner/7"},
    )
    answer = await send(
        rig,
        "transaction",
        entry("POST", "ServiceRequest", by_search),
        entry("POST", "ServiceRequest", by_address, fullUrl=f"{ehr}/ServiceRequest/1"),
        entry(
            "POST",
            "Practitioner",
            make_practitioner(),
            fullUrl=f"{ehr}/Practitioner/7",
        ),
        headers={"Prefer": "return=representation"},
    )
    assert statuses(answer) == [201] * 3
    first, second, seven = (e["resource"] for e in answer.body["entry"])
    assert first["subject"]["reference"] == reference
    assert second["requester"]["reference"] == f"Practitioner/{seven['id']}"


async def test_a_conditional_update_creates_once_and_then_changes(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    url = f"Patient?identifier={MRN}|MRN-0099"
    order = make_order(PATIENT)
    bundle = (
        entry("PUT", url, make_ehr_patient(), fullUrl=PATIENT),
        entry("PUT", f"ServiceRequest?identifier={ACCESSION}", order),
    )
    first = await send(rig, "transaction", *bundle)
    assert statuses(first) == [201, 201]
    second = await send(rig, "transaction", *bundle)
    assert statuses(second) == [200, 200]
    for one, two in zip(first.body["entry"], second.body["entry"], strict=True):
        old, new = one["response"]["location"], two["response"]["location"]
        assert new == old.replace("_history/1", "_history/2")
    # By itself as well, with If-Match where somebody wants to be sure.
    renamed = make_ehr_patient() | {"name": [{"text": "李芳"}]}
    for match, status in ((None, 200), ('W/"3"', 200), ('W/"3"', 412)):
        headers = {"If-Match": match} if match else {}
        answer = await rig.ask(
            "PUT", f"/{url}", renamed, role=Role.EHR, headers=headers
        )
        assert answer.status == status, answer.raw
    for asked, status in (
        ("Patient", 400),
        ("Patient?colour=red", 400),
        ("Patient?gender=female&_count=1", 200),
        ("Device?identifier=1", 405),
    ):
        answer = await rig.ask("PUT", f"/{asked}", renamed, role=Role.EHR)
        assert answer.status == status, (asked, answer.raw)
    unknown = f"/Patient?identifier={MRN}|MRN-1"
    chosen = make_ehr_patient("MRN-1") | {"id": "mine"}
    answer = await rig.ask("PUT", unknown, chosen, role=Role.EHR)
    assert (answer.status, answer.expressions) == (422, ["Patient.id"])
    answer = await rig.ask("PUT", f"/{url}", chosen, role=Role.EHR)
    assert answer.status == 400
    await rig.ask("PUT", unknown, make_ehr_patient("MRN-1"), role=Role.EHR)
    answer = await rig.ask("PUT", "/Patient?gender=female", renamed, role=Role.EHR)
    assert answer.status == 412
    assert answer.body["issue"][0]["code"] == "multiple-matches"
    await patched_by_what_a_search_finds(rig, f"Patient?identifier={MRN}|MRN-1")


async def patched_by_what_a_search_finds(rig: Rig, url: str) -> None:
    """Patch her by her own number, alone and in Bundles (FHIR R4 3.1.0.6)."""
    steps = [{"op": "replace", "path": "/gender", "value": "other"}]
    form = {"Content-Type": "application/json-patch+json"}
    for asked, headers, status in (
        (url, {}, 200),
        (url, {"If-Match": 'W/"2"'}, 200),
        (url, {"If-Match": 'W/"2"'}, 412),
        (f"{url}-unknown", {}, 404),
        ("Patient?active:missing=true", {}, 412),
        ("Patient", {}, 400),
        ("Patient?colour=red", {}, 400),
        ("Device?identifier=1", {}, 405),
    ):
        body = to_bytes([{**steps[0], "value": ["other", "unknown"][bool(headers)]}])
        answer = await rig.ask(
            "PATCH", f"/{asked}", body, role=Role.EHR, headers=form | headers
        )
        assert answer.status == status, (asked, headers, answer.raw)
    patch = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": b64encode(to_bytes(steps)).decode(),
    }
    for kind, version in (("batch", 4), ("transaction", 5)):
        answer = await send(rig, kind, entry("PATCH", url, patch))
        assert statuses(answer) == [200], answer.raw
        assert answer.body["entry"][0]["response"]["etag"] == f'W/"{version}"'


async def test_one_of_many_equal_transactions_creates_what_the_others_find(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    condition = f"identifier={MRN}|MRN-0099"
    patient = entry(
        "POST", "Patient", make_ehr_patient(), fullUrl=PATIENT, ifNoneExist=condition
    )
    order = entry(
        "POST",
        "ServiceRequest",
        make_order(PATIENT),
        ifNoneExist=f"identifier={ACCESSION}",
    )
    answers = await asyncio.gather(
        *(send(rig, "transaction", patient, order) for _ in range(6))
    )
    told = sorted(statuses(answer) for answer in answers)
    assert told == [[200, 200]] * 5 + [[201, 201]]
    places = {
        tuple(e["response"]["location"] for e in answer.body["entry"])
        for answer in answers
    }
    assert len(places) == 1


async def test_patches_and_updates_go_together_with_what_is_new(
    empty_rig: Rig,
) -> None:
    rig = empty_rig
    made = await rig.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    path = f"Patient/{made.body['id']}"
    patch = {
        "resourceType": "Parameters",
        "parameter": [
            {
                "name": "operation",
                "part": [
                    {"name": "type", "valueCode": "replace"},
                    {"name": "path", "valueString": "Patient.gender"},
                    {"name": "value", "valueCode": "other"},
                ],
            }
        ],
    }
    changes = (
        entry("PATCH", path, patch, ifMatch='W/"1"'),
        entry("POST", "ServiceRequest", make_order(path)),
        entry("GET", path),
    )
    answer = await send(rig, "transaction", *changes)
    assert statuses(answer) == [200, 201, 200]
    assert answer.body["entry"][2]["resource"]["gender"] == "other"
    stale = await send(rig, "transaction", *changes)
    assert (stale.status, stale.expressions) == (
        412,
        ["Bundle.entry[0].request.ifMatch"],
    )
    twice = await send(rig, "transaction", changes[0], changes[0])
    assert (twice.status, twice.expressions) == (422, ["Bundle.entry[1].request.url"])


# --- batches -----------------------------------------------------------


async def test_each_entry_of_a_batch_stands_for_itself(rig: Rig) -> None:
    report = rig.report_path.strip("/")
    broken = make_ehr_patient() | {"gender": "f"}
    answer = await send(
        rig,
        "batch",
        entry("GET", report),
        entry("GET", f"{rig.settings.base_url}/{report}", ifNoneMatch='W/"1"'),
        entry("GET", f"{report}/_history"),
        entry("GET", f"{report}/_history/1"),
        entry("GET", "DiagnosticReport/_history?_count=1"),
        entry("GET", "/fhir/DiagnosticReport?status=partial&_total=accurate"),
        entry("GET", f"{report}/$everything"),
        entry("POST", "Patient", make_ehr_patient()),
        entry("POST", "Patient", broken),
        entry("POST", "Patient", make_ehr_patient()),
        entry("GET", "Medication/1"),
        entry("DELETE", report),
        entry("PUT", report, {"resourceType": "DiagnosticReport"}),
        entry("GET", "../etc/passwd"),
        entry("HEAD", report),
        entry("GET", "Binary/1"),
    )
    assert answer.body["type"] == "batch-response"
    expected = [200, 304, 200, 200, 200, 200, 404, 201, 422, 409, 404, 405, 403]
    assert statuses(answer) == [*expected, 404, 405, 405]
    entries = answer.body["entry"]
    assert entries[0]["fullUrl"] == f"{rig.settings.base_url}/{report}"
    assert entries[0]["resource"]["resourceType"] == "DiagnosticReport"
    assert entries[0]["response"]["etag"] == 'W/"1"'
    assert "resource" not in entries[1]
    assert entries[2]["resource"]["type"] == "history"
    assert entries[5]["resource"]["total"] == 1
    assert "resource" not in entries[7]
    assert entries[7]["response"]["location"].endswith("/_history/1")
    faulty = entries[8]["response"]["outcome"]["issue"][0]
    assert faulty["expression"] == ["Patient.gender"]
    assert "entered-in-error" in str(entries[11]["response"]["outcome"])


async def test_a_batch_shows_what_was_written_to_who_asks_for_it(
    empty_rig: Rig,
) -> None:
    rig, order = empty_rig, make_order("Patient?identifier=1")
    patient = entry("POST", "Patient", make_ehr_patient())
    for wanted, shown in (("representation", True), ("OperationOutcome", False)):
        patient["resource"] = make_ehr_patient(f"MRN-{wanted}")
        answer = await send(
            rig, "batch", patient, headers={"Prefer": f"return={wanted}"}
        )
        (told,) = answer.body["entry"]
        assert ("resource" in told, "outcome" in told["response"]) == (shown, not shown)
    # What a batch refers to it has to know: nothing is resolved between its entries.
    answer = await send(rig, "batch", entry("POST", "ServiceRequest", order))
    assert statuses(answer) == [422]


async def test_a_batch_has_its_limits(empty_rig: Rig) -> None:
    search = entry("GET", "Patient?gender=female")
    answer = await send(empty_rig, "batch", *[search] * (MAX_SEARCHES + 1))
    assert statuses(answer) == [200] * MAX_SEARCHES + [422]
    issue = answer.body["entry"][-1]["response"]["outcome"]["issue"][0]
    assert issue["code"] == "too-costly"
    for entries in ([], [search] * (MAX_ENTRIES + 1)):
        answer = await send(empty_rig, "batch", *entries)
        assert (answer.status, answer.expressions) == (422, ["Bundle.entry"])


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_what_is_no_bundle_is_refused(empty_rig: Rig, kind: str) -> None:
    for body, status in (
        ({"resourceType": "Patient", "type": kind}, 400),
        ({"resourceType": "Bundle", "type": kind, "entry": "x"}, 422),
        ({"resourceType": "Bundle", "type": kind, "entry": ["x"]}, 422),
        ({"resourceType": "Bundle", "type": kind, "colour": "red"}, 422),
        ({"type": kind}, 400),
    ):
        answer = await empty_rig.ask("POST", "", body, role=Role.EHR)
        assert answer.status == status, (body, answer.raw)


async def test_a_doctor_reads_orders_and_signs_in_a_batch(rig: Rig) -> None:
    signed = await rig.edited(rig.report_path, status="final")
    answer = await send(
        rig,
        "batch",
        {**signed, "request": signed["request"]},
        entry("GET", rig.report_path.strip("/")),
        entry("GET", "Patient?name=Zhang"),
        role=Role.RADIOLOGIST,
    )
    assert statuses(answer) == [200, 200, 403]
    assert answer.body["entry"][1]["resource"]["status"] == "final"


async def test_a_bundle_that_takes_long_is_ended_and_a_transaction_leaves_nothing(
    empty_rig: Rig, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def later(self: FrozenClock) -> datetime:
        self.advance(seconds=LONGEST.total_seconds() / 10)
        return self.now

    orders = [
        entry("POST", "Practitioner", {**make_practitioner(), "id": str(number)})
        for number in range(20)
    ]
    monkeypatch.setattr(FrozenClock, "__call__", later)
    batch = await send(empty_rig, "batch", *orders)
    assert statuses(batch)[0] == 201
    assert statuses(batch)[-1] == 422
    whole = await send(empty_rig, "transaction", *orders)
    monkeypatch.undo()
    assert whole.status == 422
    assert whole.body["issue"][0]["code"] == "too-costly"
    found = await empty_rig.read("/Practitioner?_summary=count", role=Role.EHR)
    assert found["total"] == statuses(batch).count(201)
