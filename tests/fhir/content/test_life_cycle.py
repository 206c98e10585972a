"""A report's life on the wire (DESIGN §6, FHIR R4 DiagnosticReport.status)."""

import asyncio
from typing import Any

import pytest

from fhir.content import concepts
from fhir.content.mapping import field_value
from fhir.content.publish import publish_report
from fhir.encoding.wire import to_bytes
from node.domain.access import Role
from node.domain.lexicon import FieldKey
from node.domain.report import AuthorKind, ReportStatus
from node.store import reports
from node.workflow.reporting import draft_report
from tests.factories import ALGORITHM, make_findings, make_lesion
from tests.fhir.rig import STUDY_UID, Answer, Rig, publish_draft

REASON = {"resourceType": "Provenance", "reason": [{"text": "Second look with MRI"}]}


def because(rig: Rig, text: str = "Second look") -> dict[str, Any]:
    """Return the transaction entry that gives the reason for a change."""
    provenance = {
        "resourceType": "Provenance",
        "target": [{"reference": rig.report_path.strip("/")}],
        "recorded": "2026-11-21T08:00:00Z",
        "reason": [{"text": text}],
        "agent": [{"who": {"display": "author"}}],
    }
    return {
        "fullUrl": "urn:uuid:9b8a9bd6-6a3a-4d3f-8f5a-3f3c2c9f6a10",
        "resource": provenance,
        "request": {"method": "POST", "url": "Provenance"},
    }


def told_by(medium: str, rig: Rig) -> dict[str, Any]:
    """Return the transaction entry that records that the patient was told."""
    communication = {
        "resourceType": "Communication",
        "status": "completed",
        "about": [{"reference": rig.report_path.strip("/")}],
        "sent": "2026-11-21T07:59:00Z",
        "medium": [{"text": medium}],
    }
    return {
        "fullUrl": "urn:uuid:9b8a9bd6-6a3a-4d3f-8f5a-3f3c2c9f6a11",
        "resource": communication,
        "request": {"method": "POST", "url": "Communication"},
    }


async def current(rig: Rig) -> Any:
    async with rig.store.db.transaction() as tx:
        return await reports.read(tx, rig.store, rig.report_id)


async def reach(rig: Rig, status: str) -> None:
    """Bring the drafted report to `status`."""
    if status == "partial":
        return
    if status in ("preliminary", "final"):
        assert (await rig.put(rig.report_path, status=status)).status == 200
        return
    await reach(rig, "final")
    entry = await rig.edited(rig.report_path, status=status)
    assert (await rig.transact(entry, because(rig))).status == 200


ALL = [status.value for status in ReportStatus]
AFTER = {"amended", "corrected", "appended", "entered-in-error"}
ALLOWED = {
    "partial": {"preliminary", "final"},
    "preliminary": {"preliminary", "final"},
    "final": AFTER,
    "amended": AFTER,
    "corrected": AFTER,
    "appended": AFTER,
    "entered-in-error": set(),
}


@pytest.mark.parametrize("status", ["registered", "cancelled", "unknown"])
async def test_a_status_that_we_do_not_use_is_refused(rig: Rig, status: str) -> None:
    answer = await rig.put(rig.report_path, status=status)
    assert answer.status == 422
    assert answer.expressions == ["DiagnosticReport.status"]


@pytest.mark.parametrize("status", sorted(AFTER))
async def test_a_change_after_sign_off_needs_a_reason(rig: Rig, status: str) -> None:
    await reach(rig, "final")
    assert (await rig.put(rig.report_path, status=status)).status == 422
    entry = await rig.edited(rig.report_path)
    resource = {**entry["resource"], "status": status}
    header = {
        "If-Match": entry["request"]["ifMatch"],
        "X-Provenance": to_bytes(REASON).decode(),
    }
    answer = await rig.ask("PUT", rig.report_path, resource, headers=header)
    assert answer.status == 200, answer.raw
    assert (await current(rig)).current.reason == "Second look with MRI"


async def test_a_doctors_value_is_hers_and_the_algorithms_stays_in_the_history(
    rig: Rig,
) -> None:
    path = f"/Observation/{rig.report_id}-l1-shape"
    shape = field_value(FieldKey.SHAPE, ("oval",))
    answer = await rig.transact(
        await rig.edited(path, **shape),
        await rig.edited(rig.report_path, status="final"),
    )
    assert answer.status == 200, answer.raw
    changed = await rig.read(path)
    assert "device" not in changed
    assert changed["performer"][0]["reference"].startswith("Practitioner/")
    assert "security" not in changed["meta"]
    assert changed["status"] == "final"
    first = await rig.read(f"{path}/_history/1")
    assert first["device"] == {"reference": "Device/model-1"}
    untouched = await rig.read(f"/Observation/{rig.report_id}-l1-margin")
    assert untouched["device"] == {"reference": "Device/model-1"}
    assert untouched["status"] == "final"
    lesion = (await current(rig)).current.findings.lesions[0]
    assert lesion.descriptors[FieldKey.SHAPE] == ("oval",)
    assert lesion.outline == make_lesion().outline


