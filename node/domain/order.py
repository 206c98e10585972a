"""An order as a scheduled procedure step: what a modality finds on its worklist.

Attributes keep their DICOM names (PS3.3 C.4.10 to C.4.12). Date and time are the
site's wall clock, as DICOM writes them; an order that names a day but no hour has no
time, and matches any.
"""

import re
from dataclasses import dataclass, field, replace
from datetime import date, time
from enum import StrEnum
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity

UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
PRIORITIES = ("STAT", "HIGH", "ROUTINE", "MEDIUM", "LOW")


class OrderStatus(StrEnum):
    """Where an order stands; the words of MPPS and, before it, of the worklist."""

    SCHEDULED = "SCHEDULED"
    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"
    CANCELLED = "CANCELLED"


OPEN = frozenset({OrderStatus.SCHEDULED, OrderStatus.IN_PROGRESS})


class OrderSource(StrEnum):
    """Who keeps the order."""

    FHIR = "fhir"
    REST = "rest"


@dataclass(frozen=True)
class Code:
    """A coded concept in DICOM's scheme designators (PS3.3 8.1)."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Step:
    """What is asked for: requested procedure and scheduled step; much of it is PHI.

    Empty ids are given by the node when the order is placed. Without
    `station_titles` the step belongs to whichever machine is free. Physicians are
    DICOM PN in Unicode.
    """

    scheduled_on: date
    scheduled_time: time | None = None
    accession_number: str = ""
    requested_procedure_id: str = ""
    requested_procedure_description: str = ""
    requested_procedure_code: Code | None = None
    step_id: str = ""
    step_description: str = ""
    step_location: str = ""
    modality: str = "US"
    station_titles: tuple[str, ...] = ()
    referring_physician: str = ""
    requesting_physician: str = ""
    performing_physician: str = ""
    placer_order_number: str = ""
    filler_order_number: str = ""
    reason: str = ""
    priority: str = ""
    study_instance_uid: str = ""

    def __post_init__(self) -> None:
        """INVALID, naming the field, where DICOM has no room for it (PS3.5 6.2)."""
        for name, length in _LENGTHS.items():
            _check_text(name, getattr(self, name), length)
        for name in _PHYSICIANS:
            _check_name(name, getattr(self, name))
        for title in self.station_titles:
            _check_text("station_titles", title, 16)
            if not title.strip() or not title.isascii():
                raise _fault("station_titles", "is no AE title")
        if not _CODE_STRING.fullmatch(self.modality):
            raise _fault("modality", "is a code such as US")
        if self.priority and self.priority not in PRIORITIES:
            raise _fault("priority", f"is one of {', '.join(PRIORITIES)}")
        uid = self.study_instance_uid
        if uid and (len(uid) > 64 or not UID.fullmatch(uid)):
            raise _fault("study_instance_uid", "is no UID")
        code = self.requested_procedure_code
        if code is not None:
            for part, length in ((code.value, 16), (code.scheme, 16)):
                _check_text("requested_procedure_code", part, length)
            _check_text("requested_procedure_code", code.meaning, 64)
            if not (code.value and code.scheme and code.meaning):
                raise _fault(
                    "requested_procedure_code", "needs value, scheme and meaning"
                )


@dataclass(frozen=True)
class Order:
    """A scheduled procedure step as the node keeps it, for one patient.

    `source_id` is the id of the FHIR ServiceRequest; empty for orders over REST.
    """

    order_id: UUID
    patient_id: UUID
    status: OrderStatus
    source: OrderSource
    source_id: str
    step: Step = field(repr=False)

    @property
    def begun(self) -> bool:
        """Tell whether the examination has begun, or is over."""
        return self.status not in (OrderStatus.SCHEDULED, OrderStatus.CANCELLED)

    def performed(self, status: OrderStatus) -> "Order":
        """Return the order as an examination moves it: forward, never back.

        A cancelled order whose examination takes place all the same was not
        cancelled for the patient on the couch.
        """
        if _RANK[status] <= _RANK[self.status]:
            return self
        return replace(self, status=status)


_RANK = {
    OrderStatus.CANCELLED: 0,
    OrderStatus.SCHEDULED: 0,
    OrderStatus.IN_PROGRESS: 1,
    OrderStatus.DISCONTINUED: 2,
    OrderStatus.COMPLETED: 3,
}
_LENGTHS = {
    "accession_number": 16,
    "requested_procedure_id": 16,
    "requested_procedure_description": 64,
    "step_id": 16,
    "step_description": 64,
    "step_location": 16,
    "placer_order_number": 64,
    "filler_order_number": 64,
    "reason": 64,
}
_PHYSICIANS = ("referring_physician", "requesting_physician", "performing_physician")


def check_identity(identity: PatientIdentity) -> None:
    """Refuse an identity that DICOM cannot carry: INVALID, naming the field."""
    if not identity.patient_id.strip():
        raise _fault("patient.patient_id", "is missing")
    if not identity.name.strip("^= "):
        raise _fault("patient.name", "is missing")
    _check_text("patient.patient_id", identity.patient_id, 64)
    _check_name("patient.name", identity.name)
    if identity.sex not in (None, "F", "M", "O"):
        raise _fault("patient.sex", "is F, M or O")


def is_somebody_else(on_file: PatientIdentity, told: PatientIdentity) -> bool:
    """Tell whether the same patient id stands for another person.

    One of name and birth date may be corrected by an order; where both differ,
    two women would become one.
    """
    names = bare_names(on_file.name), bare_names(told.name)
    births = on_file.birth_date, told.birth_date
    differs = all(names) and names[0].isdisjoint(names[1])
    return differs and None not in births and births[0] != births[1]


def bare_names(name: str) -> frozenset[str]:
    """Return each group of a DICOM PN without blanks and case, as names compare."""
    groups = ("".join(g.replace("^", " ").split()) for g in name.casefold().split("="))
    return frozenset(group for group in groups if group)


def _check_text(name: str, text: str, length: int) -> None:
    if len(text) > length:
        raise _fault(name, f"has at most {length} characters")
    if "\\" in text or any(not sign.isprintable() for sign in text):
        raise _fault(name, "holds a backslash or a control character")


def _check_name(name: str, text: str) -> None:
    groups = text.split("=")
    if len(groups) > 3 or any(g.count("^") > 4 or len(g) > 64 for g in groups):
        raise _fault(name, "is a DICOM name: up to 3 groups of up to 5 parts")
    _check_text(name, text, 3 * 64 + 2)


def _fault(name: str, told: str) -> NodeError:
    return NodeError(f"{name} {told}", ErrorKind.INVALID, expression=name)
