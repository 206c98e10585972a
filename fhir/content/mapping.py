"""From the domain to FHIR R4 resources: pure functions, plain dicts, Decimals.

One report becomes a DiagnosticReport and Observations whose ids follow from the
report's, so that a retry writes the same resources (ids: `observation_id`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from fhir.content import concepts, places, site
from fhir.content.concepts import SUFFIX_OF_FIELD, codeable
from fhir.encoding.wire import Json, instant
from node.domain import lexicon
from node.domain.finding import STUDY_INCOMPLETE, Findings, Lesion, NotRead
from node.domain.lexicon import FieldKey
from node.domain.report import (
    SIGNED,
    Author,
    AuthorKind,
    Conclusions,
    Report,
    ReportStatus,
    ReportVersion,
)
from node.domain.study import PatientIdentity, StudyRecord

_ORDER_CONFLICT = (
    "影像所指的申请单属于另一位患者，未关联，请核对"
    " / The images name an order of another patient; it is not linked. Please check."
)
_GENDER = {"F": "female", "M": "male", "O": "other"}
SEX = {gender: sex for sex, gender in _GENDER.items()}


@dataclass(frozen=True)
class Systems:
    """The identifier systems of the site.

    `mrn` names patient ids that modalities send without an issuer; `accession`
    names accession numbers; `ae_title` names machines by their AE title.
    """

    mrn: str
    accession: str
    ae_title: str = "urn:sononode:ae-title"


@dataclass(frozen=True)
class InstanceOf:
    """One instance as ImagingStudy lists it."""

    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    modality: str


@dataclass(frozen=True)
class Exam:
    """What surrounds a report: when it was, its order and accession number.

    `service_requests` are the ids of the orders that the EHR has sent. With
    `order_conflict` the images name an order of another patient, which is none of hers.
    """

    study_date: date | None
    accession_number: str = ""
    service_requests: tuple[str, ...] = ()
    order_conflict: bool = False

    @property
    def based_on(self) -> Json:
        """Return the element basedOn of what answers the orders, if there are any."""
        orders = [{"reference": f"ServiceRequest/{i}"} for i in self.service_requests]
        return {"basedOn": orders} if orders else {}


@dataclass(frozen=True)
class Model:
    """The reading model as a Device: what a Device id stands for."""

    name: str
    version: str
    weights_sha256: str = ""


# --- around the report ----------------------------------------------------------


def to_patient(patient_id: UUID, identity: PatientIdentity, systems: Systems) -> Json:
    """Return the Patient with full identity; masking is `fhir.content.masked`."""
    patient: Json = {"resourceType": "Patient", "id": str(patient_id)}
    identifiers = []
    if identity.patient_id:
        system = identity.issuer or systems.mrn
        identifiers.append(
            {"type": concepts.MRN_TYPE, "system": system, "value": identity.patient_id}
        )
    if identity.id_number:
        identifiers.append(
            {"type": concepts.NATIONAL_TYPE, "value": identity.id_number}
        )
    if identifiers:
        patient["identifier"] = identifiers
    names = _human_names(identity.name)
    if names:
        patient["name"] = names
    if identity.phone:
        patient["telecom"] = [{"system": "phone", "value": identity.phone}]
    if identity.sex:
        patient["gender"] = _GENDER.get(identity.sex, "unknown")
    if identity.birth_date is not None:
        patient["birthDate"] = identity.birth_date.isoformat()
    patient["managingOrganization"] = site.HOSPITAL
    return patient


def _human_names(name: str) -> list[Json]:
    """Return one HumanName for each group of a DICOM PN (PS3.5 6.2.1), 汉字 first."""
    groups = [*name.split("="), "", ""][:3]
    names = []
    for index, code in ((1, "IDE"), (0, "ABC"), (2, "SYL")):
        parts = [part.strip() for part in groups[index].split("^")]
        words = [part for part in parts[:3] if part]
        if not words:
            continue
        joined = "" if not "".join(words).isascii() else " "
        human: Json = {"text": joined.join(words)}
        if parts[0]:
            human["family"] = parts[0]
        given = [part for part in parts[1:3] if part]
        if given:
            human["given"] = given
        if index == 1 or groups[1].strip("^ "):
            human["extension"] = [
                {"url": concepts.NAME_REPRESENTATION, "valueCode": code}
            ]
        names.append(human)
    return names


def to_imaging_study(
    study: StudyRecord,
    exam: Exam,
    description: str,
    instances: Sequence[InstanceOf],
    systems: Systems,
) -> Json:
    """Return the ImagingStudy; its id is the Study Instance UID."""
    identifiers: list[Json] = [
        {
            "system": concepts.DICOM_UID,
            "value": f"urn:oid:{study.study_instance_uid}",
        }
    ]
    if exam.accession_number:
        identifiers.append(_accession(exam, systems))
    resource: Json = {
        "resourceType": "ImagingStudy",
        "id": study.study_instance_uid,
        "identifier": identifiers,
        "status": "available",
        "modality": [concepts.ULTRASOUND],
        "subject": {"reference": f"Patient/{study.patient_id}"},
    }
    if study.study_date is not None:
        resource["started"] = study.study_date.isoformat()
    resource |= exam.based_on
    resource["endpoint"] = [site.DICOM_WEB]
    series = _series(instances)
    resource["numberOfSeries"] = len(series)
    resource["numberOfInstances"] = len(instances)
    if exam.order_conflict:
        resource["note"] = [{"text": _ORDER_CONFLICT}]
    if description:
        resource["description"] = description
    if series:
        resource["series"] = series
    return resource


def _series(instances: Sequence[InstanceOf]) -> list[Json]:
    by_uid: dict[str, Json] = {}
    for instance in instances:
        series = by_uid.setdefault(
            instance.series_instance_uid,
            {
                "uid": instance.series_instance_uid,
                "modality": {"system": concepts.DCM, "code": instance.modality},
                "numberOfInstances": 0,
                "endpoint": [site.DICOM_WEB],
                "instance": [],
            },
        )
        series["numberOfInstances"] += 1
        series["instance"].append(
            {
                "uid": instance.sop_instance_uid,
                "sopClass": {
                    "system": "urn:ietf:rfc:3986",
                    "code": f"urn:oid:{instance.sop_class_uid}",
                },
            }
        )
    return list(by_uid.values())


def _accession(exam: Exam, systems: Systems) -> Json:
    return {
        "type": concepts.ACCESSION_TYPE,
        "system": systems.accession,
        "value": exam.accession_number,
    }


def to_device(author: Author, model: Model | None) -> Json:
    """Return the Device that stands for the reading model (IHE IDR 6.7.3.6.1)."""
    device: Json = {
        "resourceType": "Device",
        "id": author.id,
        "status": "active",
        "deviceName": [{"name": author.display or author.id, "type": "model-name"}],
        "type": codeable(lexicon.ARTIFICIAL_INTELLIGENCE),
    }
    if model is None:
        return device
    device["deviceName"][0]["name"] = model.name
    device["version"] = [{"type": {"text": "software"}, "value": model.version}]
    if model.weights_sha256:
        device["version"].append(
            {"type": {"text": "weights-sha256"}, "value": model.weights_sha256}
        )
        device["distinctIdentifier"] = model.weights_sha256
    return device


def to_practitioner(practitioner_id: str, display: str) -> Json:
    """Return the Practitioner behind an account of the node."""
    return {
        "resourceType": "Practitioner",
        "id": practitioner_id,
        "active": True,
        "name": _human_names(display) if "^" in display else [{"text": display}],
    }


# --- the report -------------------------------------------------------------------


def to_diagnostic_report(report: Report, exam: Exam, systems: Systems) -> Json:
    """Return the DiagnosticReport of the newest version."""
    version = report.current
    resource: Json = {"resourceType": "DiagnosticReport", "id": str(report.id)}
    if version.author.kind is AuthorKind.ALGORITHM:
        resource["meta"] = {"security": [concepts.AI_ASSERTED]}
    extensions = [
        _not_read(item)
        for item in version.findings.not_read
        if item.reason != STUDY_INCOMPLETE  # fhir.completeness tells it
    ]
    if version.conclusions.patient_summary:
        extensions.append(patient_summary(version.conclusions.patient_summary))
    if extensions:
        resource["extension"] = extensions
    if exam.accession_number:
        resource["identifier"] = [_accession(exam, systems)]
    resource |= exam.based_on
    resource |= {
        "status": version.status.value,
        "category": [concepts.RADIOLOGY],
        "code": codeable(lexicon.REPORT_CODES["U"]),
        "subject": {"reference": f"Patient/{report.patient_id}"},
    }
    if exam.study_date is not None:
        resource["effectiveDateTime"] = exam.study_date.isoformat()
    resource |= signature(version)
    # R4 has no Device here: who drafted is in Observation.device and Provenance.
    resource["performer"] = [site.DEPARTMENT]
    resource["result"] = results(report)
    resource["imagingStudy"] = [
        {"reference": f"ImagingStudy/{report.study_instance_uid}"}
    ]
    if version.conclusions.impression:
        resource["conclusion"] = version.conclusions.impression
    return resource


def signature(version: ReportVersion) -> Json:
    """Return what sign-off adds to a DiagnosticReport: when, and by whom."""
    if version.status not in SIGNED:
        return {}
    return {
        "issued": instant(version.at),
        "resultsInterpreter": [{"reference": f"Practitioner/{version.author.id}"}],
    }


def results(report: Report) -> list[Json]:
    """Return DiagnosticReport.result: the root of each lesion, then the exam level."""
    numbers = lesion_numbers(report)
    ids = [
        f"{report.id}-l{numbers[lesion.tracking_uid]}"
        for lesion in report.current.findings.lesions
    ]
    ids += [f"{report.id}-category", f"{report.id}-advice"]
    return [{"reference": f"Observation/{i}"} for i in ids]


def patient_summary(text: str) -> Json:
    """Return the extension with the doctor's words for the patient."""
    return {"url": concepts.PATIENT_SUMMARY, "valueString": text}


