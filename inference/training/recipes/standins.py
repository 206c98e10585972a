"""The images that stand in for the papers' private ones, and how they are cut.

Learned from: split `train`. Scored on: split `val`. The split `test` is for released
models only and cannot be asked for here. Without data, phantoms prove the code path.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inference.preprocess import CACHE_SIDE, reduce_grey
from inference.training.data import Catalogue, read_catalogue
from inference.training.windows import box_windows, cut_windows, whole_windows
from node.domain.errors import ErrorKind, NodeError

LESION_MARGIN = 0.3
"""Share of the lesion's longer side that a crop shows around it on every side."""

SHIFT_SHARE = 0.08
TURN_DEGREES = 7.0


@dataclass(frozen=True)
class Cases:
    """Windows with a diagnosis.

    `pixels`: uint8 (n, 256, 256). `windows`: (n, 3) centre x, y and side in pixels.
    `malignancy`: (n,) 0 or 1. `groups`: patient or lesion; never on both sides of an
    honest split.
    """

    pixels: Tensor
    windows: Tensor
    malignancy: Tensor
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, rows: Tensor) -> Cases:
        return Cases(
            self.pixels[rows],
            self.windows[rows],
            self.malignancy[rows],
            tuple(self.groups[row] for row in rows.tolist()),
        )

    def with_more(self, others: Cases) -> Cases:
        return Cases(
            torch.cat([self.pixels, others.pixels]),
            torch.cat([self.windows, others.windows]),
            torch.cat([self.malignancy, others.malignancy]),
            self.groups + others.groups,
        )

    def described(self) -> str:
        bad = int(self.malignancy.sum())
        return (
            f"{len(self)} images ({len(self) - bad} benign, {bad} malignant) of "
            f"{len(set(self.groups))} groups"
        )


def whole_images(data: Path, split: str) -> Cases:
    """Return the lesions of a split, each in its whole image."""
    catalogue = _labelled(data, split)
    return _cases(catalogue, whole_windows(catalogue.sizes))


def lesion_crops(data: Path, split: str) -> Cases:
    """Return square crops around the drawn lesions, as the papers cropped by hand."""
    catalogue = _labelled(data, split)
    return _cases(catalogue, box_windows(catalogue.boxes, LESION_MARGIN))


def paired_views(data: Path, split: str) -> tuple[Cases, Cases]:
    """Return the two views of the BUS-BRA cases that have both, in the same order.

    A synthetic pairing: both are ultrasound. It stands for a pair of modalities only
    in that two images of one lesion go through two branches.
    """
    catalogue = _labelled(data, split, ("busbra",))
    places = {name: row for row, name in enumerate(catalogue.names)}
    stems = [name[:-2] for name in catalogue.names if name.endswith("_l")]
    both = [stem for stem in stems if f"{stem}_r" in places]
    crops = _cases(catalogue, box_windows(catalogue.boxes, LESION_MARGIN))
    first, second = (
        torch.tensor([places[stem + view] for stem in both]) for view in ("_l", "_r")
    )
    return crops.rows(first), crops.rows(second)


def mammograms(folder: Path) -> Cases:
    """Return crops around the benign and malignant findings of mini-MIAS.

    Licensed for research only: they are read where they lie and never copied.
    Findings without a place (spread calcifications) are shown in the whole image.
    """
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        raise NodeError(
            f"no mammograms: {folder.name} holds no manifest.csv", ErrorKind.NOT_FOUND
        )
    pixels, windows, malignancy, groups = [], [], [], []
    with manifest.open(newline="", encoding="utf-8") as lines:
        found = [row for row in csv.DictReader(lines) if row["label"] != "normal"]
    for row in found:
        with Image.open(folder / row["file"]) as image:
            reduced, rows, columns = reduce_grey(image)
            scale = columns / image.width
        whole = (columns / 2, rows / 2, float(max(rows, columns)))
        if row["r"]:
            x, y, radius = (scale * float(row[key]) for key in ("x", "y", "r"))
            whole = (x, y, max(2 * radius * (1 + 2 * LESION_MARGIN), 24.0))
        pixels.append(torch.from_numpy(reduced))
        windows.append(whole)
        malignancy.append(float(row["label"] == "malignant"))
        groups.append(row["group_id"])
    return Cases(
        torch.stack(pixels),
        torch.tensor(windows),
        torch.tensor(malignancy),
        tuple(groups),
    )


