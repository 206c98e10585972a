"""Asks whether a model reads the marks that people leave in images, not the tissue.

Pairs of the same image, with and without marks: whatever changes in the answer, the
marks have changed. Callipers are put where people put them, at the ends of the lesion,
and, as a control, elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from inference.assess import fused_logits
from inference.record import ModelRecord, Network
from inference.training.data import Catalogue
from inference.training.manifest import number
from inference.training.measures import Array, auc, compare_areas, interval
from inference.two_pass import read_regions, sigmoid

Grey = NDArray[np.uint8]
Change = Callable[[Grey, NDArray[np.bool_], np.random.Generator], Grey]

ARM: Final = 3
"""Pixels of a cross's arm in an image of 256 pixels; 6 to 8 in the original."""

BRIGHT: Final = 240
STRIP: Final = 0.08
"""Share of the image that text strips take on each side."""

TEXT: Final = ("DIST A 12.4 mm", "DIST B  8.1 mm")


def shortcut_figures(
    network: Network,
    record: ModelRecord,
    catalogue: Catalogue,
    *,
    rounds: int = 1000,
    seed: int = 20261121,
) -> dict[str, Any]:
    """Return what drawing and removing marks does to the malignancy logit.

    Marks are drawn on lesions where none were found, taken out where some were, and
    the border strips, where text stands, blacked out on all.
    """
    known = ~np.isnan(catalogue.malignancy.numpy())
    drawn = known & ~np.isnan(catalogue.boxes.numpy()[:, 0])
    marks = _counts(catalogue, "calliper_marks")
    clean = drawn & ~(marks > 0)
    groups: dict[str, tuple[NDArray[np.bool_], Change]] = {
        "callipers at the lesion": (clean, _callipers),
        "callipers and dotted lines": (clean, _measured),
        "text": (clean, _text),
        "callipers, lines and text": (clean, _everything),
        "callipers elsewhere": (clean, _elsewhere),
        "border strips blacked out": (drawn, _without_strips),
        "marks taken out": (known & (marks > 0), _without_marks),
    }
    before = _logits(network, record, catalogue, catalogue.pixels.numpy())
    result: dict[str, Any] = {}
    for name, (rows, change) in groups.items():
        if rows.any():
            kept = np.flatnonzero(rows)
            random = np.random.default_rng(seed)
            result[name] = _paired(
                network, record, catalogue, kept, before, change, random, rounds
            )
    return {"changes": result, "marks_alone": marks_alone(catalogue, rounds=rounds)}


def marks_alone(catalogue: Catalogue, *, rounds: int = 1000) -> dict[str, Any]:
    """Return how well the marks alone tell malignant from benign, set by set.

    0.5 means that there is nothing to be learned from them. The counts come from a
    heuristic that misses faint marks.
    """
    truth = catalogue.malignancy.numpy().astype(np.float64)
    result: dict[str, Any] = {}
    for name in ("pooled", *sorted(set(catalogue.sets))):
        here = ~np.isnan(truth)
        if name != "pooled":
            here &= np.array(catalogue.sets) == name
        for column in ("calliper_marks", "text_run"):
            counts = _counts(catalogue, column)
            rows = np.flatnonzero(here & ~np.isnan(counts))
            if len(rows) and np.ptp(counts[rows]) > 0:
                found = _one_alone(catalogue, truth, counts, rows, rounds)
                result.setdefault(name, {})[column] = found
    return result


def _one_alone(
    catalogue: Catalogue,
    truth: Array,
    counts: Array,
    rows: NDArray[np.int64],
    rounds: int,
) -> dict[str, Any]:
    groups = [catalogue.groups[row] for row in rows]
    marked = counts[rows] > 0
    return {
        "n": len(rows),
        "marked": int(marked.sum()),
        "malignant_of_marked": float(truth[rows][marked].mean()),
        "malignant_of_others": float(truth[rows][~marked].mean()),
        "auc": interval(
            lambda i: auc(truth[rows[i]], counts[rows[i]]), groups, rounds=rounds
        ),
    }


