"""Where an image was taken: PS3.3 10.5 (anatomy macros), C.7.3.1 (Laterality)."""

from decimal import Decimal

import pytest
from pydicom.dataset import Dataset

from inference.place import (
    NOWHERE,
    Place,
    Plane,
    clocks_in,
    distances_in,
    place_of,
    plane_of,
)


def header(**attributes: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, **attributes: object) -> Dataset:
    return header(CodeValue=value, CodingSchemeDesignator="SCT", **attributes)


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("L 3:00", 3),
        ("LT BREAST 12:00 2cm FN", 12),
        ("R10:00", 10),
        ("3 o'clock", 3),
        ("10:00 o'clock", 10),
        ("左乳3点", 3),
        ("左侧乳腺 11 点钟方向", 11),
        ("右乳十二点", 12),
        ("右乳两点", 2),
    ],
)
def test_clock_position_is_read_from_what_people_type(text: str, clock: int) -> None:
    assert clocks_in(text) == {clock}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "taken at 3:00",
        "下午3点",
        "3:00 PM",
        "L 2:30",
        "左乳2点半",
        "左乳2-3点",
        "L 2:00-3:00",
        "L12-5",
        "13点",
        "0点",
        "L 13:00",
        "Breast B-mode",
        "3点5cm",
    ],
)
def test_text_that_names_no_single_hour_gives_no_clock_position(text: str) -> None:
    assert clocks_in(text) == set()


@pytest.mark.parametrize(
    ("text", "mm"),
    [
        ("L 3:00 2cm FN", "20"),
        ("FN 4 cm", "40"),
        ("25 mm from the nipple", "25"),
        ("左乳3点，距乳头约2.5cm", "25.0"),
        ("距离乳头 30 毫米", "30"),
    ],
)
def test_distance_from_the_nipple_is_read_with_its_unit(text: str, mm: str) -> None:
    assert distances_in(text) == {Decimal(mm)}


@pytest.mark.parametrize("text", ["4FN", "2 cm mass", "400 cm FN", ""])
def test_distance_without_unit_or_beyond_a_breast_is_unknown(text: str) -> None:
    assert distances_in(text) == set()


def test_typed_place_gives_side_clock_and_distance() -> None:
    assert place_of(header(ImageComments="左乳3点 距乳头2cm")) == Place(
        "L", 3, Decimal(20)
    )
    assert place_of(header(SeriesDescription="R 10:00 1 cm FN")) == Place(
        "R", 10, Decimal(10)
    )


def test_coded_place_is_read_from_anatomy_and_its_modifiers() -> None:
    breast = code("76752008", AnatomicRegionModifierSequence=[code("24028007")])
    structure = code(
        "76752008", PrimaryAnatomicStructureModifierSequence=[code("129774003")]
    )
    coded = header(
        AnatomicRegionSequence=[breast], PrimaryAnatomicStructureSequence=[structure]
    )
    assert place_of(coded) == Place("R", 3)


def test_laterality_of_the_image_precedes_that_of_the_series() -> None:
    assert place_of(header(Laterality="R", ImageLaterality="L")).laterality == "L"
    assert place_of(header(Laterality="R")).laterality == "R"


def test_frame_laterality_of_an_enhanced_object_counts() -> None:
    anatomy = header(FrameLaterality="L")
    group = header(FrameAnatomySequence=[anatomy])
    assert place_of(header(SharedFunctionalGroupsSequence=[group])).laterality == "L"


def test_header_that_contradicts_itself_is_nowhere() -> None:
    assert place_of(header(Laterality="R", ImageComments="L 3:00")) == NOWHERE
    assert place_of(header(ImageComments="左右乳对比")) == NOWHERE
    two = place_of(header(Laterality="L", ImageComments="3点", SeriesDescription="9点"))
    assert two == Place("L")


def test_both_breasts_are_no_side() -> None:
    assert place_of(header(Laterality="B")) == NOWHERE


def test_transducer_name_is_not_taken_for_a_side() -> None:
    assert place_of(header(SeriesDescription="L12-5 small parts")) == NOWHERE


def test_damaged_sequences_are_nowhere_and_no_error() -> None:
    assert place_of(header(AnatomicRegionSequence=[], ImageComments="")) == NOWHERE
    assert place_of(Dataset()) == NOWHERE


@pytest.mark.parametrize(
    ("text", "plane"),
    [
        ("L 3:00 TRANS", Plane.TRANSVERSE),
        ("LT LONG", Plane.LONGITUDINAL),
        ("R 9:00 RAD", Plane.RADIAL),
        ("R 9:00 ARAD", Plane.ANTIRADIAL),
        ("anti-radial", Plane.ANTIRADIAL),
        ("左乳3点横切", Plane.TRANSVERSE),
        ("左乳3点纵切", Plane.LONGITUDINAL),
        ("反径向", Plane.ANTIRADIAL),
        ("TRANS and LONG", None),
        ("Breast B-mode", None),
    ],
)
def test_plane_is_read_from_what_people_type(text: str, plane: Plane | None) -> None:
    assert plane_of(header(ImageComments=text)) is plane


def test_planes_across_each_other_are_known() -> None:
    assert Plane.RADIAL.is_across(Plane.ANTIRADIAL)
    assert not Plane.RADIAL.is_across(Plane.TRANSVERSE)
    assert not Plane.RADIAL.is_across(None)


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (NOWHERE, "1"),
        (Place("L"), "L"),
        (Place("L", 3), "L-3"),
        (Place(None, 1), "U-1"),
        (Place("R", 10, Decimal("20")), "R-10-20mm"),
        (Place("R", 10, Decimal("25.0")), "R-10-25mm"),
    ],
)
def test_place_has_a_name_that_depends_on_nothing_else(place: Place, key: str) -> None:
    assert place.key == key
