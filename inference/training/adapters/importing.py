"""A published set into the layout that training reads: images, masks, one manifest.

Splits are drawn by group (patient), and groups that share a near-duplicate image are
one group first: a picture must never be in two splits. Rows that cannot be used are
left out, counted and named; a set of which nothing is left is an error.
"""

from __future__ import annotations

import csv
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.training.adapters import ADAPTERS
from inference.training.adapters.crops import (
    Grey,
    Points,
    points_of,
    shifted_pairs,
    working_copy,
)
from inference.training.adapters.duplicates import (
    clusters,
    merged,
    near_pairs,
    picture_hash,
)
from inference.training.adapters.example import DatasetError, Example, Modality
from inference.training.adapters.pictures import (
    Mask,
    Reduced,
    box_of,
    is_coloured,
    lesion_mask,
    open_picture,
    reduce,
)
from node.domain.manifest import COLUMNS, descriptor_cells, row_of

SPLITS: Mapping[str, float] = {"train": 0.6, "val": 0.1, "test": 0.15, "holdout": 0.15}
LONGEST_SIDE = 1024
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """What became of a set; `skipped` maps a source row to the reason."""

    name: str
    rows: int
    by_split: Mapping[str, Mapping[str, int]]
    duplicates: int
    contradicting: int
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class _Kept:
    """One example whose image and mask are written."""

    example: Example
    file: str
    hash: NDArray[np.uint8]
    points: Points
    cells: Mapping[str, object]