def _not_read(item: NotRead) -> Json:
    return {
        "url": concepts.NOT_READ,
        "valueString": item.zh,
        "_valueString": {"extension": [concepts.translation("en", item.en)]},
    }


def lesion_numbers(report: Report) -> dict[str, int]:
    """Return the number of every lesion that any version has had.

    A lesion keeps its number for ever, so its Observation ids never move to
    another lesion when one is withdrawn.
    """
    numbers: dict[str, int] = {}
    for version in report.versions:
        for lesion in version.findings.lesions:
            numbers.setdefault(lesion.tracking_uid, len(numbers) + 1)
    return numbers


def to_observations(report: Report, exam: Exam) -> list[Json]:
    """Return every Observation of the newest version, as its author made them."""
    maker = _Observations(report, exam)
    numbers = lesion_numbers(report)
    found: list[Json] = []
    for lesion in report.current.findings.lesions:
        found += maker.of_lesion(lesion, numbers[lesion.tracking_uid])
    return [*found, *maker.of_exam(report.current)]


class _Observations:
    """Builds the Observations of one version; holds what all of them share."""

    def __init__(self, report: Report, exam: Exam) -> None:
        self._report = report
        self._exam = exam
        self._version = report.current

    def of_lesion(self, lesion: Lesion, number: int) -> list[Json]:
        root_id = f"{self._report.id}-l{number}"
        members: list[Json] = []
        for key, suffix in SUFFIX_OF_FIELD.items():
            code = codeable(lexicon.FIELDS[key].concept, key.value)
            value = field_value(key, lesion.descriptors.get(key))
            members.append(self._make(f"{root_id}-{suffix}", code, value))
        members.append(
            self._make(
                f"{root_id}-category",
                concepts.category_code(),
                category_element(lesion.category),
            )
        )
        probability = codeable(lexicon.PROBABILITY_OF_CANCER)
        if lesion.probability is not None:
            value = {"valueQuantity": quantity(lesion.probability.scaleb(2), "%")}
            members.append(self._make(f"{root_id}-probability", probability, value))
        members.append(
            self._make(f"{root_id}-size", codeable(concepts.SIZE), size_value(lesion))
        )
        return [self._root(lesion, root_id, members), *members]

    def of_exam(self, version: ReportVersion) -> list[Json]:
        return [
            self._make(
                f"{self._report.id}-category",
                concepts.category_code(),
                category_element(version.findings.category),
            ),
            self._make(
                f"{self._report.id}-advice",
                codeable(lexicon.RECOMMENDED_FOLLOWUP),
                advice_value(version.conclusions),
            ),
        ]

    def _root(self, lesion: Lesion, root_id: str, members: list[Json]) -> Json:
        root = self._make(
            root_id, codeable(lexicon.MEASUREMENT_GROUP), place_value(lesion)
        )
        root["identifier"] = [
            {"system": concepts.DICOM_UID, "value": f"urn:oid:{lesion.tracking_uid}"}
        ]
        root["hasMember"] = [{"reference": f"Observation/{m['id']}"} for m in members]
        extensions = [places.reference_of(root_id), *_region(lesion)]
        extensions += _heat_maps(self._version.findings, lesion)
        root["extension"] = extensions
        return root

    def _make(self, observation_id: str, code: Json, value: Json) -> Json:
        observation: Json = {
            "resourceType": "Observation",
            "id": observation_id,
            "status": observation_status(self._version.status),
            "category": [concepts.IMAGING],
            "code": code,
            "subject": {"reference": f"Patient/{self._report.patient_id}"},
            "issued": instant(self._version.at),
        }
        if self._exam.study_date is not None:
            observation["effectiveDateTime"] = self._exam.study_date.isoformat()
        return (
            observation
            | self._exam.based_on
            | authorship(self._version.author)
            | {
                "derivedFrom": [
                    {"reference": f"ImagingStudy/{self._report.study_instance_uid}"}
                ]
            }
            | value
        )


