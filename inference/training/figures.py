"""Draws the pictures that every run and every evaluation leaves behind, as PNG.

Needs Matplotlib, which the product itself does not: install `sononode[training]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inference.training.manifest import DataFault
from inference.training.measures import Array, auc, delong_interval, roc_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GRID = np.linspace(0.0, 1.0, 101)
_OURS, _OTHER, _FAINT = "#0b5fa5", "#b5482a", "#8a8f98"


def require_matplotlib() -> None:
    """Raise DataFault when there is nothing to draw with.

    Asked before the work of hours, not after it.
    """
    if find_spec("matplotlib") is None:
        raise DataFault("figures need Matplotlib: pip install 'sononode[training]'")


def draw_curves(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss, AUC and Dice on validation over the steps of a run's log."""
    figure, (left, right) = _figure(path, 2)
    steps = [line["step"] for line in log]
    left.plot(steps, [_number(line, "loss") for line in log], color=_OURS, label="loss")
    left.set(xlabel="step", ylabel="training loss (running mean)")
    rate = left.twinx()
    rate.plot(steps, [_number(line, "learning_rate") for line in log], color=_FAINT)
    rate.set_ylabel("learning rate")
    shown = {"both": "AUC, own region", "oracle": "AUC, true box", "dice": "Dice"}
    for (name, label), style in zip(shown.items(), ("-", "--", ":"), strict=True):
        values = [_number(line, name) for line in log]
        right.plot(steps, values, style, color=_OURS, marker=".", label=label)
    right.set(xlabel="step", ylabel="validation", ylim=(0.0, 1.02))
    right.legend(loc="lower right")
    figure.savefig(path)


def draw_roc(
    path: Path,
    truth: Array,
    scores: Mapping[str, Array],
    groups: Sequence[str],
    *,
    threshold: float | None = None,
    rounds: int = 300,
) -> None:
    """Draw the ROC of each score: bootstrap band over groups, DeLong's interval named.

    `threshold` marks the operating point of the first score.
    """
    figure, (axes,) = _figure(path, 1)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8)
    for index, (name, score) in enumerate(scores.items()):
        colour = (_OURS, _OTHER)[index % 2]
        found = delong_interval(truth, score, groups)
        if math.isnan(found["value"]):
            axes.plot([], [], color=colour, label=f"{name}: one class only")
            continue
        false_rate, true_rate, _ = roc_curve(truth, score)
        span = f"[{found['low']:.3f}-{found['high']:.3f}]"
        label = f"{name}: AUC {found['value']:.3f} {span}"
        axes.step(false_rate, true_rate, where="post", color=colour, label=label)
        if index == 0:
            low, high = roc_band(truth, score, groups, rounds=rounds)
            axes.fill_between(_GRID, low, high, color=colour, alpha=0.15, linewidth=0)
    if threshold is not None and scores:
        called = next(iter(scores.values())) >= threshold
        bad = truth > 0.5
        if bad.any() and not bad.all():
            point = (called[~bad].mean(), called[bad].mean())
            axes.plot(*point, "o", color=_OURS, label=f"threshold {threshold:.3f}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right", fontsize="small")
    axes.set_title("band: bootstrap over patients; [ ]: DeLong, 95 %", fontsize="small")
    figure.savefig(path)


def roc_band(
    truth: Array,
    score: Array,
    groups: Sequence[str],
    *,
    rounds: int = 300,
    seed: int = 20261121,
) -> tuple[Array, Array]:
    """Return the 95 % band of sensitivity at 101 even steps of 1 - specificity."""
    names = np.array(groups)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    random = np.random.default_rng(seed)
    curves = []
    for _ in range(rounds):
        drawn = random.integers(0, len(members), len(members))
        rows = np.concatenate([members[index] for index in drawn])
        if not math.isnan(auc(truth[rows], score[rows])):
            false_rate, true_rate, _ = roc_curve(truth[rows], score[rows])
            at = np.searchsorted(false_rate, _GRID, side="right") - 1
            curves.append(true_rate[at])
    if not curves:
        return np.zeros(len(_GRID)), np.ones(len(_GRID))
    low, high = np.percentile(np.stack(curves), (2.5, 97.5), axis=0)
    return low, high


def draw_confusion(
    path: Path, tables: Mapping[str, tuple[Sequence[str], NDArray[np.int64]]]
) -> None:
    """Draw counts, rows given by the reference and columns said by the model."""
    known = {name: table for name, table in tables.items() if table[1].sum()}
    figure, all_axes = _figure(path, max(1, len(known)))
    for axes, (name, (labels, counts)) in zip(all_axes, known.items(), strict=False):
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for row in range(len(labels)):
            for column in range(len(labels)):
                dark = share[row, column] > 0.6
                axes.text(
                    column,
                    row,
                    str(int(counts[row, column])),
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
        axes.set_xticks(range(len(labels)), labels, rotation=30)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xlabel="model", ylabel="reference", title=name)
    figure.savefig(path)


def draw_calibration(
    path: Path, truth: Array, chances: Mapping[str, Array], *, bins: int = 10
) -> None:
    """Draw observed against stated malignancy in `bins` equal spans, with counts."""
    figure, (axes,) = _figure(path, 1)
    axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.8)
    for index, (name, chance) in enumerate(chances.items()):
        place = np.minimum((chance * bins).astype(int), bins - 1)
        used = [span for span in range(bins) if (place == span).any()]
        said = [chance[place == span].mean() for span in used]
        seen = [truth[place == span].mean() for span in used]
        colour = (_OTHER, _OURS)[index % 2]
        axes.plot(said, seen, marker="o", color=colour, label=name)
        if index == len(chances) - 1:
            for x, y, span in zip(said, seen, used, strict=True):
                count = int((place == span).sum())
                axes.annotate(
                    f"n={count}",
                    (x, y),
                    fontsize="x-small",
                    xytext=(4, -8),
                    textcoords="offset points",
                )
    axes.set(
        xlabel="stated probability of malignancy",
        ylabel="share that was malignant",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    axes.legend(loc="upper left")
    figure.savefig(path)


def _figure(path: Path, panels: int) -> tuple[Figure, list[Axes]]:
    """Return a figure that needs no display, and its panels side by side."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(5.2 * panels, 4.8), dpi=110, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    return math.nan if value is None else float(value)
