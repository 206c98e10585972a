"""The CapabilityStatement, generated from the tables that the server works by."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fhir.audit.events import BALP_PROFILES
from fhir.audit.reading import SEARCHED
from fhir.conformance.definitions import FOUND_BY, own_parameter, profiles_of
from fhir.encoding.formats import FORMATS, PATCH_FORMATS
from fhir.encoding.wire import Json
from fhir.search.parameters import COMMON, PARAMETERS, Parameter
from fhir.security.access import DEFINED, PERMITS, Interaction

_OPERATION = "http://hl7.org/fhir/OperationDefinition"
_VALIDATE = f"{_OPERATION}/Resource-validate"
_BULK = "http://hl7.org/fhir/uv/bulkdata/OperationDefinition"
_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport"
_SMART = {
    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
    "code": "SMART-on-FHIR",
}
_OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
# IHE IMR is claimed as Report Creator where reports are sent (RAD-141). Not as Report
# Repository: queries and renderings (RAD-143, RAD-144) are answered, reports that
# others have written are not taken.
_IMR = "https://profiles.ihe.net/RAD/IMR"
# What is followed throughout.
_GUIDES = (
    "http://hl7.org/fhir/smart-app-launch/ImplementationGuide/hl7.fhir.uv.smart-app-launch",
    "http://hl7.org/fhir/uv/bulkdata/ImplementationGuide/hl7.fhir.uv.bulkdata",
    f"{_BACKPORT}/ImplementationGuide/hl7.fhir.uv.subscriptions-backport",
)
# Operations by type ("" for the system): their names and where they are defined.
OPERATIONS: Mapping[str, Mapping[str, str]] = {
    "CodeSystem": {"lookup": f"{_OPERATION}/CodeSystem-lookup"},
    "ValueSet": {
        name: f"{_OPERATION}/ValueSet-{name}" for name in ("expand", "validate-code")
    },
    "": {"export": f"{_BULK}/export"},
    "Patient": {
        "everything": "http://hl7.org/fhir/OperationDefinition/Patient-everything",
        "export": f"{_BULK}/patient-export",
    },
    "Subscription": {
        name: f"{_BACKPORT}/OperationDefinition/backport-subscription-{name}"
        for name in ("status", "events", "resend", "get-ws-binding-token")
    },
}
# What an EHR keeps itself and may name by its own identifiers when it changes it.
CONDITIONALLY_UPDATED = frozenset({"Patient", "ServiceRequest"})
# Profiles of others that what is served here follows, and names.
_FOLLOWED: Mapping[str, Sequence[str]] = {
    "AuditEvent": BALP_PROFILES,
    "Subscription": (f"{_BACKPORT}/StructureDefinition/backport-subscription",),
}
_SYSTEM = {
    "transaction": "Edits one report: PUT or PATCH of DiagnosticReport and Observation"
    " with ifMatch, POST Provenance (reason) and Communication (the patient was told)."
    " Or stores Patient, Practitioner and ServiceRequest together, with references by"
    " fullUrl or by search, ifNoneExist and conditional updates; reads and searches"
    " come last",
    "batch": "Every entry as a request of its own would be answered",
}
_SENDER: Json = {
    "mode": "client",
    "documentation": "Stores signed reports in the repositories of the site, and marks"
    " them as entered in error there when they are withdrawn",
    "interaction": [
        {
            "code": "transaction",
            "documentation": f"{_IMR}/StructureDefinition/"
            "imr-store-multimedia-report-bundle",
        }
    ],
}
_ASKED = (
    "Modifiers :not and :missing, :exact of names, :identifier and :[type] of"
    " references; chains and _has of one level; _include and _revinclude with :iterate,"
    " and * for every reference of a type; _sort by _lastUpdated, _id and the dates of"
    " a type; _count, _total, _summary, _elements. What is not understood is left out"
    " and told, or refused with Prefer: handling=strict. PATCH of what a search finds"
    " is taken where a conditional update is. Nothing is deleted: DELETE is 405 and"
    " says what is done instead."
)


def capability_statement(
    base_url: str,
    version: str,
    at: datetime,
    topics: Sequence[str],
    *,
    sends_reports: bool = False,
) -> Json:
    """Return what this server does, R4 4.0.1, and nothing that it does not.

    `sends_reports`: to the repositories of the site, as a client of theirs.
    """
    told = _statement(base_url, version, at, topics)
    if sends_reports:
        told["instantiates"].append(f"{_IMR}/CapabilityStatement/IHE.IMR.ReportCreator")
        told["implementationGuide"].append(f"{_IMR}/ImplementationGuide/ihe.rad.imr")
        told["rest"].append(_SENDER)
    return told


def _statement(
    base_url: str, version: str, at: datetime, topics: Sequence[str]
) -> Json:
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": at.date().isoformat(),
        "kind": "instance",
        "instantiates": [
            f"{_BACKPORT}/CapabilityStatement/backport-subscription-server-r4"
        ],
        "implementationGuide": list(_GUIDES),
        "software": {"name": "sononode", "version": version},
        "implementation": {
            "description": "Breast ultrasound integration node",
            "url": base_url,
        },
        "fhirVersion": "4.0.1",
        "format": list(FORMATS),
        "patchFormat": list(PATCH_FORMATS),
        "rest": [
            {
                "mode": "server",
                "documentation": _ASKED,
                "security": {
                    "cors": False,
                    "extension": [_oauth_uris(base_url.removesuffix("/fhir"))],
                    "service": [{"coding": [_SMART]}],
                    "description": "Bearer token; every interaction is default-deny",
                },
                "resource": [_resource(kind, topics) for kind in sorted(PERMITS)],
                "interaction": [
                    {"code": code, "documentation": told}
                    for code, told in _SYSTEM.items()
                ],
                "operation": _operations(""),
            }
        ],
    }


def _operations(kind: str) -> list[Json]:
    offered = dict(OPERATIONS.get(kind, {}))
    if Interaction.VALIDATE in PERMITS.get(kind, {}):
        offered["validate"] = _VALIDATE
    return [{"name": name, "definition": where} for name, where in offered.items()]


def _oauth_uris(root: str) -> Json:
    """Return where tokens are had; SMART's discovery document says more."""
    places = ("authorize", "token", "introspect", "revoke")
    return {
        "url": _OAUTH_URIS,
        "extension": [{"url": p, "valueUri": f"{root}/auth/{p}"} for p in places],
    }