def authorship(author: Author) -> Json:
    """Return the elements of an Observation that say whose value it is."""
    if author.kind is AuthorKind.ALGORITHM:
        return {
            "meta": {"security": [concepts.AI_ASSERTED]},
            "device": {"reference": f"Device/{author.id}"},
        }
    return {"performer": [{"reference": f"Practitioner/{author.id}"}]}


def observation_status(status: ReportStatus) -> str:
    """Return the Observation.status that goes with a report's status."""
    if status in (ReportStatus.PARTIAL, ReportStatus.PRELIMINARY):
        return "preliminary"
    if status is ReportStatus.APPENDED:  # earlier content stands as it was signed
        return "final"
    return status.value


def _region(lesion: Lesion) -> list[Json]:
    parts: list[Json] = []
    if lesion.image is not None:
        uid = f"urn:oid:{lesion.image.sop_instance_uid}"
        parts += [
            {"url": "sopInstanceUid", "valueOid": uid},
            {"url": "frame", "valuePositiveInt": lesion.image.frame},
        ]
    if lesion.box is not None:
        box = lesion.box
        text = f"{box.x0},{box.y0},{box.x1},{box.y1}"
        parts.append({"url": "box", "valueString": text})
    return [{"url": concepts.LESION_REGION, "extension": parts}] if parts else []