async def test_sending_a_value_back_unchanged_does_not_make_it_the_doctors(
    rig: Rig,
) -> None:
    path = f"/Observation/{rig.report_id}-l1-margin"
    answer = await rig.transact(
        await rig.edited(path), await rig.edited(rig.report_path, status="final")
    )
    assert answer.status == 200, answer.raw
    margin = await rig.read(path)
    assert margin["meta"]["versionId"] == "2"
    assert margin["device"] == {"reference": "Device/model-1"}


async def test_every_change_has_a_provenance_that_names_versions_and_authors(
    rig: Rig,
) -> None:
    await reach(rig, "amended")
    target = rig.report_path.strip("/")
    bundle = await rig.read(f"/Provenance?target={target}&_sort=recorded&_count=10")
    found = [entry["resource"] for entry in bundle["entry"]]
    targets = {t["reference"] for p in found for t in p["target"]}
    assert {f"{target}/_history/{n}" for n in (1, 2, 3)} <= targets
    roles = [
        {
            (a["type"]["coding"][0]["code"], a["who"]["reference"][:6])
            for a in p["agent"]
        }
        for p in found
    ]
    assert {("author", "Device")} in roles
    assert sum(("verifier", "Practi") in role for role in roles) == 2
    by_device = await rig.read("/Provenance?agent=Device/model-1")
    assert len(by_device["entry"]) == 3


async def test_a_draft_saved_by_a_doctor_is_preliminary(rig: Rig) -> None:
    path = f"/Observation/{rig.report_id}-advice"
    answer = await rig.put(path, valueCodeableConcept={"text": "半年后复查"})
    assert answer.status == 200, answer.raw
    report = await rig.read(rig.report_path)
    assert report["status"] == "preliminary"
    assert "issued" not in report
    version = (await current(rig)).current
    assert version.conclusions.advice == "半年后复查"
    assert version.author.kind is AuthorKind.PHYSICIAN


async def test_an_observation_of_a_signed_report_is_not_changed_alone(rig: Rig) -> None:
    await reach(rig, "final")
    path = f"/Observation/{rig.report_id}-advice"
    answer = await rig.put(path, valueCodeableConcept={"text": "later"})
    assert answer.status == 422
    assert (await rig.read(path))["meta"]["versionId"] == "2"


async def test_a_lesion_that_is_none_is_withdrawn_with_all_its_observations(
    rig: Rig,
) -> None:
    root = f"/Observation/{rig.report_id}-l1"
    answer = await rig.transact(
        await rig.edited(root, status="entered-in-error"),
        await rig.edited(rig.report_path, status="final"),
    )
    assert answer.status == 200, answer.raw
    assert (await rig.read(f"{root}-shape"))["status"] == "entered-in-error"
    report = await rig.read(rig.report_path)
    assert [r["reference"].rpartition("-")[2] for r in report["result"]] == [
        "category",
        "advice",
    ]
    assert (await current(rig)).current.findings.lesions == ()


async def test_without_if_match_428_and_with_an_old_one_412(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    report["status"] = "final"
    assert (await rig.ask("PUT", rig.report_path, report)).status == 428
    stale = await rig.ask("PUT", rig.report_path, report, headers={"If-Match": 'W/"9"'})
    assert stale.status == 412
    assert stale.headers["ETag"] == 'W/"1"'
    wrong = await rig.ask("PUT", rig.report_path, report, headers={"If-Match": "x"})
    assert wrong.status == 400
    entry = await rig.edited(rig.report_path, status="final")
    del entry["request"]["ifMatch"]
    assert (await rig.transact(entry)).status == 428


async def test_of_twenty_doctors_at_once_one_signs(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    report["status"] = "final"

    async def sign() -> Answer:
        return await rig.ask(
            "PUT", rig.report_path, report, headers={"If-Match": 'W/"1"'}
        )

    answers = await asyncio.gather(*(sign() for _ in range(20)))
    assert sorted(a.status for a in answers) == [200] + [412] * 19
    assert (await current(rig)).current.number == 2


async def test_a_refused_transaction_leaves_nothing_behind(rig: Rig) -> None:
    path = f"/Observation/{rig.report_id}-l1-shape"
    answer = await rig.transact(
        await rig.edited(path, **field_value(FieldKey.SHAPE, ("round",))),
        await rig.edited(rig.report_path, status="amended"),
    )
    assert answer.status == 422
    assert (await rig.read(path))["meta"]["versionId"] == "1"
    assert (await current(rig)).current.number == 1


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("subject", {"reference": "Patient/00000000-0000-0000-0000-000000000001"}),
        ("code", {"text": "Chest"}),
        ("effectiveDateTime", "2020-01-01"),
        ("identifier", [{"value": "another"}]),
        ("result", [{"reference": "Observation/other"}]),
    ],
)
async def test_what_the_node_sets_is_not_the_doctors_to_change(
    rig: Rig, element: str, value: Any
) -> None:
    answer = await rig.put(rig.report_path, **{"status": "final", element: value})
    assert answer.status == 422
    assert answer.expressions == [f"DiagnosticReport.{element}"]


