"""Reports as JSON values and back: the sealed form in which versions are stored.

The form is ours and versioned by `FORM`; FHIR and SR are projections of it.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import (
    Extent,
    Findings,
    HeatMap,
    ImageReference,
    Lesion,
    NotRead,
    PixelBox,
)
from node.domain.lexicon import FieldKey
from node.domain.report import (
    Author,
    AuthorKind,
    Conclusions,
    Disclosure,
    ReportStatus,
    ReportVersion,
)

FORM = 1

Json = dict[str, Any]


def version_to_json(version: ReportVersion) -> Json:
    """Return `version` as a JSON value; decimals become text and stay exact."""
    return {
        "form": FORM,
        "number": version.number,
        "status": version.status.value,
        "author": _author_to_json(version.author),
        "at": version.at.isoformat(),
        "findings": findings_to_json(version.findings),
        "conclusions": {
            "impression": version.conclusions.impression,
            "followup": version.conclusions.followup,
            "advice": version.conclusions.advice,
            "patient_summary": version.conclusions.patient_summary,
        },
        "reason": version.reason,
    }


def version_from_json(value: Mapping[str, Any]) -> ReportVersion:
    """Return the version that `version_to_json` wrote; INTEGRITY for a newer form."""
    if value["form"] != FORM:
        raise NodeError(
            f"report form {value['form']} is newer than this program",
            ErrorKind.INTEGRITY,
        )
    return ReportVersion(
        number=value["number"],
        status=ReportStatus(value["status"]),
        author=_author_from_json(value["author"]),
        at=datetime.fromisoformat(value["at"]),
        findings=findings_from_json(value["findings"]),
        conclusions=Conclusions(**value["conclusions"]),
        reason=value["reason"],
    )


def disclosure_to_json(disclosure: Disclosure) -> Json:
    """Return a disclosure record as a JSON value."""
    return {
        "by": disclosure.by,
        "at": disclosure.at.isoformat(),
        "medium": disclosure.medium,
    }


def disclosure_from_json(value: Mapping[str, Any]) -> Disclosure:
    """Return the disclosure record that `disclosure_to_json` wrote."""
    return Disclosure(
        by=value["by"], at=datetime.fromisoformat(value["at"]), medium=value["medium"]
    )


def findings_to_json(findings: Findings) -> Json:
    """Return `findings` as a JSON value."""
    return {
        "lesions": [_lesion_to_json(lesion) for lesion in findings.lesions],
        "category": findings.category,
        "not_read": [
            {
                "sop_instance_uid": item.sop_instance_uid,
                "reason": item.reason,
                "zh": item.zh,
                "en": item.en,
            }
            for item in findings.not_read
        ],
        "heat_maps": [
            {
                "tracking_uid": item.tracking_uid,
                "sop_instance_uid": item.sop_instance_uid,
            }
            for item in findings.heat_maps
        ],
    }


def findings_from_json(value: Mapping[str, Any]) -> Findings:
    """Return the findings that `findings_to_json` wrote."""
    return Findings(
        lesions=tuple(_lesion_from_json(item) for item in value["lesions"]),
        category=value["category"],
        not_read=tuple(NotRead(**item) for item in value["not_read"]),
        heat_maps=tuple(HeatMap(**item) for item in value["heat_maps"]),
    )


def _author_to_json(author: Author) -> Json:
    return {"kind": author.kind.value, "id": author.id, "display": author.display}


def _author_from_json(value: Mapping[str, Any]) -> Author:
    return Author(AuthorKind(value["kind"]), value["id"], value["display"])


def _lesion_to_json(lesion: Lesion) -> Json:
    image, box, extent = lesion.image, lesion.box, lesion.extent
    return {
        "tracking_uid": lesion.tracking_uid,
        "image": None
        if image is None
        else [image.sop_class_uid, image.sop_instance_uid, image.frame],
        "box": None if box is None else [box.x0, box.y0, box.x1, box.y1],
        "outline": [list(point) for point in lesion.outline],
        "laterality": lesion.laterality,
        "clock": lesion.clock,
        "distance_from_nipple_mm": _text(lesion.distance_from_nipple_mm),
        "extent": None
        if extent is None
        else [
            str(extent.long_axis_mm),
            str(extent.width_mm),
            str(extent.height_mm),
            *([] if extent.length_mm is None else [str(extent.length_mm)]),
        ],
        "descriptors": {k.value: list(v) for k, v in lesion.descriptors.items()},
        "category": lesion.category,
        "probability": _text(lesion.probability),
    }


def _lesion_from_json(value: Mapping[str, Any]) -> Lesion:
    return Lesion(
        tracking_uid=value["tracking_uid"],
        image=None if value["image"] is None else ImageReference(*value["image"]),
        box=None if value["box"] is None else PixelBox(*value["box"]),
        outline=tuple((x, y) for x, y in value["outline"]),
        laterality=value["laterality"],
        clock=value["clock"],
        distance_from_nipple_mm=_decimal(value["distance_from_nipple_mm"]),
        extent=None
        if value["extent"] is None
        else Extent(*(Decimal(text) for text in value["extent"])),
        descriptors={FieldKey(k): tuple(v) for k, v in value["descriptors"].items()},
        category=value["category"],
        probability=_decimal(value["probability"]),
    )


def _text(number: Decimal | None) -> str | None:
    return None if number is None else str(number)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