def _resource(kind: str, topics: Sequence[str]) -> Json:
    offered = PERMITS[kind]
    resource: Json = {
        "type": kind,
        "interaction": [
            {"code": code.value}
            for code in Interaction
            if code in offered and code is not Interaction.VALIDATE
        ],
        "versioning": "versioned-update"
        if Interaction.UPDATE in offered and kind != "Task"
        else "versioned"
        if Interaction.VREAD in offered
        else "no-version",
        "readHistory": Interaction.VREAD in offered,
        "updateCreate": False,
        "conditionalCreate": Interaction.CREATE in offered
        and kind in ("Patient", "ServiceRequest", "Practitioner"),
        "conditionalRead": "full-support"
        if Interaction.VREAD in offered
        else "not-match"
        if kind in DEFINED or kind == "Binary"
        else "not-supported",
        "conditionalUpdate": kind in CONDITIONALLY_UPDATED,
        "conditionalDelete": "not-supported",
        "referencePolicy": ["literal", "logical"],
    }
    profiles = [*profiles_of(kind), *_FOLLOWED.get(kind, ())]
    if profiles:
        resource["supportedProfile"] = profiles
    if kind == "Subscription":
        resource["extension"] = [
            {
                "url": f"{_BACKPORT}/StructureDefinition/capabilitystatement-"
                "subscriptiontopic-canonical",
                "valueCanonical": topic,
            }
            for topic in topics
        ]
    operations = _operations(kind)
    if operations:
        resource["operation"] = operations
    parameters = PARAMETERS.get(kind, ())
    includes = [f"{kind}:{p.name}" for p in parameters if p.kind == "reference"]
    if includes:
        resource["searchInclude"] = includes
    reverse = [
        f"{source}:{p.name}"
        for source in sorted(PARAMETERS)
        for p in PARAMETERS[source]
        if kind in p.targets
    ]
    if reverse:
        resource["searchRevInclude"] = reverse
    if Interaction.SEARCH in offered:
        if kind == "Task":
            searched = [
                {"name": "_id", "type": "token"},
                {"name": "status", "type": "token"},
            ]
        elif kind == "AuditEvent":
            searched = [{"name": name, "type": type_} for name, type_ in SEARCHED]
        elif kind in DEFINED:
            searched = [{"name": n, "type": k} for n, (k, _) in FOUND_BY.items()]
        else:
            searched = [
                _searched(kind, name, p)
                for p in (*parameters, *COMMON)
                for name in (p.name, p.also)
                if name
            ]
            searched += [
                {"name": "_id", "type": "token"},
                {"name": "_lastUpdated", "type": "date"},
            ]
        resource["searchParam"] = searched
    return resource


def _searched(kind: str, name: str, parameter: Parameter) -> Json:
    told = {"name": name, "type": parameter.kind}
    own = own_parameter(kind, parameter.name)
    return told if own is None else {**told, "definition": own}
