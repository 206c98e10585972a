"""Text in pictures is found by its regularity; tissue stays (PS3.15 E.3.1)."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from dicom_scp.export.burned_in import black_out, text_boxes
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from node.domain.finding import PixelBox


def tissue(seed: int = 3) -> Image.Image:
    lesion = PhantomLesion(15, 12, 10, 8)
    return Image.fromarray(
        build_phantom((lesion,), seed=seed, rows=300, columns=400).pixels
    )


def write(image: Image.Image, at: tuple[int, int], words: str, ink: int) -> None:
    ImageDraw.Draw(image).text(
        at, words, fill=ink, font=ImageFont.load_default(size=14)
    )


@pytest.mark.parametrize("ink", [255, 200])
def test_a_note_over_the_tissue_is_blacked_out(ink: int) -> None:
    clean, noted = tissue(), tissue()
    write(noted, (120, 220), "LEFT BREAST 54 YEARS", ink)
    written = np.asarray(noted) != np.asarray(clean)
    cleaned, lines = black_out(np.asarray(noted), PixelBox(0, 0, 400, 300))
    assert lines >= 1
    assert (cleaned[written] == 0).mean() > 0.98


@pytest.mark.parametrize("seed", range(4))
def test_tissue_without_text_stays_as_it_is(seed: int) -> None:
    assert text_boxes(np.asarray(tissue(seed))) == []


def test_everything_outside_the_region_is_black() -> None:
    frame = np.full((100, 120, 3), 90, np.uint8)
    cleaned, _ = black_out(frame, PixelBox(20, 30, 100, 90))
    assert cleaned[:30].max() == cleaned[:, :20].max() == 0
    assert cleaned[90:].max() == cleaned[:, 100:].max() == 0
    assert (cleaned[30:90, 20:100] == 90).all()


def test_a_picture_of_one_pixel_has_no_text() -> None:
    assert text_boxes(np.zeros((1, 1), np.uint8)) == []


def test_notes_in_real_pictures_are_found_and_clean_ones_left_alone(
    samples: Path,
) -> None:
    """The validation split of two sets: one with notes in most images, one without."""
    found = {name: share_with_text(samples, name) for name in ("busbra", "breast")}
    assert found["busbra"] > 0.6
    assert found["breast"] < 0.05


def share_with_text(samples: Path, name: str) -> float:
    with (samples / name / "manifest.csv").open(encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["shipped"] == "1" and row["split"] == "val"
        ][:24]
    seen = []
    for row in rows:
        with Image.open(samples / row["file"]) as image:
            seen.append(bool(text_boxes(np.asarray(image.convert("L")))))
    return sum(seen) / len(seen)