async def test_a_masked_identifier_sent_back_does_not_replace_the_real_one(
    rig: Rig,
) -> None:
    assert (await rig.sign()).status == 200
    seen = await rig.read(rig.report_path, role=Role.EHR)
    assert seen["identifier"][0]["value"].startswith("ACC-")


async def test_a_copy_marked_as_masked_is_refused(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    for code in ("REDACTED", "SUBSETTED"):
        meta = {**report["meta"], "security": [{"code": code}]}
        answer = await rig.put(rig.report_path, status="final", meta=meta)
        assert answer.status == 422


async def test_the_ai_label_cannot_be_put_on_or_taken_off_by_a_client(rig: Rig) -> None:
    path = f"/Observation/{rig.report_id}-l1-echo"
    meta = {"profile": ["https://example.org/profile"]}
    answer = await rig.put(path, meta=meta)
    assert answer.status == 200, answer.raw
    assert answer.body["meta"]["security"] == [concepts.AI_ASSERTED]
    assert "https://example.org/profile" in answer.body["meta"]["profile"]


async def test_the_algorithms_probability_is_not_edited(rig: Rig) -> None:
    path = f"/Observation/{rig.report_id}-l1-probability"
    quantity = {"value": 5, "unit": "%", "system": concepts.UCUM, "code": "%"}
    assert (await rig.put(path, valueQuantity=quantity)).status == 422
    seen = await rig.read(path)
    assert str(seen["valueQuantity"]["value"].text) == "87.3"


async def test_codings_that_contradict_each_other_are_refused(rig: Rig) -> None:
    path = f"/Observation/{rig.report_id}-l1-shape"
    shape = field_value(FieldKey.SHAPE, ("oval",))["valueCodeableConcept"]
    shape["coding"][1]["code"] = "round"
    answer = await rig.put(path, valueCodeableConcept=shape)
    assert answer.status == 400
    assert answer.expressions == ["Observation.value"]


async def test_extensions_of_others_survive_an_edit(rig: Rig) -> None:
    foreign = {"url": "https://example.org/x", "valueDecimal": 1.5}
    report = await rig.read(rig.report_path)
    extension = [*report.get("extension", []), foreign]
    answer = await rig.put(rig.report_path, status="final", extension=extension)
    assert answer.status == 200, answer.raw
    assert foreign["url"] in {e["url"] for e in answer.body["extension"]}


async def test_a_disclosure_is_recorded_with_the_signature(rig: Rig) -> None:
    answer = await rig.transact(
        await rig.edited(rig.report_path, status="final"), told_by("phone", rig)
    )
    assert answer.status == 200, answer.raw
    statuses = [e["response"]["status"] for e in answer.body["entry"]]
    assert statuses == ["200 OK", "201 Created"]
    report = await current(rig)
    assert [d.medium for d in report.disclosures] == ["phone"]
    found = await rig.read(f"/Communication?about={rig.report_path.strip('/')}")
    assert found["entry"][0]["resource"]["sent"] == "2026-11-21T07:59:00Z"


async def test_a_disclosure_of_an_unsigned_report_is_refused(rig: Rig) -> None:
    resource = told_by("phone", rig)["resource"]
    assert (await rig.ask("POST", "/Communication", resource)).status == 422


@pytest.mark.parametrize("medium", ["", "Zhang San was called", "fax"])
async def test_how_the_patient_was_told_is_one_of_two_words(
    rig: Rig, medium: str
) -> None:
    await reach(rig, "final")
    resource = told_by(medium or "x", rig)["resource"]
    assert (await rig.ask("POST", "/Communication", resource)).status == 400


async def test_a_later_reading_replaces_an_untouched_draft(rig: Rig) -> None:
    await publish_draft(
        rig.store, rig.settings, findings=make_findings("2", lesions=())
    )
    report = await rig.read(rig.report_path)
    assert report["meta"]["versionId"] == "2"
    root = await rig.read(f"/Observation/{rig.report_id}-l1")
    assert root["status"] == "entered-in-error"


async def test_publishing_twice_changes_nothing(rig: Rig) -> None:
    payload = {"report_id": str(rig.report_id), "version": 1}
    await publish_report(rig.store, rig.settings, payload)
    assert (await rig.read(rig.report_path))["meta"]["versionId"] == "1"


async def test_an_edit_waits_for_a_reading_that_nobody_has_seen(rig: Rig) -> None:
    async with rig.store.db.transaction() as tx:
        await draft_report(
            rig.store, tx, STUDY_UID, make_findings("2"), author=ALGORITHM
        )
    assert (await rig.sign()).status == 409


async def test_a_script_in_a_narrative_is_refused_and_nothing_changes(rig: Rig) -> None:
    script = '<div xmlns="http://www.w3.org/1999/xhtml"><script>x()</script></div>'
    narrative = {"status": "generated", "div": script}
    answer = await rig.put(rig.report_path, status="final", text=narrative)
    assert answer.status == 422
    assert answer.expressions == ["DiagnosticReport.text.div"]
    assert b"x()" not in answer.raw  # what was sent is not repeated to anybody
    assert (await rig.read(rig.report_path))["status"] == "partial"
