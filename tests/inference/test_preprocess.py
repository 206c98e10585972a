"""Frames to windows and back: no pixel may move."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inference.preprocess import (
    CACHE_SIDE,
    RegionView,
    box_windows,
    cut_windows,
    enlarge,
    reduce_grey,
    view_region,
    whole_windows,
    window_to_region,
)
from inference.training import windows as in_training
from node.domain.finding import PixelBox


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(60, 1500),
    st.integers(60, 1500),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_point_of_the_frame_survives_the_way_to_the_region_and_back(
    x0: int, y0: int, width: int, height: int, u: float, v: float
) -> None:
    box = PixelBox(x0, y0, x0 + width, y0 + height)
    view = RegionView(np.zeros((1, 1), np.uint8), 201, 256, box)
    x, y = x0 + u * width, y0 + v * height
    assert view.to_frame(*view.from_frame(x, y)) == pytest.approx((x, y))


def test_view_shows_the_region_only_and_keeps_its_shape() -> None:
    frame = np.zeros((600, 800, 3), np.uint8)
    frame[100:400, 200:700] = 120
    view = view_region(frame, PixelBox(200, 100, 700, 400))
    assert (view.rows, view.columns) == (154, 256)
    assert (view.pixels[: view.rows, : view.columns] == 120).all()
    assert (view.pixels[view.rows :] == 0).all()


def test_small_image_is_not_enlarged() -> None:
    pixels, rows, columns = reduce_grey(Image.new("RGB", (80, 60), (10, 10, 10)))
    assert (rows, columns) == (60, 80)
    assert pixels.shape == (CACHE_SIDE, CACHE_SIDE)


def test_whole_window_centres_the_region_on_black() -> None:
    pixels = np.zeros((1, CACHE_SIDE, CACHE_SIDE), np.uint8)
    pixels[0, :128, :256] = 200
    window = whole_windows(np.array([[128, 256]]))
    cut = cut_windows(pixels, window, 128)[0]
    assert cut.shape == (128, 128)
    assert cut[64, 64] == pytest.approx(200)
    assert cut[4, 64] == 0
    assert cut[124, 64] == 0


def test_bright_spot_is_found_again_where_it_was() -> None:
    pixels = np.zeros((1, CACHE_SIDE, CACHE_SIDE), np.uint8)
    pixels[0, 90:94, 150:154] = 255
    window = box_windows(np.array([[120.0, 60.0, 200.0, 110.0]], np.float32), 0.3)
    cut = cut_windows(pixels, window, 128)[0]
    row, column = np.unravel_index(int(cut.argmax()), cut.shape)
    point = np.array([[column + 0.5, row + 0.5]], np.float32)
    back = window_to_region(point, window[0], 128)[0]
    assert back.tolist() == pytest.approx([152.0, 92.0], abs=2.0)


def test_product_and_training_cut_the_same_pixels() -> None:
    random = np.random.default_rng(2)
    pixels = random.integers(0, 255, (6, CACHE_SIDE, 200), dtype=np.uint8)
    windows = random.uniform((0, 0, 20), (200, 256, 400), (6, 3)).astype(np.float32)
    ours = cut_windows(pixels, windows, 96)
    theirs = in_training.cut_windows(
        torch.from_numpy(pixels), torch.from_numpy(windows), 96
    ).numpy()
    assert np.abs(ours - theirs).mean() < 1e-3
    # float32 places a point to 2e-5 pixels; beside a step of 255 that is this much.
    assert np.abs(ours - theirs).max() < 1e-2


def test_map_is_drawn_out_as_torch_does_it() -> None:
    maps = np.random.default_rng(3).normal(size=(2, 24, 24)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], size=(96, 96), mode="bilinear"
    )
    assert np.allclose(enlarge(maps, 96), theirs[:, 0].numpy(), atol=1e-5)


def test_window_far_outside_the_image_is_black() -> None:
    pixels = np.full((1, CACHE_SIDE, CACHE_SIDE), 200, np.uint8)
    window = np.array([[2000.0, -900.0, 64.0]], np.float32)
    assert not cut_windows(pixels, window, 32).any()


def test_mirrored_window_of_training_swaps_left_and_right_only() -> None:
    pixels = torch.randint(0, 255, (1, CACHE_SIDE, CACHE_SIDE), dtype=torch.uint8)
    window = torch.tensor([[100.0, 120.0, 128.0]])
    plain = in_training.cut_windows(pixels, window, 128)
    mirrored = in_training.cut_windows(
        pixels, window, 128, turns=torch.tensor([[0.0, -1.0]])
    )
    assert torch.allclose(plain.flip(-1), mirrored, atol=0.02)
