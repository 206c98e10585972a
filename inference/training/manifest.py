"""Reads manifests of labelled images and refuses what would spoil training quietly.

One folder per set, `<set>/manifest.csv` with one row per image; the columns are
those of the public breast ultrasound package. Every fault names the file and the
line and says what to do. A wrong split or label is worse than none: a model would be
trained on it, or praised for it, without anybody noticing.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from node.domain.errors import ErrorKind, NodeError
from node.domain.lexicon import FIELDS, FieldKey
from node.domain.manifest import COLUMN_OF, NONE_SEEN, word_of

REQUIRED = ("id", "file", "label", "split")
LABELS = ("benign", "malignant", "normal")
MARGIN_PREFIX = "margin_"
MARGIN_VALUES = ("", "0", "1")

_LEARNED_CALCIFICATIONS = {NONE_SEEN: "absent", word_of("in_mass"): "in_mass"}
TERMS: dict[str, tuple[str, dict[str, str]]] = {
    field.value: (
        column,
        {word_of(term.key): term.key for term in FIELDS[field].terms}
        if field is not FieldKey.CALCIFICATIONS
        else _LEARNED_CALCIFICATIONS,
    )
    for field, column in COLUMN_OF.items()
}
"""Field of the lexicon -> its column, and the column's words -> the field's keys."""

_UNLEARNED: dict[str, frozenset[str]] = {
    "echogenicity": frozenset({"heterogeneous"}),
    "calcification": frozenset({"intraductal", "indefinable", "macro", "outside mass"}),
}
"""Words that occur and are right, but have too few cases, or no term, to be learned."""

_CATEGORIES = frozenset({"", "0", "1", "2", "3", "4", "4A", "4B", "4C", "5", "6"})


class DataFault(NodeError):
    """Data that cannot be used as it is; one line with file, row and mend."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorKind.INVALID)


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest. `line` counts from 1 for the header, as editors do."""

    set: str
    line: int
    values: Mapping[str, str]
    root: Path

    def __getitem__(self, column: str) -> str:
        """Return a column's text; "" where the manifest has no such column."""
        return self.values.get(column) or ""

    @property
    def place(self) -> str:
        return f"{self.set}/manifest.csv line {self.line} ({self['id']})"

    @property
    def group(self) -> str:
        """Return the patient or lesion group; without one the image stands alone."""
        return self["group_id"] or f"{self.set}:{self['id']}"

    @property
    def shipped(self) -> bool:
        """Tell whether there is an image; a row without one only documents a source.

        The column `shipped` says whether a package holds the file, not whether this
        folder does: sealed images are shipped to nobody and are evaluated all the same.
        """
        return bool(self["file"])


@dataclass(frozen=True, slots=True)
class Listing:
    """The rows of one split, and one line about each thing that was passed over."""

    rows: tuple[Row, ...]
    notices: tuple[str, ...]


def find_sets(data: Path) -> tuple[str, ...]:
    """Return the names of the folders under `data` that hold a manifest."""
    if not data.is_dir():
        raise DataFault(f"no folder {data}: give the folder that holds the sets")
    if (data / "manifest.csv").exists():
        raise DataFault(f"{data} is one set: give the folder that holds it")
    return tuple(sorted(path.parent.name for path in data.glob("*/manifest.csv")))


def read_listing(data: Path, split: str, sets: Iterable[str] | None = None) -> Listing:
    """Return the shipped rows of one split from the manifests under `data`.

    `sets`: folder names; all that have a manifest when None. Checks every row of
    every manifest, also of other splits: a patient in two of them is a leak.

    Raises DataFault for whatever makes the labels or the split doubtful.
    """
    named = find_sets(data) if sets is None else tuple(sets)
    rows: list[Row] = []
    notices: list[str] = []
    for name in named:
        path = data / name / "manifest.csv"
        if not path.exists():
            continue
        found = _read_manifest(path, name)
        missing = [c for c in REQUIRED if found and c not in found[0].values]
        if missing and sets is None:
            notices.append(f"{name}: skipped, no column {', '.join(missing)}")
            continue
        if missing:
            raise DataFault(
                f"{name}/manifest.csv has no column {', '.join(missing)}: add it"
            )
        if not found:
            notices.append(f"{name}: skipped, its manifest lists no image")
        if sets is None and any(row["modality"] not in ("", "US") for row in found):
            notices.append(f"{name}: skipped, not ultrasound: name the set to read it")
            continue
        rows += found
    used = [row for row in rows if row.shipped and row["split"] != "excluded"]
    _check_unique(rows)
    _check_leak(used)
    for row in used:
        notices += _check_labels(row)
    kept = tuple(row for row in used if row["split"] == split)
    if not kept:
        known = ", ".join(sorted({row["split"] for row in used})) or "none"
        raise DataFault(
            f"no image of split {split} under {data} "
            f"(sets: {', '.join(named) or 'none'}; splits: {known})"
        )
    present = {row.set for row in kept}
    notices += [
        f"{name}: no image of split {split}"
        for name in sorted({row.set for row in rows} - present)
    ]
    return Listing(kept, tuple(notices))