def _paired(
    network: Network,
    record: ModelRecord,
    catalogue: Catalogue,
    rows: NDArray[np.int64],
    all_before: Array,
    change: Change,
    random: np.random.Generator,
    rounds: int,
) -> dict[str, Any]:
    pixels = catalogue.pixels.numpy()[rows].copy()
    for place, row in enumerate(rows):
        height, width = (int(value) for value in catalogue.sizes[row])
        inside = (slice(height), slice(width))
        mask = catalogue.masks[row].numpy()[inside] > 127
        pixels[place][inside] = change(pixels[place][inside].copy(), mask, random)
    before = all_before[rows]
    after = _logits(network, record, catalogue, pixels, rows)
    truth = catalogue.malignancy.numpy().astype(np.float64)[rows]
    groups = [catalogue.groups[row] for row in rows]
    delta = after - before
    called = _chance(before) >= record.threshold
    now = _chance(after) >= record.threshold
    bad = truth > 0.5
    return {
        "n": len(rows),
        "malignant": int(bad.sum()),
        "logit_change": interval(
            lambda i: float(delta[i].mean()), groups, rounds=rounds
        ),
        "absolute_change": float(np.abs(delta).mean()),
        "auc": asdict(compare_areas(truth, after, before, groups)),
        "newly_called": {
            "malignant": int((~called & now & bad).sum()),
            "benign": int((~called & now & ~bad).sum()),
        },
        "no_longer_called": {
            "malignant": int((called & ~now & bad).sum()),
            "benign": int((called & ~now & ~bad).sum()),
        },
    }


def _logits(
    network: Network,
    record: ModelRecord,
    catalogue: Catalogue,
    pixels: Grey,
    rows: NDArray[np.int64] | None = None,
) -> Array:
    sizes = catalogue.sizes.numpy()
    answers = read_regions(
        network, pixels, sizes if rows is None else sizes[rows], record.side
    )
    return fused_logits(answers, record.fusion).astype(np.float64)


def _chance(logits: Array) -> Array:
    return sigmoid(logits.astype(np.float32)).astype(np.float64)


def _counts(catalogue: Catalogue, column: str) -> Array:
    if not catalogue.rows:
        return np.full(len(catalogue), np.nan)
    return np.array([number(row, column) for row in catalogue.rows])


def _ends(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return where somebody would measure: two pairs of ends, (2, 2) row, column."""
    points = np.argwhere(mask)
    if not len(points):
        return []
    return [
        points[[points[:, axis].argmin(), points[:, axis].argmax()]] for axis in (1, 0)
    ]


def _cross(pixels: Grey, row: int, column: int) -> None:
    pixels[row, max(column - ARM, 0) : column + ARM + 1] = BRIGHT
    pixels[max(row - ARM, 0) : row + ARM + 1, column] = BRIGHT


def _callipers(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    for pair in _ends(mask):
        for row, column in pair.tolist():
            _cross(pixels, row, column)
    return pixels


def _measured(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    for first, last in _ends(mask):
        length = max(int(np.abs(last - first).max()), 1)
        shares = np.arange(0, length, 4)[:, None] / length
        dots = (first + (last - first) * shares).round().astype(int)
        pixels[dots[:, 0], dots[:, 1]] = BRIGHT
    return _callipers(pixels, mask, random)


def _text(pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator) -> Grey:
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for line, words in enumerate(TEXT):
        place = (4, pixels.shape[0] - 12 * (len(TEXT) - line))
        pen.text(place, words, fill=BRIGHT)
    return np.array(picture)


def _everything(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    return _text(_measured(pixels, mask, random), mask, random)


def _elsewhere(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    """Put as many crosses on tissue around the lesion."""
    around = np.argwhere(~mask)
    for row, column in around[random.integers(0, len(around), 4)]:
        _cross(pixels, int(row), int(column))
    return pixels


def _without_strips(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    """Black out the border as far as the lesion allows."""
    rows, columns = pixels.shape
    strips = np.ones_like(mask)
    down, across = round(STRIP * rows), round(STRIP * columns)
    strips[down : rows - down, across : columns - across] = False
    places = np.argwhere(mask)
    top, left = places.min(axis=0)
    bottom, right = places.max(axis=0)
    strips[top : bottom + 1, left : right + 1] = False
    pixels[strips] = 0
    return pixels


def _without_marks(
    pixels: Grey, mask: NDArray[np.bool_], random: np.random.Generator
) -> Grey:
    """Put the local median in place of thin bright marks."""
    calm = np.asarray(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(5)))
    apart = pixels.astype(np.int16) - calm
    pixels[(apart > 60) & (pixels > 170)] = calm[(apart > 60) & (pixels > 170)]
    return pixels
