"""From FHIR R4 resources to the domain: what a doctor's edit says.

An edit is read as a change to the report's present findings, never as a whole
new report: what a resource does not show (outline, tracking UID) stays.
"""

from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

from fhir.content import concepts
from fhir.content.concepts import FIELD_OF_SUFFIX
from fhir.content.mapping import SEX, Systems, lesion_numbers
from fhir.encoding.wire import Json, as_list, extension
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Extent, Findings, Lesion
from node.domain.report import Conclusions, Report
from node.domain.study import PatientIdentity

WITHDRAWN = frozenset({"entered-in-error", "cancelled"})


@dataclass(frozen=True)
class Content:
    """What an edit may change: findings and the words around them."""

    findings: Findings
    conclusions: Conclusions


@dataclass(frozen=True)
class ObservationName:
    """The parts of an Observation id; `lesion` is None at exam level.

    `suffix` is empty for the root of a lesion.
    """

    report_id: str
    lesion: int | None
    suffix: str


def observation_name(observation_id: str) -> ObservationName | None:
    """Return what an Observation id says, or None when it is not one of ours."""
    report_id, rest = observation_id[:36], observation_id[36:]
    if len(report_id) != 36 or not rest.startswith("-"):
        return None
    parts = rest[1:].split("-")
    if parts in (["category"], ["advice"]):
        return ObservationName(report_id, None, parts[0])
    if not (parts[0].startswith("l") and parts[0][1:].isdecimal()):
        return None
    if len(parts) == 1:
        return ObservationName(report_id, int(parts[0][1:]), "")
    if len(parts) == 2 and parts[1] in concepts.MEMBER_SUFFIXES:
        return ObservationName(report_id, int(parts[0][1:]), parts[1])
    return None


def read_observation(content: Content, report: Report, observation: Json) -> Content:
    """Return `content` as changed by one edited Observation.

    INVALID when it says nothing that the lexicon knows, RULE when it tries to
    change what is the algorithm's alone.
    """
    name = observation_name(str(observation["id"]))
    if name is None or name.report_id != str(report.id):
        raise NodeError("the Observation does not belong to the report", ErrorKind.RULE)
    if name.lesion is None:
        return _read_exam_level(content, name.suffix, observation)
    lesion = _lesion(content.findings, report, name.lesion)
    if name.suffix == "" and observation.get("status") in WITHDRAWN:
        return replace(content, findings=_without(content.findings, lesion))
    changed = _read_lesion(lesion, name.suffix, observation)
    lesions = tuple(
        changed if item.tracking_uid == lesion.tracking_uid else item
        for item in content.findings.lesions
    )
    return replace(content, findings=replace(content.findings, lesions=lesions))


def _lesion(findings: Findings, report: Report, number: int) -> Lesion:
    numbers = lesion_numbers(report)
    for lesion in findings.lesions:
        if numbers[lesion.tracking_uid] == number:
            return lesion
    raise NodeError(
        f"lesion {number} is not in the report",
        ErrorKind.RULE,
        expression="Observation.id",
    )


def _without(findings: Findings, lesion: Lesion) -> Findings:
    uid = lesion.tracking_uid
    return replace(
        findings,
        lesions=tuple(item for item in findings.lesions if item.tracking_uid != uid),
        heat_maps=tuple(m for m in findings.heat_maps if m.tracking_uid != uid),
    )


def _read_exam_level(content: Content, suffix: str, observation: Json) -> Content:
    value = observation.get("valueCodeableConcept")
    expression = "Observation.value"
    if suffix == "category":
        key = None if value is None else concepts.category_of(value, expression)
        return replace(content, findings=replace(content.findings, category=key))
    conclusions = replace(
        content.conclusions,
        followup=None if value is None else concepts.followup_of(value, expression),
        advice="" if value is None else str(value.get("text", "")),
    )
    return replace(content, conclusions=conclusions)


def _read_lesion(lesion: Lesion, suffix: str, observation: Json) -> Lesion:
    if suffix == "":
        return _read_place(lesion, observation)
    if suffix == "size":
        return replace(lesion, extent=_read_extent(observation))
    if suffix == "probability":
        probability = _number(observation.get("valueQuantity"), "%") / 100
        if probability != lesion.probability:
            raise NodeError(
                "the probability is the algorithm's and is not edited",
                ErrorKind.RULE,
                expression="Observation.value",
            )
        return lesion
    if suffix == "category":
        value = observation.get("valueCodeableConcept")
        key = (
            None if value is None else concepts.category_of(value, "Observation.value")
        )
        return replace(lesion, category=key)
    key_of_field = FIELD_OF_SUFFIX[suffix]
    return lesion.describe(key_of_field, _read_terms(suffix, observation))


def _read_terms(suffix: str, observation: Json) -> tuple[str, ...] | None:
    """Return the terms of a descriptor; None when it was not assessed."""
    field = lexicon.FIELDS[FIELD_OF_SUFFIX[suffix]]
    single = observation.get("valueCodeableConcept")
    components = as_list(observation.get("component"))
    if single is not None and components:
        raise NodeError(
            f"{field.key.value}: use value or components, not both",
            ErrorKind.INVALID,
            expression="Observation.component",
        )
    if single is not None:
        if field is lexicon.CALCIFICATIONS and _says_none(single):
            return ()
        return (concepts.term_of(single, field, "Observation.value"),)
    if not components:
        return None
    terms = {
        concepts.term_of(
            item.get("valueCodeableConcept"),
            field,
            f"Observation.component[{index}].value",
        )
        for index, item in enumerate(components)
    }
    # In the order of the lexicon, so that the same choice is the same value.
    return tuple(term.key for term in field.terms if term.key in terms)


