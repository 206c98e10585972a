"""Where a lesion lies: BodyStructure, and the Observation that points to it."""

from dataclasses import replace
from decimal import Decimal

import pytest

from fhir.content.mapping import lesion_numbers, place_value
from fhir.content.places import to_body_structures
from node.domain.report import Conclusions, ReportStatus
from tests.factories import DOCTOR, NOW, make_draft, make_findings, make_lesion
from tests.fhir.content.test_life_cycle import because
from tests.fhir.rig import Rig


@pytest.mark.parametrize(
    ("laterality", "clock", "quadrant"),
    [
        ("L", 2, "外上象限"),
        ("L", 10, "内上象限"),
        ("L", 4, "外下象限"),
        ("L", 7, "内下象限"),
        ("R", 2, "内上象限"),
        ("R", 10, "外上象限"),
        ("R", 5, "内下象限"),
        ("R", 8, "外下象限"),
        ("L", 12, None),
        ("R", 3, None),
        (None, 2, None),
        ("L", None, None),
    ],
)
def test_a_quadrant_is_named_only_where_the_clock_stands_within_one(
    laterality: str | None, clock: int | None, quadrant: str | None
) -> None:
    lesion = make_lesion(laterality=laterality, clock=clock)
    report = make_draft()
    version = replace(report.current, findings=make_findings(lesions=(lesion,)))
    report = replace(report, versions=(version,))
    (structure,) = to_body_structures(report, lesion_numbers(report))
    named = {q["text"] for q in structure.get("locationQualifier", [])}
    quadrants = {text for text in named if text.endswith("象限")}
    assert quadrants == ({quadrant} if quadrant else set())


def test_a_place_is_told_in_codes_and_in_words() -> None:
    report = make_draft()
    (structure,) = to_body_structures(report, lesion_numbers(report))
    assert structure["id"] == f"{report.id}-l1"
    assert structure["identifier"][0]["value"] == "urn:oid:2.25.1001"
    assert structure["location"]["coding"][0]["code"] == "80248007"
    assert structure["description"] == (
        "左乳 2点 外上象限 距乳头 30 mm"
        " / Left breast, 2 o'clock, Upper outer quadrant of breast,"
        " 30 mm from the nipple"
    )
    distance = structure["extension"][0]["valueQuantity"]
    assert (distance["value"], distance["code"]) == (Decimal(30), "mm")


def test_what_no_version_has_any_more_is_not_active() -> None:
    report = make_draft().revise(
        ReportStatus.FINAL,
        make_findings("2", lesions=()),
        Conclusions(),
        author=DOCTOR,
        at=NOW,
    )
    (structure,) = to_body_structures(report, lesion_numbers(report))
    assert structure["active"] is False


async def test_a_lesion_is_followed_through_the_versions_of_its_report(
    rig: Rig,
) -> None:
    root = f"/Observation/{rig.report_id}-l1"
    place = (await rig.read(root))["extension"][0]
    assert place["url"] == "http://hl7.org/fhir/StructureDefinition/bodySite"
    path = f"/{place['valueReference']['reference']}"
    first = await rig.read(path)
    assert (first["meta"]["versionId"], first["active"]) == ("1", True)
    assert (await rig.sign()).status == 200
    assert (await rig.read(path))["meta"]["versionId"] == "1"
    moved = place_value(make_lesion(clock=10))
    answer = await rig.transact(
        await rig.edited(root, **moved),
        await rig.edited(rig.report_path, status="amended"),
        because(rig),
    )
    assert answer.status == 200, answer.raw
    second = await rig.read(path)
    assert second["meta"]["versionId"] == "2"
    assert "10点 内上象限" in second["description"]
    assert second["identifier"] == first["identifier"]
    entry = await rig.edited(rig.report_path, status="entered-in-error")
    assert (await rig.transact(entry, because(rig))).status == 200
    assert (await rig.read(path))["active"] is False


async def test_a_client_cannot_point_an_observation_at_another_lesion(
    rig: Rig,
) -> None:
    root = f"/Observation/{rig.report_id}-l1"
    answer = await rig.put(root, extension=None)
    assert answer.status == 200, answer.raw
    (place,) = [e for e in answer.body["extension"] if e["url"].endswith("/bodySite")]
    expected = f"BodyStructure/{rig.report_id}-l1"
    assert place["valueReference"]["reference"] == expected
