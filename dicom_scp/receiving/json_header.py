"""DICOM JSON (PS3.18 F.2) of a header straight from its bytes, for what is usual.

pydicom makes an object of every element and, for JSON, of every value: two thirds of
the work of receiving a still. Almost every header needs none of that. This scan reads
Explicit and Implicit VR Little Endian (PS3.5 7.1, A.1, A.2) and gives up, `Unusual`, on
whatever it does not know by heart; the caller then asks pydicom, which stays the
reference: a test holds both to the same result.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any, Final

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.tag import BaseTag

from node.charset import SINGLE_VALUED_TEXT, UTF8, decode_text

JsonElement = dict[str, Any]
Values = list[Any] | None
Reader = Callable[[bytes, Sequence[str]], Values]

LARGE_BINARY: Final = 1024  # bytes of Base64 that the header leaves out
PIXEL_DATA: Final = 0x7FE00010
UNDEFINED: Final = 0xFFFFFFFF
MAX_DEPTH: Final = 8

_CHARACTER_SET = 0x00080005
_PIXEL_GROUP = 0x7FE0
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
# The sign of their first value decides what the others mean (PS3.3 C.11.1.1).
_TABLE_DESCRIPTORS = frozenset({0x00281101, 0x00281102, 0x00281103, 0x00283002})
_TAG = Struct("<HH")
_SHORT = Struct("<H")
_LONG = Struct("<L")
_INTEGER = re.compile(r" *[+-]?[0-9]{1,10} *")
_DECIMAL = re.compile(r" *[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})? *")
_PRINTABLE = re.compile(rb"[\x20-\x7e]*")


class Unusual(Exception):
    """Something that this scan leaves to pydicom; not a judgement of the data set."""


@dataclass(frozen=True)
class ScannedHeader:
    """The elements before the pixel data, and where the pixel data are.

    `value_at` and `length` are those of Pixel Data (7FE0,0010) in the scanned bytes;
    `value_at` is 0 in an instance without, `length` UNDEFINED when encapsulated.
    """

    elements: dict[str, JsonElement]
    value_at: int = 0
    length: int = 0

    @property
    def native(self) -> bool:
        """Tell whether the pixel data are one value, whose end is known."""
        return self.value_at > 0 and self.length != UNDEFINED


def scan_header(data: memoryview, start: int, *, explicit: bool) -> ScannedHeader:
    """Return the header of a little endian data set that begins at `start`.

    `data` has to hold all of the header; what comes after the element header of
    Pixel Data is not looked at. Text is decoded as `node.charset` does it, so that
    the result says ISO_IR 192. Raises Unusual.
    """
    try:
        scan = _Scan(data, explicit=explicit)
        elements, at = scan.elements(start, len(data), depth=0)
    except (IndexError, ValueError, ArithmeticError) as error:
        raise Unusual from error
    elements["00080005"] = {"vr": "CS", "Value": [UTF8]}
    return ScannedHeader(elements, at if scan.length else 0, scan.length)


def encapsulated_end(data: memoryview, at: int) -> int:
    """Return where encapsulated pixel data (PS3.5 A.4) that begin at `at` end."""
    while at + 8 <= len(data):
        group, element = _TAG.unpack_from(data, at)
        (length,) = _LONG.unpack_from(data, at + 4)
        at += 8
        if (tag := group << 16 | element) == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            break
        at += length
    raise Unusual


class JsonHeader:
    """The header by keyword, as far as intake asks pydicom's Dataset for it."""

    def __init__(self, elements: dict[str, JsonElement]) -> None:
        self.elements = elements

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value or `default`; several values are Unusual."""
        element = self.elements.get(_key(keyword))
        values = None if element is None else element.get("Value")
        if element is None or not values:
            return default
        if element["vr"] == "SQ":
            return [JsonHeader(item) for item in values]
        if len(values) > 1:
            raise Unusual
        (value,) = values
        if element["vr"] == "PN":
            groups = ("Alphabetic", "Ideographic", "Phonetic")
            return "=".join(value[group] for group in groups if group in value)
        return value

    def __contains__(self, keyword: str) -> bool:
        return _key(keyword) in self.elements

    def __getattr__(self, keyword: str) -> Any:
        value = self.get(keyword)
        if value is None:
            raise AttributeError(keyword)
        return value


@lru_cache(256)
def _key(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


class _Scan:
    """One pass over one data set."""

    def __init__(self, data: memoryview, *, explicit: bool) -> None:
        self._data = data
        self._explicit = explicit
        self._character_sets: list[str] = []
        self.length = 0  # of Pixel Data, once it is found

    def elements(
        self, at: int, end: int, *, depth: int
    ) -> tuple[dict[str, JsonElement], int]:
        """Return the elements from `at` on and where they ended."""
        data, found, previous = self._data, dict[str, JsonElement](), -1
        while at < end:
            if at + 8 > end:
                raise Unusual
            kind = (
                _explicit_kind(bytes(data[at : at + 6]))
                if self._explicit
                else _implicit_kind(bytes(data[at : at + 4]))
            )
            if kind.tag == _ITEM_END and depth:
                return found, at + 8
            if kind.tag <= previous:
                raise Unusual
            previous = kind.tag
            if not self._explicit:
                (length,) = _LONG.unpack_from(data, at + 4)
                at += 8
            elif kind.long:
                if at + 12 > end:
                    raise Unusual
                (length,) = _LONG.unpack_from(data, at + 8)
                at += 12
            else:
                (length,) = _SHORT.unpack_from(data, at + 6)
                at += 8
            if kind.tag == PIXEL_DATA and not depth:
                self.length = length
                return found, at
            if kind.vr == "SQ":
                items, at = self._items(at, end, length, depth + 1)
                found[kind.key] = {"vr": "SQ", "Value": items}
                continue
            if length > end - at:
                raise Unusual
            raw = bytes(data[at : at + length])
            at += length
            if kind.tag == _CHARACTER_SET:
                self._declare(raw, depth)
            elif kind.read is not None:
                self._add(found, kind, raw, top=not depth)
        return found, at

    def _items(
        self, at: int, end: int, length: int, depth: int
    ) -> tuple[list[dict[str, JsonElement]], int]:
        """Return the items of a sequence (PS3.5 7.5) and where it ended."""
        if depth > MAX_DEPTH or (length != UNDEFINED and length > end - at):
            raise Unusual
        items: list[dict[str, JsonElement]] = []
        stop = end if length == UNDEFINED else at + length
        while at < stop:
            if at + 8 > stop:
                raise Unusual
            group, element = _TAG.unpack_from(self._data, at)
            tag, (size,) = group << 16 | element, _LONG.unpack_from(self._data, at + 4)
            at += 8
            if tag == _SEQUENCE_END and length == UNDEFINED:
                return items, at
            if tag != _ITEM or (size != UNDEFINED and size > stop - at):
                raise Unusual
            item_end = stop if size == UNDEFINED else at + size
            item, reached = self.elements(at, item_end, depth=depth)
            delimited = size == UNDEFINED
            if delimited != self._delimited(reached) or (
                not delimited and reached != item_end
            ):
                raise Unusual
            items.append(item)
            at = reached
        if length == UNDEFINED:
            raise Unusual
        return items, at

    def _delimited(self, at: int) -> bool:
        return self._data[at - 8 : at] == _ITEM_END_BYTES

    def _declare(self, raw: bytes, depth: int) -> None:
        if depth:
            raise Unusual  # an item with a character set of its own
        text = raw.decode("ascii", "ignore")
        self._character_sets = [name.strip(" \0") for name in text.split("\\")]

    def _add(
        self, found: dict[str, JsonElement], kind: _Kind, raw: bytes, *, top: bool
    ) -> None:
        element: JsonElement = {"vr": kind.vr}
        if kind.read is _binary:
            if len(raw) > LARGE_BINARY // 4 * 3:
                if top:
                    return
                element["BulkDataURI"] = ""
            elif raw:
                element["InlineBinary"] = b64encode(raw).decode()
        elif raw and kind.read is not None:
            values = kind.read(raw, self._character_sets)
            if values is not None:
                element["Value"] = values
        found[kind.key] = element


_ITEM_END_BYTES = b"\xfe\xff\x0d\xe0\0\0\0\0"


# -- values by VR (PS3.5 6.2) ----------------------------------------------------------


def _binary(raw: bytes, _sets: Sequence[str]) -> Values:
    raise AssertionError("binary values have a form of their own in JSON")


def _string(raw: bytes, _sets: Sequence[str]) -> Values:
    raw = raw.rstrip(b" \0")
    if _PRINTABLE.fullmatch(raw) is None:
        raise Unusual
    return raw.decode("ascii").split("\\") if raw else None


def _title(raw: bytes, _sets: Sequence[str]) -> Values:
    values = _string(raw, _sets)
    return None if values is None else [value.strip() for value in values]


def _link(raw: bytes, _sets: Sequence[str]) -> Values:
    if _PRINTABLE.fullmatch(raw) is None:
        raise Unusual
    text = raw.decode("ascii").rstrip()
    return [text] if text else None


def _text(raw: bytes, sets: Sequence[str]) -> Values:
    text = decode_text(raw, sets)
    if "\\" in text:
        return [part.strip(" ") for part in text.split("\\")]
    return [text] if text else None


def _long_text(raw: bytes, sets: Sequence[str]) -> Values:
    text = decode_text(raw, sets)
    return [text] if text else None


def _name(raw: bytes, sets: Sequence[str]) -> Values:
    text = decode_text(raw, sets)
    if "\\" in text:
        raise Unusual
    groups = text.rstrip("=").split("=")
    if not groups[0] and len(groups) == 1:
        return None
    names = ("Alphabetic", "Ideographic", "Phonetic")
    return [dict(zip(names, groups, strict=False))]


def _integers(raw: bytes, _sets: Sequence[str]) -> Values:
    values = _string(raw, _sets)
    if values is None:
        return None
    if not all(map(_INTEGER.fullmatch, values)):
        raise Unusual
    return [int(value) for value in values]


def _decimals(raw: bytes, _sets: Sequence[str]) -> Values:
    values = _string(raw, _sets)
    if values is None:
        return None
    if not all(map(_DECIMAL.fullmatch, values)):
        raise Unusual
    return [float(value) for value in values]


def _numbers(code: str) -> Reader:
    one = Struct(f"<{code}")

    def read(raw: bytes, _sets: Sequence[str]) -> Values:
        if len(raw) % one.size:
            raise Unusual
        return [value for (value,) in one.iter_unpack(raw)]

    return read


def _tags(raw: bytes, _sets: Sequence[str]) -> Values:
    if len(raw) % 4:
        raise Unusual
    return [f"{group:04X}{element:04X}" for group, element in _TAG.iter_unpack(raw)]


def _readers() -> Iterator[tuple[str, Reader | None]]:
    yield from dict.fromkeys(("AS", "CS", "DA", "DT", "TM", "UI"), _string).items()
    yield from dict.fromkeys(("SH", "LO", "UC"), _text).items()
    yield from dict.fromkeys(sorted(SINGLE_VALUED_TEXT), _long_text).items()
    yield from {"AE": _title, "UR": _link, "PN": _name, "AT": _tags}.items()
    yield from {"IS": _integers, "DS": _decimals, "SQ": None}.items()
    yield from dict.fromkeys(("OB", "OD", "OF", "OL", "OV", "OW"), _binary).items()
    codes = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "UV": "Q", "SV": "q"}
    yield from ((vr, _numbers(code)) for vr, code in codes.items())
    yield from {"FL": _numbers("f"), "FD": _numbers("d")}.items()


_READERS: Final = dict(_readers())
_LONG_LENGTH: Final = frozenset(
    ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UR", "UT", "UV")
)


# -- elements --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a tag and its VR mean; `read` is None where the value is not shown."""

    tag: int
    key: str
    vr: str
    long: bool
    read: Reader | None


