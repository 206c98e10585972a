"""Where in the breast an image was taken, as far as its header tells.

Machines write the place into coded sequences, or the sonographer types it into a
comment: "L 3:00 2cm FN", "左乳3点 距乳头2cm". It is read strictly: a wrong side is
worse than none, so whatever contradicts itself stays unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

from pydicom.dataset import Dataset

from node.domain import lexicon


class Plane(Enum):
    """How the transducer was held, with the plane across it."""

    TRANSVERSE = "transverse"
    LONGITUDINAL = "longitudinal"
    RADIAL = "radial"
    ANTIRADIAL = "antiradial"

    def is_across(self, other: Plane | None) -> bool:
        """Tell whether the two planes are orthogonal."""
        return other is _ACROSS[self]


_ACROSS: Final = {
    Plane.TRANSVERSE: Plane.LONGITUDINAL,
    Plane.LONGITUDINAL: Plane.TRANSVERSE,
    Plane.RADIAL: Plane.ANTIRADIAL,
    Plane.ANTIRADIAL: Plane.RADIAL,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the breasts; None is unknown.

    `laterality` is L or R, `clock` 1 to 12 as the examiner faces the patient.
    """

    laterality: str | None = None
    clock: int | None = None
    distance_from_nipple_mm: Decimal | None = None

    @property
    def is_known(self) -> bool:
        """Tell whether two images of this place show the same part of a breast."""
        return self.laterality is not None and self.clock is not None

    @property
    def key(self) -> str:
        """Return the place as a name that stays the same, such as L-3-20mm.

        What is nowhere is called 1, as the only lesion of a study always was.
        """
        if self == NOWHERE:
            return "1"
        name = self.laterality or "U"
        if self.clock is not None:
            name += f"-{self.clock}"
        if self.distance_from_nipple_mm is not None:
            name += f"-{self.distance_from_nipple_mm.normalize():f}mm"
        return name


NOWHERE: Final = Place()

_SIDE_CODES: Final = {"7771000": "L", "24028007": "R", "G-A101": "L", "G-A100": "R"}
_CLOCK_CODES: Final = {concept.value: hour for hour, concept in lexicon.CLOCK.items()}
_PLANE_CODES: Final = {
    "62824007": Plane.TRANSVERSE,
    "30730003": Plane.LONGITUDINAL,
}
_ANATOMY: Final = (
    "AnatomicRegionSequence",
    "AnatomicRegionModifierSequence",
    "PrimaryAnatomicStructureSequence",
    "PrimaryAnatomicStructureModifierSequence",
    "ViewCodeSequence",
    "ViewModifierCodeSequence",
)
_TEXTS: Final = ("ImageComments", "SeriesDescription", "ViewName")

FARTHEST_MM: Final = 200
"""A typed distance beyond it is a slip of the pen."""

_HOUR: Final = r"(?<![\d.:：])(1[0-2]|0?[1-9])"
_RANGE: Final = re.compile(
    r"\d\s*(?::00)?\s*(?:[-–—~至到/、,]|to)\s*(?:1[0-2]|0?[1-9])\s*"
    r"(?::\d\d|：\d\d|点|點|o'?\s?clock)",
    re.IGNORECASE,
)
_CLOCK_TEXTS: Final = (
    re.compile(_HOUR + r"(?:[:：]00)?\s*o['’]?\s?clock", re.IGNORECASE),
    re.compile(_HOUR + r"\s*[点點](?!\d|半)"),
    # A bare 3:00 is a time of day unless a side stands before it.
    re.compile(
        r"(?:\b(?:L|LT|LB|LEFT|R|RT|RB|RIGHT)\b|左|右)\s*(?:BREAST|侧?乳房?腺?)?\s*@?\s*"
        + _HOUR
        + r"[:：]00\b",
        re.IGNORECASE,
    ),
    re.compile(r"\b[LR](1[0-2]|0?[1-9]):00\b", re.IGNORECASE),
)
_HALF_HOUR: Final = re.compile(r"\d[:：](?!00)\d\d|\d\s*[点點](?:半|\d)", re.IGNORECASE)
_TIME_OF_DAY: Final = re.compile(
    r"[上下中]午|早上|晚上|凌晨|\d\s*[AP]\.?M\b", re.IGNORECASE
)
_CHINESE_HOURS: Final = (
    ("十二", "12"),
    ("十一", "11"),
    *zip("一二三四五六七八九十", map(str, range(1, 11)), strict=True),
    ("两", "2"),
)
_CHINESE_HOUR: Final = re.compile(r"(十[一二]?|[一二两三四五六七八九])(?=\s*[点點])")
# A single letter names a side only next to a clock: "L12-5" is a transducer.
_SIDES: Final = {
    "L": re.compile(
        r"左|\b(?:LEFT|LT)\b|\bL\s?@?\s?(?=(?:1[0-2]|0?[1-9])\s?(?::00|o'?\s?clock|[点點]))",
        re.IGNORECASE,
    ),
    "R": re.compile(
        r"右|\b(?:RIGHT|RT)\b|\bR\s?@?\s?(?=(?:1[0-2]|0?[1-9])\s?(?::00|o'?\s?clock|[点點]))",
        re.IGNORECASE,
    ),
}
_LENGTH: Final = r"(\d{1,3}(?:\.\d{1,2})?)\s*(cm|mm|厘米|毫米|公分)"
_DISTANCES: Final = (
    re.compile(_LENGTH + r"\s*(?:fn\b|from\s+(?:the\s+)?nipple)", re.IGNORECASE),
    re.compile(r"\bfn\s*:?\s*" + _LENGTH, re.IGNORECASE),
    re.compile(r"距离?\s*乳头\s*约?\s*" + _LENGTH, re.IGNORECASE),
)
_PLANES: Final = {
    Plane.ANTIRADIAL: re.compile(
        r"\b(?:anti-?\s?rad(?:ial)?|a-?rad)\b|反径向|反放射", re.IGNORECASE
    ),
    Plane.RADIAL: re.compile(
        r"(?<!anti-)(?<!anti )(?<!a-)\brad(?:ial)?\b|(?<!反)(?:径向|放射)",
        re.IGNORECASE,
    ),
    Plane.TRANSVERSE: re.compile(
        r"\b(?:trans(?:verse)?|trv|trx)\b|横切|横断", re.IGNORECASE
    ),
    Plane.LONGITUDINAL: re.compile(
        r"\b(?:long(?:itudinal)?|sag(?:ittal)?)\b|纵切|纵断|矢状", re.IGNORECASE
    ),
}


