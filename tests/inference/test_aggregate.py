"""From frames to lesions: views, cine frames and places of one study."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.aggregate import Sight, lesions_of
from inference.place import NOWHERE, Place, Plane
from node.domain.finding import Extent

LEFT_3 = Place("L", 3)
LEFT_9 = Place("L", 9)
RIGHT_3 = Place("R", 3)


def sight(
    instance: str,
    suspicion: float,
    place: Place = NOWHERE,
    *,
    seen: bool = True,
    plane: Plane | None = None,
    width: str | None = None,
) -> Sight:
    extent = (
        Extent(Decimal("20"), Decimal(width), Decimal("8"))
        if width is not None
        else None
    )
    return Sight(instance, place, suspicion, seen, plane, extent)


def test_nothing_seen_is_no_lesion() -> None:
    assert lesions_of([sight("a", -3, seen=False), sight("b", 4, seen=False)]) == ()
    assert lesions_of([]) == ()


def test_two_views_of_one_place_are_averaged_and_the_worse_is_drawn() -> None:
    (lesion,) = lesions_of([sight("a", 1.0, LEFT_3), sight("b", 3.0, LEFT_3)])
    assert lesion.suspicion == pytest.approx(2.0)
    assert (lesion.drawn, lesion.sights) == (1, (1, 0))


def test_images_of_an_unknown_place_are_not_averaged() -> None:
    """They may show a cancer and nine cysts."""
    sights = [sight(str(n), -3.0) for n in range(9)] + [sight("x", 2.5)]
    (lesion,) = lesions_of(sights)
    assert lesion.suspicion == 2.5
    assert lesion.drawn == 9


def test_a_side_alone_is_no_known_place() -> None:
    (lesion,) = lesions_of([sight("a", -3, Place("L")), sight("b", 2, Place("L"))])
    assert lesion.suspicion == 2.0


def test_different_sides_and_clocks_are_different_lesions_worst_first() -> None:
    lesions = lesions_of(
        [
            sight("a", -1.0, LEFT_3),
            sight("b", 2.0, RIGHT_3),
            sight("c", 0.5, LEFT_9),
            sight("d", 0.0),
        ]
    )
    assert [lesion.place for lesion in lesions] == [RIGHT_3, LEFT_9, NOWHERE, LEFT_3]


def test_different_distances_from_the_nipple_are_different_lesions() -> None:
    near, far = Place("L", 3, Decimal(20)), Place("L", 3, Decimal(60))
    assert len(lesions_of([sight("a", 1, near), sight("b", 1, far)])) == 2


def test_a_view_without_lesion_does_not_dilute_the_one_that_shows_it() -> None:
    (lesion,) = lesions_of(
        [sight("a", 2.0, LEFT_3), sight("b", -4, LEFT_3, seen=False)]
    )
    assert lesion.suspicion == 2.0
    assert lesion.sights == (0,)


def test_a_cine_counts_as_one_view() -> None:
    cine = [sight("cine", s, LEFT_3) for s in (-2.0, 1.0, -2.0, -2.0, -2.0)]
    (lesion,) = lesions_of([*cine, sight("still", 3.0, LEFT_3)])
    assert lesion.suspicion == pytest.approx(2.0)
    assert lesion.sights == (5, 1)


def test_third_axis_comes_from_a_calibrated_view_across_the_drawn_one() -> None:
    (lesion,) = lesions_of(
        [
            sight("a", 2, LEFT_3, plane=Plane.RADIAL, width="18"),
            sight("b", 1, LEFT_3, plane=Plane.ANTIRADIAL, width="11"),
        ]
    )
    assert lesion.extent == Extent(
        Decimal("20"), Decimal("18"), Decimal("8"), Decimal("11")
    )


@pytest.mark.parametrize(
    ("place", "plane", "width"),
    [
        (LEFT_3, None, "11"),
        (LEFT_3, Plane.RADIAL, "11"),
        (LEFT_3, Plane.ANTIRADIAL, None),
        (Place("L"), Plane.ANTIRADIAL, "11"),
    ],
)
def test_third_axis_is_not_guessed(
    place: Place, plane: Plane | None, width: str | None
) -> None:
    (lesion,) = lesions_of(
        [
            sight("a", 2, place, plane=Plane.RADIAL, width="18"),
            sight("b", 1, place, plane=plane, width=width),
        ]
    )
    assert lesion.extent is not None
    assert lesion.extent.length_mm is None


def test_uncalibrated_drawn_view_gives_no_size() -> None:
    (lesion,) = lesions_of([sight("a", 2, LEFT_3), sight("b", 1, LEFT_3, width="11")])
    assert lesion.extent is None


places = st.sampled_from([NOWHERE, Place("L"), Place("R"), LEFT_3, LEFT_9, RIGHT_3])
many = st.lists(
    st.builds(
        sight,
        st.sampled_from("abcdef"),
        st.floats(-8, 8),
        places,
        seen=st.booleans(),
    ),
    max_size=12,
).map(
    lambda sights: [
        s
        for n, s in enumerate(sights)
        if s.instance not in {t.instance for t in sights[:n] if t.place != s.place}
    ]
)


@given(many)
def test_every_place_with_something_seen_has_one_lesion(sights: list[Sight]) -> None:
    lesions = lesions_of(sights)
    assert {lesion.place for lesion in lesions} == {s.place for s in sights if s.seen}
    assert len({lesion.place.key for lesion in lesions}) == len(lesions)
    for lesion in lesions:
        shown = [s.suspicion for s in sights if s.seen and s.place == lesion.place]
        assert min(shown) - 1e-9 <= lesion.suspicion <= max(shown) + 1e-9
        assert sights[lesion.drawn].suspicion == max(shown)


@given(many, st.randoms())
def test_order_of_arrival_changes_nothing(sights: list[Sight], random: object) -> None:
    other = list(sights)
    random.shuffle(other)  # type: ignore[attr-defined]
    said = [(lesion.place, round(lesion.suspicion, 9)) for lesion in lesions_of(sights)]
    assert said == [
        (lesion.place, round(lesion.suspicion, 9)) for lesion in lesions_of(other)
    ]
