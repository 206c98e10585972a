"""Shows where in the image the suspicion comes from, as a heat map over the region.

A class activation map: the malignancy head is linear on averaged features, so its
weights say, without any gradient, how much each place added to the logit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from inference.model import LesionNet
from inference.preprocess import CACHE_SIDE, RegionView, cut_windows, normalise

SHIFTS: Final = (-0.12, 0.0, 0.12)
"""Shares of the window by which it is shifted: the mean is finer than one map."""

STRONGEST_BLEND: Final = 0.55

_COLOURS: Final = np.array(
    [[0, 0, 96], [0, 96, 255], [0, 224, 160], [255, 224, 0], [255, 32, 0]],
    dtype=np.float32,
)


@torch.inference_mode()
def activation_map(
    network: LesionNet, view: RegionView, window: Tensor, side: int
) -> NDArray[np.float32]:
    """Return the evidence for malignancy in a reduced region.

    Gives float32 (rows, columns), 0..1. `window`: (3,) the crop that was read.
    Places outside every crop hold 0.
    """
    x, y, length = (float(value) for value in window)
    windows = torch.tensor(
        [[x + dx * length, y + dy * length, length] for dy in SHIFTS for dx in SHIFTS]
    )
    pixels = view.pixels[None].expand(len(windows), -1, -1)
    reading = network(normalise(cut_windows(pixels, windows, side)))
    weights = network.malignancy.weight[0]
    maps = torch.einsum("nchw,c->nhw", reading.features.float(), weights)
    placed = torch.zeros(CACHE_SIDE, CACHE_SIDE)
    seen = torch.zeros(CACHE_SIDE, CACHE_SIDE)
    for row in range(len(windows)):
        place = _place_in_window(windows[row])
        trust = _trust(place)
        placed += _drawn_back(maps[row], place) * trust
        seen += trust
    region = (slice(view.rows), slice(view.columns))
    evidence = (placed / seen.clamp(min=1e-6))[region]
    return _scaled(evidence, (seen / seen.max())[region]).numpy()


def _place_in_window(window: Tensor) -> Tensor:
    """Return where each pixel of the reduced region lies in a window: x, y 0..1."""
    axis = torch.arange(CACHE_SIDE) + 0.5
    x = (axis - window[0]) / window[2] + 0.5
    y = (axis - window[1]) / window[2] + 0.5
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def _trust(place: Tensor) -> Tensor:
    """Return weights that fall to 0 at a window's edge, where it sees least around."""
    inside = (place >= 0) & (place <= 1)
    rise = torch.sin(place.clamp(0, 1) * torch.pi)
    return (rise * inside).prod(dim=-1)


def _drawn_back(coarse: Tensor, place: Tensor) -> Tensor:
    """Return a coarse map (cells, cells) as seen from the pixels of the region.

    With odd kernels and symmetric padding, cell i looks at pixel 32 i of the window,
    not at the middle of its 32 pixels: without the half cell every heat would lie
    too far down and right.
    """
    cells = coarse.shape[-1]
    grid = (place + 0.5 / cells) * 2 - 1
    return functional.grid_sample(
        coarse[None, None], grid[None], padding_mode="border", align_corners=False
    )[0, 0]


def _scaled(evidence: Tensor, trust: Tensor) -> Tensor:
    """Return evidence as 0..1, faded out where no window was sure to see."""
    values = evidence[trust > 0.2]
    if not len(values):
        return torch.zeros_like(evidence)
    low, high = values.quantile(0.3), values.max()
    scaled = ((evidence - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return scaled * (2 * trust).clamp(max=1)


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
