"""The information models of query and retrieve: what an Identifier asks (PS3.4 C.3).

A hierarchical request names one entity at every level above the one it asks about; the
unique keys are Patient ID and the UIDs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_scp.services.answers import Identifier, NotAnIdentifier
from dicom_scp.services.matching import PN_GROUPS, Element, Key, date_range, name_parts
from node.domain.errors import ErrorKind, NodeError
from node.store.catalogue import Narrowing


class Level(IntEnum):
    """Query/Retrieve Level (0008,0052), from above."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


LEVEL: Final = "00080052"
PATIENT_NAME, PATIENT_ID = "00100010", "00100020"
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


def failure(error: NodeError, statuses: Mapping[ErrorKind, int]) -> Dataset:
    """Return the status of a response with its comment and the element at fault."""
    status = Dataset()
    status.Status = statuses.get(error.kind, UNABLE)
    status.ErrorComment = error.message[:64]
    if isinstance(error, NotAnIdentifier):
        status.OffendingElement = Tag(error.tag)
    return status