@lru_cache(4096)
def _explicit_kind(start: bytes) -> _Kind:
    """Return the kind of an element that starts with these six bytes."""
    tag = _tag_of(start)
    if tag == _ITEM_END:
        return _Kind(tag, "", "", False, None)
    return _kind(tag, start[4:6].decode("ascii", "replace"))


@lru_cache(4096)
def _implicit_kind(start: bytes) -> _Kind:
    """Return the kind of an element with this tag; its VR is the dictionary's."""
    tag = _tag_of(start)
    if tag == _ITEM_END:
        return _Kind(tag, "", "", False, None)
    if tag == PIXEL_DATA:
        return _kind(tag, "OW")
    if BaseTag(tag).is_private:
        raise Unusual
    try:
        return _kind(tag, dictionary_VR(tag))
    except KeyError as error:
        raise Unusual from error


def _kind(tag: int, vr: str) -> _Kind:
    hidden = tag & 0xFFFF == 0 or tag >> 16 == 0x0002
    usual = vr in _READERS and tag not in _TABLE_DESCRIPTORS and tag >> 16 != 0xFFFE
    if not usual or (tag >> 16 == _PIXEL_GROUP and tag != PIXEL_DATA):
        raise Unusual
    return _Kind(
        tag, f"{tag:08X}", vr, vr in _LONG_LENGTH, None if hidden else _READERS[vr]
    )


def _tag_of(start: bytes) -> int:
    group, element = _TAG.unpack_from(start)
    return int(group << 16 | element)
