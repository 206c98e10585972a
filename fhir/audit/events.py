"""AuditEvents, made of entries of the trail when they are asked for (IHE BALP 1.1).

Nothing is stored twice. An entry that opened the data of several patients is told
as one event for each of them, as BALP asks of a search, with ids `17-1`, `17-2`.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fhir.content import concepts
from fhir.encoding.wire import Json
from fhir.security.access import PERMITS
from node.domain.audit import AuditEntry, Outcome
from node.domain.audit_codes import (
    DCM,
    INTERACTION,
    REST,
    RESTFUL,
    Act,
    act_of,
    code_of,
    patients_of,
)
from node.recording import UNKNOWN_ID
from node.store.audit import Recorded

BALP = "https://profiles.ihe.net/ITI/BALP"
# The node's own words for acts.
OWN_SYSTEM = f"{concepts.BASE}/CodeSystem/audit-action"
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_JTI = "urn:ietf:params:oauth:jti:"
_ID = re.compile(r"([1-9]\d{0,17})(?:-([1-9]\d{0,4}))?")
_PROFILES = {
    "read": "Read",
    "vread": "Read",
    "search-type": "Query",
    "create": "Create",
    "update": "Update",
    "patch": "Update",
}
# Every profile of IHE BALP that an AuditEvent can name.
BALP_PROFILES = tuple(
    f"{BALP}/StructureDefinition/IHE.BasicAudit.{whose}{name}"
    for name in dict.fromkeys(_PROFILES.values())
    for whose in ("", "Patient")
)
# Reads hand data to the client; for everything else it is the source (BALP).
_HANDED_OUT = frozenset({"R"})
# What has an element of its own in the event.
_TOLD = frozenset(
    {"request", "address", "client", "token", "query", "patients", "patient"}
    | {"version"}
)
_OUTCOMES = {
    Outcome.REFUSED: "refused",
    Outcome.FAILED: "failed",
    Outcome.UNAVAILABLE: "failed: a part of the node was not there",
}


@dataclass(frozen=True)
class Person:
    """Who an actor's id stands for."""

    name: str
    practitioner_id: str | None = None


@dataclass(frozen=True)
class Teller:
    """What every event names besides: our address, and who the actors are."""

    base_url: str
    actors: Mapping[str, Person] = field(default_factory=dict)

    def events(self, recorded: Recorded) -> list[Json]:
        """Return the events of an entry, one for each patient in it."""
        patients = patients_of(recorded.entry)
        if len(patients) < 2:
            return [self._event(recorded, str(recorded.sequence), patients)]
        return [
            self._event(recorded, f"{recorded.sequence}-{place}", [patient])
            for place, patient in enumerate(patients, 1)
        ]

    def _event(self, recorded: Recorded, id_: str, patients: list[str]) -> Json:
        entry = recorded.entry
        act = act_of(entry.action)
        at = entry.at.isoformat(timespec="microseconds")
        event: Json = {
            "resourceType": "AuditEvent",
            "id": id_,
            "meta": {"lastUpdated": at},
            "type": _type(act),
            "subtype": self._subtypes(entry, act),
            "action": act.letter,
            "recorded": at,
            "outcome": entry.outcome.value,
        }
        profile = _profile(entry, act, patients)
        if profile is not None:
            event["meta"]["profile"] = [profile]
        if entry.outcome is not Outcome.SUCCESS:
            reason = entry.detail.get("reason") or _OUTCOMES[entry.outcome]
            status = entry.detail.get("status")
            event["outcomeDesc"] = f"{reason} ({status})" if status else reason
        purpose = _purpose(entry)
        if purpose is not None:
            event["purposeOfEvent"] = [{"coding": [purpose]}]
        event["agent"] = self._agents(entry, act)
        event["source"] = {
            "site": self.base_url,
            "observer": self._itself(),
            "type": [_coding("security-source-type", "4", "Application Server")],
        }
        entities = [*_entities(entry, act), *map(_patient, patients)]
        if entities:
            event["entity"] = entities
        return event

    def _subtypes(self, entry: AuditEntry, act: Act) -> list[Json]:
        told: list[Json] = []
        if act.interaction is not None:
            told.append({"system": INTERACTION, "code": act.interaction})
        if act.subtype is not None:
            told.append({"system": DCM, "code": act.subtype})
        own = {
            "system": OWN_SYSTEM,
            "code": code_of(entry.action),
            "display": entry.action,
        }
        return [*told, own]

    # --- who --------------------------------------------------------------------------

    def _agents(self, entry: AuditEntry, act: Act) -> list[Json]:
        source, destination = ("110153", "Source"), ("110152", "Destination")
        client, server = (
            (destination, source)
            if act.letter in _HANDED_OUT
            else (source, destination)
        )
        known = entry.actor not in ("", "unknown")
        agents = []
        address = entry.detail.get("address")
        if address is not None:
            caller = entry.detail.get("client") or address or "unknown"
            who: Json = {"identifier": {"value": caller}}
            if caller in self.actors:
                who["display"] = self.actors[caller].name
            agents.append(
                {
                    "type": _role(client),
                    "who": who,
                    "requestor": not known,
                    "network": {"address": address or "unknown", "type": "2"},
                }
            )
            agents.append(
                {
                    "type": _role(server),
                    "who": self._itself(),
                    "requestor": False,
                    "network": {"address": self.base_url, "type": "5"},
                }
            )
        if known or not agents:
            agents.append(self._user(entry))
        return agents

    def _user(self, entry: AuditEntry) -> Json:
        person = self.actors.get(entry.actor)
        who: Json = {
            "identifier": {
                "system": user_system(self.base_url),
                "value": entry.actor or "unknown",
            }
        }
        user: Json = {
            "type": {
                "coding": [
                    _coding("v3-ParticipationType", "IRCP", "information recipient")
                ]
            }
        }
        roles = [role for role in entry.role.split(",") if role]
        if roles:
            user["role"] = [{"text": role} for role in roles]
        if person is not None:
            user["name"] = who["display"] = person.name
            if person.practitioner_id:
                who["reference"] = f"Practitioner/{person.practitioner_id}"
        user["who"] = who
        user["requestor"] = True
        if entry.detail.get("token"):
            user["policy"] = [_JTI + entry.detail["token"]]
        return user

    def _itself(self) -> Json:
        return {
            "identifier": {"system": "urn:ietf:rfc:3986", "value": self.base_url},
            "display": "sononode",
        }


