"""A signed report as other systems store it: IHE RAD-141, Store Multimedia Report.

A transaction Bundle with one DiagnosticReport, its ImagingStudy and its orders; the
patient, people and organizations are referred to, since a hospital has them already.
Everything is created under identifiers by which a repository knows it again: the same
Bundle twice stores it once.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from fhir.content import concepts, site
from fhir.encoding.wire import Json, as_list, reference_parts
from fhir.multimedia.text import narrative
from node.domain.report import Report, ReportStatus
from node.paper import HTML

IMR = "https://profiles.ihe.net/RAD/IMR"
_PROFILE = f"{IMR}/StructureDefinition"
_REPORT_NUMBER = f"{concepts.BASE}/identifier/report"
_VERSION_NUMBER = f"{concepts.BASE}/identifier/report-version"
_REPLACES = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"
# What a repository cannot use, or gives itself.
_OURS = ("id", "meta", "extension", "result", "text")
_INTENTS = frozenset(
    ("order", "original-order", "reflex-order", "filler-order", "instance-order")
)


@dataclass(frozen=True)
class Around:
    """The resources of a signed report as they are stored, and its forms by address.

    `search_patient`: the repository finds its own Patient by her number; else it is
    given the address of ours. `names` are those of who is only referred to.
    """

    report: Json = field(repr=False)
    patient: Json = field(repr=False)
    study: Json | None = field(default=None, repr=False)
    orders: Sequence[Json] = field(default=(), repr=False)
    forms: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    base_url: str = ""
    search_patient: bool = True
    names: Mapping[str, str] = field(default_factory=dict, repr=False)


def store_bundle(report: Report, around: Around) -> Json:
    """Return the Bundle that creates the newest version of a signed report."""
    version, maker = report.current, _Maker(around)
    resource = _bare(around.report)
    resource["meta"] = {"profile": [f"{_PROFILE}/imr-diagnosticreport"]}
    resource["text"] = narrative(version, maker.rendered)
    resource["identifier"] = [
        *as_list(around.report.get("identifier")),
        *_numbers(report, version.number),
    ]
    before = report.last_signed(before=version.number)
    if before is not None:
        earlier = {
            "type": "DiagnosticReport",
            "identifier": _version_number(report, before.number),
        }
        resource["extension"] = [{"url": _REPLACES, "valueReference": earlier}]
    resource["presentedForm"] = [
        _with_data(form, around.forms) for form in _html_first(resource)
    ]
    known_by = _search_of([_version_number(report, version.number)])
    entries = [maker.entry(around.report, resource, known_by), *maker.surroundings()]
    return {
        "resourceType": "Bundle",
        "meta": {"profile": [f"{_PROFILE}/imr-store-multimedia-report-bundle"]},
        "type": "transaction",
        "entry": entries,
    }


def withdrawal_bundle(report: Report, around: Around) -> Json:
    """Return the Bundle that marks every signed version as entered in error.

    RAD-141 knows no withdrawal: this is FHIR's own conditional update, of what was
    stored. What the report said is not in it.
    """
    maker, known = _Maker(around), around.report
    entries = []
    for version in report.versions:
        if not version.signed:
            continue
        number = _version_number(report, version.number)
        resource = {
            "resourceType": "DiagnosticReport",
            "identifier": _numbers(report, version.number),
            "status": ReportStatus.ENTERED_IN_ERROR.value,
            "category": known["category"],
            "code": known["code"],
            "subject": known["subject"],
            "performer": [site.DEPARTMENT],
        }
        url = f"DiagnosticReport?{_search_of([number])}"
        request = {"method": "PUT", "url": url}
        entries.append({"resource": maker.linked(resource), "request": request})
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


class _Maker:
    """Makes entries of what we have stored; holds where it stands here."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._base = around.base_url
        self._patient = self._patient_reference()

    def entry(self, known: Json, resource: Json, known_by: str) -> Json:
        kind = known["resourceType"]
        return {
            "fullUrl": f"{self._base}/{kind}/{known['id']}",
            "resource": self.linked(resource),
            "request": {"method": "POST", "url": kind, "ifNoneExist": known_by},
        }

    def surroundings(self) -> Iterator[Json]:
        """Yield the study and the orders; those that IMR does not take stay ours."""
        study = self._around.study
        if study is not None and "started" in study:
            shown = _bare(study) | {
                "meta": {"profile": [f"{_PROFILE}/imr-imagingstudy"]}
            }
            uid = [i for i in study["identifier"] if i["system"] == concepts.DICOM_UID]
            yield self.entry(study, shown, _search_of(uid))
        for order in self._around.orders:
            numbers = as_list(order.get("identifier"))
            named = any(_is(i, concepts.ACCESSION_TYPE) for i in numbers)
            if named and order.get("intent") in _INTENTS and "contained" not in order:
                shown = _bare(order) | {
                    "meta": {"profile": [f"{_PROFILE}/imr-servicerequest"]}
                }
                yield self.entry(order, shown, _search_of(numbers))

    def linked(self, value: Any) -> Any:
        """Return a resource whose references lead somewhere from outside."""
        if isinstance(value, list):
            return [self.linked(item) for item in value]
        if not isinstance(value, dict):
            return value
        parts = reference_parts(value)
        if parts is None or not self._is_here(value["reference"]):
            return {key: self.linked(item) for key, item in value.items()}
        if parts == ("Patient", self._around.patient["id"]):
            return self._patient
        local = "/".join(parts)
        told = {"reference": f"{self._base}/{local}", "type": parts[0]}
        name = self._around.names.get(local)
        return value | told | ({"display": name} if name else {})

    def _is_here(self, reference: str) -> bool:
        return ":" not in reference or reference.startswith(f"{self._base}/")

    def rendered(self, sop_instance_uid: str, frame: int) -> str | None:
        """Return where an image of the study is seen ready to be presented."""
        study = self._around.study
        for series in as_list(study and study.get("series")):
            uids = (instance["uid"] for instance in as_list(series.get("instance")))
            if study is not None and sop_instance_uid in uids:
                return (
                    f"{self._base.removesuffix('/fhir')}/dicom-web/studies/"
                    f"{study['id']}/series/{series['uid']}/instances/"
                    f"{sop_instance_uid}/frames/{frame}/rendered"
                )
        return None

    def _patient_reference(self) -> Json:
        patient = self._around.patient
        numbers = as_list(patient.get("identifier"))
        hers = [i for i in numbers if _is(i, concepts.MRN_TYPE)] or numbers
        address = f"{self._base}/Patient/{patient['id']}"
        told: Json = {"reference": address, "type": "Patient"}
        if hers and hers[0].get("value"):
            number = {k: hers[0][k] for k in ("system", "value") if k in hers[0]}
            told["identifier"] = number
            if self._around.search_patient:
                told["reference"] = f"Patient?{_search_of([number])}"
        return told


