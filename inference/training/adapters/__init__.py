"""Published image sets, each read from the layout in which its authors give it out."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from inference.training.adapters import (
    breast,
    busbra,
    busi,
    cbis_ddsm,
    histology,
    inbreast,
    mias,
)
from inference.training.adapters.example import (
    DatasetError,
    Example,
    Modality,
    Skip,
    refuse,
)

__all__ = ["ADAPTERS", "DatasetError", "Example", "Modality", "Skip", "refuse"]


class Read(Protocol):
    """Reads one set; DatasetError when the folder is not that set."""

    def __call__(self, root: Path, skip: Skip = refuse) -> list[Example]: ...


ADAPTERS: Mapping[str, Read] = MappingProxyType(
    {
        "busi": busi.read,
        "breast": breast.read,
        "busbra": busbra.read,
        "cbis_ddsm": cbis_ddsm.read,
        "inbreast": inbreast.read,
        "mias": mias.read,
        "breakhis": histology.read_breakhis,
        "bach": histology.read_bach,
        "bioimaging2015": histology.read_bioimaging2015,
    }
)