def import_set(
    name: str,
    source: Path,
    target: Path,
    *,
    seed: int = 20261121,
    side: int = LONGEST_SIDE,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Write `target/name` from the published folder `source`.

    DatasetError, in one line: unknown set, wrong folder, missing table or column,
    nothing usable, or `target/name` already imported.
    """
    if name not in ADAPTERS:
        raise DatasetError(f"{name} is none of {', '.join(ADAPTERS)}")
    if not source.is_dir():
        raise DatasetError(f"{source} is not a folder")
    manifest = target / name / "manifest.csv"
    if manifest.exists():
        raise DatasetError(f"{manifest} exists already; nothing was changed")
    skipped: dict[str, str] = {}

    def skip(row: str, reason: str) -> None:
        skipped[row] = reason

    examples = ADAPTERS[name](source, skip)
    kept = _write_pictures(name, examples, target, side, skipped, progress)
    if not kept:
        first = next(iter(skipped.items()), ("it", "holds no row"))
        raise DatasetError(f"{source}: no row can be used; {': '.join(first)}")
    rows, contradicting = _manifest_rows(name, kept, seed)
    _write_manifest(manifest, rows)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row["split"]][row["label"] or "unknown"] += 1
    return Imported(
        name=name,
        rows=len(rows),
        by_split=counts,
        duplicates=sum(row["dup_primary"] == "0" for row in rows),
        contradicting=contradicting,
        skipped=skipped,
    )


def _write_pictures(
    name: str,
    examples: Sequence[Example],
    target: Path,
    side: int,
    skipped: dict[str, str],
    progress: Progress,
) -> list[_Kept]:
    for part in ("images", "masks"):
        (target / name / part).mkdir(parents=True, exist_ok=True)
    kept: list[_Kept] = []
    files: dict[Path, str] = {}
    seen: set[str] = set()
    for done, example in enumerate(examples, start=1):
        try:
            if example.id in seen:
                raise DatasetError("the id occurs twice")
            picture = open_picture(example.image)
            mask = lesion_mask(picture.size, example.masks, example.outlines)
            small = reduce(picture, mask, side)
            file = files.setdefault(
                example.image, f"{name}/images/{example.id.replace('/', '_')}.webp"
            )
            _save(small.image, target / file)
        except DatasetError as error:
            skipped[example.id] = str(error)
        else:
            seen.add(example.id)
            mask_file = ""
            if small.mask is not None:
                mask_file = f"{name}/masks/{example.id.replace('/', '_')}.png"
                Image.fromarray(small.mask).save(target / mask_file, optimize=True)
            kept.append(_keep(example, picture, small, file, mask_file))
        progress(done, len(examples))
    return kept


def _save(image: Image.Image, path: Path) -> None:
    if not path.exists():
        image.save(path, lossless=True, quality=60, method=2)


def _keep(
    example: Example, picture: Image.Image, small: Reduced, file: str, mask_file: str
) -> _Kept:
    cells: dict[str, object] = {
        "mask": mask_file,
        "width": small.image.width,
        "height": small.image.height,
        "color": int(is_coloured(picture)),
        "orig_width": picture.width,
        "orig_height": picture.height,
        "scale": round(small.scale, 5),
    }
    if small.mask is not None:
        cells |= _lesion_cells(small.mask, example.modality)
        cells["mask_from"] = "outline"
    cells |= descriptor_cells(example.descriptors) | dict(example.extra)
    if cells.get("pixel_mm"):
        scale_mm = float(str(cells["pixel_mm"])) / small.scale
        cells["pixel_mm"] = f"{scale_mm:.6g}"
        if small.mask is not None:
            cells["lesion_w_mm"] = round(int(str(cells["lesion_w_px"])) * scale_mm, 2)
            cells["lesion_h_mm"] = round(int(str(cells["lesion_h_px"])) * scale_mm, 2)
    points = points_of(working_copy(picture))
    return _Kept(example, file, picture_hash(picture), points, cells)


def _lesion_cells(mask: Mask, modality: Modality) -> dict[str, object]:
    """Return place and size; in ultrasound also orientation, the skin being on top."""
    x0, y0, x1, y1 = box_of(mask)
    cells: dict[str, object] = {
        "lesion_x": x0,
        "lesion_y": y0,
        "lesion_w_px": x1 - x0,
        "lesion_h_px": y1 - y0,
        "lesion_area_px": int(mask.sum()),
    }
    if modality is Modality.ULTRASOUND:
        ratio = (y1 - y0) / (x1 - x0)
        cells["taller_than_wide"] = round(ratio, 4)
        cells["orientation"] = "not parallel" if ratio > 1 else "parallel"
    return cells


def _manifest_rows(
    name: str, kept: Sequence[_Kept], seed: int
) -> tuple[list[dict[str, str]], int]:
    """Return the rows, and how many are excluded for contradicting a duplicate."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(kept):
        by_file[one.file].append(index)
    files = list(by_file)
    pairs = _copies([kept[by_file[file][0]] for file in files])
    cluster_of = merged(files, [(files[a], files[b]) for a, b in pairs])
    members = clusters(cluster_of)
    group_of = merged(
        list(dict.fromkeys(one.example.group for one in kept)),
        [
            (kept[by_file[str(cluster[0])][0]].example.group, kept[i].example.group)
            for cluster in members
            for file in cluster
            for i in by_file[str(file)]
        ],
    )
    split_of = draw_splits(
        [(str(group_of[one.example.group]), one.example.label) for one in kept], seed
    )
    rows: list[dict[str, str]] = []
    contradicting = 0
    for number, cluster in enumerate(members):
        inside = [(file, i) for file in cluster for i in by_file[str(file)]]
        contradict = _contradict([kept[i] for _, i in inside])
        contradicting += len(inside) * contradict
        for file, index in inside:
            one = kept[index]
            group = str(group_of[one.example.group])
            exclude = _why_excluded(one, contradict)
            cells: dict[str, object] = {
                **_identity_cells(name, one),
                "shipped": 0 if exclude else 1,
                "exclude": exclude,
                "split": "excluded" if exclude else split_of[group],
                "group_id": group,
                "dup_cluster": f"d{number:05d}",
                "dup_cluster_size": len(cluster),
                "dup_primary": int(file == cluster[0]),
                **one.cells,
            }
            rows.append(row_of(cells.items()))
    return sorted(rows, key=lambda row: row["id"]), contradicting


def _copies(pictures: Sequence[_Kept]) -> list[tuple[int, int]]:
    """Return the pairs that show one picture: as a whole, or cut and shifted."""

    @lru_cache(maxsize=64)
    def load(index: int) -> Grey:
        return working_copy(open_picture(pictures[index].example.image))

    whole = near_pairs([picture.hash for picture in pictures])
    return [*whole, *shifted_pairs([picture.points for picture in pictures], load)]


def _why_excluded(one: _Kept, contradict: bool) -> str:
    """Return why nothing can be learned from an image; empty when it can."""
    if contradict:
        return "duplicates with other labels"
    if one.example.label is None and not one.cells["mask"]:
        return "no outcome known and no lesion marked"
    return ""


def _contradict(cluster: Sequence[_Kept]) -> bool:
    """Tell whether copies of one picture carry different outcomes."""
    told: dict[str, set[str]] = defaultdict(set)
    for one in cluster:
        if one.example.label is not None:
            told[one.file].add(one.example.label)
    return len({frozenset(labels) for labels in told.values()}) > 1


def _identity_cells(name: str, one: _Kept) -> dict[str, object]:
    return {
        "id": one.example.id,
        "set": name,
        "file": one.file,
        "label": one.example.label,
        "lesion_linked": 0,
        "birads": (one.example.birads or "").lower(),
        "modality": one.example.modality.value,
    }


def draw_splits(
    rows: Sequence[tuple[str, str | None]], seed: int
) -> dict[Hashable, str]:
    """Return the split of every group, stratified by its worst label.

    Whole groups go one by one, in an order drawn by `seed`, to the split that lacks
    most of its share; the same rows and seed give the same splits.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    sizes: Counter[str] = Counter()
    for group, label in rows:
        labels[group].add(label or "")
        sizes[group] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for group in sorted(labels):
        worst = max(labels[group], key=["", "normal", "benign", "malignant"].index)
        strata[worst].append(group)
    drawn: dict[Hashable, str] = {}
    for stratum in sorted(strata):
        filled = dict.fromkeys(SPLITS, 0)
        order = strata[stratum]
        random.Random(f"{seed}/{stratum}").shuffle(order)  # noqa: S311 not a secret
        for group in order:
            split = min(SPLITS, key=lambda key: filled[key] / SPLITS[key])
            drawn[group] = split
            filled[split] += sizes[group]
    return drawn


def _write_manifest(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the manifest whole or not at all; it is the sign that the set is there."""
    fresh = path.with_suffix(".part")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(fresh, path)
