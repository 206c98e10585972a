"""mini-MIAS: 322 digitised mammograms of 161 women, 1024 x 1024.

Layout as published at peipa.essex.ac.uk/info/mias.html: `mdb001.pgm` ... beside
`Info.txt`, whose rows read `mdb001 G CIRC B 535 425 197`: tissue, abnormality,
severity, centre and radius. **y counts from the bottom.** Several rows may speak of
one image; `*NOTE 3*` stands where calcifications have no centre. mdb001 and mdb002
are the two sides of one woman, and so on.

Suckling et al. 1994. Research only, no rent, lease or sale: check before use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Points,
    Skip,
    image_file,
    read_rows,
    refuse,
    required_file,
)

SIDE = 1024
_TISSUE = {"F": "fatty", "G": "fatty-glandular", "D": "dense-glandular"}
_KINDS = frozenset({"CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM", "NORM"})
_SEVERITY = {"B": "benign", "M": "malignant"}
_ROW = re.compile(r"(mdb\d{3})[lrsmx]*\s+([FGD])\s+([A-Z]{4})(?:\s+(.*))?")


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    table = required_file(root, "Info.txt", "mini-MIAS")
    images = required_file(root, "mdb*.pgm", "mini-MIAS").parent
    told: dict[str, list[str]] = {}
    for line in table.read_text(encoding="latin-1").splitlines():
        if line.startswith("mdb"):
            told.setdefault(line[:6], []).append(line.strip())
    rows = [(name, {"name": name, "told": "\n".join(told[name])}) for name in told]
    if not rows:
        raise DatasetError(f"{table}: no row begins with mdb")
    return read_rows(rows, lambda row: _example(row, images), skip)


def _example(row: Mapping[str, str], images: Path) -> Example:
    name, lines = row["name"], row["told"].split("\n")
    labels, kinds, outlines, tissue = set(), [], [], ""
    for line in lines:
        found = _ROW.fullmatch(line)
        if found is None or found[3] not in _KINDS:
            raise DatasetError(f"{line!r} is not a row of Info.txt")
        tissue = found[2]
        kinds.append(found[3])
        severity, *place = (found[4] or "").split()[:4] or [""]
        if found[3] == "NORM":
            labels.add("normal")
            continue
        if severity not in _SEVERITY:
            raise DatasetError(f"severity {severity!r} is neither B nor M")
        labels.add(_SEVERITY[severity])
        if len(place) == 3 and all(part.isdigit() for part in place):
            x, y, radius = map(int, place)
            outlines.append(_circle(x, SIDE - y, radius))
    worst = max(labels, key=("normal", "benign", "malignant").index)
    number = int(name[3:])
    return Example(
        id=f"mias_{name}",
        image=image_file(images / f"{name}.pgm"),
        group=f"mias_p{(number + 1) // 2:03d}",
        modality=Modality.MAMMOGRAM,
        label=worst,
        outlines=tuple(outlines),
        extra={
            "source_name": name,
            "interpretation": "&".join(dict.fromkeys(kinds)),
            "density": _TISSUE[tissue],
            "laterality": "L" if number % 2 else "R",
            "view": "MLO",
            "n_lesions": str(len(outlines)) if outlines else "",
        },
    )


def _circle(x: float, y: float, radius: float) -> Points:
    turns = [2 * math.pi * step / 64 for step in range(64)]
    return tuple(
        (x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns
    )