def phantoms(count: int, seed: int) -> Cases:
    """Return generated images: speckle around a dark ellipse, ragged when malignant."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:CACHE_SIDE, :CACHE_SIDE] / CACHE_SIDE - 0.5
    pixels = np.zeros((count, CACHE_SIDE, CACHE_SIDE), dtype=np.uint8)
    for row in range(count):
        angle = np.arctan2(y, x)
        ragged = 0.06 * (row % 2) * np.sin(9 * angle + random.uniform(0, 6))
        inside = np.hypot(x / random.uniform(0.8, 1.4), y) < 0.2 + ragged
        echo = random.rayleigh(60, inside.shape) * np.where(inside, 0.3, 1.0)
        pixels[row] = echo.clip(0, 255).astype(np.uint8)
    middle = CACHE_SIDE / 2
    return Cases(
        torch.from_numpy(pixels),
        torch.tensor([[middle, middle, float(CACHE_SIDE)]]).repeat(count, 1),
        torch.arange(count).remainder(2).float(),
        tuple(f"phantom{seed}-{row // 2}" for row in range(count)),
    )


def hold_out(cases: Cases, share: float, seed: int) -> tuple[Cases, Cases]:
    """Split off `share` of the groups, for early stopping and for thresholds."""
    names = sorted(set(cases.groups))
    order = torch.randperm(
        len(names), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    kept = {names[index] for index in order[: max(1, round(share * len(names)))]}
    out = torch.tensor([group in kept for group in cases.groups])
    return cases.rows(torch.nonzero(~out)[:, 0]), cases.rows(torch.nonzero(out)[:, 0])


def cut(
    cases: Cases, rows: Tensor, side: int, random: torch.Generator | None = None
) -> Tensor:
    """Return grey levels 0..255, (n, side, side), moved at random if `random` is given.

    Published augmentation: up to 8 % shift, up to 7 degrees, both flips.
    """
    windows = cases.windows[rows]
    if random is None:
        return cut_windows(cases.pixels[rows], windows, side)
    chance = torch.rand((len(rows), 5), generator=random)
    shift = (chance[:, :2] - 0.5) * 2 * SHIFT_SHARE * windows[:, 2:]
    moved = torch.cat([windows[:, :2] + shift, windows[:, 2:]], dim=1)
    turn = (chance[:, 2] - 0.5) * 2 * math.radians(TURN_DEGREES)
    mirror = torch.where(chance[:, 3] < 0.5, -1.0, 1.0)
    seen = cut_windows(
        cases.pixels[rows], moved, side, turns=torch.stack([turn, mirror], dim=1)
    )
    return torch.where((chance[:, 4] < 0.5)[:, None, None], seen.flip(1), seen)


def _labelled(
    data: Path, split: str, sets: tuple[str, ...] = ("busi", "breast", "busbra")
) -> Catalogue:
    if split not in ("train", "val"):
        raise NodeError(
            f"recipes learn from train and are scored on val, not on {split}",
            ErrorKind.INVALID,
        )
    return read_catalogue(data, split, sets)


def _cases(catalogue: Catalogue, windows: Tensor) -> Cases:
    known = ~torch.isnan(catalogue.malignancy) & ~torch.isnan(catalogue.boxes[:, 0])
    groups = tuple(
        group
        for group, kept in zip(catalogue.groups, known.tolist(), strict=True)
        if kept
    )
    return Cases(
        catalogue.pixels[known], windows[known], catalogue.malignancy[known], groups
    )
