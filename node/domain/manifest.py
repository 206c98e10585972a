"""The table of a labelled image set: `<set>/manifest.csv`, one row per image.

Public sets, the site's own export and the training code all write and read these
columns. An empty cell says "not known"; nothing is ever filled in for it.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from node.domain import lexicon
from node.domain.lexicon import FieldKey

_MARGINS = tuple(term.key for term in lexicon.FIELDS[FieldKey.MARGIN].terms)

_PUBLISHED = """
id set file mask shipped label split exclude group_id lesion_linked
dup_cluster dup_cluster_size dup_primary birads shape orientation
taller_than_wide axis_angle_deg axis_ratio {margins}
boundary calcification echogenicity posterior circularity solidity
n_lesions lesion_x lesion_y lesion_w_px lesion_h_px lesion_area_px
lesion_w_mm lesion_h_mm pixel_mm age histology verification
interpretation tissue signs symptoms skin_thickening device view
width height color calliper_marks text_run source_name
orig_width orig_height scale
""".format(margins=" ".join(f"margin_{key}" for key in _MARGINS))
# Not in the first published packages; readers must not ask for them.
_ADDED = "modality laterality clock density source_split mask_from study_date"
COLUMNS = (*_PUBLISHED.split(), *_ADDED.split())
"""`mask_from`: `outline`, or `box` when nobody drew the lesion's border.

`taller_than_wide`: extent in rows / extent in columns. `study_date` is shifted where
the set comes from patients of a site. The others: see `docs/model/data.md`.
"""

COLUMN_OF: Mapping[FieldKey, str] = MappingProxyType(
    {
        FieldKey.SHAPE: "shape",
        FieldKey.ORIENTATION: "orientation",
        FieldKey.LESION_BOUNDARY: "boundary",
        FieldKey.CALCIFICATIONS: "calcification",
        FieldKey.ECHO_PATTERN: "echogenicity",
        FieldKey.POSTERIOR_FEATURES: "posterior",
    }
)
"""Where a field stands; margins have a column each."""

_WORDS: Mapping[str, str] = MappingProxyType({"complex": "complex cystic/solid"})
NONE_SEEN = "none"


def word_of(key: str) -> str:
    """Return how a cell writes a term of the lexicon."""
    return _WORDS.get(key, key.replace("_", " "))


def descriptor_cells(
    descriptors: Mapping[FieldKey, tuple[str, ...]],
) -> dict[str, str]:
    """Return the cells of assessed fields; a field not assessed gets none.

    Raises INVALID for a value that the lexicon does not know.
    """
    cells: dict[str, str] = {}
    for key, values in descriptors.items():
        lexicon.check_values(key, values)
        if key is FieldKey.MARGIN:
            cells |= {f"margin_{name}": str(int(name in values)) for name in _MARGINS}
        else:
            cells[COLUMN_OF[key]] = "&".join(map(word_of, values)) or NONE_SEEN
    return cells


def row_of(cells: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return a whole row from what is known; a column that is unknown is a KeyError."""
    row = dict.fromkeys(COLUMNS, "")
    for column, value in cells:
        if column not in row:
            raise KeyError(column)
        row[column] = "" if value is None else str(value)
    return row
