"""The heat lies over the place that made it, and nothing beyond the region is shown."""

import numpy as np
import pytest
import torch

from inference.explain import activation_map, heat_map
from inference.model import LesionNet
from inference.preprocess import RegionView
from node.domain.finding import PixelBox


class SpotNet(LesionNet):
    """Finds bright places: its features are the input seen at every 32nd pixel."""

    def forward(self, windows):  # type: ignore[no-untyped-def]
        reading = super().forward(windows)
        spots = torch.nn.functional.avg_pool2d(windows, 33, stride=32, padding=16)
        features = torch.zeros_like(reading.features)
        features[:, :1] = spots
        return type(reading)(
            reading.malignancy,
            reading.lesion,
            reading.birads,
            reading.margin,
            reading.choices,
            reading.mask,
            features,
        )


@pytest.mark.parametrize(("x", "y"), [(110, 90), (150, 120), (128, 128)])
def test_heat_lies_over_its_cause(x: int, y: int) -> None:
    network = SpotNet().eval()
    with torch.no_grad():
        network.malignancy.weight.zero_()
        network.malignancy.weight[0, 0] = 1.0
    pixels = torch.zeros((256, 256), dtype=torch.uint8)
    pixels[y - 12 : y + 12, x - 12 : x + 12] = 255
    view = RegionView(pixels, 256, 256, PixelBox(0, 0, 256, 256))
    evidence = activation_map(network, view, torch.tensor([128.0, 110.0, 128.0]), 128)
    weights = np.where(evidence > 0.6 * evidence.max(), evidence, 0)
    rows, columns = np.mgrid[0:256, 0:256] + 0.5
    assert (weights * columns).sum() / weights.sum() == pytest.approx(x, abs=6)
    assert (weights * rows).sum() / weights.sum() == pytest.approx(y, abs=6)


def test_places_outside_the_crop_stay_without_heat() -> None:
    view = RegionView(
        torch.randint(0, 255, (256, 256), dtype=torch.uint8),
        200,
        256,
        PixelBox(0, 0, 512, 400),
    )
    evidence = activation_map(
        LesionNet().eval(), view, torch.tensor([60.0, 60.0, 50.0]), 96
    )
    assert evidence.shape == (200, 256)
    assert evidence[150:, 150:].max() == 0
    assert 0 <= evidence.min() <= evidence.max() <= 1


def test_picture_shows_the_region_only_and_is_marked() -> None:
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[:40] = 255  # a burned-in name above the region
    view = RegionView(torch.zeros(1), 160, 256, PixelBox(50, 40, 306, 200))
    picture = heat_map(frame, view, np.zeros((160, 256), np.float32))
    assert picture.shape == (160, 256, 3)
    assert picture[:140].max() == 0
    assert picture[140:, :24].max() > 200  # the letters "AI"