def read_id(text: str) -> tuple[int, int] | None:
    """Return entry and place that an event's id names; place 0 for the only one."""
    match = _ID.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2] or 0))


def user_system(base_url: str) -> str:
    """Return the system of the ids of accounts, programs and AE titles."""
    return f"{base_url}/audit-actor"


# --- what -----------------------------------------------------------------------------


def _entities(entry: AuditEntry, act: Act) -> list[Json]:
    told: list[Json] = []
    query = entry.detail.get("query")
    if query is not None:
        told.append(
            {
                "type": _object("2", "System Object"),
                "role": _coding("object-role", "24", "Query"),
                "query": base64.b64encode(query.encode()).decode(),
            }
        )
    what = _what(entry)
    if what is not None and not (act.letter == "E" and query is not None):
        told.append(
            {
                "what": what,
                "type": _object("2", "System Object"),
                "role": _data_role(entry.entity),
                **_details(entry),
            }
        )
    elif what is None or query is not None:
        more = _details(entry)
        if more:
            # BALP wants no detail beside a query: the circumstances stand apart.
            told.append({"type": _object("4", "Other"), **more})
    request = entry.detail.get("request")
    if request:
        told.append(
            {
                "what": {"identifier": {"value": request}},
                "type": {
                    "system": f"{BALP}/CodeSystem/BasicAuditEntityType",
                    "code": "XrequestId",
                },
            }
        )
    return told


def _what(entry: AuditEntry) -> Json | None:
    kind, _, rest = entry.entity.partition("/")
    if rest == UNKNOWN_ID or kind == UNKNOWN_ID:
        return None
    if kind in ("study", "series", "instance") and rest:
        return {"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{rest}"}}
    if kind == "report" and rest:
        return {"reference": f"DiagnosticReport/{rest.partition('/')[0]}"}
    if kind in PERMITS and rest:
        version = entry.detail.get("version")
        suffix = f"/_history/{version}" if version and "/" not in rest else ""
        return {"reference": f"{entry.entity}{suffix}"}
    return {"identifier": {"value": entry.entity}} if entry.entity else None


def _details(entry: AuditEntry) -> Json:
    told = [
        {"type": key, "valueString": value}
        for key, value in sorted(entry.detail.items())
        if key not in _TOLD and value
    ]
    return {"detail": told} if told else {}


def _patient(patient_id: str) -> Json:
    return {
        "what": {"reference": f"Patient/{patient_id}"},
        "type": _object("1", "Person"),
        "role": _coding("object-role", "1", "Patient"),
    }


def _data_role(entity: str) -> Json:
    if entity.startswith(("DiagnosticReport", "report/")):
        return _coding("object-role", "3", "Report")
    if entity.startswith(("Task", "job/")):
        return _coding("object-role", "20", "Job")
    return _coding("object-role", "4", "Domain Resource")


def _type(act: Act) -> Json:
    if act.interaction is not None:
        return {"system": REST, "code": RESTFUL, "display": "RESTful Operation"}
    return {"system": DCM, "code": act.code, "display": act.meaning}


def _profile(entry: AuditEntry, act: Act, patients: list[str]) -> str | None:
    name = _PROFILES.get(act.interaction or "")
    if name is None or entry.outcome is not Outcome.SUCCESS:
        return None
    whose = "Patient" if patients else ""
    return f"{BALP}/StructureDefinition/IHE.BasicAudit.{whose}{name}"


def _purpose(entry: AuditEntry) -> Json | None:
    """Return what an act is for, where the act itself says so."""
    if entry.action == "export-training":
        return _coding("v3-ActReason", "HRESCH", "healthcare research")
    if entry.action.startswith("report-") or entry.action == "disclose":
        return _coding("v3-ActReason", "TREAT", "treatment")
    return None


def _role(role: tuple[str, str]) -> Json:
    code, name = role
    return {"coding": [{"system": DCM, "code": code, "display": f"{name} Role ID"}]}


def _object(code: str, display: str) -> Json:
    return _coding("audit-entity-type", code, display)


def _coding(system: str, code: str, display: str) -> Json:
    return {"system": f"{_TERMINOLOGY}/{system}", "code": code, "display": display}
