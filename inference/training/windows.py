"""Windows as training cuts them: turned, mirrored, and as tensors.

Without a turn they hold the same grey levels as `inference.preprocess` cuts for the
product; a test compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from inference import preprocess


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
    """Return the window that holds each whole region; `sizes`: (n, 2) rows, columns."""
    return torch.from_numpy(preprocess.whole_windows(sizes.numpy()))


def box_windows(boxes: Tensor, margin: float) -> Tensor:
    """Return square windows around boxes (n, 4), with `margin` on every side."""
    return torch.from_numpy(preprocess.box_windows(boxes.numpy(), margin))


def normalise(windows: Tensor) -> Tensor:
    """Return grey levels 0..255, (n, side, side), as network input (n, 1, ...)."""
    return torch.from_numpy(preprocess.normalise(windows.numpy()))
