"""What names a person where no rule looks for it: private elements, free text.

Makers copy name and number of the patient into elements of their own, and people type
them into descriptions. Known by what the header itself says of her they are found
wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

# What is shorter is found by chance. A sign of 中文 says as much as two letters.
_SHORTEST: Final = 4
_NUMBERS: Final = ("PatientID", "OtherPatientIDs", "AccessionNumber", "AdmissionID")
_TEXTS: Final = frozenset(("LO", "LT", "OB", "PN", "SH", "ST", "UC", "UN", "UR", "UT"))
_BETWEEN: Final = re.compile(r"[\s^=,.·]+")


@dataclass(frozen=True)
class Traces:
    """The names of a person without what is between their parts, and her numbers."""

    names: frozenset[str]
    numbers: re.Pattern[str] | None

    def clear(self, data_set: Dataset) -> list[int]:
        """Empty what names her, at every depth; return the tags at the top.

        A private element goes altogether: whether it may be empty, its maker knows.
        """
        cleared = []
        for element in list(data_set):
            if element.VR == "SQ":
                within = [self.clear(item) for item in element.value]
                found = any(within)
            elif found := self._are_in(element):
                if element.tag.is_private:
                    del data_set[element.tag]
                else:
                    element.clear()
            if found:
                cleared.append(int(element.tag))
        return cleared

    def _are_in(self, element: DataElement) -> bool:
        if element.VR not in _TEXTS:
            return False
        return any(self._names_her(text) for text in _texts(element.value))

    def _names_her(self, text: str) -> bool:
        if self.numbers is not None and self.numbers.search(text):
            return True
        close = _BETWEEN.sub("", text).casefold()
        return any(name in close for name in self.names)


def traces_of(header: Dataset, uids: Iterable[str] = ()) -> Traces:
    """Return what would name the patient of a Unicode header; `uids` do as well."""
    told = (text.strip() for key in _NUMBERS for text in _texts(header.get(key)))
    numbers = {*uids, *(text for text in told if _weight(text) >= _SHORTEST)}
    either = "|".join(map(re.escape, sorted(numbers)))
    return Traces(
        frozenset(_names(header)),
        _whole(either) if either else None,
    )


def _whole(either: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![0-9A-Za-z])(?:{either})(?![0-9A-Za-z])", re.IGNORECASE)


def _names(header: Dataset) -> Iterator[str]:
    """Yield her names, family name first and last."""
    for keyword in ("PatientName", "OtherPatientNames"):
        for name in _listed(header.get(keyword)):
            for group in str(name).split("="):
                parts = [_BETWEEN.sub("", part).casefold() for part in group.split("^")]
                family, given = parts[0], "".join(parts[1:3])
                for whole in (family + given, given + family):
                    if _weight(whole) >= _SHORTEST:
                        yield whole


def _weight(text: str) -> int:
    return sum(1 if sign.isascii() else 2 for sign in text)


def _texts(value: Any) -> Iterable[str]:
    for one in _listed(value):
        if isinstance(one, bytes):
            yield from (one.decode(name, "ignore") for name in ("utf-8", "gb18030"))
        elif isinstance(one, str | PersonName):
            yield str(one)


def _listed(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, MultiValue | list) else (value,)
