"""Reads a region twice: the whole of it to find the lesion, then a crop to describe it.

Answers stay logits and pixels of the reduced region. What they mean to a doctor is
decided in `inference.assess`; training scores the very same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.outline import Mask, box_of, main_component, outline_of
from inference.preprocess import (
    Array,
    Grey,
    box_windows,
    cut_windows,
    enlarge,
    normalise,
    whole_windows,
    window_to_region,
)
from inference.record import CHOICE_KEYS, Network, Reading

CROP_MARGIN = 0.3
"""Share of the box's longer side that the crop shows around it on every side."""

BATCH = 16


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits of one pass over n windows, averaged over the window and its mirror.

    `chances`: (n, side, side), probability of lesion in each pixel of the window.
    `pooled`: (n, 2048), the averaged features: what the window looks like.
    """

    malignancy: Array
    lesion: Array
    birads: Array
    margin: Array
    choices: dict[str, Array]
    chances: Array
    pooled: Array


@dataclass(frozen=True, slots=True)
class RegionAnswers:
    """Both passes over n regions.

    `boxes`: (n, 4) half-open, and `outlines`: closed polylines (points, 2), both in
    pixels of the reduced region. `windows`: (n, 3) the crops of the second pass.
    """

    whole: Answers
    crop: Answers
    boxes: Array
    outlines: tuple[NDArray[np.float64], ...]
    windows: Array


def read_regions(
    network: Network, pixels: Grey, sizes: NDArray[np.int64], side: int
) -> RegionAnswers:
    """Read regions, uint8 (n, 256, 256), of which `sizes` (n, 2) is in use."""
    windows = whole_windows(sizes)
    whole = read_windows(network, pixels, windows, side)
    boxes = np.stack(
        [
            _found_box(whole.chances[row], windows[row], sizes[row])
            for row in range(len(pixels))
        ]
    )
    return read_boxes(network, pixels, sizes, boxes, side, whole=whole)


def read_boxes(
    network: Network,
    pixels: Grey,
    sizes: NDArray[np.int64],
    boxes: Array,
    side: int,
    *,
    whole: Answers,
) -> RegionAnswers:
    """Read crops around `boxes` that somebody, or the first pass, has drawn."""
    windows = box_windows(boxes, CROP_MARGIN)
    crop = read_windows(network, pixels, windows, side)
    drawn = [
        _drawn(crop.chances[row], windows[row], sizes[row])
        for row in range(len(pixels))
    ]
    return RegionAnswers(
        whole,
        crop,
        boxes=np.stack([box for box, _ in drawn]),
        outlines=tuple(outline for _, outline in drawn),
        windows=windows,
    )


def read_windows(network: Network, pixels: Grey, windows: Array, side: int) -> Answers:
    """Run the network over one window of each image, and over its mirror image."""
    parts: list[Answers] = []
    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        cut = normalise(cut_windows(pixels[rows], windows[rows], side))
        parts.append(_merged(network(np.concatenate([cut, cut[..., ::-1]])), side))
    return _joined(parts)


def _merged(reading: Reading, side: int) -> Answers:
    masks = sigmoid(enlarge(reading.mask, side))
    half = len(masks) // 2
    return Answers(
        malignancy=_mean(reading.malignancy),
        lesion=_mean(reading.lesion),
        birads=_mean(reading.birads),
        margin=_mean(reading.margin),
        choices={field: _mean(logits) for field, logits in reading.choices.items()},
        chances=np.asarray(
            (masks[:half] + masks[half:, :, ::-1]) / 2, dtype=np.float32
        ),
        pooled=_mean(reading.features.mean(axis=(2, 3))),
    )


def _mean(values: Array) -> Array:
    """Return the mean of a window's answers and its mirror's (second half)."""
    half = len(values) // 2
    return np.asarray((values[:half] + values[half:]) / 2, dtype=np.float32)


def sigmoid(logits: Array) -> Array:
    """Return probabilities, float32."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(
        malignancy=np.concatenate([part.malignancy for part in parts]),
        lesion=np.concatenate([part.lesion for part in parts]),
        birads=np.concatenate([part.birads for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        choices={
            field: np.concatenate([part.choices[field] for part in parts])
            for field in CHOICE_KEYS
        },
        chances=np.concatenate([part.chances for part in parts]),
        pooled=np.concatenate([part.pooled for part in parts]),
    )


def _found_box(chances: Array, window: Array, size: NDArray[np.int64]) -> Array:
    """Return the box of the lesion in a window, in pixels of the reduced region."""
    return _box(main_component(chances), window, size)


def _box(part: Mask, window: Array, size: NDArray[np.int64]) -> Array:
    side = len(part)
    corners = np.array(box_of(part) or (0, 0, side, side), dtype=np.float32)
    return _inside(window_to_region(corners.reshape(2, 2), window, side), size).ravel()


def _drawn(
    chances: Array, window: Array, size: NDArray[np.int64]
) -> tuple[Array, NDArray[np.float64]]:
    """Return box and outline of the lesion in a crop, in pixels of the region."""
    part = main_component(chances)
    points = outline_of(part).astype(np.float32)
    points = _inside(window_to_region(points, window, len(part)), size)
    return _box(part, window, size), points.astype(np.float64)


def _inside(points: Array, size: NDArray[np.int64]) -> Array:
    """Keep points on the region; the window reaches beyond it."""
    limit = size[::-1].astype(np.float32)
    return np.asarray(np.minimum(points.clip(min=0), limit), dtype=np.float32)
