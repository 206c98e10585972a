"""Reads a region twice: the whole of it to find the lesion, then a crop to describe it.

Answers stay logits and pixels of the reduced region. What they mean to a doctor is
decided in `inference.assess`; training scores the very same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from inference.model import CHOICE_KEYS, Reading
from inference.outline import Mask, box_of, main_component, outline_of
from inference.preprocess import (
    box_windows,
    cut_windows,
    normalise,
    whole_windows,
    window_to_region,
)

CROP_MARGIN = 0.3
"""Share of the box's longer side that the crop shows around it on every side."""

BATCH = 16


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits of one pass over n windows, averaged over the window and its mirror.

    `chances`: (n, side, side), probability of lesion in each pixel of the window.
    """

    malignancy: Tensor
    lesion: Tensor
    birads: Tensor
    margin: Tensor
    choices: dict[str, Tensor]
    chances: Tensor


@dataclass(frozen=True, slots=True)
class RegionAnswers:
    """Both passes over n regions.

    `boxes`: (n, 4) half-open, and `outlines`: closed polylines (points, 2), both in
    pixels of the reduced region. `windows`: (n, 3) the crops of the second pass.
    """

    whole: Answers
    crop: Answers
    boxes: Tensor
    outlines: tuple[NDArray[np.float64], ...]
    windows: Tensor


@torch.inference_mode()
def read_regions(
    network: nn.Module, pixels: Tensor, sizes: Tensor, side: int
) -> RegionAnswers:
    """Read regions, uint8 (n, 256, 256), of which `sizes` (n, 2) is in use."""
    windows = whole_windows(sizes)
    whole = read_windows(network, pixels, windows, side)
    boxes = torch.stack(
        [
            _found_box(whole.chances[row], windows[row], sizes[row])
            for row in range(len(pixels))
        ]
    )
    return read_boxes(network, pixels, sizes, boxes, side, whole=whole)


@torch.inference_mode()
def read_boxes(
    network: nn.Module,
    pixels: Tensor,
    sizes: Tensor,
    boxes: Tensor,
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
        boxes=torch.stack([box for box, _ in drawn]),
        outlines=tuple(outline for _, outline in drawn),
        windows=windows,
    )


@torch.inference_mode()
def read_windows(
    network: nn.Module, pixels: Tensor, windows: Tensor, side: int
) -> Answers:
    """Run the network over one window of each image, and over its mirror image."""
    network.eval()
    parts: list[Answers] = []
    for start in range(0, len(pixels), BATCH):
        rows = slice(start, start + BATCH)
        cut = normalise(cut_windows(pixels[rows], windows[rows], side))
        both = torch.cat([cut, cut.flip(-1)]).to(memory_format=torch.channels_last)
        parts.append(_merged(network(both), side))
    return _joined(parts)


def _merged(reading: Reading, side: int) -> Answers:
    masks = torch.sigmoid(
        functional.interpolate(
            reading.mask.float()[:, None], size=(side, side), mode="bilinear"
        )[:, 0]
    )
    half = len(masks) // 2
    return Answers(
        malignancy=_mean(reading.malignancy),
        lesion=_mean(reading.lesion),
        birads=_mean(reading.birads),
        margin=_mean(reading.margin),
        choices={field: _mean(logits) for field, logits in reading.choices.items()},
        chances=(masks[:half] + masks[half:].flip(-1)) / 2,
    )


def _mean(logits: Tensor) -> Tensor:
    """Return the mean of a window's logits and its mirror's (second half)."""
    half = len(logits) // 2
    return (logits[:half].float() + logits[half:].float()) / 2


def _joined(parts: Sequence[Answers]) -> Answers:
    return Answers(
        malignancy=torch.cat([part.malignancy for part in parts]),
        lesion=torch.cat([part.lesion for part in parts]),
        birads=torch.cat([part.birads for part in parts]),
        margin=torch.cat([part.margin for part in parts]),
        choices={
            field: torch.cat([part.choices[field] for part in parts])
            for field in CHOICE_KEYS
        },
        chances=torch.cat([part.chances for part in parts]),
    )


def _found_box(chances: Tensor, window: Tensor, size: Tensor) -> Tensor:
    """Return the box of the lesion in a window, in pixels of the reduced region."""
    return _box(main_component(chances.numpy()), window, size)


def _box(part: Mask, window: Tensor, size: Tensor) -> Tensor:
    side = len(part)
    corners = torch.tensor(box_of(part) or (0.0, 0.0, side, side)).reshape(2, 2)
    return _inside(window_to_region(corners, window, side), size).flatten()


def _drawn(
    chances: Tensor, window: Tensor, size: Tensor
) -> tuple[Tensor, NDArray[np.float64]]:
    """Return box and outline of the lesion in a crop, in pixels of the region."""
    part = main_component(chances.numpy())
    points = torch.from_numpy(outline_of(part)).float()
    points = _inside(window_to_region(points, window, len(part)), size)
    return _box(part, window, size), points.numpy().astype(np.float64)


def _inside(points: Tensor, size: Tensor) -> Tensor:
    """Keep points on the region; the window reaches beyond it."""
    limit = torch.stack([size[1], size[0]]).float()
    return torch.minimum(points.clamp(min=0), limit)
