"""CBIS-DDSM: 1566 women's digitised mammograms with masses and calcifications.

Layout as published at The Cancer Imaging Archive (doi:10.7937/K9/TCIA.2016.7O02S9CY):
`{mass,calc}_case_description_{train,test}_set.csv`, one row per abnormality, beside
the DICOM tree `CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/<study>/<series>/1-1.dcm` of
full mammograms and `.../Mass-Training_P_00001_LEFT_CC_1/...` of abnormality 1, which
holds the ROI mask and the cropped image.

The paths in the tables are those of an earlier download, and the columns "ROI mask"
and "cropped image" are swapped in many rows, as are the Series Descriptions. So
neither is believed: the case is found by the name of its folder, and the mask is the
one with the size of the full mammogram (rows whose mask has another size are
skipped). One example per abnormality; those of one view share the image.

Lee et al., Scientific Data 4 (2017) 170177. CC BY 3.0 or 4.0 by release: check
before use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pydicom

from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Skip,
    one_of,
    read_rows,
    read_table,
    refuse,
    required_file,
)

_COLUMNS = (
    "patient_id",
    "left or right breast",
    "image view",
    "abnormality id",
    "abnormality type",
    "assessment",
    "pathology",
)
_TABLES = {
    f"{kind}_case_description_{part}_set.csv": (kind.capitalize(), folder)
    for kind in ("mass", "calc")
    for part, folder in (("train", "Training"), ("test", "Test"))
}
_PATHOLOGY: Mapping[str, str | None] = {
    "malignant": "malignant",
    "benign": "benign",
    "benign_without_callback": "benign",
}
_SIDES: Mapping[str, str | None] = {"left": "L", "right": "R"}


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    first = required_file(root, "*_case_description_*_set.csv", "CBIS-DDSM")
    cases = _cases(root)
    if not cases:
        raise DatasetError(f"{root} is not CBIS-DDSM: no folder of a case below it")
    examples = []
    for name, (kind, part) in _TABLES.items():
        table = first.parent / name
        if table.exists():
            examples += read_rows(
                read_table(table, _COLUMNS),
                lambda row, kind=kind, part=part: _example(row, cases, kind, part),  # type: ignore[misc]
                skip,
            )
    return examples


def _cases(root: Path) -> dict[str, list[Path]]:
    """Return the DICOM files of every case folder by its name."""
    cases: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.dcm")):
        named = next((p for p in path.parts if p.startswith(("Mass-", "Calc-"))), None)
        if named is not None:
            cases.setdefault(named, []).append(path)
    return cases


def _example(
    row: Mapping[str, str], cases: Mapping[str, list[Path]], kind: str, part: str
) -> Example:
    patient, number = row["patient_id"], row["abnormality id"]
    side, view = row["left or right breast"].upper(), row["image view"].upper()
    case = f"{kind}-{part}_{patient}_{side}_{view}"
    image = _only(cases.get(case, []), f"full mammogram of {case}")
    mask = _mask(image, cases.get(f"{case}_{number}", []))
    return Example(
        id=f"cbis_{kind}_{part}_{patient}_{side}_{view}_{number}".lower(),
        image=image,
        group=f"cbis_{patient}",
        modality=Modality.MAMMOGRAM,
        label=one_of(row["pathology"], _PATHOLOGY, "pathology"),
        birads=row["assessment"],
        masks=(mask,),
        extra={
            "source_name": f"{case}_{number}",
            "source_split": part.lower(),
            "laterality": one_of(side, _SIDES, "side") or "",
            "view": view,
            "density": row.get("breast_density") or row.get("breast density") or "",
            "interpretation": row["abnormality type"],
            "signs": "; ".join(
                row[column]
                for column in ("mass shape", "mass margins", "calc type")
                if row.get(column)
            ),
            "n_lesions": "1",
        },
    )


def _only(files: list[Path], what: str) -> Path:
    if not files:
        raise DatasetError(f"{what} is missing")
    return files[0]


def _mask(image: Path, files: list[Path]) -> Path:
    """Return the ROI mask of an abnormality, whatever its name says."""
    wanted = _size(image)
    fitting = [path for path in files if _size(path) == wanted]
    return _only(fitting, "the ROI mask with the size of the mammogram")


def _size(path: Path) -> tuple[int, int]:
    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["Rows", "Columns"]
        )
        return int(header.Rows), int(header.Columns)
    except Exception as error:  # pydicom raises whatever the damage happens to cause
        raise DatasetError(f"{path.name} is not a readable DICOM file") from error
