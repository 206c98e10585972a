"""INbreast: 410 full-field digital mammograms of 115 women.

Layout as published (`INbreast Release 1.0`): `AllDICOMs/20586908_6c613a14b80a8591_
MG_R_CC_ANON.dcm`, whose second part is the patient; `AllXML/20586908.xml`, property
lists of OsiriX with `Images[].ROIs[].Point_px`; `INbreast.csv`, divided by semicolons
(the .xls beside it holds more columns; save it as .xlsx to use it).

There is no histology in the table: category 6 (proven) counts as malignant, 2 as
benign, 1 as normal, and 3 to 5 stay without outcome. Papers that call 4 to 6
"malignant" measure agreement with a reader, not with the truth.

Moreira et al., Academic Radiology 19 (2012) 236. Given out on request by INESC Porto:
check before use.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from pathlib import Path

from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Points,
    Skip,
    read_rows,
    read_table,
    refuse,
    required_folder,
)

_COLUMNS = ("Laterality", "View", "File Name", "ACR", "Bi-Rads")
_OUTCOME = {"1": "normal", "2": "benign", "6": "malignant"}
_NOT_A_LESION = "pectoral muscle"
_POINT = re.compile(r"\(\s*([-\d.]+)\s*,\s*([-\d.]+)\s*\)")
_FEWEST_POINTS = 3


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    folder = required_folder(root, ("AllDICOMs", "AllXML"), "INbreast")
    tables = [folder / f"INbreast.{suffix}" for suffix in ("csv", "xlsx")]
    table = next((path for path in tables if path.exists()), None)
    if table is None:
        raise DatasetError(
            f"{folder}: INbreast.csv is missing; save INbreast.xls as .csv or .xlsx"
        )
    delimiter = ";" if ";" in table.read_bytes()[:200].decode("latin-1") else ","
    images = {path.name[:8]: path for path in (folder / "AllDICOMs").glob("*.dcm")}
    rows = (
        (name, row)
        for name, row in read_table(table, _COLUMNS, delimiter=delimiter)
        if row["File Name"].isdigit()  # the spreadsheet ends with remarks
    )
    return read_rows(rows, lambda row: _example(row, images, folder), skip)


def _example(
    row: Mapping[str, str], images: Mapping[str, Path], folder: Path
) -> Example:
    name = row["File Name"]
    image = images.get(name)
    if image is None:
        raise DatasetError(f"image {name} is missing")
    parts = image.stem.split("_")
    if len(parts) < 2:
        raise DatasetError(f"{image.name} does not name the patient")
    category = row["Bi-Rads"].upper()
    marks = folder / "AllXML" / f"{name}.xml"
    outlines, kinds = _outlines(marks) if marks.exists() else ((), ())
    return Example(
        id=f"inbreast_{name}",
        image=image,
        group=f"inbreast_{parts[1]}",
        modality=Modality.MAMMOGRAM,
        label=_OUTCOME.get(category),
        birads=category,
        outlines=outlines,
        extra={
            "source_name": name,
            "laterality": row["Laterality"],
            "view": row["View"],
            "density": row["ACR"],
            "interpretation": "&".join(kinds),
            "n_lesions": str(len(outlines)) if outlines else "",
        },
    )


def _outlines(path: Path) -> tuple[tuple[Points, ...], tuple[str, ...]]:
    """Return the drawn regions of a property list and what they are called.

    Single points mark calcifications; they are too small to be a region.
    """
    try:
        images = plistlib.loads(path.read_bytes())["Images"]
        regions = [region for image in images for region in image["ROIs"]]
        named = [(str(r["Name"]).strip(), list(r["Point_px"])) for r in regions]
    except Exception as error:  # plistlib and its XML parser raise of all kinds
        raise DatasetError(f"{path.name} is not a readable property list") from error
    outlines: list[Points] = []
    kinds: dict[str, None] = {}
    for name, points in named:
        if name.casefold().startswith(_NOT_A_LESION):
            continue
        kinds[name] = None
        drawn = [_POINT.fullmatch(str(point).strip()) for point in points]
        if len(drawn) >= _FEWEST_POINTS and all(drawn):
            outlines.append(tuple((float(p[1]), float(p[2])) for p in drawn if p))
    return tuple(outlines), tuple(kinds)