def _says_none(value: Any) -> bool:
    return concepts.has_code(value, concepts.NONE_SEEN)


def _read_place(lesion: Lesion, observation: Json) -> Lesion:
    laterality = None
    for side in ("L", "R"):
        if concepts.has_code(observation.get("bodySite"), lexicon.BREAST_SIDE[side]):
            laterality = side
    clock: int | None = None
    distance: Decimal | None = None
    for component in as_list(observation.get("component")):
        if concepts.has_code(component.get("code"), lexicon.CLOCKFACE):
            clock = _clock(component.get("valueCodeableConcept"))
        elif concepts.has_code(component.get("code"), lexicon.DISTANCE_FROM_NIPPLE):
            distance = _number(component.get("valueQuantity"), "mm")
    return replace(
        lesion, laterality=laterality, clock=clock, distance_from_nipple_mm=distance
    )


def _clock(value: Any) -> int:
    for hour, concept in lexicon.CLOCK.items():
        if concepts.has_code(value, concept):
            return hour
    raise NodeError(
        "the clock position is not one of 1 to 12 o'clock",
        ErrorKind.INVALID,
        expression="Observation.component.value",
    )


def _read_extent(observation: Json) -> Extent | None:
    lengths = {}
    for name, concept in (
        ("long_axis_mm", lexicon.LONG_AXIS),
        ("width_mm", lexicon.WIDTH),
        ("height_mm", lexicon.HEIGHT),
        ("length_mm", lexicon.LENGTH),
    ):
        for component in as_list(observation.get("component")):
            if concepts.has_code(component.get("code"), concept):
                lengths[name] = _number(component.get("valueQuantity"), "mm")
    if not lengths:
        return None
    if not {"long_axis_mm", "width_mm", "height_mm"} <= lengths.keys():
        raise NodeError(
            "a size needs long axis, width and height",
            ErrorKind.INVALID,
            expression="Observation.component",
        )
    return Extent(**lengths)


def _number(value: Any, unit: str) -> Decimal:
    """Return the value of a Quantity in exactly this unit; never converts."""
    fault = NodeError(
        f"a quantity in {unit} is needed",
        ErrorKind.INVALID,
        expression="Observation.value",
    )
    if not isinstance(value, dict) or value.get("code") != unit:
        raise fault
    number = value.get("value")
    if isinstance(number, bool) or not isinstance(number, int | Decimal):
        raise fault
    return Decimal(number)


def read_conclusions(conclusions: Conclusions, report: Json) -> Conclusions:
    """Return the conclusions as an edited DiagnosticReport words them."""
    summary = extension(report, concepts.PATIENT_SUMMARY) or {}
    return replace(
        conclusions,
        impression=str(report.get("conclusion", "")),
        patient_summary=str(summary.get("valueString", "")),
    )


def read_patient(patient: Json, systems: Systems) -> PatientIdentity:
    """Return who a Patient of the EHR is; INVALID without a medical record number."""
    number = medical_record_number(patient)
    if number is None:
        raise NodeError(
            "a Patient needs an identifier of type MR",
            ErrorKind.INVALID,
            expression="Patient.identifier",
        )
    system = str(number.get("system", ""))
    national = _typed_identifier(patient, "NI")
    birth = str(patient.get("birthDate", ""))
    phones = [
        str(t.get("value", ""))
        for t in as_list(patient.get("telecom"))
        if t.get("system") == "phone"
    ]
    return PatientIdentity(
        patient_id=str(number.get("value", "")),
        issuer="" if system == systems.mrn else system,
        name=person_name(as_list(patient.get("name"))),
        birth_date=date.fromisoformat(birth) if len(birth) == 10 else None,
        sex=SEX.get(str(patient.get("gender", ""))),
        id_number=str(national.get("value", "")) if national else None,
        phone=phones[0] if phones else None,
    )


def medical_record_number(patient: Json) -> Json | None:
    """Return the identifier that a Patient is known by here, None without one."""
    return _typed_identifier(patient, "MR")


def _typed_identifier(patient: Json, code: str) -> Json | None:
    for identifier in as_list(patient.get("identifier")):
        kind = identifier.get("type", {})
        for item in as_list(kind.get("coding")):
            typed = item.get("system") == concepts.IDENTIFIER_TYPE
            if typed and item.get("code") == code and identifier.get("value"):
                found: Json = identifier
                return found
    return None


def person_name(names: list[Json]) -> str:
    """Return HumanNames as a DICOM PN: alphabetic group, then ideographic."""
    alphabetic = ideographic = ""
    for name in names:
        family = str(name.get("family", ""))
        given = " ".join(str(g) for g in as_list(name.get("given")))
        text = f"{family}^{given}".rstrip("^") if family or given else ""
        text = text or str(name.get("text", ""))
        text = text.replace("=", " ")
        if text.isascii():
            alphabetic = alphabetic or text
        else:
            ideographic = ideographic or text
    return f"{alphabetic}={ideographic}" if ideographic else alphabetic
