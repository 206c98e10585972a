"""Shows where in the image the suspicion comes from, as a heat map over the region.

A class activation map: the malignancy head is linear on averaged features, so its
weights say, without any gradient, how much each place added to the logit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.preprocess import (
    CACHE_SIDE,
    Array,
    RegionView,
    cut_windows,
    normalise,
    sample,
)
from inference.record import Network

SHIFTS: Final = (-0.12, 0.0, 0.12)
"""Shares of the window by which it is shifted: the mean is finer than one map."""

STRONGEST_BLEND: Final = 0.55

_COLOURS: Final = np.array(
    [[0, 0, 96], [0, 96, 255], [0, 224, 160], [255, 224, 0], [255, 32, 0]],
    dtype=np.float32,
)


def activation_map(
    network: Network, view: RegionView, window: Array, side: int
) -> Array:
    """Return the evidence for malignancy in a reduced region.

    Gives float32 (rows, columns), 0..1. `window`: (3,) the crop that was read.
    Places outside every crop hold 0.
    """
    x, y, length = window
    windows = np.array(
        [[x + dx * length, y + dy * length, length] for dy in SHIFTS for dx in SHIFTS],
        dtype=np.float32,
    )
    pixels = np.broadcast_to(view.pixels, (len(windows), *view.pixels.shape))
    maps = network(normalise(cut_windows(pixels, windows, side))).evidence
    placed = np.zeros((CACHE_SIDE, CACHE_SIDE), dtype=np.float32)
    seen = np.zeros_like(placed)
    for coarse, (centre_x, centre_y, _) in zip(maps, windows, strict=True):
        columns = _place_in_window(centre_x, length)
        rows = _place_in_window(centre_y, length)
        trust = np.outer(_trust(rows), _trust(columns))
        placed += _drawn_back(coarse, rows, columns) * trust
        seen += trust
    region = (slice(view.rows), slice(view.columns))
    evidence = (placed / seen.clip(min=1e-6))[region]
    return _scaled(evidence, (seen / seen.max())[region])


def _place_in_window(centre: float, length: float) -> Array:
    """Return where each row or column of the reduced region lies in a window: 0..1."""
    axis = np.arange(CACHE_SIDE, dtype=np.float32) + 0.5
    return np.asarray((axis - centre) / length + 0.5, dtype=np.float32)


def _trust(place: Array) -> Array:
    """Return weights that fall to 0 at a window's edge, where it sees least around."""
    inside = (place >= 0) & (place <= 1)
    return np.asarray(np.sin(place.clip(0, 1) * np.pi) * inside, dtype=np.float32)


def _drawn_back(coarse: Array, rows: Array, columns: Array) -> Array:
    """Return a coarse map (cells, cells) as seen from the pixels of the region.

    With odd kernels and symmetric padding, cell i looks at pixel 32 i of the window,
    not at the middle of its 32 pixels: it lies where the window's place is i / cells.
    Taken for the middle, every heat would lie too far down and right.
    """
    cells = coarse.shape[-1]
    return sample(coarse, rows * cells, columns * cells, beyond="edge")


def _scaled(evidence: Array, trust: Array) -> Array:
    """Return evidence as 0..1, faded out where no window was sure to see."""
    values = evidence[trust > 0.2]
    if not len(values):
        return np.zeros_like(evidence)
    low, high = np.quantile(values, 0.3), values.max()
    scaled = ((evidence - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.asarray(scaled * (2 * trust).clip(max=1), dtype=np.float32)


def heat_map(
    frame: NDArray[np.uint8], view: RegionView, evidence: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return an RGB picture, uint8 (rows, columns, 3), of the region under its heat.

    Shows the region only: names and ages burned into the rest of the frame are not
    carried into a new object. Marked "AI", since it may be seen far from its report.
    """
    box = view.box
    inside = frame[box.y0 : box.y1, box.x0 : box.x1].astype(np.float32)
    size = (inside.shape[1], inside.shape[0])
    heat = np.asarray(
        Image.fromarray(evidence).resize(size, Image.Resampling.BICUBIC)
    ).clip(0, 1)
    blend = (STRONGEST_BLEND * heat)[..., None]
    painted = inside * (1 - blend) + _colours(heat) * blend
    picture = Image.fromarray(painted.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text((4, size[1] - 16), "AI", fill=(255, 255, 255))
    return np.asarray(picture)


def _colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    position = heat * (len(_COLOURS) - 1)
    low = np.minimum(position.astype(np.int64), len(_COLOURS) - 2)
    share = (position - low)[..., None]
    mixed = _COLOURS[low] * (1 - share) + _COLOURS[low + 1] * share
    return np.asarray(mixed, dtype=np.float32)
