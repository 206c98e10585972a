"""BrEaST-Lesions-USG: 256 patients, one image each, described by radiologists.

Layout as published at The Cancer Imaging Archive (doi:10.7937/9WKK-Q141): a folder
`BrEaST-Lesions_USG-images_and_masks` with `case001.png`, `case001_tumor.png`,
`case001_other1.png`, beside `BrEaST-Lesions-USG-clinical-data-*.xlsx`. Pixel_size is
in centimetres. Margin words are joined by `&` behind "not circumscribed -".

Pawlowska et al., Scientific Data 11 (2024) 148. CC BY 4.0: check before use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from inference.training.adapters.example import (
    UNKNOWN,
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
from node.domain.lexicon import FieldKey

_COLUMNS = (
    "CaseID",
    "Image_filename",
    "Mask_tumor_filename",
    "Pixel_size",
    "Age",
    "Tissue_composition",
    "Signs",
    "Symptoms",
    "Shape",
    "Margin",
    "Echogenicity",
    "Posterior_features",
    "Halo",
    "Calcifications",
    "Skin_thickening",
    "Interpretation",
    "BIRADS",
    "Verification",
    "Diagnosis",
    "Classification",
)
_TERMS: Mapping[FieldKey, tuple[str, Mapping[str, str | None]]] = {
    FieldKey.SHAPE: (
        "Shape",
        {**UNKNOWN, "oval": "oval", "round": "round", "irregular": "irregular"},
    ),
    FieldKey.ECHO_PATTERN: (
        "Echogenicity",
        {
            **UNKNOWN,
            "anechoic": "anechoic",
            "hyperechoic": "hyperechoic",
            "hypoechoic": "hypoechoic",
            "isoechoic": "isoechoic",
            "complex cystic/solid": "complex",
            "heterogeneous": None,
        },
    ),
    FieldKey.POSTERIOR_FEATURES: (
        "Posterior_features",
        {
            **UNKNOWN,
            "no": "none",
            "none": "none",
            "enhancement": "enhancement",
            "shadowing": "shadowing",
            "combined": "combined",
        },
    ),
    FieldKey.LESION_BOUNDARY: (
        "Halo",
        {**UNKNOWN, "no": "abrupt_interface", "yes": "echogenic_halo"},
    ),
}
_CALCIFICATIONS: Mapping[str, str | None] = {
    **UNKNOWN,
    "no": "",
    "in a mass": "in_mass",
    "in mass": "in_mass",
    "intraductal": "intraductal",
    "outside a mass": "outside_mass",
}
_MARGINS = {"circumscribed", "indistinct", "angular", "microlobulated", "spiculated"}
_KEPT = {
    "age": "Age",
    "histology": "Diagnosis",
    "verification": "Verification",
    "interpretation": "Interpretation",
    "tissue": "Tissue_composition",
    "signs": "Signs",
    "symptoms": "Symptoms",
    "skin_thickening": "Skin_thickening",
}


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    table = required_file(root, "BrEaST-Lesions-USG-clinical-data*.xlsx", "BrEaST")
    images = required_file(root, "case*.png", "BrEaST").parent
    return read_rows(
        read_table(table, _COLUMNS), lambda row: _example(row, images), skip
    )


def _example(row: Mapping[str, str], images: Path) -> Example:
    number = re.sub(r"\D", "", row["CaseID"])
    if not number:
        raise DatasetError("CaseID holds no number")
    drawn = [name.strip() for name in row["Mask_tumor_filename"].split("&")]
    masks = tuple(images / name for name in drawn if name.endswith(".png"))
    key = f"breast_{int(number):03d}"
    return Example(
        id=key,
        image=image_file(images / row["Image_filename"]),
        group=f"breast_p{int(number):03d}",
        modality=Modality.ULTRASOUND,
        label=row["Classification"].casefold(),
        birads=row["BIRADS"].upper() or None,
        masks=masks,
        descriptors=_descriptors(row) if masks else {},
        extra=_extra(row) | ({"n_lesions": str(len(masks))} if masks else {}),
    )


def _descriptors(row: Mapping[str, str]) -> dict[FieldKey, tuple[str, ...]]:
    told: dict[FieldKey, tuple[str, ...]] = {}
    for field, (column, terms) in _TERMS.items():
        term = one_of(row[column], terms, column)
        if term is not None:
            told[field] = (term,)
    margin = row["Margin"].casefold().removeprefix("not circumscribed").strip(" -")
    words = {word.strip() for word in re.split(r"[&,]", margin) if word.strip()}
    if words - _MARGINS - set(UNKNOWN):
        raise DatasetError(f"Margin {row['Margin']!r} is outside the lexicon")
    if words & _MARGINS:
        told[FieldKey.MARGIN] = tuple(sorted(words & _MARGINS))
    seen = one_of(row["Calcifications"], _CALCIFICATIONS, "Calcifications")
    if seen is not None:
        told[FieldKey.CALCIFICATIONS] = (seen,) if seen else ()
    return told


def _extra(row: Mapping[str, str]) -> dict[str, str]:
    kept = {column: row[source] for column, source in _KEPT.items()}
    kept["source_name"] = Path(row["Image_filename"]).stem
    if "heterogeneous" in row["Echogenicity"].casefold():
        kept["echogenicity"] = "heterogeneous"
    with suppress(ValueError):  # no scale: no millimetres
        kept["pixel_mm"] = f"{10 * float(row['Pixel_size']):.6g}"
    return {
        column: value
        for column, value in kept.items()
        if value.casefold() not in UNKNOWN
    }
