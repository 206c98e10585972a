"""Is this a resource that we may take: structure, codes, references, narrative.

fhirkit-rs checks types, formats, cardinality and unknown elements (FHIR R4);
what it leaves out is checked here, each with the FHIRPath of the element.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import fhirkit

from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, parse, to_bytes
from node.domain.errors import ErrorKind

MAX_ISSUES = 50
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")

# Required bindings (FHIR R4) of the elements that we take, by element path.
_CODES: Mapping[str, frozenset[str]] = {
    path: frozenset(codes.split())
    for path, codes in {
        "DiagnosticReport.status": "registered partial preliminary final amended"
        " corrected appended cancelled entered-in-error unknown",
        "Observation.status": "registered preliminary final amended corrected"
        " cancelled entered-in-error unknown",
        "Patient.gender": "male female other unknown",
        "Patient.contact.gender": "male female other unknown",
        "Practitioner.gender": "male female other unknown",
        "Patient.link.type": "replaced-by replaces refer seealso",
        "ServiceRequest.status": "draft active on-hold revoked completed"
        " entered-in-error unknown",
        "ServiceRequest.intent": "proposal plan directive order original-order"
        " reflex-order filler-order instance-order option",
        "ServiceRequest.priority": "routine urgent asap stat",
        "Communication.status": "preparation in-progress not-done on-hold stopped"
        " completed entered-in-error unknown",
        "Communication.priority": "routine urgent asap stat",
        "Provenance.entity.role": "derivation revision quotation source removal",
        "Subscription.status": "requested active error off",
        "Subscription.channel.type": "rest-hook websocket email sms message",
        "Task.status": "draft requested received accepted rejected ready cancelled"
        " in-progress on-hold failed completed entered-in-error",
        "Task.intent": "unknown proposal plan order original-order reflex-order"
        " filler-order instance-order option",
        "Bundle.type": "document message transaction transaction-response batch"
        " batch-response history searchset collection",
        "Bundle.entry.request.method": "GET HEAD POST PUT DELETE PATCH",
    }.items()
}
# The same for data types, by the name that an element with them has.
_CODES_OF_DATATYPES: Mapping[tuple[str, str], frozenset[str]] = {
    where: frozenset(codes.split())
    for where, codes in {
        ("identifier", "use"): "usual official temp secondary old",
        ("name", "use"): "usual official temp nickname anonymous old maiden",
        ("telecom", "use"): "home work temp old mobile",
        ("telecom", "system"): "phone fax email pager url sms other",
        ("address", "use"): "home work temp old billing",
        ("address", "type"): "postal physical both",
        ("text", "status"): "generated extensions additional empty",
        ("valueQuantity", "comparator"): "< <= >= >",
    }.items()
}
_TARGETS: Mapping[str, frozenset[str]] = {
    path: frozenset(targets.split())
    for path, targets in {
        "DiagnosticReport.subject": "Patient Group Device Location",
        "DiagnosticReport.basedOn": "CarePlan ImmunizationRecommendation"
        " MedicationRequest NutritionOrder ServiceRequest",
        "DiagnosticReport.encounter": "Encounter",
        "DiagnosticReport.performer": "Practitioner PractitionerRole Organization"
        " CareTeam Device",
        "DiagnosticReport.resultsInterpreter": "Practitioner PractitionerRole"
        " Organization CareTeam",
        "DiagnosticReport.specimen": "Specimen",
        "DiagnosticReport.result": "Observation",
        "DiagnosticReport.imagingStudy": "ImagingStudy",
        "DiagnosticReport.media.link": "Media",
        "Observation.subject": "Patient Group Device Location",
        "Observation.device": "Device DeviceMetric",
        "Observation.hasMember": "Observation QuestionnaireResponse MolecularSequence",
        "Observation.performer": "Practitioner PractitionerRole Organization CareTeam"
        " Patient RelatedPerson Device",
        "Observation.encounter": "Encounter",
        "Observation.specimen": "Specimen",
        "ServiceRequest.subject": "Patient Group Location Device",
        "ServiceRequest.encounter": "Encounter",
        "ServiceRequest.requester": "Practitioner PractitionerRole Organization"
        " Patient RelatedPerson Device",
        "Communication.subject": "Patient Group",
        "Communication.sender": "Device Organization Patient Practitioner"
        " PractitionerRole RelatedPerson HealthcareService",
        "Patient.generalPractitioner": "Organization Practitioner PractitionerRole",
        "Patient.managingOrganization": "Organization",
        "Provenance.agent.who": "Practitioner PractitionerRole RelatedPerson Patient"
        " Device Organization",
        "Task.owner": "Practitioner PractitionerRole Organization CareTeam"
        " HealthcareService Patient Device RelatedPerson",
    }.items()
}
_XHTML = "http://www.w3.org/1999/xhtml"
_TAGS = (
    "a abbr acronym b big blockquote br caption cite code col colgroup dd dfn div dl"
    " dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre q samp small span strong sub sup table"
    " tbody td tfoot th thead tr tt ul var"
)
_ATTRIBUTES = (
    "abbr align border cellpadding cellspacing charoff class colspan dir headers id"
    " lang name rowspan scope span summary title valign width"
)
_XHTML_TAGS = frozenset(_TAGS.split())
_XHTML_ATTRIBUTES = frozenset(_ATTRIBUTES.split())


def read_resource(raw: bytes, resource_type: str | None = None) -> Json:
    """Return the resource in `raw`; Refused with every problem that it has.

    A body that is no resource at all gets 400, a faulty resource 422
    (FHIR R4 3.1.0.1.5).
    """
    resource = parse(raw)
    told = resource.get("resourceType")
    if not isinstance(told, str) or told not in fhirkit.RESOURCE_TYPES:
        raise Refused([Issue("structure", "the body is not a FHIR R4 resource")], 400)
    if resource_type is not None and told != resource_type:
        message = f"the body is a {told}, the address says {resource_type}"
        raise Refused([Issue("invalid", message, "resourceType")], 400)
    check(resource, raw)
    return resource


def check(resource: Json, raw: bytes | None = None) -> None:
    """Raise Refused with every problem of a resource; return when there is none."""
    issues = list(_structure(to_bytes(resource) if raw is None else raw))
    # Structure first: the other checks may then rely on the shape of elements.
    if not issues:
        issues = list(_walk(resource, resource["resourceType"], ""))
    if issues:
        raise Refused(issues[:MAX_ISSUES], 422, ErrorKind.INVALID)


def _structure(raw: bytes) -> Iterator[Issue]:
    try:
        found = fhirkit.validate(raw)
    except ValueError as error:
        raise Refused([Issue("structure", _short(str(error)))], 400) from None
    for issue in found:
        if issue.severity == "error":
            missing = "missing" in issue.message or "required" in issue.message
            code = "required" if missing else "structure"
            yield Issue(code, _short(issue.message), issue.path or None)


def _short(message: str) -> str:
    """Return a message without the value that it quotes: it may name somebody."""
    return re.sub(r'"[^"]*"', "the value", message)[:200]


def _walk(element: Any, path: str, where: str) -> Iterator[Issue]:
    """Yield the problems of an element and all below it.

    `path` has indexes (FHIRPath), `where` is the same without them.
    """
    if isinstance(element, list):
        for index, item in enumerate(element):
            yield from _walk(item, f"{path}[{index}]", where)
        return
    if not isinstance(element, dict):
        return
    if "resourceType" in element:
        where = str(element["resourceType"])
        yield from _whole_resource(element, path)
    yield from _codes(element, path, where)
    yield from _reference(element, path, where)
    yield from _narrative(element, path)
    for key, value in element.items():
        if key.lstrip("_") in ("extension", "modifierExtension"):
            yield from _extensions(value, f"{path}.{key}")
        yield from _walk(value, f"{path}.{key}", f"{where}.{key}")


def _whole_resource(resource: Json, path: str) -> Iterator[Issue]:
    own_id = resource.get("id")
    if own_id is not None and not _ID.fullmatch(str(own_id)):
        yield Issue("value", "an id is 1 to 64 of A-Z a-z 0-9 - .", f"{path}.id")
    contained = {str(item.get("id")) for item in as_list(resource.get("contained"))}
    for reference, at in _references(resource, path, top=True):
        text = reference.get("reference")
        local = isinstance(text, str) and text.startswith("#") and len(text) > 1
        if local and str(text)[1:] not in contained:
            yield Issue("invariant", "ref-1: nothing contained has this id", at)
    if resource["resourceType"] == "Observation":
        yield from _observation(resource, path)


def _references(element: Any, path: str, *, top: bool) -> Iterator[tuple[Json, str]]:
    """Yield the references of a resource, not those of resources inside a Bundle."""
    if isinstance(element, list):
        for index, item in enumerate(element):
            yield from _references(item, f"{path}[{index}]", top=False)
    elif isinstance(element, dict):
        inner_resource = "resourceType" in element and not top
        if inner_resource and ".contained" not in path:
            return
        if "reference" in element:
            yield element, path
        for key, value in element.items():
            yield from _references(value, f"{path}.{key}", top=False)


def _observation(resource: Json, path: str) -> Iterator[Issue]:
    has_value = any(key.startswith("value") for key in resource)
    if has_value and "dataAbsentReason" in resource:
        yield Issue(
            "invariant",
            "obs-6: a value, or the reason why there is none",
            f"{path}.dataAbsentReason",
        )


def _codes(element: Json, path: str, where: str) -> Iterator[Issue]:
    parent = where.rpartition(".")[2]
    for key, value in element.items():
        if not isinstance(value, str):
            continue
        allowed = _CODES.get(f"{where}.{key}")
        if allowed is None:
            allowed = _CODES_OF_DATATYPES.get((parent, key))
        if allowed is not None and value not in allowed:
            words = ", ".join(sorted(allowed))
            yield Issue("code-invalid", f"must be one of {words}", f"{path}.{key}")


def _reference(element: Json, path: str, where: str) -> Iterator[Issue]:
    text = element.get("reference")
    allowed = _TARGETS.get(where)
    if not isinstance(text, str) or allowed is None:
        return
    match = re.search(r"(?:^|/)([A-Z][A-Za-z]+)/[^/]+(?:/_history/[^/]+)?$", text)
    told = element.get("type")
    kind = match[1] if match else told
    if text.startswith(("#", "urn:")):
        kind = told
    elif match is None:
        yield Issue("value", "not a reference to a resource", f"{path}.reference")
    if kind is not None and kind not in allowed:
        words = ", ".join(sorted(allowed))
        yield Issue("value", f"must refer to {words}", f"{path}.reference")
    if match and told is not None and told != match[1]:
        yield Issue("value", "type and reference differ", f"{path}.type")


def _extensions(value: Any, path: str) -> Iterator[Issue]:
    if "modifierExtension" in path.rpartition(".")[2]:
        yield Issue(
            "extension", "a modifier extension that this node does not know", path
        )
    for index, item in enumerate(as_list(value)):
        if not isinstance(item, dict):
            continue
        has_value = any(key.lstrip("_").startswith("value") for key in item)
        if has_value == ("extension" in item):
            yield Issue(
                "invariant",
                "ext-1: an extension has a value or extensions, and not both",
                f"{path}[{index}]",
            )


def _narrative(element: Json, path: str) -> Iterator[Issue]:
    div = element.get("div")
    if not isinstance(div, str):
        return
    fault = _xhtml_fault(div)
    if fault is not None:
        yield Issue("invariant", f"txt-1: {fault}", f"{path}.div")


def _xhtml_fault(text: str) -> str | None:
    if "<!" in text or "<?" in text:
        return "no declarations, comments or processing instructions"
    if re.search(r"&(?!#\d+;|#x[0-9A-Fa-f]+;|(?:lt|gt|amp|quot|apos);)", text):
        return "an entity that XML does not have"
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no declarations, see above
    except (ElementTree.ParseError, ValueError, RecursionError):
        return "not well-formed XHTML"
    if root.tag != f"{{{_XHTML}}}div":
        return "not a div of XHTML"
    for element in root.iter():
        namespace, _, tag = element.tag.rpartition("}")
        if namespace != f"{{{_XHTML}" or tag not in _XHTML_TAGS:
            return "an element that is not basic formatting"
        for name, value in element.attrib.items():
            link = name == "href" and tag == "a" and value.startswith(("#", "https:"))
            if name not in _XHTML_ATTRIBUTES and not link:
                return "an attribute that is not basic formatting"
    return None
