"""Figures of a recipe's table, and the page that says how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.training.measures import (
    compare_areas,
    delong_interval,
    sensitivity,
    specificity,
    youden_index,
)

Array = NDArray[np.float64]

STAND_IN_NOTE = (
    "The paper's images are private. These are public ones, learned from on the split "
    "`train` and scored on the split `val`; `test` was not touched. Published figures "
    "stand beside ours for orientation, not for comparison."
)
SMOKE_NOTE = (
    "**Smoke run on generated phantoms: these figures mean nothing** but that the "
    "recipe runs from end to end."
)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at a threshold, and what the papers make of them."""

    hits: int
    misses: int
    false_alarms: int
    passes: int

    @property
    def accuracy(self) -> float:
        right = self.hits + self.passes
        return right / max(right + self.misses + self.false_alarms, 1)

    @property
    def precision(self) -> float | None:
        """Return None where nothing was called malignant."""
        called = self.hits + self.false_alarms
        return self.hits / called if called else None

    @property
    def recall(self) -> float:
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def specificity(self) -> float:
        return self.passes / max(self.passes + self.false_alarms, 1)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(2 * self.hits + self.misses + self.false_alarms, 1)


def confusion(truth: Array, logits: Array, threshold: float = 0.0) -> Confusion:
    """Return how many were called what; `threshold`: the logit to call malignant."""
    bad, called = truth > 0.5, logits >= threshold
    return Confusion(
        hits=int((bad & called).sum()),
        misses=int((bad & ~called).sum()),
        false_alarms=int((~bad & called).sum()),
        passes=int((~bad & ~called).sum()),
    )


def confusion_lines(name: str, counts: Confusion) -> list[str]:
    """Return one confusion matrix as a Markdown table."""
    return [
        f"{name}:",
        "",
        "| | called benign | called malignant |",
        "|---|---|---|",
        f"| benign | {counts.passes} | {counts.false_alarms} |",
        f"| malignant | {counts.misses} | {counts.hits} |",
        "",
    ]


def area(truth: Array, logits: Array, groups: Sequence[str]) -> str:
    """Return "0.812 [0.75, 0.87]": AUC, DeLong interval over patients."""
    value = delong_interval(truth, logits, groups)
    return f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"


def z_test(truth: Array, first: Array, second: Array, groups: Sequence[str]) -> str:
    """Return "+0.05, z = 1.2, p = 0.23" for the difference of two AUCs, paired."""
    found = compare_areas(truth, first, second, groups)
    error = (found.high - found.low) / (2 * 1.959964)
    z = found.difference / error if error > 0 else 0.0
    return f"{found.difference:+.3f}, z = {z:.2f}, p = {found.p:.3f}"


def best_threshold(truth: Array, logits: Array) -> float:
    """Return the logit with the largest Youden index; 0 where a class is absent."""
    _, threshold = youden_index(truth, logits)
    return threshold if np.isfinite(threshold) else 0.0


def at_threshold(truth: Array, logits: Array, threshold: float) -> tuple[float, float]:
    """Return sensitivity and specificity at a logit."""
    called = (logits >= threshold).astype(np.float64)
    return sensitivity(truth, called), specificity(truth, called)


def row(*cells: object) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def heading(*cells: str) -> list[str]:
    return [row(*cells), f"|{'---|' * len(cells)}"]


def _cell(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def write_page(
    file: Path,
    title: str,
    *,
    command: str,
    seconds: float,
    smoke: bool,
    facts: Sequence[str],
    body: Sequence[str],
) -> None:
    """Write a recipe's page: command, wall time, how it differs, then its tables."""
    lines = [
        f"# {title}",
        "",
        SMOKE_NOTE if smoke else STAND_IN_NOTE,
        "",
        f"    {command}",
        "",
        f"- Wall time {seconds / 60:.1f} min on one core of a shared machine.",
        *[f"- {fact}" for fact in facts],
        "",
        *body,
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
