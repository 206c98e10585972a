"""Where a lesion lies, as a BodyStructure: what an EHR follows through the versions.

One for each lesion of a report, under the id of the Observation at its root. That a
lesion of another visit is the same one nobody has said, so nothing here says it: side,
clock position and distance are there to be compared, the tracking UID to be sure.
"""

from fhir.content import concepts
from fhir.content.concepts import codeable
from fhir.encoding.wire import Json
from node.domain import lexicon
from node.domain.finding import Lesion
from node.domain.report import Report, ReportStatus


def to_body_structures(report: Report, numbers: dict[str, int]) -> list[Json]:
    """Return one BodyStructure for each lesion that any version of a report has had.

    One that the newest version no longer has, or whose report was withdrawn, is not
    active: nothing is followed by it any more.
    """
    newest = {lesion.tracking_uid for lesion in report.current.findings.lesions}
    withdrawn = report.current.status is ReportStatus.ENTERED_IN_ERROR
    last = {
        lesion.tracking_uid: lesion
        for version in report.versions
        for lesion in version.findings.lesions
    }
    return [
        _body_structure(
            report,
            lesion,
            f"{report.id}-l{numbers[uid]}",
            active=uid in newest and not withdrawn,
        )
        for uid, lesion in last.items()
    ]


def reference_of(root_id: str) -> Json:
    """Return the extension of an Observation that names its BodyStructure."""
    return {
        "url": concepts.BODY_SITE,
        "valueReference": {"reference": f"BodyStructure/{root_id}"},
    }


def _body_structure(
    report: Report, lesion: Lesion, structure_id: str, *, active: bool
) -> Json:
    resource: Json = {
        "resourceType": "BodyStructure",
        "id": structure_id,
        "identifier": [
            {"system": concepts.DICOM_UID, "value": f"urn:oid:{lesion.tracking_uid}"}
        ],
        "active": active,
        "location": codeable(
            lexicon.BREAST_SIDE.get(lesion.laterality or "", lexicon.BREAST)
        ),
        "description": _in_words(lesion),
        "patient": {"reference": f"Patient/{report.patient_id}"},
    }
    if lesion.distance_from_nipple_mm is not None:
        resource["extension"] = [_distance(lesion)]
    qualifiers = [codeable(concept) for concept in _qualifiers(lesion)]
    if qualifiers:
        resource["locationQualifier"] = qualifiers
    return resource


def _qualifiers(lesion: Lesion) -> list[lexicon.Concept]:
    found = []
    if lesion.laterality is not None:
        found.append(lexicon.LATERALITY[lesion.laterality])
    quadrant = lexicon.quadrant(lesion.laterality, lesion.clock)
    if quadrant is not None:
        found.append(quadrant)
    if lesion.clock is not None:
        found.append(lexicon.CLOCK[lesion.clock])
    return found


def _distance(lesion: Lesion) -> Json:
    return {
        "url": concepts.DISTANCE_FROM_NIPPLE,
        "valueQuantity": {
            "value": lesion.distance_from_nipple_mm,
            "unit": "mm",
            "system": concepts.UCUM,
            "code": "mm",
        },
    }


def _in_words(lesion: Lesion) -> str:
    """Return the place as doctors write it: 左乳 2点 外上象限 距乳头 30 mm / ..."""
    side = lexicon.BREAST_SIDE.get(lesion.laterality or "", lexicon.BREAST)
    zh, en = [side.zh], [side.en]
    if lesion.clock is not None:
        zh.append(lexicon.CLOCK[lesion.clock].zh)
        en.append(lexicon.CLOCK[lesion.clock].en)
    quadrant = lexicon.quadrant(lesion.laterality, lesion.clock)
    if quadrant is not None:
        zh.append(quadrant.zh)
        en.append(quadrant.en)
    if lesion.distance_from_nipple_mm is not None:
        length = f"{lesion.distance_from_nipple_mm.normalize():f} mm"
        zh.append(f"距乳头 {length}")
        en.append(f"{length} from the nipple")
    return f"{' '.join(zh)} / {', '.join(en)}"
