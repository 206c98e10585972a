"""What an adapter says about one image, and how the published tables are read."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from node.domain import lexicon
from node.domain.errors import NodeError
from node.domain.lexicon import FieldKey

LABELS = ("benign", "malignant", "normal")


class DatasetError(Exception):
    """A set cannot be read; the message is one line for the person at the desk."""


class Modality(StrEnum):
    """What kind of picture it is."""

    ULTRASOUND = "US"
    MAMMOGRAM = "MG"
    HISTOLOGY = "HISTO"


Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Example:
    """One labelled image of a published set.

    `group` is the patient, or the closest that the set tells; it never spans splits.
    The lesion is where `masks` (files as large as the image, or-ed) are bright, or
    inside `outlines` (closed polygons of column, row in image coordinates); with
    neither nobody marked it. `label` None: outcome unknown. `birads` as in the
    lexicon, or plain "4" where the set does not divide it. `descriptors` hold
    lexicon keys of ultrasound terms only. `extra` fills further manifest columns.
    """

    id: str
    image: Path
    group: str
    modality: Modality
    label: str | None
    birads: str | None = None
    masks: tuple[Path, ...] = ()
    outlines: tuple[Points, ...] = ()
    descriptors: Mapping[FieldKey, tuple[str, ...]] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.label is not None and self.label not in LABELS:
            raise DatasetError(f"label {self.label!r} is none of {', '.join(LABELS)}")
        if self.birads is not None and self.birads not in _CATEGORIES:
            raise DatasetError(f"{self.birads!r} is not a BI-RADS category")
        for key, values in self.descriptors.items():
            try:
                lexicon.check_values(key, values)
            except NodeError as error:
                raise DatasetError(error.message) from None


_CATEGORIES = frozenset({*lexicon.CATEGORIES, "4"})

Skip = Callable[[str, str], None]
"""Called with the name of a row that cannot be used and the reason."""


def refuse(row: str, reason: str) -> None:
    """Be strict: the first row that cannot be used ends the reading."""
    raise DatasetError(f"{row}: {reason}")


def read_rows(
    rows: Iterable[tuple[str, Mapping[str, str]]],
    build: Callable[[Mapping[str, str]], Example],
    skip: Skip,
) -> list[Example]:
    """Return an example for every row that `build` accepts; the others are skipped.

    A row is a name for the reader of the message, and its cells.
    """
    examples = []
    for name, row in rows:
        try:
            examples.append(build(row))
        except DatasetError as error:
            skip(name, str(error))
    return examples


# -- tables ----------------------------------------------------------------------------


def read_table(
    path: Path,
    required: Sequence[str],
    *,
    delimiter: str = ",",
    header: Sequence[str] | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (name of the row, cells) of a CSV or XLSX table, blanks trimmed.

    Column names are compared without case and surrounding blanks, as publishers
    vary them between releases. `header` names the columns of a table without any.
    """
    lines = (
        _spreadsheet(path) if path.suffix == ".xlsx" else _text_table(path, delimiter)
    )
    names = [_plain(cell) for cell in (next(lines, []) if header is None else header)]
    missing = [column for column in required if _plain(column) not in names]
    if missing:
        raise DatasetError(f"{path.name}: column {', '.join(missing)} is missing")
    wanted = {_plain(column): column for column in required}
    first = 2 if header is None else 1
    for number, cells in enumerate(lines, start=first):
        if not any(cell.strip() for cell in cells):
            continue
        told = dict(zip(names, cells, strict=False))
        row = {wanted.get(key, key): value.strip() for key, value in told.items()}
        yield f"{path.name} row {number}", {**dict.fromkeys(required, ""), **row}


def _plain(name: str) -> str:
    return name.strip().strip("\ufeff").casefold()


def _text_table(path: Path, delimiter: str) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            yield from csv.reader(lines, delimiter=delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path.name} is not a readable table") from error


def _spreadsheet(path: Path) -> Iterator[list[str]]:
    try:
        from openpyxl import load_workbook  # type: ignore[import-untyped]
    except ImportError:
        raise DatasetError(
            f"{path.name}: needs the package openpyxl (extra training)"
        ) from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        for row in book.worksheets[0].iter_rows(values_only=True):
            yield ["" if cell is None else _cell(cell) for cell in row]
    except Exception as error:  # a damaged archive fails in many ways
        raise DatasetError(f"{path.name} is not a readable spreadsheet") from error


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # spreadsheets make 3.0 of a category 3
    return str(value)


# -- folders ---------------------------------------------------------------------------


def required_folder(root: Path, names: Sequence[str], known_as: str) -> Path:
    """Return `root` or the folder in or above it that holds all of `names`."""
    for folder in (root, *sorted(p for p in root.glob("*") if p.is_dir())):
        if all((folder / name).exists() for name in names):
            return folder
    raise DatasetError(f"{root} is not {known_as}: {' and '.join(names)} not found")


def required_file(root: Path, pattern: str, known_as: str) -> Path:
    """Return the first file below `root` that fits `pattern`."""
    found = sorted(root.rglob(pattern))
    if not found:
        raise DatasetError(f"{root} is not {known_as}: there is no {pattern}")
    return found[0]


def image_file(path: Path) -> Path:
    """Return `path` when it is a file; the row that names another one is refused."""
    if not path.is_file():
        raise DatasetError(f"image {path.name} is missing")
    return path


def one_of(value: str, terms: Mapping[str, str | None], column: str) -> str | None:
    """Return what `value` means; a word that nobody has mapped is refused.

    None: the set says that it is unknown, or the lexicon has no such term.
    """
    key = re.sub(r"\s+", " ", value).strip().casefold()
    if key not in terms:
        raise DatasetError(f"{column} {value!r} is outside the lexicon")
    return terms[key]


UNKNOWN: Mapping[str, None] = dict.fromkeys(
    ("", "n/a", "nan", "not applicable", "not available", "unknown", "indefinable")
)
