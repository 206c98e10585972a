"""How well a model does on parts of a split: machines, ages, sizes, tissue, marks.

A part with few cases of a class gets no figure: a number there would be read as if it
meant something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.training.data import Catalogue
from inference.training.manifest import Row, number
from inference.training.measures import (
    Array,
    delong_interval,
    interval,
    sensitivity,
    specificity,
)

FEWEST = 10
"""Of each class; below it a part is listed without figures."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Suspicions:
    """What was said about the lesions of a split, one row each.

    `truth`: 1 malignant, 0 benign. `chance`: probability. `called`: 1 at or above the
    threshold. `rows`: their places in the catalogue.
    """

    truth: Array
    chance: Array
    called: Array
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the subgroup table; figures are None when a class has too few."""

    kind: str
    name: str
    n: int
    malignant: int
    auc: dict[str, float] | None
    sensitivity: dict[str, float] | None
    specificity: dict[str, float] | None


def subgroup_table(
    catalogue: Catalogue, said: Suspicions, *, rounds: int = 1000
) -> list[dict[str, Any]]:
    """Return the table, kinds in a fixed order; a kind nobody recorded is left out."""
    table = []
    for kind, name_of in _KINDS.items():
        names = np.array([name_of(catalogue, int(row)) for row in said.rows])
        known = sorted(set(names.tolist()) - {UNKNOWN}, key=_in_order)
        if not known:
            continue
        for name in (*known, *([UNKNOWN] if UNKNOWN in names else [])):
            kept = np.flatnonzero(names == name)
            table.append(asdict(_part(catalogue, said, kind, name, kept, rounds)))
    return table


def _part(
    catalogue: Catalogue,
    said: Suspicions,
    kind: str,
    name: str,
    kept: NDArray[np.int64],
    rounds: int,
) -> Part:
    truth, chance, called = said.truth[kept], said.chance[kept], said.called[kept]
    malignant = int(truth.sum())
    if min(malignant, len(kept) - malignant) < FEWEST:
        return Part(kind, name, len(kept), malignant, None, None, None)
    groups = [catalogue.groups[row] for row in said.rows[kept]]
    return Part(
        kind,
        name,
        len(kept),
        malignant,
        delong_interval(truth, chance, groups),
        interval(lambda i: sensitivity(truth[i], called[i]), groups, rounds=rounds),
        interval(lambda i: specificity(truth[i], called[i]), groups, rounds=rounds),
    )


def _in_order(name: str) -> tuple[bool, str]:
    return (not name.startswith("<"), name)


def _row(catalogue: Catalogue, row: int) -> Row | None:
    return catalogue.rows[row] if catalogue.rows else None


def _set(catalogue: Catalogue, row: int) -> str:
    return catalogue.sets[row]


def _column(name: str) -> Callable[[Catalogue, int], str]:
    def name_of(catalogue: Catalogue, row: int) -> str:
        known = _row(catalogue, row)
        return (known[name] if known else "") or UNKNOWN

    return name_of


def _age(catalogue: Catalogue, row: int) -> str:
    known = _row(catalogue, row)
    years = number(known, "age") if known else math.nan
    if math.isnan(years):
        return UNKNOWN
    for limit, band in ((40, "< 40"), (50, "40-49"), (60, "50-59")):
        if years < limit:
            return band
    return "60 and older"


def _size(catalogue: Catalogue, row: int) -> str:
    """Return the longest extent in mm where the set gives it."""
    known = _row(catalogue, row)
    if known is None:
        return UNKNOWN
    extents = [number(known, "lesion_w_mm"), number(known, "lesion_h_mm")]
    if any(math.isnan(extent) for extent in extents):
        return UNKNOWN
    longest = max(extents)
    return "< 10 mm" if longest < 10 else "10-20 mm" if longest <= 20 else "> 20 mm"


def _share(catalogue: Catalogue, row: int) -> str:
    """Return the share of the image that the lesion covers, where a mask tells."""
    rows, columns = catalogue.sizes[row].tolist()
    area = float((catalogue.masks[row] > 127).sum()) / (rows * columns)
    if area == 0:
        return UNKNOWN
    return "< 3 %" if area < 0.03 else "3-10 %" if area <= 0.10 else "> 10 %"


def _callipers(catalogue: Catalogue, row: int) -> str:
    known = _row(catalogue, row)
    marks = number(known, "calliper_marks") if known else math.nan
    if math.isnan(marks):
        return UNKNOWN
    return "seen" if marks > 0 else "none found"


_KINDS: dict[str, Callable[[Catalogue, int], str]] = {
    "set": _set,
    "device": _column("device"),
    "age": _age,
    "lesion size": _size,
    "share of the image": _share,
    "tissue": _column("tissue"),
    "density": _column("density"),
    "callipers": _callipers,
    "view": _column("view"),
}
