"""What a site corrects in the headers of a machine while they arrive.

A machine that knows nothing of the hospital leaves out the issuer of its patient ids
or writes a department that was closed. Rules mend that before anything is filed. They
touch identifying and descriptive text only: never the UIDs that hold a study together,
never the description of the pixels, nor anything a measurement rests on. What was there
before stays in the object (Original Attributes Sequence, PS3.3 C.12.1.1.9).

Elements are spliced, not decoded and written anew: every byte that no rule is about
stays as it came, and only the element at hand is held in memory.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Final

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicom_scp.receiving.encoding import (
    ITEM,
    SEQUENCE_END,
    UNDEFINED,
    CutOff,
    Element,
    Syntax,
    inflate,
    next_element,
)
from node.charset import SINGLE_VALUED_TEXT, decode_text, encode_text
from node.domain.errors import ErrorKind, NodeError

# Attributes that a rule may name. Those of the first set are Type 2 where they occur:
# removing one leaves it empty.
KEPT_EMPTY: Final = frozenset(
    {
        "AccessionNumber",
        "PatientID",
        "PatientName",
        "ReferringPhysicianName",
        "StudyID",
    }
)
COERCIBLE: Final = KEPT_EMPTY | {
    "AdditionalPatientHistory",
    "BodyPartExamined",
    "EthnicGroup",
    "ImageComments",
    "InstitutionAddress",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "IssuerOfPatientID",
    "Occupation",
    "OperatorsName",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientComments",
    "PatientTelephoneNumbers",
    "PerformedProcedureStepDescription",
    "PerformingPhysicianName",
    "ProtocolName",
    "RequestedProcedureDescription",
    "RequestingPhysician",
    "RequestingService",
    "SeriesDescription",
    "StationName",
    "StudyDescription",
}

ORIGINAL_ATTRIBUTES: Final = 0x04000561
MODIFIED_ATTRIBUTES: Final = 0x04000550
MODIFIED_AT: Final = 0x04000562
MODIFYING_SYSTEM: Final = 0x04000563
SOURCE_OF_PREVIOUS_VALUES: Final = 0x04000564
REASON: Final = 0x04000565
CHARACTER_SET: Final = 0x00080005
MAX_HELD: Final = 4 << 20
MAX_DEFLATED: Final = 64 << 20  # a deflated data set has to be inflated whole
MAX_SEARCHED: Final = 1024  # characters in which a pattern is looked for
# Characters of one value (PS3.5 6.2).
_LONGEST: Final = {"CS": 16, "SH": 16, "LO": 64, "PN": 194, "ST": 1024, "LT": 10240}
_CODE_STRING: Final = re.compile(r"[A-Z0-9_ ]*")


class Action(StrEnum):
    """What a rule does to its attribute."""

    SET = "set"  # the value, whatever was there
    DEFAULT = "default"  # the value where there is none
    REMOVE = "remove"
    PREFIX = "prefix"  # the value in front, unless it is there already
    REPLACE = "replace"  # what the pattern finds becomes the value


@dataclass(frozen=True)
class Rule:
    """One correction; `pattern` and the references in `value` are Python's `re`."""

    keyword: str
    action: Action
    value: str = ""
    pattern: str = ""

    @cached_property
    def tag(self) -> int:
        """Return the tag of the attribute."""
        return int(tag_for_keyword(self.keyword) or 0)

    @cached_property
    def vr(self) -> str:
        """Return the VR of the attribute."""
        return dictionary_VR(self.tag)

    def fault(self) -> str:
        """Return what is wrong with the rule, its setting first; "" when nothing is."""
        if self.keyword not in COERCIBLE:
            return (
                f"keyword: {self.keyword!r} is none of {', '.join(sorted(COERCIBLE))}"
            )
        searches = self.action is Action.REPLACE  # and may delete what it finds
        if bool(self.value) == (self.action is Action.REMOVE) and not searches:
            told = "takes no value" if self.value else "needs a value"
            return f"value: {self.action} {told}"
        if bool(self.pattern) != searches:
            told = "takes no pattern" if self.pattern else "needs a pattern"
            return f"pattern: {self.action} {told}"
        if searches:
            return self._fault_of_pattern()
        if "\\" in self.value:
            return "value: a backslash would make two values of it"
        return (
            "" if fits(self.value, self.vr) else f"value: is no {self.vr} (PS3.5 6.2)"
        )

    def _fault_of_pattern(self) -> str:
        try:
            re.compile(self.pattern)
            re.compile(f"{self.pattern}|").sub(self.value, "")  # its references too
        except (re.error, IndexError) as error:
            return f"pattern: {error}"
        return ""

    def apply(self, text: str) -> str:
        """Return what becomes of the value `text`; RULE when it is too long to look at.

        Several values (a backslash between them) are prefixed or searched one by one.
        """
        match self.action:
            case Action.SET:
                return self.value
            case Action.DEFAULT:
                return text or self.value
            case Action.REMOVE:
                return ""
            case _:
                pass
        if len(text) > MAX_SEARCHED:
            raise self._not_possible("the value is too long to be searched")
        parts = [text] if self.vr in SINGLE_VALUED_TEXT else text.split("\\")
        return "\\".join(self._part(part) for part in parts)

    def _part(self, part: str) -> str:
        if self.action is Action.REPLACE:
            return re.sub(self.pattern, self.value, part)
        return (
            f"{self.value}{part}" if part and not part.startswith(self.value) else part
        )

    def encoded(self, text: str, sets: Sequence[str], like: bytes) -> bytes:
        """Return the coerced text as bytes of even length.

        Raises RULE when the VR or the character set of the object has no room for it:
        a shortened id would be another patient's.
        """
        parts = [text] if self.vr in SINGLE_VALUED_TEXT else text.split("\\")
        if not all(fits(part, self.vr) for part in parts):
            raise self._not_possible(f"what comes of it is no {self.vr}")
        raw = _encoded(text, sets, like=like)
        if raw is None:
            raise self._not_possible("the character set of the object has no such text")
        return raw + b" " * (len(raw) & 1)

    def _not_possible(self, why: str) -> NodeError:
        return NodeError(
            f"{self.keyword} not coerced: {why}",
            ErrorKind.RULE,
            expression=self.keyword,
        )


