"""Figures of merit, with intervals that know that one patient's images are alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def auc(truth: Array, score: Array) -> float:
    """Return the area under the ROC curve, ties half; NaN when a class is absent."""
    positive, negative = score[truth > 0.5], np.sort(score[truth <= 0.5])
    if not len(positive) or not len(negative):
        return float("nan")
    below = np.searchsorted(negative, positive, side="left")
    level = np.searchsorted(negative, positive, side="right")
    return float((below + level).sum() / (2 * len(positive) * len(negative)))


def sensitivity(truth: Array, called: Array) -> float:
    """Return the share of positives that were called."""
    return _share(called[truth > 0.5] > 0.5)


def specificity(truth: Array, called: Array) -> float:
    """Return the share of negatives that were not called."""
    return _share(called[truth <= 0.5] <= 0.5)


def calibration_error(truth: Array, chance: Array, bins: int = 10) -> float:
    """Return the expected calibration error over `bins` equal spans of probability."""
    place = np.minimum((chance * bins).astype(int), bins - 1)
    total = 0.0
    for index in range(bins):
        rows = place == index
        if rows.any():
            total += rows.mean() * abs(truth[rows].mean() - chance[rows].mean())
    return float(total)


def kappa(
    first: Array, second: Array, classes: int, *, weighted: bool = False
) -> float:
    """Return Cohen's kappa of two readings 0..classes-1, quadratic weights if asked."""
    table = np.zeros((classes, classes))
    np.add.at(table, (first.astype(int), second.astype(int)), 1)
    if not table.sum():
        return float("nan")
    table /= table.sum()
    grid = np.arange(classes)
    distance = (grid[:, None] - grid[None, :]) ** 2
    cost = distance if weighted else (distance > 0).astype(float)
    expected = (cost * np.outer(table.sum(axis=1), table.sum(axis=0))).sum()
    return float(1 - (cost * table).sum() / expected) if expected else float("nan")


def macro_f1(truth: Array, said: Array, classes: Sequence[int]) -> float:
    """Return the mean F1 over the classes that occur in the truth."""
    scores = []
    for index in classes:
        if (truth == index).any():
            hit = ((truth == index) & (said == index)).sum()
            total = (truth == index).sum() + (said == index).sum()
            scores.append(2 * hit / total)
    return float(np.mean(scores)) if scores else float("nan")


def threshold_for_sensitivity(truth: Array, chance: Array, wanted: float) -> float:
    """Return the highest threshold at which at least `wanted` positives are called."""
    positive = np.sort(chance[truth > 0.5])
    if not len(positive):
        raise ValueError("no positives to set a threshold on")
    may_miss = int(np.floor((1 - wanted) * len(positive) + 1e-9))
    return float(positive[may_miss])


def youden_threshold(truth: Array, score: Array) -> float:
    """Return the threshold with the largest sensitivity + specificity."""
    levels = np.unique(score)
    middles = (levels[:-1] + levels[1:]) / 2 if len(levels) > 1 else levels
    gains = [
        sensitivity(truth, score > level) + specificity(truth, score > level)
        for level in middles
    ]
    return float(middles[int(np.argmax(gains))])


def interval(
    measure: Callable[[NDArray[np.int64]], float],
    groups: Sequence[str],
    *,
    rounds: int = 1000,
    seed: int = 20261121,
) -> dict[str, float]:
    """Return a measure with its 95 % interval from a bootstrap over groups.

    `measure` takes row numbers. Whole groups (patients, lesions) are drawn, since
    two images of one patient are not two observations.
    """
    names = np.array(groups)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    random = np.random.default_rng(seed)
    values = []
    for _ in range(rounds):
        drawn = random.integers(0, len(members), len(members))
        values.append(measure(np.concatenate([members[index] for index in drawn])))
    known = np.array(values)[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return {
        "value": measure(np.arange(len(names))),
        "low": float(low),
        "high": float(high),
    }


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
