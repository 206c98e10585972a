"""What the acts of the audit trail are called in DICOM (PS3.15 A.5.3) and in FHIR.

The trail keeps the node's own words. AuditEvents and DICOM audit messages are made
of them on the way out, by this one table: an act that is not in it is an application
activity, so that nothing falls out of an export.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from node.domain.audit import AuditEntry

DCM = "http://dicom.nema.org/resources/ontology/DCM"
REST = "http://terminology.hl7.org/CodeSystem/audit-event-type"
INTERACTION = "http://hl7.org/fhir/restful-interaction"
RESTFUL = "rest"

MEANINGS: Mapping[str, str] = {
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110106": "Export",
    "110109": "Order Record",
    "110110": "Patient Record",
    "110111": "Procedure Record",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
    "110122": "Login",
    "110123": "Logout",
    "110126": "Node Authentication",
    "110129": "Security Configuration",
    "110131": "Software Configuration",
    "110137": "User Security Attributes Changed",
}


@dataclass(frozen=True)
class Act:
    """An act in DICOM's words; `interaction` is FHIR's where it came over /fhir.

    `letter` is C, R, U, D or E (create, read, update, delete, execute).
    """

    code: str
    letter: str
    subtype: str | None = None
    interaction: str | None = None

    @property
    def meaning(self) -> str:
        """Return what DICOM calls the code."""
        return MEANINGS[self.code]


_FHIR: Mapping[str, Act] = {
    "read": Act("110110", "R", interaction="read"),
    "vread": Act("110110", "R", interaction="vread"),
    "history-instance": Act("110110", "R", interaction="history-instance"),
    "history-type": Act("110110", "R", interaction="history-type"),
    "search-type": Act("110112", "E", interaction="search-type"),
    "create": Act("110110", "C", interaction="create"),
    "update": Act("110110", "U", interaction="update"),
    "patch": Act("110110", "U", interaction="patch"),
    "delete": Act("110110", "D", interaction="delete"),
    "transaction": Act("110110", "E", interaction="transaction"),
    "batch": Act("110110", "E", interaction="batch"),
}
_OPERATION = Act("110110", "E", interaction="operation")
_ACTS: Mapping[str, Act] = {
    "dicom-web retrieve": Act("110104", "R"),
    "dicom-web video": Act("110104", "R"),
    "dicom-web search": Act("110112", "E"),
    "query": Act("110112", "E"),
    "retrieve": Act("110104", "R"),
    "create": Act("110104", "C"),
    "delete": Act("110104", "D"),
    "read": Act("110109", "R"),
    "associate": Act("110113", "E", "110126"),
    "export": Act("110106", "R"),
    "export-training": Act("110106", "R"),
    "print report": Act("110106", "R"),
    "print binding": Act("110106", "R"),
    "store report": Act("110110", "R"),
    "disclose": Act("110110", "E"),
    "logout": Act("110114", "E", "110123"),
    "logout sign-on": Act("110114", "E", "110123"),
    "token": Act("110114", "E", "110122"),
    "launch": Act("110114", "E", "110122"),
    "fhir-create": Act("110110", "C"),
    "fhir-update": Act("110110", "U"),
    "record outcome": Act("110110", "C"),
}
_BEGINNINGS: tuple[tuple[str, Act], ...] = (
    ("dicom-web ", Act("110103", "R")),
    ("login ", Act("110114", "E", "110122")),
    ("auth ", Act("110114", "E")),
    ("report-", Act("110110", "U")),
    ("order-", Act("110109", "U")),
    ("performed-step", Act("110111", "U")),
    ("step-", Act("110111", "U")),
    ("user-", Act("110113", "U", "110137")),
    ("client-", Act("110113", "U", "110129")),
    ("subscription-secret", Act("110113", "U", "110129")),
    ("keys-", Act("110113", "U", "110129")),
    ("signing-key", Act("110113", "U", "110129")),
    ("model-", Act("110100", "U", "110131")),
    ("audit-", Act("110101", "R")),
    ("review/audit ", Act("110101", "R")),
    ("consent-", Act("110110", "U")),
)
_ANY = Act("110100", "E")
_PAGE = {
    "read": Act("110110", "R"),
    "create": Act("110110", "E"),
    "update": Act("110110", "U"),
    "delete": Act("110110", "D"),
}


def act_of(action: str) -> Act:
    """Return what an action of the trail is in the words of the standards."""
    area, _, rest = action.partition(" ")
    if area == "fhir" and rest:
        if rest.startswith("operation "):
            return _OPERATION
        return _FHIR.get(rest, _ANY)
    known = _ACTS.get(action)
    if known is not None:
        return known
    for beginning, act in _BEGINNINGS:
        if action.startswith(beginning):
            return act
    if area.partition("/")[0] in ("review", "orders"):
        return _PAGE.get(rest, _ANY)
    return _ANY


def code_of(action: str) -> str:
    """Return an action as a code of our own: `fhir operation $x`, fhir-operation-x."""
    return "-".join(action.replace("/", " ").replace("$", "").split()) or "other"


def patients_of(entry: AuditEntry) -> list[str]:
    """Return whom an entry is about, as the index of the trail finds it."""
    told = [entry.detail.get("patients", ""), entry.detail.get("patient", "")]
    kind, _, rest = entry.entity.partition("/")
    if kind.lower() == "patient":
        told.insert(0, rest)
    return list(dict.fromkeys(word for text in told for word in _uuids(text)))


def _uuids(text: str) -> Iterable[str]:
    for word in text.replace("/", " ").split():
        if len(word) == 36 and word.count("-") == 4:
            yield word