def _heat_maps(findings: Findings, lesion: Lesion) -> list[Json]:
    return [
        {"url": concepts.HEAT_MAP, "valueString": heat_map.sop_instance_uid}
        for heat_map in findings.heat_maps
        if heat_map.tracking_uid == lesion.tracking_uid
    ]


# --- values -------------------------------------------------------------------------


def field_value(key: FieldKey, values: tuple[str, ...] | None) -> Json:
    """Return the value of a descriptor: absent, none seen, one or several terms."""
    if values is None:
        return {"dataAbsentReason": concepts.absent("not-performed")}
    if not values:
        return {
            "valueCodeableConcept": {**codeable(concepts.NONE_SEEN), "text": "none"}
        }
    field = lexicon.FIELDS[key]
    terms = [codeable(field.term(value).concept, value) for value in values]
    if not field.multiple:
        return {"valueCodeableConcept": terms[0]}
    code = codeable(field.concept, key.value)
    return {"component": [{"code": code, "valueCodeableConcept": t} for t in terms]}


def category_element(key: str | None) -> Json:
    """Return a BI-RADS category as a value, or why there is none."""
    if key is None:
        return {"dataAbsentReason": concepts.absent("not-performed")}
    return {"valueCodeableConcept": concepts.category_value(lexicon.category(key))}


