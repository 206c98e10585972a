"""Which images are read: PS3.3 C.8.5.5 (regions) and C.8.5.6.1.1 (Image Type)."""

from dataclasses import replace

import numpy as np
import pytest

from inference.select import (
    ImageHeader,
    Reason,
    UsableRegion,
    candidate_frames,
    frame_bins,
    has_flow_colours,
    refuse_pixels,
    select_region,
    sharpest,
)
from node.domain.finding import NotRead, PixelBox
from node.domain.study import UltrasoundRegion

TISSUE = UltrasoundRegion(100, 50, 499, 449, 1, 1, 3, 3, 0.01, 0.012)
HEADER = ImageHeader(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
    sop_instance_uid="2.25.1",
    rows=480,
    columns=640,
    image_type=("ORIGINAL", "PRIMARY", "", "0001"),
    regions=(TISSUE,),
    body_part_examined="BREAST",
)


def reason_of(header: ImageHeader, *, read_simulated: bool = False) -> str:
    answer = select_region(header, read_simulated=read_simulated)
    assert isinstance(answer, NotRead), "the image was accepted"
    return answer.reason


def region_of(header: ImageHeader, *, read_simulated: bool = False) -> UsableRegion:
    answer = select_region(header, read_simulated=read_simulated)
    assert isinstance(answer, UsableRegion), f"refused: {answer}"
    return answer


def test_calibrated_tissue_region_is_read_as_half_open_box() -> None:
    region = region_of(HEADER)
    assert region.box == PixelBox(100, 50, 500, 450)
    assert region.mm_per_pixel == pytest.approx((0.1, 0.12))


def test_negative_deltas_still_measure() -> None:
    tissue = replace(TISSUE, physical_delta_x=-0.01)
    assert region_of(replace(HEADER, regions=(tissue,))).mm_per_pixel == pytest.approx(
        (0.1, 0.12)
    )


def test_region_beyond_the_image_is_clipped_and_its_scale_not_trusted() -> None:
    tissue = replace(TISSUE, x1=700)
    region = region_of(replace(HEADER, regions=(tissue,)))
    assert region.box == PixelBox(100, 50, 640, 450)
    assert region.mm_per_pixel is None


def test_image_without_regions_is_read_whole_and_uncalibrated() -> None:
    region = region_of(replace(HEADER, regions=()))
    assert region.box == PixelBox(0, 0, 640, 480)
    assert region.mm_per_pixel is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.7"}, Reason.NOT_ULTRASOUND),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.6"}, Reason.OTHER_ULTRASOUND),
        ({"sop_class_uid": "1.2.840.10008.5.1.4.1.1.6.2"}, Reason.OTHER_ULTRASOUND),
        ({"video": True, "decodable": False}, Reason.VIDEO),
        ({"body_part_examined": "THYROID"}, Reason.NOT_BREAST),
        ({"number_of_frames": 0}, Reason.NO_FRAMES),
        ({"rows": 0}, Reason.NO_FRAMES),
        ({"rows": 1, "columns": 1, "regions": ()}, Reason.TOO_SMALL),
        ({"rows": 9000, "columns": 9000}, Reason.TOO_LARGE),
        ({"decodable": False}, Reason.UNDECODABLE),
        ({"simulated": True}, Reason.SIMULATED),
        ({"image_type": ("ORIGINAL", "PRIMARY", "", "0011")}, Reason.OTHER_MODE),
        ({"image_type": ("ORIGINAL", "PRIMARY", "", "0100")}, Reason.OTHER_MODE),
        ({"image_type": ("ORIGINAL", "PRIMARY", "", "0200")}, Reason.ELASTOGRAM),
        ({"regions": (TISSUE, replace(TISSUE, x0=510, x1=630))}, Reason.DUAL_VIEW),
        ({"regions": (TISSUE, replace(TISSUE, data_type=2))}, Reason.COLOUR),
        (
            {"regions": (TISSUE, replace(TISSUE, spatial_format=2, y0=455))},
            Reason.OTHER_MODE,
        ),
        (
            {"regions": (TISSUE, replace(TISSUE, spatial_format=3, data_type=3))},
            Reason.OTHER_MODE,
        ),
        ({"regions": (replace(TISSUE, data_type=13),)}, Reason.NO_TISSUE),
        ({"regions": (replace(TISSUE, x1=120),)}, Reason.TOO_SMALL),
        ({"regions": (replace(TISSUE, x0=700, x1=900),)}, Reason.TOO_SMALL),
        ({"regions": (), "ultrasound_color_data_present": True}, Reason.COLOUR),
    ],
)
def test_header_that_forbids_reading_gives_its_reason(
    changes: dict[str, object], reason: Reason
) -> None:
    assert reason_of(replace(HEADER, **changes)) == reason.key  # type: ignore[arg-type]


