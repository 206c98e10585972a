"""Component, outline and box of a lesion from a map of chances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.outline import box_of, main_component, outline_of


def disc(row: int, column: int, radius: float, side: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side]
    return np.asarray((y - row) ** 2 + (x - column) ** 2 < radius**2, np.float32)


def area(points: np.ndarray) -> float:
    x, y = points[:, 0], points[:, 1]
    return 0.5 * abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])))


def test_heavier_of_two_components_is_the_lesion() -> None:
    chances = np.maximum(disc(15, 15, 5), disc(45, 45, 12))
    part = main_component(chances)
    assert part[45, 45]
    assert not part[15, 15]


def test_weak_map_still_gives_its_most_likely_place() -> None:
    part = main_component(np.float32(0.2) * disc(20, 40, 6))
    assert part[20, 40]
    assert not part[50, 10]


def test_outline_of_a_disc_is_closed_and_encloses_its_area() -> None:
    points = outline_of(disc(32, 30, 14) > 0)
    assert np.array_equal(points[0], points[-1])
    # The line runs through the centres of the border pixels: half a pixel inside.
    assert abs(area(points) - np.pi * 13.5**2) < 0.05 * np.pi * 14**2
    assert len(points) < 40


def test_empty_component_has_no_outline_and_no_box() -> None:
    empty = np.zeros((16, 16), dtype=bool)
    assert box_of(empty) is None
    assert len(outline_of(empty)) == 0


def test_single_pixel_still_has_a_box_around_it() -> None:
    one = np.zeros((16, 16), dtype=bool)
    one[4, 7] = True
    assert box_of(one) == (7.0, 4.0, 8.0, 5.0)
    assert np.array_equal(outline_of(one)[0], [7.0, 4.0])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_outline_of_any_component_stays_in_its_box_and_ends(seed: int) -> None:
    chances = np.random.default_rng(seed).random((24, 24), dtype=np.float32)
    part = main_component(chances, 0.55)
    points, box = outline_of(part), box_of(part)
    assert box is not None
    x0, y0, x1, y1 = box
    assert np.array_equal(points[0], points[-1])
    assert (points >= (x0, y0)).all()
    assert (points <= (x1, y1)).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.8))
def test_heaviest_part_is_found_whatever_its_shape(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    chances = random.random((9, 11)).astype(np.float32)
    chances[random.random((9, 11)) < share] = 0
    level = min(0.5, 0.5 * float(chances.max()))
    left = {(int(r), int(c)) for r, c in np.argwhere(chances > level)}
    parts = []
    while left:
        waiting, part = [left.pop()], set()
        while waiting:
            row, column = waiting.pop()
            part.add((row, column))
            around = {(row + 1, column), (row - 1, column)}
            found = left & (around | {(row, column + 1), (row, column - 1)})
            left -= found
            waiting += found
        parts.append(part)
    heaviest = max(
        (float(sum(chances[place] for place in part)) for part in parts), default=0.0
    )
    found = main_component(chances)
    assert {(int(r), int(c)) for r, c in np.argwhere(found)} in [*parts, set()]
    assert float(chances[found].sum()) == pytest.approx(heaviest, rel=1e-5)
