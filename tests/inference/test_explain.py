"""The heat lies over the place that made it, and nothing beyond the region is shown."""

import numpy as np
import pytest
import torch

from inference.explain import activation_map, heat_map
from inference.preprocess import RegionView
from inference.record import Reading
from node.domain.finding import PixelBox


def find_spots(windows: np.ndarray) -> Reading:
    """Find bright places: the evidence is the input seen at every 32nd pixel."""
    spots = torch.nn.functional.avg_pool2d(
        torch.from_numpy(windows), 33, stride=32, padding=16
    )
    nothing = np.zeros((len(windows), 1), np.float32)
    return Reading(
        malignancy=nothing[:, 0],
        lesion=nothing[:, 0],
        birads=nothing,
        margin=nothing,
        choices={},
        mask=nothing[:, :, None],
        features=nothing[:, :, None, None],
        evidence=spots[:, 0].numpy(),
    )


@pytest.mark.parametrize(("x", "y"), [(110, 90), (150, 120), (128, 128)])
def test_heat_lies_over_its_cause(x: int, y: int) -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[y - 12 : y + 12, x - 12 : x + 12] = 255
    view = RegionView(pixels, 256, 256, PixelBox(0, 0, 256, 256))
    window = np.array([128.0, 110.0, 128.0], np.float32)
    evidence = activation_map(find_spots, view, window, 128)
    weights = np.where(evidence > 0.6 * evidence.max(), evidence, 0)
    rows, columns = np.mgrid[0:256, 0:256] + 0.5
    assert (weights * columns).sum() / weights.sum() == pytest.approx(x, abs=6)
    assert (weights * rows).sum() / weights.sum() == pytest.approx(y, abs=6)


def test_places_outside_the_crop_stay_without_heat() -> None:
    view = RegionView(
        np.random.default_rng(1).integers(0, 255, (256, 256), dtype=np.uint8),
        200,
        256,
        PixelBox(0, 0, 512, 400),
    )
    window = np.array([60.0, 60.0, 50.0], np.float32)
    evidence = activation_map(find_spots, view, window, 96)
    assert evidence.shape == (200, 256)
    assert evidence[150:, 150:].max() == 0
    assert 0 <= evidence.min() <= evidence.max() <= 1


def test_picture_shows_the_region_only_and_is_marked() -> None:
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[:40] = 255  # a burned-in name above the region
    view = RegionView(np.zeros((1, 1), np.uint8), 160, 256, PixelBox(50, 40, 306, 200))
    picture = heat_map(frame, view, np.zeros((160, 256), np.float32))
    assert picture.shape == (160, 256, 3)
    assert picture[:140].max() == 0
    assert picture[140:, :24].max() > 200  # the letters "AI"
