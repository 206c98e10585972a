"""Codes, systems, extension URLs and ids that our resources share.

Everything clinical comes from `node.domain.lexicon`; here stands only how FHIR
R4 writes it down.
"""

from typing import Any

from fhir.encoding.wire import Json, as_list
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.lexicon import Category, Concept, Field, FieldKey

BASE = "https://fhir.sononode.org"
PRIVATE = lexicon.FHIR_SYSTEM[lexicon.PRIVATE_SCHEME]

MASKED_REPORT = f"{BASE}/StructureDefinition/masked-report"
PATIENT_SUMMARY = f"{BASE}/StructureDefinition/patient-summary"
NOT_READ = f"{BASE}/StructureDefinition/not-read"
LESION_REGION = f"{BASE}/StructureDefinition/lesion-region"
STUDY_COMPLETENESS = f"{BASE}/StructureDefinition/study-completeness"
LATE_IMAGES = f"{BASE}/StructureDefinition/late-images"
ABOUT_STUDY = frozenset({STUDY_COMPLETENESS, LATE_IMAGES})
HEAT_MAP = f"{BASE}/StructureDefinition/heat-map"
PATIENT_AGE = f"{BASE}/StructureDefinition/patient-age"
TRANSLATION = "http://hl7.org/fhir/StructureDefinition/translation"
NAME_REPRESENTATION = (
    "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
)
# Observation.bodySite is a code in R4; this points to the BodyStructure it means.
BODY_SITE = "http://hl7.org/fhir/StructureDefinition/bodySite"
DISTANCE_FROM_NIPPLE = f"{BASE}/StructureDefinition/distance-from-nipple"
DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"

DICOM_UID = "urn:dicom:uid"
DCM = lexicon.FHIR_SYSTEM["DCM"]
SCT = lexicon.FHIR_SYSTEM["SCT"]
UCUM = lexicon.FHIR_SYSTEM["UCUM"]
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
IDENTIFIER_TYPE = f"{TERMINOLOGY}/v2-0203"
OBSERVATION_VALUE = f"{TERMINOLOGY}/v3-ObservationValue"
DATA_OPERATION = f"{TERMINOLOGY}/v3-DataOperation"
PARTICIPANT_TYPE = f"{TERMINOLOGY}/provenance-participant-type"
ABSENT_REASON = f"{TERMINOLOGY}/data-absent-reason"