def read_grey(row: Row, column: str) -> Image.Image:
    """Return the image or mask of a row as 8-bit grey.

    16-bit and float images are spread over their own range. Raises DataFault when
    the file is missing, broken, or holds pixels that are no numbers.
    """
    path = _file(row, column)
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode in ("F", "I") or image.mode.startswith("I;16"):
                return _spread(np.asarray(image, dtype=np.float64), row, column)
            return image.convert("L")
    except FileNotFoundError as error:
        raise DataFault(
            f"{row.place}: {column} {row[column]} is missing: restore the file"
            + (" or empty the column" if column == "mask" else "")
        ) from error
    except (OSError, ValueError, UnidentifiedImageError, SyntaxError) as error:
        raise DataFault(
            f"{row.place}: {column} {row[column]} cannot be read as an image "
            f"({type(error).__name__}): restore the file"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataFault(
            f"{row.place}: {column} {row[column]} is too large to be an ultrasound "
            "image: reduce it or take the row out"
        ) from error


def read_pair(row: Row) -> tuple[Image.Image, Image.Image | None]:
    """Return a row's image and its mask, None where the manifest names no mask.

    Raises DataFault when their sizes differ or the mask of a lesion is empty: a lesion
    in the wrong place would be learned like any other.
    """
    image = read_grey(row, "file")
    if not row["mask"]:
        return image, None
    mask = read_grey(row, "mask")
    if mask.size != image.size:
        raise DataFault(
            f"{row.place}: mask is {mask.width}x{mask.height}, image "
            f"{image.width}x{image.height}: draw it on this image"
        )
    brightest = int(np.asarray(mask).max())
    if row["label"] != "normal" and brightest == 0:
        raise DataFault(
            f"{row.place}: mask {row['mask']} is empty though the label is "
            f"{row['label']}: draw it or empty the column"
        )
    if 0 < brightest < 255:
        # Masks saved as 0/1 or as class numbers.
        mask = mask.point(lambda level: 255 if level else 0)
    return image, mask


def number(row: Row, column: str) -> float:
    """Return a column's number; NaN when it is empty or no number."""
    try:
        return float(row[column])
    except ValueError:
        return float("nan")


def _read_manifest(path: Path, name: str) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFault(
            f"{name}/manifest.csv cannot be read as UTF-8 text "
            f"({type(error).__name__}): restore the file"
        ) from error
    if not text.strip():
        raise DataFault(f"{name}/manifest.csv is empty: restore the file")
    if "\0" in text:
        raise DataFault(f"{name}/manifest.csv holds NUL bytes: restore the file")
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        return _rows_of(reader, path, name)
    except csv.Error as error:
        raise DataFault(
            f"{name}/manifest.csv line {reader.line_num} is no CSV ({error}): "
            "restore the file"
        ) from error


def _rows_of(reader: Any, path: Path, name: str) -> list[Row]:
    header = next(reader)
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataFault(f"{name}/manifest.csv names column {twice[0]} twice")
    rows = []
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise DataFault(
                f"{name}/manifest.csv line {reader.line_num} has {len(fields)} "
                f"fields, the header {len(header)}: restore the line"
            )
        values = dict(zip(header, (field.strip() for field in fields), strict=True))
        rows.append(Row(name, reader.line_num, values, path.parent.parent))
    return rows


def _file(row: Row, column: str) -> Path:
    """Return where a file lies: named from the folder of sets, or from its own set."""
    from_root, from_set = row.root / row[column], row.root / row.set / row[column]
    inside = row.root.resolve()
    for path in (from_root, from_set):
        if not path.resolve().is_relative_to(inside):
            raise DataFault(f"{row.place}: {column} leads out of the data folder")
    return from_set if not from_root.exists() and from_set.exists() else from_root


def _spread(levels: np.ndarray[Any, Any], row: Row, column: str) -> Image.Image:
    if not np.isfinite(levels).all():
        raise DataFault(
            f"{row.place}: {column} {row[column]} has pixels that are no numbers: "
            "export the image again"
        )
    low, high = float(levels.min()), float(levels.max())
    scaled = (levels - low) / max(high - low, 1e-9) * 255
    return Image.fromarray(scaled.round().astype(np.uint8))


def _check_unique(rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        if not row["id"]:
            raise DataFault(f"{row.place}: id is empty: name the image")
        if row["id"] in first:
            raise DataFault(
                f"{row.place}: id was used before, {first[row['id']].place}: "
                "one id, one image"
            )
        first[row["id"]] = row


def _check_leak(rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        before = first.setdefault(row.group, row)
        if before["split"] != row["split"]:
            raise DataFault(
                f"{row.place}: group {row.group} is in split {row['split']} and, "
                f"{before.place}, in {before['split']}: the same patient would be "
                "trained on and tested; put the group into one split"
            )


def _check_labels(row: Row) -> list[str]:
    """Refuse a label nobody can mean; return a line about terms left out."""
    # Without a label a drawn lesion is a lesion whose end nobody knows yet.
    if row["label"] not in LABELS and not (row["label"] == "" and row["mask"]):
        raise DataFault(
            f"{row.place}: label is {row['label']!r}, not one of {', '.join(LABELS)}"
        )
    notices = []
    for column, words in TERMS.values():
        word = row[column]
        known = word in words or word in _UNLEARNED.get(column, ())
        if word and not known:
            notices.append(_left_out(row, column, sorted(words)))
    if row["birads"].upper() not in _CATEGORIES:
        notices.append(_left_out(row, "birads", sorted(_CATEGORIES - {""})))
    notices += [
        _left_out(row, column, ["0", "1"])
        for column in row.values
        if column.startswith(MARGIN_PREFIX) and row[column] not in MARGIN_VALUES
    ]
    return notices


def _left_out(row: Row, column: str, words: Sequence[str]) -> str:
    return (
        f"{row.place}: {column} {row[column]!r} is not in the lexicon "
        f"({', '.join(words)}): taken as not labelled"
    )
