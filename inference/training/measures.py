"""Figures of merit, with intervals that know that one patient's images are alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def auc(truth: Array, score: NDArray[np.floating[Any]]) -> float:
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


@dataclass(frozen=True, slots=True)
class AreaDifference:
    """Two areas under the curve on the same cases, and how sure their difference is.

    `low`, `high`: 95 % interval of `difference` = first - second. `p`: two-sided.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def delong(
    truth: Array, scores: Array, groups: Sequence[str] | None = None
) -> tuple[Array, Array]:
    """Return the AUC of each row of `scores` (k, n), and their covariance (k, k).

    DeLong 1988. With `groups` (patients) in Obuchowski's 1997 form for clustered
    data, which is the same when every group has one image. NaN when a class is absent.
    """
    scores = np.atleast_2d(scores)
    bad, good = np.flatnonzero(truth > 0.5), np.flatnonzero(truth <= 0.5)
    count = len(scores)
    if not len(bad) or not len(good):
        return np.full(count, np.nan), np.full((count, count), np.nan)
    wins = np.stack([_placements(score[bad], score[good]) for score in scores])
    losses = np.stack([_placements(-score[good], -score[bad]) for score in scores])
    areas = wins.mean(axis=1)
    names = np.arange(len(truth)) if groups is None else np.array(groups)
    clusters = np.unique(names, return_inverse=True)[1]
    total = int(clusters.max()) + 1
    of_bad = _sums_by_cluster(wins - areas[:, None], clusters[bad], total)
    of_good = _sums_by_cluster(losses - areas[:, None], clusters[good], total)
    covariance = _spread(of_bad, len(np.unique(clusters[bad]))) / len(bad) ** 2
    covariance += _spread(of_good, len(np.unique(clusters[good]))) / len(good) ** 2
    both = of_bad @ of_good.T * (total / max(total - 1, 1)) / (len(bad) * len(good))
    return areas, covariance + both + both.T


def delong_interval(
    truth: Array, score: Array, groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the AUC with its 95 % interval after DeLong, cut at 0 and 1."""
    areas, covariance = delong(truth, score, groups)
    reach = 1.959964 * math.sqrt(max(float(covariance[0, 0]), 0.0))
    if math.isnan(areas[0]) or math.isnan(covariance[0, 0]):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    value = float(areas[0])
    return {
        "value": value,
        "low": max(0.0, value - reach),
        "high": min(1.0, value + reach),
    }


def compare_areas(
    truth: Array, first: Array, second: Array, groups: Sequence[str] | None = None
) -> AreaDifference:
    """Compare two scores of the same cases by DeLong's paired test."""
    areas, covariance = delong(truth, np.stack([first, second]), groups)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan
    if error > 0:
        p = math.erfc(abs(difference) / error / math.sqrt(2))
    else:
        p = 1.0 if difference == 0 else math.nan
    return AreaDifference(
        first=float(areas[0]),
        second=float(areas[1]),
        difference=difference,
        low=difference - 1.959964 * error,
        high=difference + 1.959964 * error,
        p=p,
    )


def roc_curve(truth: Array, score: Array) -> tuple[Array, Array, Array]:
    """Return false and true positive rates and the thresholds (>=) that give them.

    Starts at (0, 0) with an infinite threshold; one point per distinct score.
    """
    order = np.argsort(-score, kind="stable")
    ranked, hits = score[order], truth[order] > 0.5
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    found, alarms = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    true_rate = np.append(0.0, found / max(int(hits.sum()), 1))
    false_rate = np.append(0.0, alarms / max(int((~hits).sum()), 1))
    return false_rate, true_rate, np.append(np.inf, ranked[last])


def sensitivity_at(truth: Array, score: Array, wanted_specificity: float) -> float:
    """Return the best sensitivity of thresholds of at least the wanted specificity."""
    if not (truth > 0.5).any() or not (truth <= 0.5).any():
        return math.nan
    false_rate, true_rate, _ = roc_curve(truth, score)
    return float(true_rate[false_rate <= 1 - wanted_specificity + 1e-12].max())


def youden_index(truth: Array, score: Array) -> tuple[float, float]:
    """Return the largest sensitivity + specificity - 1, and its threshold (>=).

    Of equals the more sensitive one.
    """
    if not (truth > 0.5).any() or not (truth <= 0.5).any():
        return math.nan, math.nan
    false_rate, true_rate, thresholds = roc_curve(truth, score)
    gains = np.round(true_rate - false_rate, 12)
    best = len(gains) - 1 - int(np.argmax(gains[::-1]))
    return float(true_rate[best] - false_rate[best]), float(thresholds[best])


@dataclass(frozen=True, slots=True)
class Pointing:
    """Whether a heat map looks at the lesion, beside what chance would give.

    `hit`: its peak lies in the mask. `energy`: share of its sum that does. `area`:
    share of the pixels in which the map may be hot at all that the mask covers, which
    is what a map that knows nothing would score in both.
    """

    hit: bool
    energy: float
    area: float


def pointing(
    heat: NDArray[np.float32], mask: NDArray[np.bool_], within: NDArray[np.bool_]
) -> Pointing | None:
    """Score one heat map, values >= 0, against the lesion's mask of the same shape.

    `within`: where the map may be hot, usually the crop that was read: beyond it a
    map is 0 by construction and deserves no credit. None for an empty mask or map.
    """
    seen = np.where(within, heat, 0.0).astype(np.float64)
    if not mask.any() or seen.sum() <= 0:
        return None
    row, column = np.unravel_index(int(np.argmax(seen)), seen.shape)
    return Pointing(
        hit=bool(mask[row, column]),
        energy=float(seen[mask].sum() / seen.sum()),
        area=float((mask & within).sum() / max(int(within.sum()), 1)),
    )


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
    if not members:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
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


def mean_known(values: Array) -> float:
    """Return the mean of the values that are numbers; NaN when there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _placements(own: Array, others: Array) -> Array:
    """Return, for each value, the share of `others` below it, ties half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, own, side="left")
    level = np.searchsorted(ranked, own, side="right")
    return np.asarray((below + level) / (2 * len(ranked)), dtype=np.float64)


def _sums_by_cluster(values: Array, clusters: NDArray[np.int64], total: int) -> Array:
    sums = np.zeros((len(values), total))
    for row, line in enumerate(values):
        np.add.at(sums[row], clusters, line)
    return sums


def _spread(sums: Array, clusters: int) -> Array:
    """Return the sum of products over clusters, for a mean of a sample of them."""
    if clusters < 2:
        return np.full((len(sums), len(sums)), np.nan)
    return np.asarray(sums @ sums.T * (clusters / (clusters - 1)), dtype=np.float64)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
