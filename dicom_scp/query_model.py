"""The information models of query and retrieve: what an Identifier asks (PS3.4 C.3).

A hierarchical request names one entity at every level above the one it asks about; the
unique keys are Patient ID and the UIDs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pynetdicom import evt

from dicom_scp.matching import (
    PN_GROUPS,
    Element,
    Key,
    date_range,
    name_parts,
    text_of,
)
from node.charset import TEXT_VR, UTF8, encode_text, unicode_header
from node.domain.errors import ErrorKind, NodeError
from node.store.catalogue import Narrowing


class Level(IntEnum):
    """Query/Retrieve Level (0008,0052), from above."""

    PATIENT = 0
    STUDY = 1
    SERIES = 2
    IMAGE = 3


CHARACTER_SET: Final = "00080005"
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
# What is no question: how the request is written, and where its answer may be had.
_NOT_ASKED: Final = frozenset({CHARACTER_SET, LEVEL, "00080053"})

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
    """What an Identifier asks: keys by tag (JSON form), text as Unicode."""

    level: Level
    keys: Mapping[str, Key]
    character_sets: tuple[str, ...]

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
    identifier: Dataset, levels: Sequence[Level], *, relational: bool = False
) -> Asked:
    """Return what `identifier` asks of a model with these levels.

    Raises NodeError INVALID, with the keyword at fault, for a level that the model
    lacks and, unless `relational`, where a level above is not named by the single
    value of its unique key (PS3.4 C.4.1.2.2.1).
    """
    header = unicode_header(identifier)
    level = _level(header, levels)
    declared = identifier.get("SpecificCharacterSet", None) or ()
    asked = Asked(
        level=level,
        keys={key.tag: key for key in _keys(header) if key.tag not in _NOT_ASKED},
        character_sets=(declared,) if isinstance(declared, str) else tuple(declared),
    )
    if not relational:
        for above in levels:
            tag = UNIQUE_KEYS[above]
            if above < level and not asked.key(tag).single:
                raise _at_fault(tag, f"{_keyword(tag)} has to name one {above.name}")
    return asked


def require_retrievable(asked: Asked) -> None:
    """Raise NodeError INVALID unless UIDs say what to retrieve (PS3.4 C.4.2.2.1)."""
    tag = UNIQUE_KEYS[asked.level]
    key = asked.key(tag)
    if key.universal or any(sign in text for text in key.values for sign in "*?"):
        raise _at_fault(tag, f"{_keyword(tag)} has to say what to retrieve")


def _level(header: Dataset, levels: Sequence[Level]) -> Level:
    told = str(header.get("QueryRetrieveLevel", "") or "").strip().upper()
    for level in levels:
        if told == level.name:
            return level
    raise _at_fault(LEVEL, "the information model has no such level")


def _keys(header: Dataset) -> Iterator[Key]:
    for element in header:
        vr = str(element.VR)
        if vr == "SQ":
            items = tuple(_keys(element.value[0])) if element.value else ()
            yield Key(_json_tag(element.tag), vr, items=items)
            continue
        if isinstance(element.value, bytes):  # what the VR does not allow, a wildcard
            vr = _dictionary_vr(element.tag)
        yield Key(_json_tag(element.tag), vr, tuple(_texts(element)))


def _texts(element: DataElement) -> Iterator[str]:
    value = element.value
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").split("\\")
    several = value if isinstance(value, MultiValue | list) else [value]
    for one in several:
        text = "" if one is None else str(one).strip(" \0")
        if text:
            yield text


def _at_fault(tag: str, message: str) -> NodeError:
    return NodeError(message, ErrorKind.INVALID, expression=_keyword(tag))


def _keyword(tag: str) -> str:
    return keyword_for_tag(Tag(tag))


def _json_tag(tag: BaseTag) -> str:
    return f"{int(tag):08X}"


def _dictionary_vr(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


# -- answers ---------------------------------------------------------------------------


def written(
    elements: Mapping[str, Element], character_sets: Sequence[str] = ()
) -> Dataset:
    """Return elements of the JSON model as a data set to encode.

    Its text is in the character sets of the peer where they can hold all of it, else
    in ISO_IR 192; plain ASCII needs none.
    """
    texts = list(_all_texts(elements))
    sets: Sequence[str] = character_sets
    if any(encode_text(text, sets) is None for text in texts):
        sets = (UTF8,)
    answer = _dataset(elements, sets)
    if any(sets) and (character_sets or not all(text.isascii() for text in texts)):
        answer.SpecificCharacterSet = list(sets) if len(sets) > 1 else sets[0]
    return answer


def person_name(name: str) -> Element:
    """Return a PN as an element of the JSON model."""
    groups = zip(PN_GROUPS, name.split("="), strict=False)
    present = {key: value for key, value in groups if value}
    return {"vr": "PN", "Value": [present]} if present else {"vr": "PN"}


def _all_texts(elements: Mapping[str, Element]) -> Iterator[str]:
    for element in elements.values():
        if element["vr"] == "SQ":
            for item in element.get("Value") or ():
                yield from _all_texts(item)
        elif element["vr"] in TEXT_VR:
            yield _joined(element)


def _joined(element: Element) -> str:
    values = element.get("Value") or ()
    return "\\".join("" if value is None else text_of(value) for value in values)


def _dataset(elements: Mapping[str, Element], sets: Sequence[str]) -> Dataset:
    dataset = Dataset()
    for name, element in sorted(elements.items()):
        tag, vr = Tag(name), element["vr"]
        values: list[Any] = list(element.get("Value") or ())
        if vr == "SQ":
            items = [_dataset(item, sets) for item in values]
            dataset.add(DataElement(tag, vr, items))
        elif vr in TEXT_VR:
            # Bytes, not text: pydicom would encode it anew, and IR 58 wrongly.
            raw = encode_text(_joined(element), sets) or b""
            raw += b" " * (len(raw) % 2)
            dataset[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True)
        elif values:
            dataset.add(DataElement.from_json(Dataset, name, vr, values, "Value"))
        else:
            dataset.add(DataElement(tag, vr, None))
    return dataset


def failure(error: NodeError, statuses: Mapping[ErrorKind, int]) -> Dataset:
    """Return the status of a response with its comment and the element at fault."""
    status = Dataset()
    status.Status = statuses.get(error.kind, 0xC001)  # Unable to process
    status.ErrorComment = error.message[:64]
    if error.expression:
        status.OffendingElement = Tag(error.expression)
    return status


def identifier_of(event: evt.Event) -> Dataset:
    """Return the Identifier of a request; INVALID when it is none."""
    try:
        return event.identifier
    except Exception:
        raise NodeError("the identifier is no data set", ErrorKind.INVALID) from None
