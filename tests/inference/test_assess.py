"""What the reader says about a study, and what it leaves unsaid."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from inference.assess import (
    ImageToRead,
    Reader,
    StudyReading,
    category_for,
    extent_mm,
    frame_box,
    orientation_of,
    probability_of,
)
from inference.network import LesionNet, TorchNetwork, load_model
from inference.place import Place, Plane
from inference.preprocess import RegionView
from inference.record import ACR_CUTS, BIRADS_STEPS, WEIGHTS, Network
from inference.select import ImageHeader
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import PixelBox
from node.domain.lexicon import FieldKey
from node.domain.study import UltrasoundRegion
from tests.inference.conftest import thin
from tests.inference.records import RECORD

REGION = UltrasoundRegion(40, 20, 359, 279, 1, 1, 3, 3, 0.02, 0.01)


def header(uid: str = "2.25.7", **changes: object) -> ImageHeader:
    return replace(
        ImageHeader(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
            sop_instance_uid=uid,
            rows=300,
            columns=400,
            regions=(REGION,),
            body_part_examined="BREAST",
            place=Place("L"),
        ),
        **changes,  # type: ignore[arg-type]
    )


def speckle(seed: int, count: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    grains = random.rayleigh(45, (count, 75, 100)).clip(0, 255).astype(np.uint8)
    grey = np.kron(grains, np.ones((1, 4, 4), np.uint8))
    grey[:, 120:180, 150:260] //= 4
    return np.repeat(grey[..., None], 3, axis=3)


def image(uid: str = "2.25.7", seed: int = 1, **changes: object) -> ImageToRead:
    about = header(uid, **changes)
    pixels = speckle(seed, max(1, about.number_of_frames))
    return ImageToRead(about, lambda indices: pixels[list(indices)])


@pytest.fixture(scope="module")
def network() -> Network:
    """What it says is read here, not how well it sees: a thin one is quick."""
    torch.manual_seed(3)
    with thin():
        return TorchNetwork(LesionNet())


@pytest.fixture(scope="module")
def reader(network: Network) -> Reader:
    return Reader(network, RECORD)


def read(reader: Reader, images: Sequence[ImageToRead]) -> StudyReading:
    return reader.read_study(images, tracking_uid=lambda place: f"2.25.99.{place.key}")


def test_study_gets_one_lesion_from_its_most_suspicious_image(reader: Reader) -> None:
    reading = read(reader, [image("2.25.1", 1), image("2.25.2", 2)])
    (lesion,) = reading.findings.lesions
    alone = [
        read(reader, [image(uid, seed)]).findings.lesions[0].probability
        for uid, seed in (("2.25.1", 1), ("2.25.2", 2))
    ]
    assert lesion.probability == max(p for p in alone if p is not None)
    assert lesion.tracking_uid == "2.25.99.L"
    assert reading.frames_read == 2
    assert reading.findings.category == lesion.category


def test_box_and_outline_lie_inside_the_region(reader: Reader) -> None:
    (lesion,) = read(reader, [image()]).findings.lesions
    assert lesion.box is not None
    assert lesion.box.x0 >= 40
    assert lesion.box.y0 >= 20
    assert lesion.box.x1 <= 360
    assert lesion.box.y1 <= 280
    for x, y in lesion.outline:
        assert lesion.box.x0 - 1 <= x <= lesion.box.x1 + 1
        assert lesion.box.y0 - 1 <= y <= lesion.box.y1 + 1


def test_same_images_give_the_same_reading(network: Network) -> None:
    first = read(Reader(network, RECORD), [image()])
    second = read(Reader(network, RECORD), [image()])
    assert first.findings == second.findings
    assert np.array_equal(first.heat_maps[0].pixels, second.heat_maps[0].pixels)
    assert first.model == second.model


def test_each_lesion_has_a_vector_to_find_others_by(reader: Reader) -> None:
    left, right = image("2.25.1", 1), image("2.25.2", 2, place=Place("R"))
    reading = read(reader, [left, right])
    assert set(reading.vectors) == {"2.25.99.L", "2.25.99.R"}
    alone = read(reader, [right]).vectors["2.25.99.R"]
    assert reading.vectors["2.25.99.R"] == pytest.approx(alone, abs=1e-4)


def test_only_fields_that_the_model_may_speak_on_are_described(reader: Reader) -> None:
    (lesion,) = read(reader, [image()]).findings.lesions
    assert set(lesion.descriptors) == {FieldKey.ORIENTATION}


def test_uncalibrated_image_gets_no_size(reader: Reader) -> None:
    (lesion,) = read(reader, [image(regions=())]).findings.lesions
    assert lesion.extent is None
    (sized,) = read(reader, [image()]).findings.lesions
    assert sized.extent is not None


def test_every_unread_image_is_named_and_the_rest_is_read(reader: Reader) -> None:
    reading = read(
        reader, [image("2.25.1", body_part_examined="LIVER"), image("2.25.2")]
    )
    (refused,) = reading.findings.not_read
    assert (refused.sop_instance_uid, refused.reason) == ("2.25.1", "not_breast")
    assert len(reading.findings.lesions) == 1


def test_study_without_readable_image_gets_no_category(reader: Reader) -> None:
    reading = read(reader, [image(body_part_examined="LIVER")])
    assert reading.findings.category is None
    assert reading.findings.lesions == ()
    assert reading.heat_maps == ()
    assert reading.frames_read == 0


def test_undecodable_pixels_become_a_reason(reader: Reader) -> None:
    def fail(indices: Sequence[int]) -> np.ndarray:
        raise NodeError("no decoder", ErrorKind.UNSUPPORTED)

    reading = read(reader, [ImageToRead(header(), fail)])
    assert reading.findings.not_read[0].reason == "undecodable"


def test_store_that_is_away_is_not_taken_for_an_unreadable_image(
    reader: Reader,
) -> None:
    def fail(indices: Sequence[int]) -> np.ndarray:
        raise NodeError("store is away", ErrorKind.UNAVAILABLE)

    with pytest.raises(NodeError, match="away"):
        read(reader, [ImageToRead(header(), fail)])


def test_cine_is_read_in_as_many_frames_as_set_and_names_the_frame(
    network: Network,
) -> None:
    cine = image(sop_class_uid="1.2.840.10008.5.1.4.1.1.3.1", number_of_frames=12)
    assert read(Reader(network, RECORD, cine_frames=3), [cine]).frames_read == 3
    reading = read(Reader(network, RECORD), [cine])
    assert reading.frames_read == 5
    (lesion,) = reading.findings.lesions
    assert lesion.image is not None
    assert 1 <= lesion.image.frame <= 12


def test_long_cine_costs_a_bounded_number_of_frames(reader: Reader) -> None:
    asked: list[int] = []
    most = 0

    def frames(indices: Sequence[int]) -> np.ndarray:
        nonlocal most
        asked.extend(indices)
        most = max(most, len(indices))
        return np.concatenate([speckle(index) for index in indices])

    about = header(sop_class_uid="1.2.840.10008.5.1.4.1.1.3.1", number_of_frames=2000)
    assert read(reader, [ImageToRead(about, frames)]).frames_read == 5
    assert len(asked) == 20 + 1  # the drawn one again
    assert most == 4


def test_breast_without_lesion_is_category_1(network: Network) -> None:
    record = replace(RECORD, lesion_threshold=1e9, threshold=1.1)
    reading = read(Reader(network, record), [image()])
    assert reading.findings.category == "1"
    assert reading.findings.lesions == ()


def test_suspicious_region_is_never_called_normal(network: Network) -> None:
    record = replace(RECORD, lesion_threshold=1e9, threshold=0.0)
    reading = read(Reader(network, record), [image()])
    assert len(reading.findings.lesions) == 1


def test_two_places_are_two_lesions_each_with_its_own_explanation(
    reader: Reader,
) -> None:
    reading = read(
        reader,
        [
            image("2.25.1", 1, place=Place("L", 3)),
            image("2.25.2", 2, place=Place("R", 9)),
            image("2.25.3", 3, place=Place("L", 3)),
        ],
    )
    lesions = reading.findings.lesions
    assert {(lesion.laterality, lesion.clock) for lesion in lesions} == {
        ("L", 3),
        ("R", 9),
    }
    given = [lesion.probability for lesion in lesions if lesion.probability is not None]
    assert given == sorted(given, reverse=True)
    assert reading.findings.category == reading.findings.worst_category
    drawn = {lesion.tracking_uid: lesion.image for lesion in lesions}
    assert {p.tracking_uid: p.image for p in reading.heat_maps} == drawn


def test_two_views_of_one_place_give_one_probability_and_three_axes(
    reader: Reader,
) -> None:
    views = [
        image("2.25.1", 1, place=Place("L", 3), plane=Plane.RADIAL),
        image("2.25.2", 2, place=Place("L", 3), plane=Plane.ANTIRADIAL),
    ]
    (lesion,) = read(reader, views).findings.lesions
    alone = [read(reader, [view]).findings.lesions[0] for view in views]
    known = [float(one.probability) for one in alone if one.probability is not None]
    assert lesion.probability is not None
    assert min(known) <= float(lesion.probability) <= max(known)
    widths = {one.extent.width_mm for one in alone if one.extent is not None}
    assert lesion.extent is not None
    assert {lesion.extent.width_mm, lesion.extent.length_mm} == widths


def test_late_image_leaves_the_uids_of_other_places_alone(reader: Reader) -> None:
    first = image("2.25.1", 1, place=Place("L", 3))
    late = image("2.25.2", 2, place=Place("R", 9))
    before = {lesion.tracking_uid for lesion in read(reader, [first]).findings.lesions}
    after = {
        lesion.tracking_uid for lesion in read(reader, [late, first]).findings.lesions
    }
    assert before < after


class Strange:
    """A model that is familiar with the given images only."""

    def __init__(self, *near: bool) -> None:
        self._near = near

    def distance(self, features: np.ndarray) -> np.ndarray:
        assert features.shape == (len(self._near), 2048)
        return np.where(self._near, 0.5, 1.5)


def test_unfamiliar_image_is_named_and_the_rest_is_read(network: Network) -> None:
    reader = Reader(network, RECORD, familiarity=Strange(True, False))  # type: ignore[arg-type]
    reading = read(reader, [image("2.25.1"), image("2.25.2", 2)])
    (refused,) = reading.findings.not_read
    assert (refused.sop_instance_uid, refused.reason) == ("2.25.2", "unfamiliar")
    assert reading.frames_read == 1
    assert len(reading.findings.lesions) == 1


def test_study_with_nothing_familiar_gets_no_category(network: Network) -> None:
    reader = Reader(network, RECORD, familiarity=Strange(False))  # type: ignore[arg-type]
    reading = read(reader, [image()])
    assert reading.findings.category is None
    assert reading.findings.lesions == ()


def test_simulated_image_need_not_be_familiar(network: Network) -> None:
    reader = Reader(
        network,
        RECORD,
        read_simulated=True,
        familiarity=Strange(False),  # type: ignore[arg-type]
    )
    assert len(read(reader, [image(simulated=True)]).findings.lesions) == 1


def test_cine_is_unfamiliar_only_when_all_its_frames_are(network: Network) -> None:
    near = Strange(False, False, True, False, False)
    reader = Reader(network, RECORD, familiarity=near)  # type: ignore[arg-type]
    reading = read(reader, [image(number_of_frames=12)])
    assert reading.frames_read == 1
    assert reading.findings.not_read == ()


def test_picture_without_speckle_is_named(reader: Reader) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (1, 300, 400, 1), np.uint8)
    pixels = np.repeat(noise, 3, axis=3)
    reading = read(reader, [ImageToRead(header(), lambda indices: pixels)])
    assert reading.findings.not_read[0].reason == "no_speckle"
    assert reading.findings.category is None


def test_pixels_that_are_no_numbers_are_named(reader: Reader) -> None:
    pixels = np.full((1, 300, 400, 3), np.nan)
    reading = read(reader, [ImageToRead(header(), lambda indices: pixels)])
    assert reading.findings.not_read[0].reason == "bad_values"


def test_heat_map_holds_the_region_only(reader: Reader) -> None:
    (picture,) = read(reader, [image()]).heat_maps
    assert picture.pixels.shape == (260, 320, 3)
    assert picture.pixels.dtype == np.uint8
    assert picture.image.sop_instance_uid == "2.25.7"


def test_size_uses_each_direction_of_the_pixels() -> None:
    box = PixelBox(100, 50, 200, 100)
    outline = ((100.0, 50.0), (200.0, 50.0), (200.0, 100.0), (100.0, 50.0))
    extent = extent_mm(box, outline, (0.1, 0.3))
    assert extent.width_mm == Decimal("10.0")
    assert extent.height_mm == Decimal("15.0")
    assert extent.long_axis_mm == Decimal("18.0")


def test_size_of_a_tiny_lesion_is_not_rounded_to_zero() -> None:
    extent = extent_mm(PixelBox(0, 0, 1, 1), (), (0.01, 0.01))
    assert extent.height_mm == Decimal("0.1")


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_more_suspicion_never_gives_a_lower_category(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ranks = [BIRADS_STEPS.index(category_for(s, ACR_CUTS)) for s in (low, high)]
    assert ranks == sorted(ranks)
    lexicon.category(category_for(one, ACR_CUTS))


def test_category_begins_at_its_cut() -> None:
    assert category_for(ACR_CUTS[1], ACR_CUTS) == "4A"
    assert category_for(float(np.nextafter(ACR_CUTS[1], -9)), ACR_CUTS) == "3"
    assert category_for(probability_of(0.0), ACR_CUTS) == "4C"


def test_taller_than_wide_is_not_parallel() -> None:
    assert orientation_of((10, 10, 20, 40)) == "not_parallel"
    assert orientation_of((10, 10, 40, 20)) == "parallel"


@given(st.lists(st.floats(0, 256), min_size=4, max_size=4))
def test_box_is_never_empty_and_never_leaves_the_region(edges: list[float]) -> None:
    x0, x1 = sorted(edges[:2])
    y0, y1 = sorted(edges[2:])
    view = RegionView(np.zeros((1, 1), np.uint8), 256, 256, PixelBox(30, 40, 130, 90))
    box = frame_box(view, (x0, y0, x1, y1))
    assert box.x0 >= 30
    assert box.y0 >= 40
    assert box.x1 <= 130
    assert box.y1 <= 90


@pytest.mark.skipif(
    not (WEIGHTS / "model.json").exists(), reason="no released weights in this tree"
)
def test_released_model_finds_a_phantoms_lesion_where_it_is() -> None:
    mass = PhantomLesion(
        x_mm=23, depth_mm=16, width_mm=14, height_mm=10, shape="irregular"
    )
    phantom = build_phantom((mass,), seed=5)
    rgb = np.repeat(phantom.pixels[None, :, :, None], 3, axis=3)
    about = header(rows=rgb.shape[1], columns=rgb.shape[2], regions=(), simulated=True)
    network, record = load_model()
    reading = read(
        Reader(TorchNetwork(network), record, read_simulated=True),
        [ImageToRead(about, lambda indices: rgb[list(indices)])],
    )
    (lesion,) = reading.findings.lesions
    assert lesion.box is not None
    x0, y0, x1, y1 = phantom.boxes[0]
    assert lesion.box.x0 < (x0 + x1) / 2 < lesion.box.x1
    assert lesion.box.y0 < (y0 + y1) / 2 < lesion.box.y1
    assert lesion.probability is not None
    assert reading.model.weights_sha256