ACCESSION_TYPE: Json = {
    "coding": [{"system": IDENTIFIER_TYPE, "code": "ACSN", "display": "Accession ID"}]
}
MRN_TYPE: Json = {
    "coding": [
        {"system": IDENTIFIER_TYPE, "code": "MR", "display": "Medical record number"}
    ]
}
NATIONAL_TYPE: Json = {
    "coding": [
        {"system": IDENTIFIER_TYPE, "code": "NI", "display": "National unique ID"}
    ]
}
AI_ASSERTED: Json = {
    "system": OBSERVATION_VALUE,
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
REDACTED: Json = {"system": OBSERVATION_VALUE, "code": "REDACTED"}
SUBSETTED: Json = {"system": OBSERVATION_VALUE, "code": "SUBSETTED"}
IMAGING: Json = {
    "coding": [{"system": f"{TERMINOLOGY}/observation-category", "code": "imaging"}]
}
ULTRASOUND: Json = {"system": DCM, "code": "US", "display": "Ultrasound"}
RADIOLOGY: Json = {
    "coding": [
        {"system": f"{TERMINOLOGY}/v2-0074", "code": "RUS"},
        {"system": lexicon.FHIR_SYSTEM["LN"], "code": "LP29684-5"},
    ]
}

# IHE IDR codes the BI-RADS assessment with the SNOMED concept of the Dutch edition.
_BI_RADS_SNOMED = {"system": SCT, "code": "146611000146107"}
NONE_SEEN = lexicon.CALCIFICATIONS_NONE
# Our keys for what an Observation is about, where the lexicon has none for it.
CATEGORY_KEY = "assessment_category"
SIZE = Concept(lexicon.PRIVATE_SCHEME, "SIZE", "Size", "大小", "Size")

# How the member Observations of a lesion end their ids.
SUFFIX_OF_FIELD: dict[FieldKey, str] = {
    FieldKey.SHAPE: "shape",
    FieldKey.ORIENTATION: "orientation",
    FieldKey.MARGIN: "margin",
    FieldKey.LESION_BOUNDARY: "boundary",
    FieldKey.CALCIFICATIONS: "calcification",
    FieldKey.ECHO_PATTERN: "echo",
    FieldKey.POSTERIOR_FEATURES: "posterior",
}
FIELD_OF_SUFFIX = {suffix: field for field, suffix in SUFFIX_OF_FIELD.items()}
MEMBER_SUFFIXES = (*FIELD_OF_SUFFIX, "category", "probability", "size")


def coding(concept: Concept) -> Json | None:
    """Return the Coding of a lexicon concept; None when FHIR has no system for it."""
    system = lexicon.FHIR_SYSTEM.get(concept.scheme)
    if system is None:
        return None
    return {"system": system, "code": concept.value, "display": concept.meaning}


def codeable(concept: Concept, key: str | None = None) -> Json:
    """Return the CodeableConcept of a concept, with our own key as a translation."""
    codings = [coding(concept)]
    if key is not None:
        codings.append({"system": PRIVATE, "code": key})
    return {"coding": [c for c in codings if c], "text": concept.zh}


def translation(lang: str, text: str) -> Json:
    """Return the extension that says the same in another language (BCP 47)."""
    return {
        "url": TRANSLATION,
        "extension": [
            {"url": "lang", "valueCode": lang},
            {"url": "content", "valueString": text},
        ],
    }


def category_value(category: Category) -> Json:
    """Return a BI-RADS category: our code first, then the translations there are."""
    codings: list[Json | None] = [
        {"system": PRIVATE, "code": category.key, "display": category.concept.en},
        coding(category.concept),
        {"system": lexicon.RADLEX_CDE, "code": category.radlex_cde},
    ]
    return {"coding": [c for c in codings if c], "text": category.concept.zh}


def category_code() -> Json:
    """Return the code of an Observation that holds a BI-RADS category."""
    code = codeable(lexicon.ASSESSMENT_CATEGORY, CATEGORY_KEY)
    code["coding"].insert(1, dict(_BI_RADS_SNOMED))
    return code


def absent(code: str, text: str | None = None) -> Json:
    """Return a dataAbsentReason."""
    reason: Json = {"coding": [{"system": ABSENT_REASON, "code": code}]}
    return reason if text is None else {**reason, "text": text}


def _codes(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return []
    return [
        (str(c.get("system", "")), str(c.get("code", "")))
        for c in as_list(value.get("coding"))
        if isinstance(c, dict)
    ]


def has_code(value: Any, concept: Concept) -> bool:
    """Tell whether a CodeableConcept says `concept`."""
    system = lexicon.FHIR_SYSTEM.get(concept.scheme)
    return (system, concept.value) in _codes(value)


def term_of(value: Any, field: Field, expression: str) -> str:
    """Return the key of the lexicon term that a CodeableConcept says.

    INVALID when it says none, or two of them in different codings: a client
    that changed one coding and forgot the other must not decide by luck.
    """
    known = {(PRIVATE, term.key): term.key for term in field.terms}
    for term in field.terms:
        own = coding(term.concept)
        if own is not None:
            known[own["system"], own["code"]] = term.key
    return _only(value, known, field.key.value, expression)


def category_of(value: Any, expression: str) -> str:
    """Return the BI-RADS key that a CodeableConcept says; INVALID when none or two."""
    known: dict[tuple[str, str], str] = {}
    for category in lexicon.CATEGORIES.values():
        for own in category_value(category)["coding"]:
            known[own["system"], own["code"]] = category.key
    return _only(value, known, "assessment_category", expression)


def followup_of(value: Any, expression: str) -> str | None:
    """Return the key of the recommended follow-up; None when it has only words."""
    if not _codes(value):
        return None
    known: dict[tuple[str, str], str] = {}
    for key, concept in lexicon.FOLLOWUP.items():
        known[PRIVATE, key] = key
        own = coding(concept)
        if own is not None:
            known[own["system"], own["code"]] = key
    return _only(value, known, "recommended follow-up", expression)


def _only(
    value: Any, known: dict[tuple[str, str], str], what: str, expression: str
) -> str:
    said = {known[code] for code in _codes(value) if code in known}
    if len(said) == 1:
        return said.pop()
    fault = "its codings say different things" if said else "no coding that we know"
    raise NodeError(f"{what}: {fault}", ErrorKind.INVALID, expression=expression)
