"""Labelled images of the public sets, held in memory, and the windows cut from them.

The three sets come in one layout: `<set>/manifest.csv` with one row per image,
its split by patient or lesion group, its labels and its mask. Absent labels stay
absent: NaN or -1, and the losses pass over them. BUSI masks leak the label (their
outlines were drawn jagged around cancers), so masks are only ever a target for
where the lesion is, never an input.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inference.preprocess import reduce_grey
from inference.record import BIRADS_STEPS, CHOICE_KEYS, MARGIN_KEYS
from inference.training.manifest import (
    MARGIN_PREFIX,
    TERMS,
    Row,
    read_listing,
    read_pair,
)
from inference.training.windows import (
    box_windows,
    cut_windows,
    normalise,
    whole_windows,
)

SETS = ("busi", "breast", "busbra")
"""The sets that the shipped model is trained on."""


@dataclass(frozen=True)
class Catalogue:
    """Images and labels of one or more splits.

    `pixels`: uint8 (n, 256, 256), the image in the top left corner, black beyond.
    `masks`: like `pixels`, 0 or 255. `sizes`: (n, 2) rows, columns in use.
    `boxes`: float (n, 4) x0, y0, x1, y1 half-open in cached pixels, NaN without lesion.
    `malignancy`, `lesion`: float (n,). `birads`: (n, 5). `margin`: (n, 5).
    `choices`: field -> int64 (n,), -1 when unlabelled. A lesion without a drawn mask
    has an empty mask and no box. `rows`: the manifest's own columns, where it came
    from one; `notices`: a line for each thing that was passed over.
    """

    names: tuple[str, ...]
    sets: tuple[str, ...]
    groups: tuple[str, ...]
    categories: tuple[str, ...]
    pixels: Tensor
    masks: Tensor
    sizes: Tensor
    boxes: Tensor
    malignancy: Tensor
    lesion: Tensor
    birads: Tensor
    margin: Tensor
    choices: dict[str, Tensor]
    rows: tuple[Row, ...] = ()
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Batch:
    """Windows and their targets; labels that a window cannot carry are absent.

    `masks` of a lesion that nobody has drawn are NaN throughout.
    """

    windows: Tensor
    masks: Tensor
    malignancy: Tensor
    lesion: Tensor
    birads: Tensor
    margin: Tensor
    choices: dict[str, Tensor]


def read_catalogue(
    data: Path, split: str, sets: Iterable[str] | None = SETS
) -> Catalogue:
    """Read one split of the manifests under `data` into memory.

    `sets`: names of folders; None takes every folder with a manifest. Raises
    DataFault, one line with file, row and mend, for data that cannot be trusted.
    """
    listing = read_listing(data, split, sets)
    rows = listing.rows
    images = [_read_image(row) for row in rows]
    return Catalogue(
        names=tuple(row["id"] for row in rows),
        sets=tuple(row.set for row in rows),
        groups=tuple(row.group for row in rows),
        categories=tuple(row["birads"].upper() for row in rows),
        pixels=torch.stack([image for image, _, _ in images]),
        masks=torch.stack([mask for _, mask, _ in images]),
        sizes=torch.tensor([size for _, _, size in images]),
        boxes=torch.stack([box_of_mask(mask) for _, mask, _ in images]),
        malignancy=torch.tensor([_malignancy(row) for row in rows]),
        lesion=torch.tensor([float(row["label"] != "normal") for row in rows]),
        birads=torch.tensor([birads_targets(row["birads"]) for row in rows]),
        margin=torch.tensor([_margin(row) for row in rows]),
        choices={
            field: torch.tensor([_choice(field, row) for row in rows])
            for field in CHOICE_KEYS
        },
        rows=rows,
        notices=listing.notices,
    )


def birads_targets(category: str) -> list[float]:
    """Return "above step i" for each step of the ordinal head.

    NaN where the label is silent: a plain 4 says above 3 and not 5; which of 4A,
    4B, 4C it was nobody wrote down.
    """
    steps = len(BIRADS_STEPS) - 1
    key = category.upper()
    if key == "4":
        return [1.0, 1.0, math.nan, math.nan, 0.0]
    if key not in BIRADS_STEPS:
        return [math.nan] * steps
    rank = BIRADS_STEPS.index(key)
    return [float(rank > step) for step in range(steps)]


def box_of_mask(mask: Tensor) -> Tensor:
    """Return x0, y0, x1, y1 (half-open) around a mask's pixels; NaN when empty."""
    rows = torch.nonzero(mask.amax(dim=1) > 127).flatten()
    columns = torch.nonzero(mask.amax(dim=0) > 127).flatten()
    if not len(rows):
        return torch.full((4,), math.nan)
    return torch.tensor(
        [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32
    )


def _malignancy(row: Row) -> float:
    return {"malignant": 1.0, "benign": 0.0}.get(row["label"], math.nan)


def _margin(row: Row) -> list[float]:
    # BUSI and BUS-BRA carry no margin labels; BrEaST's come from radiologists.
    terms = [row[MARGIN_PREFIX + key] for key in MARGIN_KEYS]
    known = all(term in ("0", "1") for term in terms)
    return [float(term) if known else math.nan for term in terms]


def _choice(field: str, row: Row) -> int:
    column, terms = TERMS[field]
    key = terms.get(row[column])
    return CHOICE_KEYS[field].index(key) if key is not None else -1


def _read_image(row: Row) -> tuple[Tensor, Tensor, tuple[int, int]]:
    image, drawn = read_pair(row)
    pixels, rows, columns = reduce_grey(image)
    mask = np.zeros_like(pixels)
    if drawn is not None and row["label"] != "normal":
        mask, _, _ = reduce_grey(drawn)
        if mask.max() < 128:
            # A lesion of a few pixels fades when the image is reduced.
            mask = np.where(mask >= max(int(mask.max()), 1), np.uint8(255), np.uint8(0))
    return torch.from_numpy(pixels), torch.from_numpy(mask), (rows, columns)


class Sampler:
    """Draws augmented batches for training: whole images, lesion crops and background.

    Background windows hold no lesion pixel; they teach the mask and the lesion head
    what tissue looks like in all three sets, since normal images come from one only.
    """

    def __init__(
        self, catalogue: Catalogue, *, weights: Mapping[str, float], seed: int
    ) -> None:
        self._catalogue = catalogue
        self._seed = seed
        self._random = torch.Generator().manual_seed(seed)
        by_set = torch.tensor([weights.get(name, 1.0) for name in catalogue.sets])
        normal = torch.where(catalogue.lesion > 0, 1.0, weights.get("normal", 1.0))
        self._weights = by_set * normal

    def at(self, step: int) -> Sampler:
        """Return a sampler whose next batch depends on the seed and `step` alone."""
        other = copy.copy(self)
        seed = (self._seed * 1_000_003 + step) % 2**63
        other._random = torch.Generator().manual_seed(seed)
        return other

    def batch(
        self, size: int, side: int, *, crop_share: float, background_share: float
    ) -> Batch:
        """Return one batch of `size` windows of `side` pixels."""
        known = self._catalogue
        rows = torch.multinomial(
            self._weights, size, replacement=True, generator=self._random
        )
        kind = self._uniform(size)
        drawn = ~torch.isnan(known.boxes[rows, 0])
        crop = (kind < crop_share) & drawn
        # Somewhere in an image whose lesion nobody drawn may be the lesion itself.
        placed = drawn | (known.lesion[rows] == 0)
        background = (kind > 1 - background_share) & ~crop & placed
        windows = self._jitter_whole(known.sizes[rows])
        cropped = self._jitter_crop(known.boxes[rows].nan_to_num(0.0))
        small = self._anywhere(known.sizes[rows])
        windows = torch.where(crop[:, None], cropped, windows)
        windows = torch.where(background[:, None], small, windows)
        turns = torch.stack(
            [
                (self._uniform(size) - 0.5) * 2 * math.radians(12),
                torch.where(self._uniform(size) < 0.5, -1.0, 1.0),
            ],
            dim=1,
        )
        pixels = cut_windows(known.pixels[rows], windows, side, turns=turns)
        masks = cut_windows(known.masks[rows], windows, side, turns=turns) / 255
        marked = self._mark(self._disturb(pixels), masks)
        return self._labelled(rows, normalise(marked), masks, background)

    def _labelled(
        self, rows: Tensor, windows: Tensor, masks: Tensor, background: Tensor
    ) -> Batch:
        known = self._catalogue
        target = functional.avg_pool2d(masks[:, None], 4)[:, 0]
        shown = masks.gt(0.5).sum(dim=(1, 2)) > 0
        # A background window that happens to catch lesion keeps its mask only.
        unplaced = (known.lesion[rows] > 0) & torch.isnan(known.boxes[rows, 0])
        shown = shown | unplaced
        silent = background | ((known.lesion[rows] > 0) & ~shown)
        present = torch.where(background & shown, math.nan, shown.float())
        nan = torch.full((), math.nan)
        target = torch.where(unplaced[:, None, None], nan, target)
        return Batch(
            windows=windows,
            masks=target,
            malignancy=torch.where(silent, nan, known.malignancy[rows]),
            lesion=present,
            birads=torch.where(silent[:, None], nan, known.birads[rows]),
            margin=torch.where(silent[:, None], nan, known.margin[rows]),
            choices={
                field: torch.where(silent, torch.full((), -1), labels[rows])
                for field, labels in known.choices.items()
            },
        )

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random)

    def _jitter_whole(self, sizes: Tensor) -> Tensor:
        windows = whole_windows(sizes)
        n = len(windows)
        scale = torch.exp((self._uniform(n) - 0.6) * 0.45)
        shift = (self._uniform(n, 2) - 0.5) * 0.2 * windows[:, 2:]
        return torch.cat(
            [windows[:, :2] + shift, windows[:, 2:] * scale[:, None]], dim=1
        )

    def _jitter_crop(self, boxes: Tensor) -> Tensor:
        windows = box_windows(boxes, 0.0)
        n = len(windows)
        margin = 0.1 + 0.7 * self._uniform(n) ** 1.5
        side = windows[:, 2:] * (1 + 2 * margin[:, None])
        shift = (self._uniform(n, 2) - 0.5) * 0.35 * windows[:, 2:]
        return torch.cat([windows[:, :2] + shift, side], dim=1)

    def _anywhere(self, sizes: Tensor) -> Tensor:
        n = len(sizes)
        short = sizes.min(dim=1).values.float()
        side = short * (0.25 + 0.35 * self._uniform(n))
        rows, columns = sizes[:, 0].float(), sizes[:, 1].float()
        x = side / 2 + (columns - side) * self._uniform(n)
        y = side / 2 + (rows - side) * self._uniform(n)
        return torch.stack([x, y, side], dim=1)

    def _disturb(self, pixels: Tensor) -> Tensor:
        """Vary gain, range and speckle, and hide a patch now and then."""
        n, side = pixels.shape[0], pixels.shape[1]
        x = (pixels / 255).clamp(0, 1)
        gamma = torch.exp((self._uniform(n, 1, 1) - 0.5) * 0.9)
        gain = torch.exp((self._uniform(n, 1, 1) - 0.5) * 0.5)
        x = (x.clamp(min=1e-4) ** gamma) * gain
        speckle = 0.12 * self._uniform(n, 1, 1)
        coarse = torch.randn((n, 1, side // 2, side // 2), generator=self._random)
        grain = functional.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0]
        x = x * (1 + speckle * grain)
        for index in torch.nonzero(self._uniform(n) < 0.2).flatten().tolist():
            self._erase(x[index])
        return x.clamp(0, 1) * 255

    def _mark(self, pixels: Tensor, masks: Tensor) -> Tensor:
        """Draw what operators leave in images, on any class, so that it means nothing.

        Calliper crosses anywhere or, as people measure, at the ends of the lesion with
        a dotted line between them, and lines of letter-like marks.
        """
        n = len(pixels)
        for index in torch.nonzero(self._uniform(n) < 0.15).flatten().tolist():
            self._draw_crosses(pixels[index])
        for index in torch.nonzero(self._uniform(n) < 0.2).flatten().tolist():
            self._draw_measurement(pixels[index], masks[index])
        for index in torch.nonzero(self._uniform(n) < 0.15).flatten().tolist():
            self._draw_text(pixels[index])
        return pixels

    def _draw_crosses(self, image: Tensor) -> None:
        side = image.shape[0]
        arm = 1 + int(3 * self._uniform(1))
        for _ in range(2 + 2 * int(self._uniform(1) < 0.5)):
            x, y = (4 + (side - 8) * self._uniform(2)).long().tolist()
            _cross(image, x, y, arm)

    def _draw_measurement(self, image: Tensor, mask: Tensor) -> None:
        """Put a pair of crosses at the ends of the lesion, across or down."""
        inside = torch.nonzero(mask > 0.5)
        if len(inside) < 20:
            return
        axis = int(self._uniform(1) < 0.5)
        first = inside[inside[:, axis].argmin()]
        last = inside[inside[:, axis].argmax()]
        arm = 1 + int(3 * self._uniform(1))
        for end in (first, last):
            _cross(image, int(end[1]), int(end[0]), arm)
        if self._uniform(1) < 0.5:
            steps = torch.linspace(0, 1, 24)[:, None]
            dots = (first + (last - first) * steps).round().long()
            image[dots[:, 0], dots[:, 1]] = 230.0

    def _draw_text(self, image: Tensor) -> None:
        """Write a line of random blocks that look like letters from afar."""
        side = image.shape[0]
        height = 3 + int(4 * self._uniform(1))
        letters = 3 + int(10 * self._uniform(1))
        width = min(side, letters * height)
        bits = self._uniform(height, width) < 0.45
        y, x = (self._uniform(2) * torch.tensor([side - height, side - width])).long()
        patch = image[y : y + height, x : x + width]
        patch[bits] = 180 + 70 * float(self._uniform(1))

    def _erase(self, image: Tensor) -> None:
        side = image.shape[0]
        height, width = (side * (0.08 + 0.17 * self._uniform(2))).long().tolist()
        y, x = (
            (self._uniform(2) * torch.tensor([side - height, side - width]))
            .long()
            .tolist()
        )
        image[y : y + height, x : x + width] = float(image.mean())


def _cross(image: Tensor, x: int, y: int, arm: int) -> None:
    image[y, max(x - arm, 0) : x + arm + 1] = 240.0
    image[max(y - arm, 0) : y + arm + 1, x] = 240.0
