"""What is no breast ultrasound is not read, by its texture or by its features."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from inference.preprocess import reduce_grey
from inference.record import ModelRecord
from inference.select import Reason
from inference.unfamiliar import (
    FILE,
    Familiarity,
    fit,
    read_familiarity,
    refuse_texture,
    write_familiarity,
)
from node.domain.errors import NodeError
from tests.inference.records import RECORD

ROWS, COLUMNS = 192, 256


def random(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def text_screen(*, dark: bool) -> np.ndarray:
    paper, ink = (12, 220) if dark else (240, 20)
    picture = Image.new("L", (640, 480), paper)
    draw = ImageDraw.Draw(picture)
    for row in range(20):
        draw.text(
            (20 + 9 * (row % 5), 8 + 23 * row),
            "Depth 4.0 cm  Gain 62  MI 0.9  TIs 0.3  " * 2,
            fill=ink,
            font=ImageFont.load_default(size=14),
        )
    pixels, rows, columns = reduce_grey(picture)
    return np.asarray(pixels)[:rows, :columns]


def ramp(noise: float) -> np.ndarray:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS] / ROWS
    smooth = 128 + 90 * np.sin(2 * x + y)
    return np.asarray((smooth + random().normal(0, noise, smooth.shape)).clip(0, 255))


def few_levels() -> np.ndarray:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    return np.asarray((x // 16 + y // 16) % 9 * 28)


def marks() -> np.ndarray:
    black = np.zeros((ROWS, COLUMNS))
    black[10:30, 10:50] = random().uniform(0, 255, (20, 40))
    return black


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.full((ROWS, COLUMNS), 90), Reason.BLANK),
        (text_screen(dark=True), Reason.NO_SPECKLE),
        (text_screen(dark=False), Reason.NO_SPECKLE),
        (random().integers(0, 256, (ROWS, COLUMNS)), Reason.NO_SPECKLE),
        (random().rayleigh(45, (ROWS, COLUMNS)).clip(0, 255), Reason.NO_SPECKLE),
        (ramp(0), Reason.NO_SPECKLE),
        (ramp(2), Reason.NO_SPECKLE),
        (few_levels(), Reason.NO_SPECKLE),
        (marks(), Reason.NO_SPECKLE),
    ],
)
def test_picture_without_speckle_is_refused(
    picture: np.ndarray, reason: Reason
) -> None:
    assert refuse_texture(picture.astype(np.uint8)) is reason


@pytest.mark.parametrize("seed", range(3))
def test_simulated_breast_has_the_texture_of_ultrasound(seed: int) -> None:
    mass = PhantomLesion(x_mm=23, depth_mm=16, width_mm=14, height_mm=10, shape="oval")
    phantom = build_phantom((mass,), seed=seed)
    pixels, rows, columns = reduce_grey(Image.fromarray(phantom.pixels))
    assert refuse_texture(np.asarray(pixels)[:rows, :columns]) is None


def test_smallest_picture_is_judged_without_an_error() -> None:
    assert refuse_texture(np.zeros((1, 1), np.uint8)) is Reason.BLANK
    assert refuse_texture(np.array([[3, 200]], np.uint8)) is Reason.NO_SPECKLE


def features(count: int, seed: int) -> np.ndarray:
    """Return features that lie in a thin slice of their space, as a network's do."""
    generator = random(seed)
    axes = random(0).normal(size=(12, 200))
    along = generator.normal(size=(count, 12)) * np.linspace(3, 0.5, 12)
    noise = generator.normal(size=(count, 200)) * 0.05
    return np.abs(along @ axes * 0.05 + 2 + noise).astype(np.float32)


@pytest.fixture(scope="module")
def familiarity() -> Familiarity:
    return fit(features(600, 1), features(300, 2))


def test_all_but_one_in_a_hundred_validation_images_pass(
    familiarity: Familiarity,
) -> None:
    distance = familiarity.distance(features(300, 2))
    assert (distance <= 1).mean() == pytest.approx(0.99, abs=0.004)
    assert (familiarity.distance(features(2000, 3)) <= 1).mean() > 0.95


def test_strange_directions_and_strange_strengths_are_far(
    familiarity: Familiarity,
) -> None:
    usual = features(50, 4)
    strong, other = usual * np.float32(1.8), usual[:, ::-1]
    assert (familiarity.distance(strong) > 1).all()
    assert (familiarity.distance(np.ascontiguousarray(other)) > 1).all()
    assert np.isfinite(familiarity.distance(np.zeros((1, 200), np.float32))).all()


def test_few_training_images_still_fit() -> None:
    small = fit(features(10, 1), features(5, 2))
    assert np.isfinite(small.distance(features(3, 3))).all()


def record_of(digest: str) -> ModelRecord:
    return replace(RECORD, files={FILE: digest} if digest else {})


def test_familiarity_is_the_same_after_writing(
    familiarity: Familiarity, tmp_path: Path
) -> None:
    record = record_of(write_familiarity(familiarity, tmp_path))
    again = read_familiarity(tmp_path, record)
    assert again is not None
    values = features(50, 5)
    assert again.distance(values) == pytest.approx(
        familiarity.distance(values), rel=0.01
    )


def test_model_released_without_familiarity_has_none(tmp_path: Path) -> None:
    assert read_familiarity(tmp_path, record_of("")) is None


def test_missing_or_changed_familiarity_is_refused(
    familiarity: Familiarity, tmp_path: Path
) -> None:
    record = record_of(write_familiarity(familiarity, tmp_path))
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-1] + b"\x01")
    with pytest.raises(NodeError, match="restore"):
        read_familiarity(tmp_path, record)
    (tmp_path / FILE).unlink()
    with pytest.raises(NodeError, match="missing"):
        read_familiarity(tmp_path, record)


def test_damaged_familiarity_with_the_right_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(NodeError, match="cannot be read"):
        read_familiarity(tmp_path, record_of(sha256(b"nothing").hexdigest()))
