"""Data that would spoil training quietly: one line with file, row and mend each."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.training.data import read_catalogue
from inference.training.manifest import DataFault, read_listing

Rows = list[dict[str, str]]


@pytest.fixture
def data(write_tree: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_tree(tmp_path)


def rewrite(data: Path, change: Callable[[Rows], None], name: str = "breast") -> None:
    manifest = data / name / "manifest.csv"
    with manifest.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    change(rows)
    with manifest.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def fault(data: Path, split: str = "train") -> str:
    """Return the line that reading a split ends with."""
    with pytest.raises(DataFault) as caught:
        read_catalogue(data, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xd8", "cannot be read as UTF-8"),
        (b"id,file\0,label,split\n", "NUL bytes"),
        (b"id,file,label\n1,a.png,benign\n", "no column split"),
        (b"id,file,label,split\n1,a.png\n", "line 2 has 2 fields, the header 4"),
        (b'id,file,label,split\n1,"a.png,benign,train\n', "is no CSV"),
        (b"id,id,file,label,split\n", "names column id twice"),
    ],
)
def test_broken_manifest_is_named(data: Path, content: bytes, said: str) -> None:
    (data / "breast" / "manifest.csv").write_bytes(content)
    message = fault(data)
    assert said in message
    assert message.startswith("breast/manifest.csv")


def test_image_used_twice_is_named_at_both_places(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[5]["id"] = rows[0]["id"]

    rewrite(data, change)
    assert re.search(r"line 7 .*used before, breast/manifest.csv line 2", fault(data))


def test_patient_in_two_splits_is_refused_whichever_split_is_read(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[4]["group_id"] = rows[0]["group_id"]

    rewrite(data, change)
    for split in ("train", "val", "test"):
        message = fault(data, split)
        assert "put the group into one split" in message
        assert "line 6" in message
        assert "line 2" in message


def test_patient_of_an_excluded_image_leaks_nothing(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[-1]["group_id"] = rows[0]["group_id"]

    rewrite(data, change)
    assert len(read_catalogue(data, "train")) == 13


def test_diagnosis_nobody_can_mean_is_refused(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[1]["label"] = "malignent"

    rewrite(data, change)
    assert "line 3" in fault(data)
    assert "'malignent', not one of benign, malignant, normal" in fault(data)


def test_word_outside_the_lexicon_is_left_out_and_told(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["shape"] = "potato"
        rows[0]["birads"] = "4D"
        rows[1]["margin_angular"] = "yes"

    rewrite(data, change)
    catalogue = read_catalogue(data, "train")
    first = catalogue.names.index("breast_train_0")
    assert int(catalogue.choices["shape"][first]) == -1
    assert catalogue.birads[first].isnan().all()
    assert catalogue.margin[first + 1].isnan().all()
    told = [note for note in catalogue.notices if "not in the lexicon" in note]
    assert len(told) == 3
    assert "line 2 (breast_train_0): shape 'potato'" in told[0]


def test_missing_image_and_mask_are_told_apart(data: Path) -> None:
    (data / "breast" / "masks" / "breast_train_0.png").unlink()
    assert "mask breast/masks/breast_train_0.png is missing" in fault(data)
    assert "empty the column" in fault(data)
    (data / "breast" / "images" / "breast_train_0.png").unlink()
    assert "file breast/images/breast_train_0.png is missing" in fault(data)


def test_lesion_without_a_mask_has_no_box_and_stays_a_lesion(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["mask"] = ""

    rewrite(data, change)
    catalogue = read_catalogue(data, "train")
    first = catalogue.names.index("breast_train_0")
    assert catalogue.boxes[first].isnan().all()
    assert float(catalogue.lesion[first]) == 1.0


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n cut", b"RIFF0000WEBP"])
def test_unreadable_image_is_named(data: Path, content: bytes) -> None:
    (data / "breast" / "images" / "breast_train_1.png").write_bytes(content)
    message = fault(data)
    assert "line 3 (breast_train_1)" in message
    assert "restore the file" in message


def test_mask_of_another_size_is_refused(data: Path) -> None:
    mask = data / "breast" / "masks" / "breast_train_0.png"
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(mask)
    assert "mask is 40x40, image 120x90" in fault(data)


def test_empty_mask_of_a_lesion_is_refused(data: Path) -> None:
    mask = data / "breast" / "masks" / "breast_train_0.png"
    Image.fromarray(np.zeros((90, 120), np.uint8)).save(mask)
    assert "is empty though the label is benign" in fault(data)


def test_pixels_that_are_no_numbers_are_refused(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["file"] = "breast/images/floats.tiff"

    levels = np.ones((90, 120), np.float32)
    levels[3, 3] = np.nan
    Image.fromarray(levels).save(data / "breast" / "images" / "floats.tiff")
    rewrite(data, change)
    assert "pixels that are no numbers" in fault(data)


def test_sixteen_bit_images_keep_their_contrast(data: Path) -> None:
    levels = np.linspace(0, 4095, 90 * 120).reshape(90, 120).astype(np.uint16)
    Image.fromarray(levels).save(data / "breast" / "images" / "breast_train_0.png")
    catalogue = read_catalogue(data, "train")
    first = catalogue.names.index("breast_train_0")
    shown = catalogue.pixels[first][:90, :120]
    assert int(shown.min()) == 0
    assert int(shown.max()) == 255


def test_masks_of_zeros_and_ones_count_as_drawn(data: Path) -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[10:20, 30:50] = 1
    Image.fromarray(mask).save(data / "breast" / "masks" / "breast_train_0.png")
    catalogue = read_catalogue(data, "train")
    first = catalogue.names.index("breast_train_0")
    assert catalogue.boxes[first].tolist() == [30.0, 10.0, 50.0, 20.0]


def test_one_pixel_image_is_read(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["mask"] = ""

    rewrite(data, change)
    image = data / "breast" / "images" / "breast_train_0.png"
    Image.fromarray(np.full((1, 1), 9, np.uint8)).save(image)
    assert (read_catalogue(data, "train").sizes == 1).all(dim=1).any()


def test_file_outside_the_data_is_never_opened(data: Path) -> None:
    def change(rows: Rows) -> None:
        rows[0]["file"] = "../../etc/passwd"

    rewrite(data, change)
    assert "leads out of the data folder" in fault(data)


def test_set_without_an_image_of_the_split_is_passed_over_with_a_word(
    data: Path,
) -> None:
    rewrite(data, lambda rows: rows.__delitem__(slice(1, None)))
    listing = read_listing(data, "val")
    assert {row.set for row in listing.rows} == {"busbra", "busi"}
    assert "breast: no image of split val" in listing.notices


def test_split_that_nobody_made_lists_those_there_are(data: Path) -> None:
    assert "splits: test, train, val" in fault(data, "holdout")


def test_sealed_images_are_read_though_no_package_ships_them(data: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["shipped"] = "0"

    before = len(read_catalogue(data, "test"))
    rewrite(data, change)
    assert len(read_catalogue(data, "test")) == before


def test_folder_of_one_set_is_not_taken_for_a_folder_of_sets(data: Path) -> None:
    with pytest.raises(DataFault, match="give the folder that holds it"):
        read_catalogue(data / "breast", "test", None)
