"""Fits where one BI-RADS category ends and the next begins, on one suspicion.

The sets hold lesions that somebody biopsied, a third of them cancers: bands of the
calibrated probability would call nearly every benign lesion 4A. The cut points
follow instead how the sets' radiologists used the categories, with one bound that
agreement must not move: hardly a cancer may fall below 4A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.record import ACR_CUTS, BIRADS_STEPS
from inference.training.measures import kappa, sensitivity, specificity

Array = NDArray[np.float64]

PLAIN_STEPS: Final = ("2", "3", "4", "5")
"""The categories of a set that does not divide 4."""

KEPT_SUSPICIOUS: Final = 0.98
"""Share of validation cancers that must be 4A or higher."""

SUSPICIOUS: Final = BIRADS_STEPS.index("4A")
PULL: Final = 0.01
"""Weight of the squared distance from the ACR's bands, for the cuts within and above 4.

Few images are divided into 4A, 4B and 4C; without a pull two cuts fall together.
"""

_CANDIDATES: Final = 120
_PLAIN: Final = np.array([PLAIN_STEPS.index(step[0]) for step in BIRADS_STEPS])


@dataclass(frozen=True)
class Graded:
    """Images with the suspicion that the model gives and the category of a reader.

    `suspicion`: calibrated logits. `categories`: as the manifest has them, empty
    when nobody gave one. `malignancy`: 0, 1 or NaN.
    """

    suspicion: Array
    sets: NDArray[np.str_]
    groups: NDArray[np.str_]
    categories: NDArray[np.str_]
    malignancy: Array

    def scale(self, name: str) -> tuple[str, ...]:
        """Return the categories of a set: divided, when one of its 4 is."""
        given = set(self.categories[self.sets == name].tolist())
        return BIRADS_STEPS if given & {"4A", "4B", "4C"} else PLAIN_STEPS

    def part(self, rows: NDArray[np.bool_]) -> Graded:
        """Return some of the images."""
        return Graded(
            self.suspicion[rows],
            self.sets[rows],
            self.groups[rows],
            self.categories[rows],
            self.malignancy[rows],
        )


def fit_cuts(graded: Graded) -> tuple[float, ...]:
    """Return the five suspicions at which 3, 4A, 4B, 4C and 5 begin.

    Maximises the weighted kappa with the readers, of each set by the square root of
    its size, one cut after the other until none moves. Without a single graded
    image the ACR's bands stand.
    """
    known = np.isin(graded.categories, [*BIRADS_STEPS, *PLAIN_STEPS])
    if not known.any():
        return ACR_CUTS
    scores = graded.suspicion[known]
    edges = np.unique(np.quantile(scores, np.linspace(0.005, 0.995, _CANDIDATES)))
    candidates = (edges[1:] + edges[:-1]) / 2
    ceiling = _ceiling(graded)
    readers = _Readers.of(graded)
    cuts = np.array(ACR_CUTS)
    cuts[:SUSPICIOUS] = np.minimum(np.quantile(scores, (0.15, 0.3)), ceiling)
    cuts = np.maximum.accumulate(cuts)
    best = readers.agreement(cuts)
    moved = True
    while moved:
        moved = False
        for index in range(len(cuts)):
            low = cuts[index - 1] if index else -np.inf
            high = cuts[index + 1] if index + 1 < len(cuts) else np.inf
            if index < SUSPICIOUS:
                high = min(high, ceiling)
            for cut in (*candidates, ceiling):
                if not low <= cut <= high:
                    continue
                trial = cuts.copy()
                trial[index] = cut
                value = readers.agreement(trial)
                if value > best + 1e-9:
                    cuts, best, moved = trial, value, True
    # Rounded down: a cut rounded up could leave a cancer below it.
    return tuple(math.floor(cut * 1e6) / 1e6 for cut in cuts)


def cross_validated(
    graded: Graded, *, folds: int = 5, seed: int = 20261121
) -> NDArray[np.int64]:
    """Return each image's step as cuts fitted without its group would give it."""
    groups = np.random.default_rng(seed).permutation(np.unique(graded.groups))
    steps = np.zeros(len(graded.suspicion), dtype=np.int64)
    for fold in range(folds):
        left_out = np.isin(graded.groups, groups[fold::folds])
        cuts = fit_cuts(graded.part(~left_out))
        steps[left_out] = steps_of(graded.suspicion[left_out], cuts)
    return steps


def steps_of(suspicion: Array, cuts: Sequence[float] | Array) -> NDArray[np.int64]:
    """Return the position of each category in BIRADS_STEPS."""
    return np.searchsorted(np.array(cuts), suspicion, side="right")


def figures(graded: Graded, steps: NDArray[np.int64]) -> dict[str, float]:
    """Return weighted kappa for each set, and how cancers and benign lesions part."""
    result: dict[str, float] = {}
    for name in sorted(set(graded.sets.tolist())):
        scale = graded.scale(name)
        rows = (graded.sets == name) & np.isin(graded.categories, scale)
        if rows.any():
            given, said = _on_scale(graded.categories[rows], steps[rows], scale)
            result[f"weighted_kappa_{name}"] = kappa(
                given, said, len(scale), weighted=True
            )
    known = ~np.isnan(graded.malignancy)
    called = (steps[known] >= SUSPICIOUS).astype(np.float64)
    result["sensitivity_4a"] = sensitivity(graded.malignancy[known], called)
    result["specificity_4a"] = specificity(graded.malignancy[known], called)
    return result


def _ceiling(graded: Graded) -> float:
    """Return the highest suspicion at which 4A may begin."""
    cancers = np.sort(graded.suspicion[graded.malignancy == 1])
    if not len(cancers):
        return ACR_CUTS[SUSPICIOUS - 1]
    missed = int(np.floor((1 - KEPT_SUSPICIOUS) * len(cancers) + 1e-9))
    return float(np.nextafter(cancers[missed], -np.inf))


def _on_scale(
    categories: NDArray[np.str_], steps: NDArray[np.int64], scale: tuple[str, ...]
) -> tuple[Array, Array]:
    given = np.array([scale.index(str(key)) for key in categories], dtype=np.float64)
    said = steps if scale is BIRADS_STEPS else _PLAIN[steps]
    return given, said.astype(np.float64)


@dataclass(frozen=True)
class _Readers:
    """The graded images set by set: suspicion, given category, scale."""

    sets: tuple[tuple[Array, NDArray[np.str_], tuple[str, ...]], ...]

    @classmethod
    def of(cls, graded: Graded) -> _Readers:
        parts = []
        for name in sorted(set(graded.sets.tolist())):
            scale = graded.scale(name)
            rows = (graded.sets == name) & np.isin(graded.categories, scale)
            if rows.any():
                parts.append((graded.suspicion[rows], graded.categories[rows], scale))
        return cls(tuple(parts))

    def agreement(self, cuts: Array) -> float:
        total = weight = 0.0
        for suspicion, categories, scale in self.sets:
            given, said = _on_scale(categories, steps_of(suspicion, cuts), scale)
            share = float(np.sqrt(len(given)))
            agreed = kappa(given, said, len(scale), weighted=True)
            total += share * (0.0 if math.isnan(agreed) else agreed)
            weight += share
        apart = cuts[SUSPICIOUS:] - np.array(ACR_CUTS[SUSPICIOUS:])
        return total / weight - PULL * float((apart**2).sum())
