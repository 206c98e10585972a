"""What was seen: lesions with their descriptors, places and sizes.

A field that nobody assessed is absent, never guessed and never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType

from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.lexicon import FieldKey


@dataclass(frozen=True)
class PixelBox:
    """A half-open box [x0, x1) x [y0, y1) in pixels of the whole frame."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 and 0 <= self.y0 < self.y1):
            raise NodeError(
                f"box {self.x0},{self.y0},{self.x1},{self.y1} encloses nothing",
                ErrorKind.INVALID,
            )


@dataclass(frozen=True)
class ImageReference:
    """One frame of one stored instance; `frame` counts from 1 as in DICOM."""

    sop_class_uid: str
    sop_instance_uid: str
    frame: int = 1


@dataclass(frozen=True)
class Extent:
    """The size of a lesion in millimetres; exists only where the image is calibrated.

    `width_mm` runs along the rows of pixels, `height_mm` away from the skin, and
    `length_mm` across both; None where no view in the other plane measured it.
    """

    long_axis_mm: Decimal
    width_mm: Decimal
    height_mm: Decimal
    length_mm: Decimal | None = None

    def __post_init__(self) -> None:
        lengths = (self.long_axis_mm, self.width_mm, self.height_mm, self.length_mm)
        if any(length is not None and length <= 0 for length in lengths):
            raise NodeError("a lesion's size is above 0 mm", ErrorKind.INVALID)


@dataclass(frozen=True)
class Lesion:
    """One lesion, the same through all versions by its `tracking_uid` (TID 1410).

    `outline` is a closed polyline of (column, row) in image coordinates as SCOORD
    has them. `probability` is 0..1 and only ever the algorithm's.
    `descriptors` maps a field to its terms; absent = not assessed.
    """

    tracking_uid: str
    image: ImageReference | None = None
    box: PixelBox | None = None
    outline: tuple[tuple[float, float], ...] = ()
    laterality: str | None = None
    clock: int | None = None
    distance_from_nipple_mm: Decimal | None = None
    extent: Extent | None = None
    descriptors: Mapping[FieldKey, tuple[str, ...]] = field(default_factory=dict)
    category: str | None = None
    probability: Decimal | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "descriptors", MappingProxyType(dict(self.descriptors))
        )
        for key, values in self.descriptors.items():
            lexicon.check_values(key, values)
        if self.category is not None:
            lexicon.category(self.category)
        if self.laterality is not None and self.laterality not in lexicon.LATERALITY:
            raise NodeError(
                f"laterality is L or R, not {self.laterality!r}", ErrorKind.INVALID
            )
        if self.clock is not None and self.clock not in lexicon.CLOCK:
            raise NodeError("clock position is 1 to 12", ErrorKind.INVALID)
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise NodeError("probability is 0 to 1", ErrorKind.INVALID)

    def describe(self, key: FieldKey, values: tuple[str, ...] | None) -> "Lesion":
        """Return this lesion with `key` set to `values`, or unassessed for None."""
        descriptors = {k: v for k, v in self.descriptors.items() if k is not key}
        if values is not None:
            descriptors[key] = values
        return replace(self, descriptors=descriptors)


STUDY_INCOMPLETE = "study_incomplete"


@dataclass(frozen=True)
class NotRead:
    """An image that the algorithm did not read, and why.

    `reason` is a key of the reader's closed list, or STUDY_INCOMPLETE for images that
    never came, however many; `zh` and `en` say it to people.
    """

    sop_instance_uid: str
    reason: str
    zh: str
    en: str


@dataclass(frozen=True)
class HeatMap:
    """Where the explanation of a lesion is kept: the Secondary Capture's UID."""

    tracking_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Findings:
    """All that one version of a report says about the images.

    `category` is the overall assessment; None when nobody gave one.
    """

    lesions: tuple[Lesion, ...] = ()
    category: str | None = None
    not_read: tuple[NotRead, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()

    def __post_init__(self) -> None:
        if self.category is not None:
            lexicon.category(self.category)
        uids = [lesion.tracking_uid for lesion in self.lesions]
        if len(uids) != len(set(uids)):
            raise NodeError("two lesions share a tracking UID", ErrorKind.INVALID)

    @property
    def worst_category(self) -> str | None:
        """Return the most suspicious category of the study and all its lesions."""
        given = [self.category, *(lesion.category for lesion in self.lesions)]
        return lexicon.worst_category(key for key in given if key is not None)

    @property
    def probability(self) -> Decimal | None:
        """Return the algorithm's highest probability, None when it has none."""
        given = [
            lesion.probability
            for lesion in self.lesions
            if lesion.probability is not None
        ]
        return max(given) if given else None
