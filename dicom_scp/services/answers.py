r"""Identifiers of C-FIND: keys in, answers out, in the character set of the peer.

Answers are made as the DICOM JSON model in Unicode and become bytes here: pydicom would
write `\ISO 2022 IR 58` without its escapes (see `node.charset`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pynetdicom.dsutils import decode

from dicom_scp.receiving.encoding import check_whole
from dicom_scp.services.matching import Key, text_of
from node.charset import (
    MULTI_BYTE,
    ONE_BYTE,
    SPECIFIC_CHARACTER_SET,
    TEXT_VR,
    UTF8,
    encode_text,
    unicode_header,
)
from node.domain.errors import ErrorKind, NodeError

JsonModel = Mapping[str, Mapping[str, Any]]
CharacterSets = tuple[str, ...]

GB2312: Final = "ISO 2022 IR 58"
LONGEST_VALUE: Final = 1024
MOST_KEYS: Final = 512
"""Far more than identifiers have; every key and pattern costs its length."""


_BINARY: Final = frozenset({"AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"})


class NotAnIdentifier(NodeError):
    """The identifier does not match the SOP Class (A900)."""

    def __init__(self, tag: str, told: str) -> None:
        super().__init__(f"({tag[:4]},{tag[4:]}) {told}", ErrorKind.INVALID)
        self.tag = tag


@dataclass(frozen=True)
class Identifier:
    """What a C-FIND asks for, and the character sets in which it was written."""

    keys: tuple[Key, ...]
    character_sets: CharacterSets

    def key(self, tag: str) -> Key | None:
        """Return the key with this tag."""
        return next((key for key in self.keys if key.tag == tag), None)


def read_identifier(raw: BytesIO, syntax: UID, *, unlabelled: str = "") -> Identifier:
    """Return the keys of an encoded identifier (PS3.4 C.2.2.1).

    `unlabelled` names the character set of a peer that does not say which it uses.
    INVALID when it cannot be read, NotAnIdentifier when it is none.
    """
    data = raw.getvalue()
    try:
        check_whole(memoryview(data), len(data), b"", str(syntax))
        dataset = decode(
            raw, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
        )
        codec = MULTI_BYTE.get(unlabelled, "gb18030")
        header = unicode_header(dataset, unlabelled=codec)
    except NodeError:
        raise
    except Exception:
        raise NodeError("the identifier cannot be read", ErrorKind.INVALID) from None
    told = dataset.get("SpecificCharacterSet") or ""
    sets = [told] if isinstance(told, str) else list(told)
    keys = tuple(_keys(header, [MOST_KEYS]))
    return Identifier(keys, tuple(str(name).strip() for name in sets if sets != [""]))


def _keys(dataset: Dataset, left: list[int]) -> Iterator[Key]:
    for element in dataset:
        if element.tag == SPECIFIC_CHARACTER_SET:
            continue
        tag, left[0] = f"{element.tag:08X}", left[0] - 1
        if left[0] < 0:
            raise NotAnIdentifier(tag, "is one key too many")
        if element.VR == "SQ":
            if len(element.value) > 1:
                raise NotAnIdentifier(tag, "has more than one item")
            items = tuple(_keys(element.value[0], left)) if element.value else ()
            yield Key(tag, "SQ", items=items)
        else:
            yield Key(tag, element.VR, _texts(tag, element))


def _texts(tag: str, element: DataElement) -> tuple[str, ...]:
    value = element.value
    if value is None or value == b"" or value == "":
        return ()
    if isinstance(value, bytes):
        raise NotAnIdentifier(tag, "is no value to match by")
    parts = list(value) if isinstance(value, MultiValue | list) else [value]
    texts = tuple(text for part in parts if (text := str(part).strip(" \0")))
    if any(len(text) > LONGEST_VALUE for text in texts):
        raise NotAnIdentifier(tag, "is longer than its VR allows")
    return texts


# -- answers ---------------------------------------------------------------------------


def spoken(asked: CharacterSets, always: str = "") -> CharacterSets:
    """Return the character sets to answer in: those of the request, or `always`.

    What we cannot write is answered in ASCII; names that do not fit decide otherwise
    (`encode_answer`).
    """
    sets = tuple(part.strip() for part in always.split("\\")) if always else asked
    if GB2312 in sets:
        return ("", GB2312)
    first = sets[0] if sets else ""
    if first.startswith("ISO 2022 IR ") and first != "ISO 2022 IR 6":
        first = first.replace("ISO 2022 IR ", "ISO_IR ")
    return (first,) if first in ONE_BYTE or first in MULTI_BYTE else ()


def project(answer: JsonModel, keys: Sequence[Key]) -> dict[str, dict[str, Any]]:
    """Return what was asked for of an answer; a sequence without keys comes whole."""
    told: dict[str, dict[str, Any]] = {}
    for key in keys:
        element = answer.get(key.tag)
        if element is None:
            continue
        told[key.tag] = dict(element)
        if key.vr == "SQ" and key.items:
            items = [project(item, key.items) for item in element.get("Value", ())]
            told[key.tag]["Value"] = items
    return told


def unsupported(answer: JsonModel, keys: Sequence[Key]) -> bool:
    """Tell whether a key is asked for that answers never have (FF01)."""
    for key in keys:
        element = answer.get(key.tag)
        if element is None:
            return True
        for item in element.get("Value", ()) if key.items else ():
            if unsupported(item, key.items):
                return True
    return False


def encode_answer(
    answer: JsonModel, character_sets: CharacterSets, syntax: UID
) -> Dataset:
    """Return an answer for pynetdicom to send, its text in bytes already.

    Of a name the component groups are written that the character sets have; when
    none of a name has a place in them, the answer is in ISO_IR 192 and says so:
    nobody is called `??`. Other text that has no place is left out.
    """
    sets = character_sets if _fits(answer, character_sets) else (UTF8,)
    return _dataset(answer, sets, syntax, sets)


def holds(answer: JsonModel, sets: CharacterSets) -> bool:
    """Tell whether these character sets have all text of an answer."""
    for element in answer.values():
        values = element.get("Value", ())
        if element["vr"] == "SQ":
            if not all(holds(item, sets) for item in values):
                return False
        elif element["vr"] in TEXT_VR and any(
            encode_text(text_of(value), sets) is None for value in values
        ):
            return False
    return True


def _fits(answer: JsonModel, sets: CharacterSets) -> bool:
    for element in answer.values():
        values = element.get("Value", ())
        if element["vr"] == "SQ":
            if not all(_fits(item, sets) for item in values):
                return False
        elif element["vr"] == "PN":
            for value in values:
                if text_of(value).strip("=^ ") and not _name(text_of(value), sets):
                    return False
    return True


def _name(name: str, sets: CharacterSets) -> bytes:
    groups = [encode_text(group, sets) or b"" for group in name.split("=")]
    return b"=".join(groups).rstrip(b"=")


def _dataset(
    answer: JsonModel, sets: CharacterSets, syntax: UID, label: CharacterSets = ()
) -> Dataset:
    written = Dataset()
    if label:
        value = "\\".join(label).encode("ascii")
        written[SPECIFIC_CHARACTER_SET] = _raw(
            SPECIFIC_CHARACTER_SET, "CS", value, syntax
        )
    for name, element in answer.items():
        tag, vr, values = Tag(int(name, 16)), element["vr"], element.get("Value", ())
        if vr == "SQ":
            items = [_dataset(item, sets, syntax) for item in values]
            written[tag] = DataElement(tag, "SQ", Items(items))
        elif vr in _BINARY:
            written[tag] = DataElement.from_json(
                Dataset, name, vr, list(values), "Value"
            )
        else:
            written[tag] = _raw(tag, vr, _bytes(vr, values, sets), syntax)
    # Both told alike, pydicom takes raw values as they are.
    written.set_original_encoding(
        syntax.is_implicit_VR, syntax.is_little_endian, written._character_set
    )
    return written


def _bytes(vr: str, values: Sequence[Any], sets: CharacterSets) -> bytes:
    texts = [text_of(value) for value in values]
    if vr == "PN":
        return b"\\".join(_name(text, sets) for text in texts)
    if vr in TEXT_VR:
        return b"\\".join(encode_text(text, sets) or b"" for text in texts)
    return "\\".join(texts).encode("ascii", "ignore")


def _raw(tag: BaseTag, vr: str, value: bytes, syntax: UID) -> RawDataElement:
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    return RawDataElement(
        tag, vr, len(value), value, 0, syntax.is_implicit_VR, syntax.is_little_endian
    )