def advice_value(conclusions: Conclusions) -> Json:
    """Return the follow-up: coded, with the doctor's own words as its text."""
    value: Json = {}
    if conclusions.followup is not None:
        concept = lexicon.FOLLOWUP[conclusions.followup]
        value = codeable(concept, conclusions.followup)
        del value["text"]
    if conclusions.advice:
        value["text"] = conclusions.advice
    if not value:
        return {"dataAbsentReason": concepts.absent("not-performed")}
    return {"valueCodeableConcept": value}


def size_value(lesion: Lesion) -> Json:
    """Return the lengths of a lesion; an uncalibrated image has none."""
    if lesion.extent is None:
        return {"dataAbsentReason": concepts.absent("not-performed", "uncalibrated")}
    extent = lesion.extent
    lengths = (
        (lexicon.LONG_AXIS, extent.long_axis_mm),
        (lexicon.WIDTH, extent.width_mm),
        (lexicon.HEIGHT, extent.height_mm),
        (lexicon.LENGTH, extent.length_mm),
    )
    return {
        "component": [
            {"code": codeable(concept), "valueQuantity": quantity(length, "mm")}
            for concept, length in lengths
            if length is not None
        ]
    }


def place_value(lesion: Lesion) -> Json:
    """Return where the lesion lies: side, clock position, distance from the nipple."""
    side = lexicon.BREAST_SIDE.get(lesion.laterality or "", lexicon.BREAST)
    value: Json = {"bodySite": codeable(side)}
    components: list[Json] = []
    if lesion.clock is not None:
        clock = codeable(lexicon.CLOCK[lesion.clock])
        components.append(
            {"code": codeable(lexicon.CLOCKFACE), "valueCodeableConcept": clock}
        )
    if lesion.distance_from_nipple_mm is not None:
        distance = quantity(lesion.distance_from_nipple_mm, "mm")
        components.append(
            {
                "code": codeable(lexicon.DISTANCE_FROM_NIPPLE),
                "valueQuantity": distance,
            }
        )
    return {**value, "component": components} if components else value


def quantity(value: Decimal, unit: str) -> Json:
    """Return a Quantity in a UCUM unit."""
    return {"value": value, "unit": unit, "system": concepts.UCUM, "code": unit}


# --- provenance ---------------------------------------------------------------------


def participant(role: str) -> Json:
    """Return how an agent of a Provenance took part."""
    return {"coding": [{"system": concepts.PARTICIPANT_TYPE, "code": role}]}


def to_provenance(
    targets: Sequence[str],
    *,
    recorded: datetime,
    agents: Sequence[tuple[str, str]],
    source: str | None = None,
    revision_of: str | None = None,
    reason: str | None = None,
) -> Json:
    """Return the Provenance of versioned `targets`; agents are (role, reference)."""
    resource: Json = {
        "resourceType": "Provenance",
        "target": [{"reference": target} for target in targets],
        "recorded": instant(recorded),
    }
    if reason:
        resource["reason"] = [{"text": reason}]
    resource["agent"] = [
        {"type": participant(role), "who": {"reference": who}} for role, who in agents
    ]
    entities = [("source", source), ("revision", revision_of)]
    if any(what for _, what in entities):
        resource["entity"] = [
            {"role": role, "what": {"reference": what}}
            for role, what in entities
            if what
        ]
    return resource


def by_the_node(targets: Sequence[str], *, recorded: datetime, source: str) -> Json:
    """Return the Provenance of what the node filed by itself beside a report.

    It assembled and appended: nobody has authored or changed anything by it.
    """
    provenance = to_provenance(
        targets,
        recorded=recorded,
        agents=[("assembler", site.NODE["reference"])],
        source=source,
    )
    appended = {"system": concepts.DATA_OPERATION, "code": "APPEND"}
    return provenance | {"activity": {"coding": [appended]}}
