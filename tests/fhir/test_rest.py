"""What the FHIR API answers (FHIR R4 3.1.0)."""

from node.domain.access import Role
from tests.fhir.rig import ACCESSION, Rig


async def test_a_drafted_report_is_partial_and_labelled_as_the_algorithms(
    rig: Rig,
) -> None:
    report = await rig.read(rig.report_path)
    assert report["status"] == "partial"
    assert report["meta"]["security"][0]["code"] == "AIAST"
    assert report["performer"] == [{"reference": "Device/model-1"}]
    assert "issued" not in report
    assert "resultsInterpreter" not in report
    device = await rig.read("/Device/model-1")
    assert {v["value"] for v in device["version"]} == {"1.0.0", "ab" * 32}


async def test_every_field_of_the_lexicon_has_an_observation(rig: Rig) -> None:
    root = await rig.read(f"/Observation/{rig.report_id}-l1")
    members = [await rig.read(f"/{m['reference']}") for m in root["hasMember"]]
    assert len(members) == 10
    missing = [m for m in members if "dataAbsentReason" in m]
    assert {m["id"].rpartition("-")[2] for m in missing} == {"boundary", "posterior"}
    assert all(m["device"] == {"reference": "Device/model-1"} for m in members)


async def test_a_doctor_sees_a_masked_patient_and_the_ehr_the_whole(rig: Rig) -> None:
    report = await rig.read(rig.report_path)
    path = f"/{report['subject']['reference']}"
    masked = await rig.read(path)
    assert masked["name"] == [{"text": "张*"}]
    assert "identifier" not in masked
    assert masked["meta"]["security"][0]["code"] == "REDACTED"
    whole = await rig.read(path, role=Role.EHR)
    assert whole["identifier"][0]["value"] == "MRN-0042"
    assert report["identifier"][0]["value"] == f"…{ACCESSION[-4:]}"
    seen_by_ehr = await rig.read(rig.report_path, role=Role.EHR)
    assert seen_by_ehr["identifier"][0]["value"] == ACCESSION


async def test_a_doctor_signs_and_the_report_is_final(rig: Rig) -> None:
    signed = await rig.sign(conclusion="BI-RADS 4C")
    assert signed.status == 200, signed.raw
    report = signed.body
    assert report["status"] == "final"
    assert "issued" in report
    assert report["resultsInterpreter"][0]["reference"].startswith("Practitioner/")
    assert "security" not in report["meta"]
    category = await rig.read(f"/Observation/{rig.report_id}-category")
    assert category["status"] == "final"
