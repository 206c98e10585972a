"""What of a resource leaves for whom: doctors see masked identities, phones less.

Both are allow-lists or explicit replacements; the rules themselves are
`node.domain.disclosure`'s.
"""

from collections.abc import Callable, Mapping
from datetime import date

from fhir.content import concepts
from fhir.content.reading import person_name
from fhir.encoding.wire import Json, as_list
from node.domain import lexicon
from node.domain.disclosure import PatientReport, last_four, mask_name, mask_phone
from node.domain.study import PatientIdentity

_STRUCTURE = f"{concepts.BASE}/StructureDefinition"
PATIENT_HANDLE = f"{concepts.BASE}/patient-handle"


def for_doctor(resource: Json, today: date) -> Json:
    """Return a resource as somebody sees it who does not see identities."""
    mask = _FOR_DOCTOR.get(resource["resourceType"])
    return resource if mask is None else mask(resource, today)


def is_masked(resource: Json) -> bool:
    """Tell whether a resource says of itself that something was taken out."""
    meta = resource.get("meta", {})
    labels = [*as_list(meta.get("security")), *as_list(meta.get("tag"))]
    return any(
        isinstance(label, dict) and label.get("code") in {"REDACTED", "SUBSETTED"}
        for label in labels
    )


def _patient(resource: Json, today: date) -> Json:
    masked: Json = {
        "resourceType": "Patient",
        "id": resource["id"],
        "meta": _redacted(resource.get("meta", {})),
        "name": [{"text": mask_name(person_name(as_list(resource.get("name"))))}],
    }
    age = _age(resource, today)
    if age is not None:
        masked["extension"] = [{"url": concepts.PATIENT_AGE, "valueString": age}]
    phones = [
        {"system": "phone", "value": mask_phone(str(t.get("value", "")))}
        for t in as_list(resource.get("telecom"))
        if t.get("system") == "phone"
    ]
    if phones:
        masked["telecom"] = phones
    if "gender" in resource:
        masked["gender"] = resource["gender"]
    if "active" in resource:
        masked["active"] = resource["active"]
    links = [
        {"other": {"reference": told}, "type": link.get("type")}
        for link in as_list(resource.get("link"))
        if (told := link.get("other", {}).get("reference"))
    ]
    if links:
        masked["link"] = links
    if "birthDate" in resource:
        reason = {"url": concepts.DATA_ABSENT, "valueCode": "masked"}
        masked["_birthDate"] = {"extension": [reason]}
    return masked


def _age(resource: Json, today: date) -> str | None:
    text = str(resource.get("birthDate", ""))
    if len(text) != 10:
        return None
    identity = PatientIdentity("", "", birth_date=date.fromisoformat(text))
    return str(identity.age_at(today))


def _redacted(meta: Json) -> Json:
    kept: Json = {k: meta[k] for k in ("versionId", "lastUpdated") if k in meta}
    return {**kept, "security": [*as_list(meta.get("security")), concepts.REDACTED]}


def _study(resource: Json, today: date) -> Json:
    masked = _report(resource, today)
    return masked | {"meta": _redacted(resource.get("meta", {}))}


def _order(resource: Json, _: date) -> Json:
    """Keep of an order what identifies the exam; its free text may name people."""
    kept = (
        "resourceType",
        "id",
        "status",
        "intent",
        "priority",
        "code",
        "bodySite",
        "authoredOn",
        "occurrenceDateTime",
        "reasonCode",
    )
    masked = {key: resource[key] for key in kept if key in resource}
    subject = resource.get("subject", {}).get("reference")
    if subject:
        masked["subject"] = {"reference": subject}
    identifiers = _identifiers(resource)
    if identifiers:
        masked["identifier"] = identifiers
    return masked | {"meta": _redacted(resource.get("meta", {}))}


def _report(resource: Json, _: date) -> Json:
    """Shorten accession numbers only, so that the report can be sent back edited."""
    if "identifier" not in resource:
        return resource
    return resource | {"identifier": _identifiers(resource)}


def _identifiers(resource: Json) -> list[Json]:
    return [_identifier(i) for i in as_list(resource.get("identifier"))]


def _identifier(identifier: Json) -> Json:
    if identifier.get("system") == concepts.DICOM_UID:
        return identifier
    masked = {k: identifier[k] for k in ("type", "system") if k in identifier}
    return masked | {"value": last_four(str(identifier.get("value", "")))}


_FOR_DOCTOR: Mapping[str, Callable[[Json, date], Json]] = {
    "Patient": _patient,
    "ServiceRequest": _order,
    "ImagingStudy": _study,
    "DiagnosticReport": _report,
}


MASKED_TYPES = frozenset(_FOR_DOCTOR)
# Their own labels and profiles are left out as well.
UNLABELLED_TYPES = frozenset({"Patient", "ServiceRequest", "ImagingStudy"})


def to_masked_report(report: PatientReport) -> Json:
    """Return the DiagnosticReport that the relay gets: only what `report` holds."""
    resource: Json = {
        "resourceType": "DiagnosticReport",
        "id": report.handle,
        "meta": {"profile": [concepts.MASKED_REPORT], "security": [concepts.REDACTED]},
        "extension": _facts(report),
        "status": report.status.value,
        "code": {"coding": [_code()]},
        "subject": {
            "identifier": {"system": PATIENT_HANDLE, "value": report.patient_handle},
            "display": report.display,
        },
    }
    if report.examined_on is not None:
        resource["effectiveDateTime"] = report.examined_on.isoformat()
    return resource


def _code() -> Json:
    code = concepts.coding(lexicon.REPORT_CODES["U"])
    if code is None:
        raise ValueError("LOINC has no FHIR system")
    return code


def _facts(report: PatientReport) -> list[Json]:
    facts: list[Json] = [
        _fact("release-state", "valueCode", report.state.value),
        _fact("report-version", "valuePositiveInt", report.version),
        _fact("exam-kind", "valueString", lexicon.REPORT_CODES["U"].zh),
    ]
    optional = [
        ("patient-age", "valueString", report.age),
        ("department-phone", "valueString", report.department_phone),
        ("category", "valueCode", report.category),
        ("patient-summary", "valueString", report.patient_summary),
    ]
    if report.text is not None:
        optional += [
            ("patient-text-zh", "valueString", report.text.text_zh),
            ("patient-text-en", "valueString", report.text.text_en),
            ("advice-zh", "valueString", report.text.advice_zh),
            ("advice-en", "valueString", report.text.advice_en),
        ]
    facts += [_fact(name, kind, value) for name, kind, value in optional if value]
    for point in report.trend:
        parts: list[Json] = []
        if point.laterality is not None:
            parts.append({"url": "side", "valueCode": point.laterality})
        if point.clock is not None:
            parts.append({"url": "clock", "valuePositiveInt": point.clock})
        if point.size_mm is not None:
            parts.append({"url": "size_mm", "valueDecimal": point.size_mm})
        if parts:
            facts.append({"url": f"{_STRUCTURE}/trend-point", "extension": parts})
    return facts


def _fact(name: str, kind: str, value: object) -> Json:
    return {"url": f"{_STRUCTURE}/{name}", kind: value}
