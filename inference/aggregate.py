"""From what was seen in single frames to the lesions of a study.

Frames of one place in the breast show one lesion: the frames of a cine, two views
across each other, the same view taken twice. Where the header names the place (side
and clock position) its views are averaged, as they are of one thing. Where it does
not, the images may show different lesions, and the most suspicious speaks: an
average would hide a cancer among cysts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from inference.place import Place, Plane
from node.domain.finding import Extent


@dataclass(frozen=True, slots=True)
class Sight:
    """What one frame shows.

    `instance` tells images apart. `suspicion` is the calibrated malignancy logit,
    `seen` whether the frame shows a lesion at all. `extent` is None when the image
    is not calibrated.
    """

    instance: str
    place: Place
    suspicion: float
    seen: bool
    plane: Plane | None = None
    extent: Extent | None = None


@dataclass(frozen=True, slots=True)
class SeenLesion:
    """One lesion of a study.

    `drawn` is the number of the sight that shows it most clearly, `sights` are all
    that show it, of each image the most suspicious. `suspicion` is the logit that
    all of them together give.
    """

    place: Place
    drawn: int
    sights: tuple[int, ...]
    suspicion: float
    extent: Extent | None


def lesions_of(sights: Sequence[Sight]) -> tuple[SeenLesion, ...]:
    """Return the lesions of a study in the order of suspicion; none is category 1.

    A view without lesion beside a view with one says nothing: a lesion is often
    visible in one direction only. So does a frame of a cine beside another one.
    """
    views: dict[str, int] = {}
    for number, sight in enumerate(sights):
        if not sight.seen:
            continue
        best = views.get(sight.instance)
        if best is None or sight.suspicion > sights[best].suspicion:
            views[sight.instance] = number
    places: dict[Place, list[int]] = {}
    for number in views.values():
        places.setdefault(sights[number].place, []).append(number)
    lesions = [_lesion(place, rows, sights) for place, rows in places.items()]
    return tuple(sorted(lesions, key=lambda seen: (-seen.suspicion, seen.place.key)))


def _lesion(place: Place, rows: Sequence[int], sights: Sequence[Sight]) -> SeenLesion:
    ordered = sorted(rows, key=lambda row: (-sights[row].suspicion, row))
    drawn = ordered[0]
    suspicion = sights[drawn].suspicion
    if place.is_known:
        suspicion = sum(sights[row].suspicion for row in rows) / len(rows)
    return SeenLesion(
        place,
        drawn,
        tuple(ordered),
        suspicion,
        _size([sights[row] for row in ordered], one_lesion=place.is_known),
    )


def _size(views: Sequence[Sight], *, one_lesion: bool) -> Extent | None:
    """Return the size in the drawn view, with the third axis where another has it.

    `views` come with the drawn one first. The third axis is what a view across the
    drawn one measures along the skin; two views whose planes nobody named could be
    the same plane twice.
    """
    drawn = views[0]
    if drawn.extent is None:
        return None
    third: Decimal | None = None
    if one_lesion and drawn.plane is not None:
        third = next(
            (
                view.extent.width_mm
                for view in views[1:]
                if view.extent is not None and drawn.plane.is_across(view.plane)
            ),
            None,
        )
    return replace(drawn.extent, length_mm=third)