def test_unknown_decodability_is_left_to_the_decoder() -> None:
    region_of(replace(HEADER, decodable=None))


def test_missing_body_part_does_not_refuse() -> None:
    region_of(replace(HEADER, body_part_examined=""))


def test_unreadable_image_type_value_4_does_not_refuse() -> None:
    region_of(replace(HEADER, image_type=("ORIGINAL", "PRIMARY", "", "SMALL")))


def test_phantom_is_read_only_where_the_setting_allows_it() -> None:
    phantom = replace(HEADER, simulated=True)
    assert reason_of(phantom) == "simulated"
    region_of(phantom, read_simulated=True)


def test_every_reason_speaks_both_languages_and_has_its_own_key() -> None:
    assert len({reason.key for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert reason.zh
        assert reason.en
        assert any("一" <= letter <= "鿿" for letter in reason.zh)


def grey_frame(seed: int = 0) -> np.ndarray:
    grey = np.random.default_rng(seed).integers(20, 200, (480, 640, 1), dtype=np.uint8)
    return np.repeat(grey, 3, axis=2)


def test_plain_grey_pixels_pass() -> None:
    assert refuse_pixels(grey_frame()[None], region_of(HEADER), "2.25.1") is None


def test_doppler_box_is_found_in_pixels_although_the_header_hides_it() -> None:
    frame = grey_frame()
    frame[200:300, 200:320] = (220, 40, 20)
    frame[200:300, 260:320] = (20, 60, 220)
    refused = refuse_pixels(frame[None], region_of(HEADER), "2.25.1")
    assert refused is not None
    assert refused.reason == "colour"


def test_colour_outside_the_region_does_not_refuse() -> None:
    frame = grey_frame()
    frame[:40, :] = (250, 20, 20)
    assert refuse_pixels(frame[None], region_of(HEADER), "2.25.1") is None


def test_tinted_b_mode_is_not_taken_for_flow() -> None:
    grey = grey_frame().astype(np.float32)
    sepia = (grey * np.array([1.0, 0.8, 0.5])).astype(np.uint8)
    assert not has_flow_colours(sepia)


def test_blank_image_is_refused() -> None:
    frames = np.zeros((1, 480, 640, 3), np.uint8)
    refused = refuse_pixels(frames, region_of(HEADER), "2.25.1")
    assert refused is not None
    assert refused.reason == "blank"


def test_values_that_are_no_grey_levels_are_refused() -> None:
    frames = np.full((1, 480, 640, 3), np.nan)
    refused = refuse_pixels(frames, region_of(HEADER), "2.25.1")  # type: ignore[arg-type]
    assert refused is not None
    assert refused.reason == "bad_values"


@pytest.mark.parametrize("count", [1, 2, 5, 6, 87, 500, 2000])
def test_time_bins_cover_a_cine_without_gap_or_overlap(count: int) -> None:
    bins = frame_bins(count, 5)
    assert [index for span in bins for index in span] == list(range(count))
    assert len(bins) == min(5, count)


def test_candidates_lie_inside_their_span_and_differ() -> None:
    picked = candidate_frames(range(100, 200), 4)
    assert len(set(picked)) == 4
    assert min(picked) >= 100
    assert max(picked) < 200


def test_sharpest_frame_of_a_bin_is_chosen() -> None:
    sharp = grey_frame(1)
    blurred = np.full_like(sharp, 90)
    frames = np.stack([blurred, sharp, blurred])
    assert sharpest(frames, region_of(HEADER)) == 1
