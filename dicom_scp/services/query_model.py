"""The information models of query and retrieve: what an Identifier asks (PS3.4 C.3).

A hierarchical request names one entity at every level above the one it asks about; the
unique keys are Patient ID and the UIDs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_scp.services.answers import Identifier, NotAnIdentifier
from dicom_scp.services.matching import PN_GROUPS, Element, Key, date_range, name_parts
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store.catalogue import Narrowing


class Level(IntEnum):
    """Query/Retrieve Level (0008,0052), from above."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


LEVEL: Final = "00080052"
PATIENT_NAME, PATIENT_ID, ISSUER = "00100010", "00100020", "00100021"
STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"
STUDY_DATE, ACCESSION_NUMBER = "00080020", "00080050"
MODALITIES_IN_STUDY: Final = "00080061"

UNIQUE_KEYS: Final = {
    Level.PATIENT: PATIENT_ID,
    Level.STUDY: STUDY_UID,
    Level.SERIES: SERIES_UID,
    Level.IMAGE: INSTANCE_UID,
}
# Query/Retrieve Level and View: how a question is asked, not what.
_NOT_ASKED: Final = frozenset({LEVEL, "00080053"})

UNABLE: Final = 0xC001  # Unable to process
PATIENT_ROOT: Final = tuple(Level)
STUDY_ROOT: Final = (Level.STUDY, Level.SERIES, Level.IMAGE)
FIND_MODELS: Final = {
    "1.2.840.10008.5.1.4.1.2.1.1": PATIENT_ROOT,
    "1.2.840.10008.5.1.4.1.2.2.1": STUDY_ROOT,
}
MOVE_MODELS: Final = {
    "1.2.840.10008.5.1.4.1.2.1.2": PATIENT_ROOT,
    "1.2.840.10008.5.1.4.1.2.2.2": STUDY_ROOT,
}
GET_MODELS: Final = {
    "1.2.840.10008.5.1.4.1.2.1.3": PATIENT_ROOT,
    "1.2.840.10008.5.1.4.1.2.2.3": STUDY_ROOT,
}


@dataclass(frozen=True)
class Asked:
    """What an Identifier asks: a level, and keys by tag (JSON form)."""

    level: Level
    keys: Mapping[str, Key]

    def key(self, tag: str) -> Key:
        """Return the key of this tag; one that matches everything when not asked."""
        return self.keys.get(tag) or Key(tag, "UI")

    @property
    def narrowing(self) -> Narrowing:
        """Return what the database can look for; the rest is matched afterwards."""
        first, last = date_range(self.key(STUDY_DATE))
        name = self.key(PATIENT_NAME)
        modalities = self.key(MODALITIES_IN_STUDY)
        plain = not any(sign in text for text in modalities.values for sign in "*?")
        return Narrowing(
            study_uids=self._uids(STUDY_UID),
            series_uids=self._uids(SERIES_UID),
            instance_uids=self._uids(INSTANCE_UID),
            patient_number=self.key(PATIENT_ID).single,
            name_parts=name_parts(name.values[0]) if len(name.values) == 1 else (),
            accession_number=self.key(ACCESSION_NUMBER).single,
            first_date=first,
            last_date=last,
            modalities=modalities.values if plain else (),
        )

    def _uids(self, tag: str) -> tuple[str, ...]:
        key = self.key(tag)
        return () if key.universal else key.values


def read_asked(
    identifier: Identifier, levels: Sequence[Level], *, relational: bool = False
) -> Asked:
    """Return what `identifier` asks of a model with these levels.

    Raises NotAnIdentifier for a level that the model lacks and, unless `relational`,
    where a level above is not named by the single value of its unique key (PS3.4
    C.4.1.2.2.1).
    """
    level = _level(identifier, levels)
    keys = {key.tag: key for key in identifier.keys if _is_asked(key.tag)}
    asked = Asked(level, keys)
    for above in () if relational else levels:
        tag = UNIQUE_KEYS[above]
        if above < level and not asked.key(tag).single:
            raise NotAnIdentifier(tag, f"has to name one {above.name}")
    return asked


def require_retrievable(asked: Asked) -> None:
    """Raise NotAnIdentifier unless values say what to retrieve (PS3.4 C.4.2.2.1)."""
    tag = UNIQUE_KEYS[asked.level]
    key = asked.key(tag)
    if key.universal or any(sign in text for text in key.values for sign in "*?"):
        raise NotAnIdentifier(tag, "has to say what to retrieve")


def _level(identifier: Identifier, levels: Sequence[Level]) -> Level:
    key = identifier.key(LEVEL)
    told = key.values[0].upper() if key is not None and key.values else ""
    for level in levels:
        if told == level.name:
            return level
    raise NotAnIdentifier(LEVEL, "is no level of this model")


def _is_asked(tag: str) -> bool:
    return tag not in _NOT_ASKED and tag[4:] != "0000"


def person_name(name: str) -> Element:
    """Return a PN as an element of the JSON model."""
    groups = zip(PN_GROUPS, name.split("="), strict=False)
    present = {key: value for key, value in groups if value}
    return {"vr": "PN", "Value": [present]} if present else {"vr": "PN"}


def identity_element(tag: str, identity: PatientIdentity) -> Element | None:
    """Return what an identity says of an attribute of the patient; None: nothing."""
    birth = identity.birth_date
    return {
        PATIENT_NAME: person_name(identity.name),
        PATIENT_ID: element_of("LO", identity.patient_id),
        ISSUER: element_of("LO", identity.issuer),
        "00100030": element_of("DA", birth.strftime("%Y%m%d") if birth else ""),
        "00100040": element_of("CS", identity.sex or ""),
    }.get(tag)


def other_ids(
    told: Element | None, others: Iterable[PatientIdentity]
) -> Element | None:
    """Return Other Patient IDs Sequence (PS3.3 table C.7-1).

    What images have `told`, and the numbers under which the same woman is here too.
    """
    items = list((told or {}).get("Value") or ())
    known = {_number_of(item) for item in items}
    for identity in others:
        number = {PATIENT_ID: identity.patient_id, ISSUER: identity.issuer}
        item = {tag: element_of("LO", text) for tag, text in number.items() if text}
        item["00100022"] = element_of("CS", "TEXT")
        if identity.patient_id.strip() and _number_of(item) not in known:
            items.append(item)
    return {"vr": "SQ", "Value": items} if items else None


def _number_of(item: Element) -> tuple[str, ...]:
    """Return Patient ID and issuer of an item."""
    values = (item.get(tag, {}).get("Value") or [""] for tag in (PATIENT_ID, ISSUER))
    return tuple(str(value[0] or "").strip() for value in values)


def element_of(vr: str, *values: object) -> Element:
    """Return an attribute of the JSON model; one that is empty has no values."""
    present = [value for value in values if value != ""]
    return {"vr": vr, "Value": present} if present else {"vr": vr}


def failure(error: NodeError, statuses: Mapping[ErrorKind, int]) -> Dataset:
    """Return the status of a response with its comment and the element at fault."""
    status = Dataset()
    status.Status = statuses.get(error.kind, UNABLE)
    status.ErrorComment = error.message[:64]
    if isinstance(error, NotAnIdentifier):
        status.OffendingElement = Tag(error.tag)
    return status
