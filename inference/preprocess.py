"""From a frame to what the network sees, and from its answers back to the frame.

A region of a frame is reduced to grey, its long side to `CACHE_SIDE`, and read
through square windows: the whole region first, then a crop around the lesion.
Training cuts its windows with torch, turned and mirrored, and sees the same pixels
(`inference.training.windows`; a test compares the two).

Three frames of reference occur: pixels of the whole frame (what leaves this
package), pixels of the reduced region, and pixels of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from node.domain.finding import PixelBox

Array = NDArray[np.float32]
Grey = NDArray[np.uint8]

CACHE_SIDE = 256
"""Long side in pixels of a region before windows are cut from it."""


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region of a frame, reduced and padded for the network.

    `pixels`: uint8 (256, 256), grey, the region in the top left corner.
    `rows`, `columns`: how much of it is region. `box`: the region in the frame.
    """

    pixels: Grey
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


def reduce_grey(image: Image.Image) -> tuple[Grey, int, int]:
    """Return an image as grey uint8 (256, 256), and the rows and columns in use.

    Larger images are averaged down, not sampled, so that speckle does not alias;
    smaller ones stay as they are.
    """
    grey = image.convert("L")
    scale = min(1.0, CACHE_SIDE / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    reduced = grey.resize(size, Image.Resampling.BOX)
    padded = np.zeros((CACHE_SIDE, CACHE_SIDE), dtype=np.uint8)
    padded[: size[1], : size[0]] = np.asarray(reduced, dtype=np.uint8)
    return padded, size[1], size[0]


def cut_windows(pixels: Grey | Array, windows: Array, side: int) -> Array:
    """Sample square windows out of images.

    `pixels`: (n, rows, columns). `windows`: (n, 3) centre x, centre y and side
    length in pixels. Returns float32 (n, side, side); black beyond the image.
    """
    steps = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    cut = np.empty((len(pixels), side, side), dtype=np.float32)
    for row, (x, y, length) in enumerate(windows):
        cut[row] = sample(
            pixels[row], y + length * steps - 0.5, x + length * steps - 0.5
        )
    return cut


def sample(
    image: Grey | Array,
    rows: Array,
    columns: Array,
    *,
    beyond: Literal["black", "edge"] = "black",
) -> Array:
    """Return an image as seen at a grid of points, by bilinear interpolation.

    `image`: (..., rows, columns). `rows` and `columns` are positions of the grid's
    lines, 0 at the centre of the first pixel. Returns float32 (..., rows, columns).
    """
    along = _between(image, rows, -2, beyond)
    return _between(along, columns, -1, beyond)


def _between(values: Grey | Array, at: Array, axis: int, beyond: str) -> Array:
    """Return `values` along one axis at positions between the pixels."""
    last = values.shape[axis] - 1
    if beyond == "edge":
        at = at.clip(0, last)
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    place = low.clip(-2, last + 1).astype(np.intp)
    near = (1 - share) * ((place >= 0) & (place <= last))
    far = share * ((place >= -1) & (place < last))
    shape = (-1, 1) if axis == -2 else (-1,)
    first = values.take(place.clip(0, last), axis) * near.reshape(shape)
    second = values.take((place + 1).clip(0, last), axis) * far.reshape(shape)
    return np.asarray(first + second, dtype=np.float32)


def enlarge(maps: Array, side: int) -> Array:
    """Return maps (n, cells, cells) drawn out to (n, side, side), bilinear."""
    cells = maps.shape[-1]
    at = (np.arange(side, dtype=np.float32) + 0.5) * (cells / side) - 0.5
    return sample(maps, at, at, beyond="edge")


def whole_windows(sizes: NDArray[np.int64]) -> Array:
    """Return the window that holds each whole region: its centre and its long side.

    `sizes`: (n, 2) rows, columns.
    """
    rows, columns = sizes[:, 0], sizes[:, 1]
    windows = np.stack([columns / 2, rows / 2, np.maximum(rows, columns)], axis=1)
    return windows.astype(np.float32)


def box_windows(boxes: Array, margin: float) -> Array:
    """Return square windows around boxes, `margin` of the longer side on every side.

    `boxes`: (n, 4) x0, y0, x1, y1 in pixels of the reduced region.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = np.maximum(width, height) * (1 + 2 * margin)
    windows = np.stack(
        [(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2, side], axis=1
    )
    return windows.astype(np.float32)


def window_to_region(points: Array, window: Array, side: int) -> Array:
    """Return points of one window (n, 2) x, y in pixels of the reduced region."""
    corner = window[:2] - window[2] / 2
    return np.asarray(corner + points * (window[2] / side), dtype=np.float32)


def normalise(windows: Array) -> Array:
    """Return grey levels 0..255, (n, side, side), as network input (n, 1, ...)."""
    return np.asarray((windows / 255 - 0.25) / 0.2, dtype=np.float32)[:, None]
