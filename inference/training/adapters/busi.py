"""BUSI: breast ultrasound of Baheya Hospital, Cairo.

Layout as published: `Dataset_BUSI_with_GT/{benign,malignant,normal}/benign (1).png`
with `benign (1)_mask.png`, further lesions in `_mask_1.png`, `_mask_2.png`; normal
images have a black mask. No patient ids: every image is its own group here, and
near-duplicates are merged when the set is imported. Images of one woman can still
fall into two splits.

Al-Dhabyani et al., Data in Brief 28 (2020) 104863. The data page states no licence of
its own: check before use.
"""

from __future__ import annotations

import re
from pathlib import Path

from inference.training.adapters.example import (
    LABELS,
    Example,
    Modality,
    Skip,
    read_rows,
    refuse,
    required_folder,
)

_NAME = re.compile(r"(benign|malignant|normal) \((\d+)\)")


def read(root: Path, skip: Skip = refuse) -> list[Example]:
    """Return the images of the set; a row that cannot be used goes to `skip`."""
    folder = required_folder(root, LABELS, "BUSI")
    rows = [
        (f"{label}/{path.name}", {"label": label, "path": str(path)})
        for label in LABELS
        for path in sorted((folder / label).glob("*.png"))
        if _NAME.fullmatch(path.stem)
    ]
    return read_rows(rows, lambda row: _example(Path(row["path"]), row["label"]), skip)


def _example(image: Path, label: str) -> Example:
    number = image.stem.split("(")[1].rstrip(")")
    first = image.with_name(f"{image.stem}_mask.png")
    masks = (first, *sorted(image.parent.glob(f"{image.stem}_mask_*.png")))
    key = f"busi_{label}_{int(number):03d}"
    return Example(
        id=key,
        image=image,
        group=key,
        modality=Modality.ULTRASOUND,
        label=label,
        masks=() if label == "normal" else masks,
        extra={
            "source_name": image.stem,
            "n_lesions": "" if label == "normal" else str(len(masks)),
        },
    )