def place_of(header: Dataset) -> Place:
    """Return the place of an image; what is absent or contradicts itself is None."""
    codes, texts = _codes(header), _texts(header)
    sides = {
        side
        for keyword in ("ImageLaterality", "Laterality")
        if (side := _side(header, keyword))
    }
    if "ImageLaterality" in header and (own := _side(header, "ImageLaterality")):
        sides = {own}  # of this image; the series may hold both breasts
    sides |= {_SIDE_CODES[code] for code in codes if code in _SIDE_CODES}
    sides |= _frame_sides(header)
    sides |= {side for text in texts for side in _sides_in(text)}
    if len(sides) > 1:
        return NOWHERE
    clocks = {_CLOCK_CODES[code] for code in codes if code in _CLOCK_CODES}
    spoken = {clock for text in texts for clock in clocks_in(text)}
    hours = clocks | spoken
    distances = {mm for text in texts for mm in distances_in(text)}
    return Place(
        sides.pop() if sides else None,
        hours.pop() if len(hours) == 1 else None,
        distances.pop() if len(distances) == 1 else None,
    )


def plane_of(header: Dataset) -> Plane | None:
    """Return the plane of an image, None when the header does not tell."""
    planes = {_PLANE_CODES[code] for code in _codes(header) if code in _PLANE_CODES}
    for text in _texts(header):
        planes |= {plane for plane, words in _PLANES.items() if words.search(text)}
    return planes.pop() if len(planes) == 1 else None


def clocks_in(text: str) -> set[int]:
    """Return the clock positions that a text names, 1 to 12.

    A range, a half hour or a time of day names none: the lexicon has whole hours.
    """
    text = _CHINESE_HOUR.sub(lambda found: dict(_CHINESE_HOURS)[found[1]], text)
    if _TIME_OF_DAY.search(text) or _HALF_HOUR.search(text) or _RANGE.search(text):
        return set()
    return {int(found) for form in _CLOCK_TEXTS for found in form.findall(text)}


def distances_in(text: str) -> set[Decimal]:
    """Return the distances from the nipple in millimetres that a text names."""
    found = set()
    for form in _DISTANCES:
        for number, unit in form.findall(text):
            tens = 1 if unit.lower() in ("mm", "毫米") else 10
            found.add(Decimal(number) * tens)
    return {mm for mm in found if mm <= FARTHEST_MM}


def _sides_in(text: str) -> set[str]:
    return {side for side, words in _SIDES.items() if words.search(text)}


def _side(header: Dataset, keyword: str) -> str | None:
    value = str(header.get(keyword, None) or "").strip().upper()
    return value if value in lexicon.LATERALITY else None


def _frame_sides(header: Dataset) -> set[str]:
    groups = header.get("SharedFunctionalGroupsSequence", None) or ()
    found = {
        _side(anatomy, "FrameLaterality")
        for group in groups
        for anatomy in group.get("FrameAnatomySequence", None) or ()
    }
    return {side for side in found if side is not None}


def _texts(header: Dataset) -> Sequence[str]:
    return [
        text
        for keyword in _TEXTS
        if (text := str(header.get(keyword, None) or "").strip())
    ]


def _codes(header: Dataset) -> set[str]:
    """Return the code values of the anatomy sequences and their modifiers."""
    return set(_codes_under(header, depth=3))


def _codes_under(item: Dataset, depth: int) -> Iterable[str]:
    for keyword in _ANATOMY:
        for code in item.get(keyword, None) or ():
            if isinstance(code, Dataset):
                yield str(code.get("CodeValue", None) or "").strip()
                if depth:
                    yield from _codes_under(code, depth - 1)
