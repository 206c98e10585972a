"""Does a stored attribute match what somebody asks for (PS3.4 C.2.2.2)?

One answer for C-FIND and for DICOMweb searches. Stored attributes are elements of the
DICOM JSON model (PS3.18 F.2); keys are text as it was asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from node.store.identities import unaccented

Element = Mapping[str, Any]

PN_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
# Value Representations in which `*` and `?` are wildcards (PS3.4 C.2.2.2.4).
WILDCARDS: Final = frozenset(
    ["AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"]
)
_NUMBERS: Final = frozenset(
    ["DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"]
)
_OFFSET: Final = r"(?:[+-]\d{4})?"
RANGES: Final = {
    "DA": re.compile(r"(\d{8})?-(\d{8})?"),
    "TM": re.compile(r"([\d.]+)?-([\d.]+)?"),
    "DT": re.compile(
        rf"(\d{{4,14}}(?:\.\d+)?{_OFFSET})?-(\d{{4,14}}(?:\.\d+)?{_OFFSET})?"
    ),
}
_LATEST: Final = {
    "DA": "99991231",
    "TM": "235960.999999",
    "DT": "99991231235960.999999",
}


@dataclass(frozen=True)
class Key:
    """One attribute that is asked for; without `values` it is only to be returned.

    `items` are the keys of the one item of a sequence.
    """

    tag: str
    vr: str
    values: tuple[str, ...] = ()
    items: tuple[Key, ...] = ()

    @property
    def universal(self) -> bool:
        """Tell whether everything matches, also what is missing (PS3.4 C.2.2.2.3)."""
        if self.vr == "SQ":
            return all(key.universal for key in self.items)
        return not self.values or set(self.values) == {"*"}

    @property
    def single(self) -> str:
        """Return the one value without wildcard or range, else an empty text."""
        if len(self.values) != 1 or self.universal:
            return ""
        (value,) = self.values
        if self.vr in WILDCARDS and re.search(r"[*?]", value):
            return ""
        return "" if _range(self.vr, value) is not None else value


def matches(key: Key, element: Element | None) -> bool:
    """Tell whether the stored `element` is one that `key` asks for.

    A value that is missing matches only a key that everything matches. Of several
    stored values one has to match, and one of several that are asked.
    """
    if key.universal:
        return True
    stored = (element or {}).get("Value") or ()
    if key.vr == "SQ":
        return any(
            all(matches(inner, item.get(inner.tag)) for inner in key.items)
            for item in stored
            if isinstance(item, dict)
        )
    return any(_matches(key.vr, asked, one) for asked in key.values for one in stored)


def text_of(value: object) -> str:
    """Return a value of the JSON model as text; the groups of a name joined by `=`."""
    if isinstance(value, Mapping):
        groups = [str(value.get(name, "")) for name in PN_GROUPS]
        return "=".join(groups).rstrip("=")
    return str(value)


def date_range(key: Key) -> tuple[date | None, date | None]:
    """Return the first and last date that a DA key allows, None where it is open."""
    if len(key.values) != 1 or key.universal:
        return None, None
    first, last = _range("DA", key.values[0]) or (key.values[0], key.values[0])
    return _date(first), _date(last)


def name_parts(pattern: str) -> tuple[str, ...]:
    """Return beginnings of components that every name matching `pattern` has."""
    parts: set[str] = set()
    for group in pattern.split("="):
        literal = re.split(r"[*?]", group, maxsplit=1)[0]
        parts.update(part.strip() for part in literal.split("^") if part.strip())
    return tuple(sorted(parts))


# -- single values ---------------------------------------------------------------------


def _matches(vr: str, asked: str, stored: object) -> bool:
    if stored is None:
        return False
    if vr == "PN":
        return _name_matches(asked, text_of(stored))
    if vr in _NUMBERS:
        return _number(asked) == _number(stored)
    told = text_of(stored).strip()
    if vr in RANGES:
        return _moment_matches(vr, asked, told)
    if vr in WILDCARDS:
        return _like(asked, told)
    return asked == told


def _like(pattern: str, told: str) -> bool:
    """Tell whether `told` has the form of `pattern` with its `*` and `?`.

    Not by a regular expression: a pattern of many `*` would keep one busy for ever.
    """
    at, place, star, resumed = 0, 0, -1, 0
    while at < len(told):
        if place < len(pattern) and pattern[place] == "*":
            star, resumed = place, at
            place += 1
        elif place < len(pattern) and pattern[place] in ("?", told[at]):
            at, place = at + 1, place + 1
        elif star >= 0:  # let the last `*` take one sign more
            resumed += 1
            at, place = resumed, star + 1
        else:
            return False
    return not pattern[place:].strip("*")


def _name_matches(asked: str, stored: str) -> bool:
    """Compare names without case and accents, group by group where groups are asked.

    A pattern without `^` may also run over the components: 张三 finds 张^三.
    """
    wanted, told = asked.split("="), stored.split("=")
    if len(wanted) == 1:
        return any(_group_matches(wanted[0], group) for group in told)
    told += [""] * (len(wanted) - len(told))
    return all(
        _group_matches(group, told[place])
        for place, group in enumerate(wanted)
        if group.strip("^ ")
    )


def _group_matches(asked: str, stored: str) -> bool:
    pattern = _folded(asked.rstrip("^ ").strip())
    components = [part.strip() for part in stored.split("^")]
    forms = ["^".join(components).rstrip("^")]
    if "^" not in asked:
        present = [part for part in components if part]
        forms += ["".join(present), " ".join(present)]
    return any(_like(pattern, _folded(form)) for form in forms if form)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unaccented(text)).casefold()


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _moment_matches(vr: str, asked: str, stored: str) -> bool:
    told = _moment(vr, stored)
    bounds = _range(vr, asked)
    if bounds is None:
        return told == _moment(vr, asked)
    first, last = bounds
    end = _moment(vr, last, late=True) if last else _LATEST[vr]
    return (not first or _moment(vr, first) <= told) and told <= end


def _range(vr: str, value: str) -> tuple[str, str] | None:
    """Return both ends of a range, either may be empty; None for a single value."""
    form = RANGES.get(vr)
    found = form.fullmatch(value) if form is not None else None
    if found is None or not any(found.groups()):
        return None
    return found[1] or "", found[2] or ""


def _moment(vr: str, value: str, *, late: bool = False) -> str:
    """Return a date or time at full length; what is left out is its earliest value.

    Offsets from UTC are left out: both sides are the time of the room.
    """
    digits = re.sub(rf"{_OFFSET}$", "", value) if vr == "DT" else value
    digits = re.sub(r"[:]" if vr != "DA" else r"[.]", "", digits)
    whole, _, fraction = digits.partition(".")
    latest, _, _ = _LATEST[vr].partition(".")
    if vr == "DA":
        return whole
    if late:
        return whole + latest[len(whole) :] + "." + fraction.ljust(6, "9")
    earliest = "00010101000000"[-len(latest) :]
    return whole + earliest[len(whole) :] + "." + fraction.ljust(6, "0")


def _date(value: str) -> date | None:
    try:
        return datetime.strptime(value.replace(".", ""), "%Y%m%d").date()  # noqa: DTZ007
    except ValueError:
        return None


def asked_values(text: str) -> Sequence[str]:
    """Return the values of a UID list as DICOMweb writes it (PS3.18 8.3.4.1)."""
    return [part for part in re.split(r"[,\\]", text) if part]
