"""From a frame to what the network sees, and from its answers back to the frame.

A region of a frame is reduced to grey, its long side to `CACHE_SIDE`, and read
through square windows: the whole region first, then a crop around the lesion.
Training cuts its windows with the same functions, so both see the same pixels.

Three frames of reference occur: pixels of the whole frame (what leaves this
package), pixels of the reduced region, and pixels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from node.domain.finding import PixelBox

CACHE_SIDE = 256
"""Long side in pixels of a region before windows are cut from it."""


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region of a frame, reduced and padded for the network.

    `pixels`: uint8 (256, 256), grey, the region in the top left corner.
    `rows`, `columns`: how much of it is region. `box`: the region in the frame.
    """

    pixels: Tensor
    rows: int
    columns: int
    box: PixelBox

    def to_frame(self, x: float, y: float) -> tuple[float, float]:
        """Return a point of the reduced region in pixels of the whole frame."""
        across = (self.box.x1 - self.box.x0) / self.columns
        down = (self.box.y1 - self.box.y0) / self.rows
        return self.box.x0 + x * across, self.box.y0 + y * down

    def from_frame(self, x: float, y: float) -> tuple[float, float]:
        """Return a point of the whole frame in pixels of the reduced region."""
        across = self.columns / (self.box.x1 - self.box.x0)
        down = self.rows / (self.box.y1 - self.box.y0)
        return (x - self.box.x0) * across, (y - self.box.y0) * down


def view_region(frame: NDArray[np.uint8], box: PixelBox) -> RegionView:
    """Reduce one region of a frame; `frame`: uint8 (rows, columns, 3), RGB."""
    inside = np.ascontiguousarray(frame[box.y0 : box.y1, box.x0 : box.x1])
    pixels, rows, columns = reduce_grey(Image.fromarray(inside))
    return RegionView(pixels, rows, columns, box)


def reduce_grey(image: Image.Image) -> tuple[Tensor, int, int]:
    """Return an image as grey uint8 (256, 256), and the rows and columns in use.

    Larger images are averaged down, not sampled, so that speckle does not alias;
    smaller ones stay as they are.
    """
    grey = image.convert("L")
    scale = min(1.0, CACHE_SIDE / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    reduced = grey.resize(size, Image.Resampling.BOX)
    padded = torch.zeros((CACHE_SIDE, CACHE_SIDE), dtype=torch.uint8)
    padded[: size[1], : size[0]] = torch.from_numpy(np.array(reduced, dtype=np.uint8))
    return padded, size[1], size[0]


def cut_windows(
    pixels: Tensor, windows: Tensor, side: int, *, turns: Tensor | None = None
) -> Tensor:
    """Sample square windows out of images.

    `pixels`: uint8 or float (n, rows, columns). `windows`: (n, 3) centre x, centre
    y and side length in pixels. `turns`: (n, 2) angle in radians and mirror sign
    (-1 swaps left and right). Returns float (n, side, side); black beyond the image.
    """
    n, rows, columns = pixels.shape
    if turns is None:
        turns = torch.tensor([0.0, 1.0]).expand(n, 2)
    cos, sin, mirror = torch.cos(turns[:, 0]), torch.sin(turns[:, 0]), turns[:, 1]
    half = windows[:, 2] / 2
    theta = torch.zeros((n, 2, 3))
    theta[:, 0, 0] = half * cos * mirror * 2 / columns
    theta[:, 0, 1] = -half * sin * 2 / columns
    theta[:, 0, 2] = windows[:, 0] * 2 / columns - 1
    theta[:, 1, 0] = half * sin * mirror * 2 / rows
    theta[:, 1, 1] = half * cos * 2 / rows
    theta[:, 1, 2] = windows[:, 1] * 2 / rows - 1
    grid = functional.affine_grid(theta, [n, 1, side, side], align_corners=False)
    cut = functional.grid_sample(
        pixels[:, None].float(), grid, padding_mode="zeros", align_corners=False
    )
    return cut[:, 0]


def whole_windows(sizes: Tensor) -> Tensor:
    """Return the window that holds each whole region: its centre and its long side.

    `sizes`: (n, 2) rows, columns.
    """
    rows, columns = sizes[:, 0].float(), sizes[:, 1].float()
    return torch.stack([columns / 2, rows / 2, torch.maximum(rows, columns)], dim=1)


def box_windows(boxes: Tensor, margin: float) -> Tensor:
    """Return square windows around boxes, `margin` of the longer side on every side.

    `boxes`: (n, 4) x0, y0, x1, y1 in pixels of the reduced region.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = torch.maximum(width, height) * (1 + 2 * margin)
    return torch.stack(
        [(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2, side], dim=1
    )


def window_to_region(points: Tensor, window: Tensor, side: int) -> Tensor:
    """Return points of one window (n, 2) x, y in pixels of the reduced region."""
    corner = window[:2] - window[2] / 2
    return corner + points * (window[2] / side)


def normalise(windows: Tensor) -> Tensor:
    """Return grey levels 0..255, (n, side, side), as network input (n, 1, ...)."""
    return ((windows / 255 - 0.25) / 0.2)[:, None]