def _is(identifier: Json, kind: Json) -> bool:
    wanted = kind["coding"][0]
    codings = as_list(identifier.get("type", {}).get("coding"))
    told = ((c.get("system"), c.get("code")) for c in codings)
    return (wanted["system"], wanted["code"]) in told


def _bare(resource: Json) -> Json:
    return {key: value for key, value in resource.items() if key not in _OURS}


def _numbers(report: Report, number: int) -> list[Json]:
    own = {"system": _REPORT_NUMBER, "value": str(report.id)}
    return [own, _version_number(report, number)]


def _version_number(report: Report, number: int) -> Json:
    return {"system": _VERSION_NUMBER, "value": f"{report.id}-v{number}"}


def _search_of(identifiers: Sequence[Json]) -> str:
    """Return the search that finds what has all of these identifiers."""
    tokens = [
        f"{_escaped(i['system'])}|{_escaped(i['value'])}"
        for i in identifiers
        if i.get("system") and i.get("value")
    ]
    return urlencode([("identifier", token) for token in tokens], quote_via=quote)


def _escaped(text: str) -> str:
    r"""Return a value in which `,`, `|`, `$` and `\` mean themselves (R4 3.1.1.4.0)."""
    for sign in ("\\", "$", ",", "|"):
        text = text.replace(sign, f"\\{sign}")
    return text


def _html_first(resource: Json) -> list[Json]:
    forms = as_list(resource.get("presentedForm"))
    return sorted(forms, key=lambda form: form["contentType"] != HTML)


def _with_data(form: Json, forms: Mapping[str, bytes]) -> Json:
    kept = {key: value for key, value in form.items() if key != "url"}
    return kept | {"data": base64.b64encode(forms[form["url"]]).decode()}