def fits(text: str, vr: str) -> bool:
    """Tell whether `text` is one value of `vr`, as long as may be (PS3.5 6.2)."""
    if len(text) > _LONGEST[vr] or any(ord(sign) < 32 for sign in text):
        return False
    return vr != "CS" or _CODE_STRING.fullmatch(text) is not None


def _encoded(text: str, sets: Sequence[str], *, like: bytes) -> bytes | None:
    """Return `text` in the character sets of an object; None when it has no form there.

    `like` is the value that it takes the place of: where scanners lie about their
    character set, the new value is written as the old one was.
    """
    candidates = [encode_text(text, sets)]
    if not like.isascii():
        candidates += [text.encode("utf-8"), text.encode("gb18030")]
    for raw in candidates:
        if raw is not None and decode_text(raw, sets) == text:
            return raw
    return None


class Coercer:
    """Passes one data set on, corrected; give it every fragment, then `finish`.

    `source` is the calling AE title, `system` ours, `at` the time of the change.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        transfer_syntax_uid: str,
        *,
        source: str,
        system: str,
        at: datetime,
    ) -> None:
        self._rules: dict[int, list[tuple[int, Rule]]] = {}
        for number, rule in enumerate(rules, start=1):
            self._rules.setdefault(rule.tag, []).append((number, rule))
        self._pending = sorted(self._rules)
        self._groups = {tag >> 16 for tag in (*self._rules, ORIGINAL_ATTRIBUTES)}
        self._syntax = Syntax.of(transfer_syntax_uid)
        self._deflated = transfer_syntax_uid == DeflatedExplicitVRLittleEndian
        self._told = (source, system, at)
        self._sets: list[str] = []
        self._held = bytearray()
        self._passing = 0  # bytes left of a value that is passed on as it comes
        self._last = -1
        self._past = False  # nothing that a rule could be about comes any more
        self._original: list[bytes] = []
        self._changes: list[str] = []

    @property
    def changes(self) -> tuple[str, ...]:
        """Return which attribute was changed by which rule; no values."""
        return tuple(self._changes)

    def take(self, fragment: memoryview) -> bytes | bytearray | memoryview:
        """Take the next bytes of the data set and return what can be passed on."""
        if self._past:
            return fragment
        self._held += fragment
        passed = b"" if self._deflated else self._advance(final=False)
        if len(self._held) > (MAX_DEFLATED if self._deflated else MAX_HELD):
            raise NodeError("a header too large to be coerced", ErrorKind.EXHAUSTED)
        return passed

    def finish(self) -> bytes | bytearray:
        """Return the last bytes. Raises CutOff when the data set is not whole."""
        if self._deflated:
            return self._finish_deflated()
        passed = self._advance(final=True)
        if self._passing or self._held:
            raise CutOff
        if not self._past:
            self._fill_before(ORIGINAL_ATTRIBUTES, passed)
            self._tell_originals(b"", passed)
        return passed

    def _finish_deflated(self) -> bytes:
        self._held, deflated = bytearray(inflate(memoryview(self._held))), self._held
        self._deflated = False
        content = self.finish()
        if not self._changes:
            return bytes(deflated)
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        raw = deflater.compress(content) + deflater.flush()
        return raw + b"\0" * (len(raw) & 1)

    def _advance(self, *, final: bool) -> bytearray:
        passed, at = bytearray(), 0
        with memoryview(self._held) as data:
            while at < len(data):
                if self._past or self._passing:
                    length = len(data) - at
                    if not self._past:
                        length = min(length, self._passing)
                        self._passing -= length
                    passed += data[at : at + length]
                    at += length
                    continue
                element = next_element(data, at, self._syntax, final=final)
                if element is None:
                    break
                following = self._element(element, data, at, passed)
                if following is None:
                    break
                at = following
        del self._held[:at]
        return passed

    def _element(
        self, element: Element, data: memoryview, at: int, passed: bytearray
    ) -> int | None:
        """Pass on one element; return where the next one is, None to wait for more."""
        tag, whole = element.tag, element.end <= len(data)
        if tag <= self._last:
            raise NodeError("elements are not in their order", ErrorKind.INVALID)
        ours = tag in self._rules or tag in (ORIGINAL_ATTRIBUTES, CHARACTER_SET)
        stale = not tag & 0xFFFF and tag >> 16 in self._groups  # a group length
        if (ours or stale) and not whole:
            return None
        self._fill_before(tag, passed)
        if tag > ORIGINAL_ATTRIBUTES:
            self._tell_originals(b"", passed)
            self._past = True
            return at
        self._last = tag
        value = bytes(data[element.value_at : element.end]) if ours else b""
        if tag in self._rules:
            if element.delimited:
                raise NodeError("text of undefined length", ErrorKind.INVALID)
            self._coerce(tag, value, bytes(data[at : element.end]), passed)
        elif tag == ORIGINAL_ATTRIBUTES:
            if self._syntax.explicit and element.vr != b"SQ":
                raise NodeError("original attributes unreadable", ErrorKind.INVALID)
            items = value[:-8] if element.delimited else value
            raw = bytes(data[at : element.end])
            self._tell_originals(items, passed, unchanged=raw)
            self._past = True
        elif not stale:
            if tag == CHARACTER_SET:
                sets = value.decode("ascii", "replace").split("\\")
                self._sets = [name.strip(" \0") for name in sets]
            end = min(element.end, len(data))
            passed += data[at:end]
            self._passing = element.end - end
            return end
        return element.end

    def _fill_before(self, tag: int, passed: bytearray) -> None:
        """Apply the rules about attributes before `tag`, which are absent."""
        while self._pending and self._pending[0] < tag:
            self._coerce(self._pending[0], b"", b"", passed)

    def _coerce(self, tag: int, value: bytes, raw: bytes, passed: bytearray) -> None:
        """Pass on what the rules make of an element; `raw` is empty when absent."""
        self._pending.remove(tag)
        before = text = decode_text(value, self._sets).strip(" ")
        changed = []
        for number, rule in self._rules[tag]:
            text, last = rule.apply(text), text
            if text != last:
                changed.append(f"{rule.keyword} by rule {number} ({rule.action})")
        rule = self._rules[tag][-1][1]
        if text == before:
            passed += raw
            return
        self._changes += changed
        # An attribute that was not there had no value: it is told with none.
        self._original.append(raw or self._text(tag, rule.vr, b""))
        if text or rule.keyword in KEPT_EMPTY:
            coded = rule.encoded(text, self._sets, value)
            passed += self._text(tag, rule.vr, coded)

    def _tell_originals(
        self, items: bytes, passed: bytearray, *, unchanged: bytes = b""
    ) -> None:
        """Add an item to the Original Attributes Sequence (PS3.3 C.12.1.1.9)."""
        if not self._original:
            passed += unchanged
            return
        source, system, at = self._told
        item = b"".join(
            (
                self._sequence(MODIFIED_ATTRIBUTES, self._item(self._original)),
                self._ascii(MODIFIED_AT, "DT", f"{at:%Y%m%d%H%M%S.%f%z}"),
                self._ascii(MODIFYING_SYSTEM, "LO", system),
                self._ascii(SOURCE_OF_PREVIOUS_VALUES, "LO", source),
                self._ascii(REASON, "CS", "COERCE"),
            )
        )
        passed += self._sequence(ORIGINAL_ATTRIBUTES, items + self._item([item]))

    def _sequence(self, tag: int, items: bytes) -> bytes:
        vr = b"SQ\0\0" if self._syntax.explicit else b""
        length = self._pack("L", UNDEFINED)
        return self._tag(tag) + vr + length + items + self._tag(SEQUENCE_END) + bytes(4)

    def _item(self, elements: Sequence[bytes]) -> bytes:
        content = b"".join(elements)
        return self._tag(ITEM) + self._pack("L", len(content)) + content

    def _ascii(self, tag: int, vr: str, text: str) -> bytes:
        raw = text.encode("ascii", "replace")
        return self._text(tag, vr, raw + b" " * (len(raw) & 1))

    def _text(self, tag: int, vr: str, value: bytes) -> bytes:
        if self._syntax.explicit:
            length = vr.encode() + self._pack("H", len(value))
        else:
            length = self._pack("L", len(value))
        return self._tag(tag) + length + value

    def _tag(self, tag: int) -> bytes:
        return self._pack("H", tag >> 16) + self._pack("H", tag & 0xFFFF)

    def _pack(self, kind: str, number: int) -> bytes:
        return struct.pack(f"{self._syntax.order}{kind}", number)
