"""BreaKHis, BACH and Bioimaging 2015: microscopy of breast tissue, H&E.

**BreaKHis** (web.inf.ufpr.br/vri/databases): `BreaKHis_v1/histology_slides/breast/
{benign,malignant}/SOB/<type>/SOB_B_A_14-22549AB/{40X,100X,200X,400X}/
SOB_B_A-14-22549AB-40-001.png`; class, type, patient and magnification are all in the
name. Spanhol et al., IEEE TBME 63 (2016) 1455. CC BY 4.0 by its page.

**BACH** (iciar2018-challenge.grand-challenge.org): `ICIAR2018_BACH_Challenge/Photos/
{Normal,Benign,InSitu,Invasive}/*.tif` with `microscopy_ground_truth.csv`, two columns
without a header. Aresta et al., Medical Image Analysis 56 (2019) 122. CC BY-NC-ND.

**Bioimaging 2015** (rdm.inesctec.pt/dataset/nis-2017-003): training and test folders
of `n*.tif`, `b*.tif`, `is*.tif`, `iv*.tif`, or the same in a folder per class. Araujo
et al., PLoS ONE 12 (2017) e0177544. BACH grew out of it and holds its images: train
on one and test on the other and you test on what you trained on.

Carcinoma in situ and invasive carcinoma are `malignant`. BACH and Bioimaging do not
name patients (in part only, elsewhere): every image is its own group, and images of
one woman can fall into two splits. Check all licences before use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Skip,
    image_file,
    one_of,
    read_rows,
    read_table,
    refuse,
    required_file,
)

_SLIDE = re.compile(r"SOB_([BM])_([A-Z]+)-(\d+)-(\w+)-(40|100|200|400)-(\d+)")
_SIGNS = {"B": "benign", "M": "malignant"}
_TYPES = frozenset(["A", "F", "PT", "TA", "DC", "LC", "MC", "PC"])
_CLASSES: Mapping[str, str | None] = {
    "normal": "normal",
    "benign": "benign",
    "insitu": "malignant",
    "invasive": "malignant",
}
_PREFIX = {"n": "Normal", "b": "Benign", "is": "InSitu", "iv": "Invasive"}
_PHOTO = re.compile(r"(n|b|is|iv)\d+", re.IGNORECASE)


def read_breakhis(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of BreaKHis in all magnifications (`view`: 40X ... 400X)."""
    return _files(root, "SOB_*.png", "BreaKHis", _breakhis, skip)


def read_bach(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the microscopy images of BACH."""
    table = required_file(root, "microscopy_ground_truth.csv", "BACH")
    columns = ("file", "class")
    return read_rows(
        read_table(table, columns, header=columns),
        lambda row: _photo(
            "bach", image_file(table.parent / row["class"] / row["file"]), row["class"]
        ),
        skip,
    )


def read_bioimaging2015(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of Bioimaging 2015; `source_split` says train or test."""
    return _files(root, "*.tif", "Bioimaging 2015", _bioimaging, skip)


def _files(
    root: Path,
    pattern: str,
    known_as: str,
    build: Callable[[Path, tuple[str, ...]], Example],
    skip: Skip,
) -> list[Example]:
    """Return what `build` makes of every file and the folders above it in the set."""
    required_file(root, pattern, known_as)
    rows = (
        (str(path.relative_to(root)), {"path": str(path.relative_to(root))})
        for path in sorted(root.rglob(pattern))
    )
    return read_rows(
        rows,
        lambda row: build(root / row["path"], Path(row["path"]).parts[:-1]),
        skip,
    )


def _breakhis(path: Path, folders: tuple[str, ...]) -> Example:
    found = _SLIDE.fullmatch(path.stem)
    if found is None or found[2] not in _TYPES:
        raise DatasetError("the name is not class, type, patient, magnification")
    sign, tumour, year, patient, magnification, _ = found.groups()
    if path.parent.name.upper() != f"{magnification}X":
        raise DatasetError(f"magnification {magnification} lies in {path.parent.name}")
    folder = next((p for p in folders if p in _SIGNS.values()), None)
    if folder not in (None, _SIGNS[sign]):
        raise DatasetError(f"the name says {_SIGNS[sign]}, the folder {folder}")
    return Example(
        id=f"breakhis_{path.stem.lower()}",
        image=path,
        # One woman is filed under two tumour types; the number alone is the patient.
        group=f"breakhis_{year}-{patient}",
        modality=Modality.HISTOLOGY,
        label=_SIGNS[sign],
        extra={
            "source_name": path.stem,
            "histology": tumour,
            "view": f"{magnification}X",
        },
    )


def _bioimaging(path: Path, folders: tuple[str, ...]) -> Example:
    found = _PHOTO.fullmatch(path.stem)
    folder = next((p for p in folders if p.casefold() in _CLASSES), None)
    if found is None and folder is None:
        raise DatasetError("neither name nor folder tells the class")
    named = _PREFIX[found[1].lower()] if found else None
    if named and folder and named.casefold() != folder.casefold():
        raise DatasetError(f"the name says {named}, the folder {folder}")
    tested = any(part.casefold().startswith("test") for part in folders)
    return _photo(
        "bioimaging2015",
        path,
        named or folder or "",
        split="test" if tested else "train",
    )


def _photo(name: str, path: Path, told: str, *, split: str = "") -> Example:
    key = "_".join(part for part in (name, split, told, path.stem) if part).lower()
    return Example(
        id=key,
        image=path,
        group=key,
        modality=Modality.HISTOLOGY,
        label=one_of(told, _CLASSES, "class"),
        extra={"source_name": path.stem, "histology": told, "source_split": split},
    )
