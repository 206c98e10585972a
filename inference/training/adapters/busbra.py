"""BUS-BRA: 1064 women of the National Cancer Institute, Rio de Janeiro, all biopsied.

Layout as published at Zenodo (doi:10.5281/zenodo.8231412): `BUSBRA/Images/
bus_0001-l.png`, `BUSBRA/Masks/mask_0001-l.png`, `bus_data.csv`. `-l`, `-r` and `-s`
are the left and right half of a dual view and a single one, not sides of the body.
Pixels have no scale. Side, quadrant and age are burned into many images.

Gomez-Flores et al., Medical Physics 51 (2024) 3110. CC BY 4.0 on Zenodo, an MIT-like
LICENSE.txt with a duty to cite in the archive: check before use.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Skip,
    image_file,
    read_rows,
    read_table,
    refuse,
    required_folder,
)

_COLUMNS = ("ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Side")


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    folder = required_folder(root, ("bus_data.csv", "Images", "Masks"), "BUS-BRA")
    table = read_table(folder / "bus_data.csv", _COLUMNS)
    return read_rows(table, lambda row: _example(row, folder), skip)


def _example(row: Mapping[str, str], folder: Path) -> Example:
    name = row["ID"]
    if not row["Case"].isdigit():
        raise DatasetError(f"Case {row['Case']!r} is no number")
    mask = folder / "Masks" / f"{name.replace('bus_', 'mask_', 1)}.png"
    return Example(
        id=name.replace("bus_", "busbra_", 1).replace("-", "_"),
        image=image_file(folder / "Images" / f"{name}.png"),
        group=f"busbra_c{int(row['Case']):04d}",
        modality=Modality.ULTRASOUND,
        label=row["Pathology"].casefold(),
        birads=row["BIRADS"] or None,
        masks=(mask,),
        extra={
            "source_name": name,
            "histology": row["Histology"],
            "device": row["Device"].split("@")[0].strip(),
            "view": row["Side"],
            "verification": "biopsy",
        },
    )
