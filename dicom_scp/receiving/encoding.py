"""Encoded data sets (PS3.5 7.1) as a structure: is all of it there?

Nothing is decoded. pydicom would take an element whose value is cut off for a short
one, so what a broken network left of an image could pass for the image.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from node.domain.errors import ErrorKind, NodeError

ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010
UNDEFINED: Final = 0xFFFFFFFF
SEQUENCE_END_BYTES: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"
MAX_DEPTH: Final = 32
MAX_INFLATED: Final = 1 << 28
_ENDLESS: Final = 1 << 62
_LONG_VR: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())


class CutOff(NodeError):
    """The data set ends inside an element."""

    def __init__(self) -> None:
        super().__init__("the data set is cut off", ErrorKind.INVALID)


class _Unknown(Exception):
    """The walk has left the part of the data set that is in memory."""


@dataclass(frozen=True)
class Syntax:
    """How elements are written: with their VR or without, and the byte order."""

    explicit: bool
    order: str

    @classmethod
    def of(cls, transfer_syntax_uid: str) -> "Syntax":
        """Return that of a data set, inflated where it is deflated (PS3.5 annex A)."""
        return cls(
            explicit=transfer_syntax_uid != ImplicitVRLittleEndian,
            order=">" if transfer_syntax_uid == ExplicitVRBigEndian else "<",
        )


@dataclass(frozen=True)
class Element:
    """Where an element lies: its value from `value_at` to `end`, delimiter included."""

    tag: int
    vr: bytes
    value_at: int
    end: int
    delimited: bool  # of undefined length


def next_element(
    data: memoryview, at: int, syntax: Syntax, *, final: bool
) -> Element | None:
    """Return the element that starts at `at`; None when more bytes are needed first.

    `end` may lie beyond `data` where the length is defined. `final`: no more bytes
    will come. Raises NodeError INVALID for what is no element.
    """
    if len(data) - at < (8 if final else 12):
        return None
    try:
        tag, length, value_at, vr = _header(data, at, syntax)
        if tag >> 16 == ITEM >> 16:
            raise NodeError("an item outside of a sequence", ErrorKind.INVALID)
        if length != UNDEFINED:
            return Element(tag, vr, value_at, value_at + length, delimited=False)
        inner = syntax if vr != b"UN" else Syntax(explicit=False, order="<")
        end = _pass_items(data, value_at, _ENDLESS, inner, b"", 1)
        return Element(tag, vr, value_at, end, delimited=True)
    except _Unknown:
        return None


def check_whole(
    head: memoryview, total: int, tail: bytes, transfer_syntax_uid: str
) -> None:
    """Raise NodeError INVALID unless the data set is whole.

    `head` is its beginning, or all of it; `total` its length in bytes; `tail`
    its end. What follows the pixel data of a large instance is not looked at.
    """
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        head = memoryview(inflate(head))
        total, tail = len(head), bytes(head[-8:])
    syntax = Syntax.of(transfer_syntax_uid)
    if not total:
        raise CutOff
    try:
        _walk(head, 0, total, syntax, tail, depth=0)
    except _Unknown:
        if len(head) >= total:  # else only values after the pixel data are unseen
            raise CutOff from None


def inflate(data: memoryview) -> bytes:
    """Return a deflated data set inflated, within a limit (PS3.5 A.5)."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(data, MAX_INFLATED)
    except zlib.error:
        raise NodeError("the deflated data set is damaged", ErrorKind.INVALID) from None
    if inflater.unconsumed_tail:
        raise NodeError("the inflated data set is too large", ErrorKind.EXHAUSTED)
    if not inflater.eof:
        raise CutOff
    return content


def _walk(
    data: memoryview, at: int, end: int, syntax: Syntax, tail: bytes, *, depth: int
) -> int:
    """Pass over elements until `end` or the end of an item; return where it stopped."""
    if depth > MAX_DEPTH:
        raise NodeError("sequences are nested too deep", ErrorKind.INVALID)
    while at < end:
        if end - at < 8:
            raise CutOff
        tag, length, value_at, vr = _header(data, at, syntax)
        if tag in (ITEM_END, SEQUENCE_END):
            return at + 8
        if length != UNDEFINED:
            at = value_at + length
            if at > end:
                raise CutOff
        elif tag == PIXEL_DATA or vr in (b"OB", b"OW"):
            at = _pass_fragments(data, value_at, end, tail)
        else:
            inner = syntax if vr != b"UN" else Syntax(explicit=False, order="<")
            at = _pass_items(data, value_at, end, inner, tail, depth + 1)
    if depth:
        raise CutOff  # an item of undefined length has to say where it ends
    return at


def _pass_items(
    data: memoryview, at: int, end: int, syntax: Syntax, tail: bytes, depth: int
) -> int:
    while at + 8 <= end:
        tag, length = _tag(data, at, syntax.order), _length(data, at + 4, syntax.order)
        at += 8
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise NodeError("a sequence holds something else", ErrorKind.INVALID)
        if length == UNDEFINED:
            at = _walk(data, at, end, syntax, tail, depth=depth)
        else:
            at += length
    raise CutOff


def _pass_fragments(data: memoryview, at: int, end: int, tail: bytes) -> int:
    """Pass over encapsulated pixel data (PS3.5 A.4)."""
    while at + 8 <= len(data):
        tag, length = _tag(data, at, "<"), _length(data, at + 4, "<")
        at += 8
        if tag == SEQUENCE_END:
            return at
        if tag != ITEM:
            raise NodeError("a fragment is not an item", ErrorKind.INVALID)
        at += length
        if at + 8 > end:
            raise CutOff
    if len(data) == end or SEQUENCE_END_BYTES not in tail:
        raise CutOff
    raise _Unknown


def _header(data: memoryview, at: int, syntax: Syntax) -> tuple[int, int, int, bytes]:
    if at + 12 > len(data):
        # The last element of a data set may be an empty one of eight bytes.
        if len(data) < at + 8:
            raise _Unknown
        data = memoryview(bytes(data[at:]) + bytes(4))
        tag, length, value_at, vr = _header(data, 0, syntax)
        return tag, length, value_at + at, vr
    tag = _tag(data, at, syntax.order)
    if tag >> 16 == 0xFFFE or not syntax.explicit:
        return tag, _length(data, at + 4, syntax.order), at + 8, b""
    vr = bytes(data[at + 4 : at + 6])
    if not vr.isalpha():
        raise NodeError("not in the negotiated transfer syntax", ErrorKind.INVALID)
    if vr in _LONG_VR:
        return tag, _length(data, at + 8, syntax.order), at + 12, vr
    (short,) = struct.unpack_from(f"{syntax.order}H", data, at + 6)
    return tag, short, at + 8, vr


def _tag(data: memoryview, at: int, order: str) -> int:
    if at + 4 > len(data):
        raise _Unknown
    group, element = struct.unpack_from(f"{order}HH", data, at)
    return int(group << 16 | element)


def _length(data: memoryview, at: int, order: str) -> int:
    if at + 4 > len(data):
        raise _Unknown
    (length,) = struct.unpack_from(f"{order}L", data, at)
    return int(length)
