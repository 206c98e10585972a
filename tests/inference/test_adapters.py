"""Published image sets are read from tiny trees in the layouts of their publishers."""

import csv
import plistlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from openpyxl import Workbook
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MAMMOGRAM
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from typer.testing import CliRunner

from inference.training.adapters import ADAPTERS, DatasetError, Example
from inference.training.adapters.crops import points_of, shifted_pairs
from inference.training.adapters.duplicates import near_pairs, picture_hash
from inference.training.adapters.importing import SPLITS, draw_splits, import_set
from inference.training.adapters.pictures import lesion_mask, open_picture, reduce
from inference.training.data import read_catalogue
from inference.training.manifest import read_listing
from node.domain.lexicon import FieldKey
from node.domain.manifest import COLUMNS

_TOLD = """
CaseID Image_filename Mask_tumor_filename Mask_other_filename Pixel_size Age
Tissue_composition Signs Symptoms Shape Margin Echogenicity Posterior_features
Halo Calcifications Skin_thickening Interpretation BIRADS Verification Diagnosis
Classification
"""
BREAST_COLUMNS = _TOLD.split()


def picture(seed: int, rows: int = 40, columns: int = 60) -> Image.Image:
    """Return an image of its own for every seed, smooth enough to be recognised."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)
    return Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)


def disc(
    x: int, y: int, radius: int, *, rows: int = 40, columns: int = 60
) -> Image.Image:
    mask = Image.new("L", (columns, rows))
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return mask


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_dicom(path: Path, pixels: np.ndarray, **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    deep = pixels.dtype.itemsize * 8
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MAMMOGRAM, generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = deep
    dataset.HighBit, dataset.PixelRepresentation = deep - 1, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if deep > 8 else "OB"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)


# -- one tree per set ------------------------------------------------------------------


def plant_busi(root: Path) -> None:
    folder = root / "Dataset_BUSI_with_GT"
    for number in range(1, 7):
        save(picture(number), folder / "benign" / f"benign ({number}).png")
        save(disc(20, 20, 5), folder / "benign" / f"benign ({number})_mask.png")
        save(picture(50 + number), folder / "malignant" / f"malignant ({number}).png")
        save(disc(30, 15, 9), folder / "malignant" / f"malignant ({number})_mask.png")
    save(disc(50, 30, 4), folder / "benign" / "benign (1)_mask_1.png")
    save(picture(99), folder / "normal" / "normal (1).png")
    save(Image.new("L", (60, 40)), folder / "normal" / "normal (1)_mask.png")


def breast_row(number: int, **changes: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(BREAST_COLUMNS, "not applicable")
    row |= {
        "CaseID": number,
        "Image_filename": f"case{number:03d}.png",
        "Mask_tumor_filename": f"case{number:03d}_tumor.png",
        "Pixel_size": 0.008,
        "Age": 57,
        "Shape": "irregular",
        "Margin": "not circumscribed - angular&indistinct",
        "Echogenicity": "hypoechoic",
        "Posterior_features": "no",
        "Halo": "yes",
        "Calcifications": "no",
        "BIRADS": "4b",
        "Classification": "malignant",
    }
    return row | changes


def plant_breast(root: Path, *rows: dict[str, object]) -> None:
    book = Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(BREAST_COLUMNS)
    told = rows or (
        breast_row(1),
        breast_row(2, Echogenicity="heterogeneous", BIRADS=3, Classification="benign"),
        breast_row(
            3,
            Mask_tumor_filename=None,
            Classification="normal",
            BIRADS=1,
            Shape="not applicable",
            Margin="not applicable",
            Halo="not applicable",
        ),
    )
    images = root / "BrEaST-Lesions_USG-images_and_masks"
    for row in told:
        sheet.append([row[column] for column in BREAST_COLUMNS])
        number = int(str(row["CaseID"]))
        save(picture(number).convert("RGBA"), images / f"case{number:03d}.png")
        save(disc(20, 20, 8), images / f"case{number:03d}_tumor.png")
    book.save(root / "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx")


def plant_busbra(root: Path) -> None:
    folder = root / "BUSBRA"
    lines = ["ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"]
    for case in range(1, 9):
        good = case % 2
        for view, word in (("l", "left"), ("r", "right")):
            name = f"{case:04d}-{view}"
            save(
                picture(200 + 2 * case + (view == "r")),
                folder / "Images" / f"bus_{name}.png",
            )
            save(disc(30, 20, 6), folder / "Masks" / f"mask_{name}.png")
            label = "benign" if good else "malignant"
            lines.append(
                f"bus_{name},{case},fibroadenoma,{label},{3 if good else 5},"
                f'GE Logiq 7 @10-14MHz,60,40,{word},"[24,14,13,13]"'
            )
    (folder / "bus_data.csv").write_text("\n".join(lines) + "\n")


def plant_mias(root: Path) -> None:
    folder = root / "all-mias"
    folder.mkdir(parents=True)
    for number in range(1, 5):
        grey = picture(300 + number, 1024, 1024)
        save(grey, folder / f"mdb{number:03d}.pgm")
    (folder / "Info.txt").write_text(
        "Some words first.\n"
        "mdb001 G CIRC B 535 425 197\n"
        "mdb002 G CIRC M 100 900 20\n"
        "mdb002 G CALC B *NOTE 3*\n"
        "mdb003 D NORM \n"
        "mdb004 D WHAT B 1 2 3\n"
    )


def plant_inbreast(root: Path) -> None:
    folder = root / "INbreast Release 1.0"
    lines = [
        "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"
    ]
    told = (
        (20586908, "R", "CC", "2"),
        (20586934, "L", "CC", "5"),
        (20586960, "R", "MLO", "1"),
    )
    for seed, (name, side, view, category) in enumerate(told):
        pixels = np.asarray(picture(400 + seed)).astype(np.uint16) * 16
        write_dicom(
            folder / "AllDICOMs" / f"{name}_6c613a14b80a8591_MG_{side}_{view}_ANON.dcm",
            pixels,
            BitsStored=12,
            HighBit=11,
        )
        lines.append(f"removed;removed;{side};{view};200902;{name};    ;{category}")
    lines.append("Total;;;;;;;")
    (folder / "INbreast.csv").write_text("\n".join(lines) + "\n")
    square = ["(10.0, 5.0)", "(30.0, 5.0)", "(30.0, 25.0)", "(10.0, 25.0)"]
    regions = [
        {"Name": "Mass", "NumberOfPoints": 4, "Point_px": square},
        {"Name": "Pectoral Muscle", "NumberOfPoints": 4, "Point_px": square},
        {"Name": "Calcification", "NumberOfPoints": 1, "Point_px": ["(2.0, 2.0)"]},
    ]
    (folder / "AllXML").mkdir()
    (folder / "AllXML" / "20586934.xml").write_bytes(
        plistlib.dumps({"Images": [{"ImageIndex": 0, "ROIs": regions}]})
    )


def plant_cbis(root: Path) -> None:
    columns = (
        "patient_id,breast_density,left or right breast,image view,abnormality id,"
        "abnormality type,mass shape,mass margins,assessment,pathology,subtlety,"
        "image file path,cropped image file path,ROI mask file path"
    )
    rows = [columns]
    for patient, label in (
        ("P_00001", "MALIGNANT"),
        ("P_00004", "BENIGN_WITHOUT_CALLBACK"),
    ):
        case = f"Mass-Training_{patient}_LEFT_CC"
        seed = int(patient[-1])
        study = root / "CBIS-DDSM" / case / generate_uid() / generate_uid()
        full = np.asarray(picture(500 + seed, 80, 50)).astype(np.uint16) * 257
        write_dicom(study / "1-1.dcm", full)
        marks = root / "CBIS-DDSM" / f"{case}_1" / generate_uid() / generate_uid()
        mask = np.asarray(disc(25, 40, 8, rows=80, columns=50))
        crop = full[30:50, 15:35].copy()
        # The publisher's descriptions are swapped in many cases, as here.
        write_dicom(marks / "1-1.dcm", mask, SeriesDescription="cropped images")
        write_dicom(marks / "1-2.dcm", crop, SeriesDescription="ROI mask images")
        stale = f"{case}/1.3.6/1.3.6/000000.dcm"
        rows.append(
            f"{patient},3,LEFT,CC,1,mass,OVAL,SPICULATED,4,{label},4,{stale},{stale},{stale}\n"
        )
    (root / "mass_case_description_train_set.csv").write_text("\n".join(rows))


def plant_breakhis(root: Path) -> None:
    base = root / "BreaKHis_v1" / "histology_slides" / "breast"
    for seed, (label, kind, name, patient) in enumerate(
        (
            ("benign", "adenosis", "SOB_B_A", "14-22549AB"),
            ("malignant", "ductal_carcinoma", "SOB_M_DC", "14-13412"),
            ("malignant", "lobular_carcinoma", "SOB_M_LC", "14-13412"),
        )
    ):
        for magnification in (40, 400):
            folder = (
                base / label / "SOB" / kind / f"{name}_{patient}" / f"{magnification}X"
            )
            file = f"{name}-{patient}-{magnification}-001.png"
            save(
                picture(600 + 2 * seed + (magnification > 40)).convert("RGB"),
                folder / file,
            )


def plant_bach(root: Path) -> None:
    folder = root / "ICIAR2018_BACH_Challenge" / "Photos"
    named = {"n001": "Normal", "b001": "Benign", "is001": "InSitu", "iv001": "Invasive"}
    for seed, (name, label) in enumerate(named.items()):
        save(picture(700 + seed).convert("RGB"), folder / label / f"{name}.tif")
    table = "".join(f"{name}.tif,{label}\n" for name, label in named.items())
    (folder / "microscopy_ground_truth.csv").write_text(table)


def plant_bioimaging(root: Path) -> None:
    for seed, name in enumerate(("n001", "b001", "is001", "iv001")):
        save(picture(800 + seed).convert("RGB"), root / "Training_data" / f"{name}.tif")
    save(picture(810).convert("RGB"), root / "Test_data" / "Invasive" / "t10.tif")


PLANTED: dict[str, Callable[[Path], None]] = {
    "busi": plant_busi,
    "breast": plant_breast,
    "busbra": plant_busbra,
    "mias": plant_mias,
    "inbreast": plant_inbreast,
    "cbis_ddsm": plant_cbis,
    "breakhis": plant_breakhis,
    "bach": plant_bach,
    "bioimaging2015": plant_bioimaging,
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], dict[str, Example]]:
    def run(name: str) -> dict[str, Example]:
        PLANTED[name](tmp_path)
        examples = ADAPTERS[name](tmp_path, lambda row, reason: None)
        return {example.id: example for example in examples}

    return run


def manifest(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
        return {row["id"]: row for row in csv.DictReader(lines)}


# -- what the sets say -----------------------------------------------------------------


def test_every_adapter_has_a_tree_of_its_own() -> None:
    assert set(PLANTED) == set(ADAPTERS)


def test_several_masks_of_one_busi_image_are_one_mask(read) -> None:
    first = read("busi")["busi_benign_001"]
    assert len(first.masks) == 2
    mask = lesion_mask((60, 40), first.masks, ())
    assert mask is not None
    assert mask[20, 20]
    assert mask[30, 50]
    assert first.extra["n_lesions"] == "2"


def test_a_normal_busi_image_has_no_lesion(read) -> None:
    normal = read("busi")["busi_normal_001"]
    assert (normal.label, normal.masks) == ("normal", ())


def test_breast_descriptors_become_lexicon_keys(read) -> None:
    first = read("breast")["breast_001"]
    assert first.descriptors[FieldKey.MARGIN] == ("angular", "indistinct")
    assert first.descriptors[FieldKey.LESION_BOUNDARY] == ("echogenic_halo",)
    assert first.descriptors[FieldKey.CALCIFICATIONS] == ()
    assert first.birads == "4B"
    assert first.extra["pixel_mm"] == "0.08"


def test_a_breast_word_without_lexicon_term_stays_unlabelled(read) -> None:
    second = read("breast")["breast_002"]
    assert FieldKey.ECHO_PATTERN not in second.descriptors
    assert second.extra["echogenicity"] == "heterogeneous"


def test_both_views_of_a_busbra_case_are_one_group(read) -> None:
    examples = read("busbra")
    assert examples["busbra_0001_l"].group == examples["busbra_0001_r"].group
    assert examples["busbra_0002_l"].label == "malignant"


def test_mias_counts_y_from_the_bottom(read) -> None:
    first = read("mias")["mias_mdb001"]
    mask = lesion_mask((1024, 1024), (), first.outlines)
    assert mask is not None
    assert mask[1024 - 425, 535]
    assert not mask[425 - 190, 535 + 90]


def test_mias_rows_of_one_image_are_one_example_with_the_worst_severity(read) -> None:
    examples = read("mias")
    assert examples["mias_mdb002"].label == "malignant"
    assert len(examples["mias_mdb002"].outlines) == 1
    assert examples["mias_mdb001"].group == examples["mias_mdb002"].group
    assert "mias_mdb004" not in examples


def test_inbreast_categories_are_no_outcomes(read) -> None:
    examples = read("inbreast")
    assert [
        examples[f"inbreast_{n}"].label for n in (20586908, 20586934, 20586960)
    ] == [
        "benign",
        None,
        "normal",
    ]
    assert {example.group for example in examples.values()} == {
        "inbreast_6c613a14b80a8591"
    }


def test_inbreast_regions_are_lesions_but_not_the_muscle(read) -> None:
    marked = read("inbreast")["inbreast_20586934"]
    assert len(marked.outlines) == 1
    assert marked.extra["interpretation"] == "Mass&Calcification"
    assert open_picture(marked.image).size == (60, 40)


def test_a_swapped_cbis_mask_is_found_by_its_size(read) -> None:
    example = read("cbis_ddsm")["cbis_mass_training_p_00001_left_cc_1"]
    mask = lesion_mask((50, 80), example.masks, ())
    assert mask is not None
    assert mask[40, 25]
    assert not mask[5, 5]
    assert (example.label, example.birads) == ("malignant", "4")


def test_benign_without_callback_is_benign(read) -> None:
    assert read("cbis_ddsm")["cbis_mass_training_p_00004_left_cc_1"].label == "benign"


def test_a_breakhis_patient_under_two_types_is_one_group(read) -> None:
    examples = read("breakhis").values()
    groups = {e.extra["histology"]: e.group for e in examples}
    assert groups["DC"] == groups["LC"] != groups["A"]
    assert {e.extra["view"] for e in examples} == {"40X", "400X"}


def test_carcinoma_in_situ_counts_as_malignant(read) -> None:
    labels = {e.extra["histology"]: e.label for e in read("bach").values()}
    assert labels == {
        "Normal": "normal",
        "Benign": "benign",
        "InSitu": "malignant",
        "Invasive": "malignant",
    }


def test_bioimaging_tells_training_from_test(read) -> None:
    examples = read("bioimaging2015")
    assert examples["bioimaging2015_test_invasive_t10"].extra["source_split"] == "test"
    assert examples["bioimaging2015_train_insitu_is001"].label == "malignant"


# -- import ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_an_imported_set_has_the_layout_of_the_others(
    name: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    PLANTED[name](source)
    imported = import_set(name, source, target, side=200)
    rows = manifest(target / name)
    assert len(rows) == imported.rows > 0
    for row in rows.values():
        assert tuple(row) == COLUMNS
        with Image.open(target / row["file"]) as image:
            assert image.size == (int(row["width"]), int(row["height"]))
        if row["mask"]:
            with Image.open(target / row["mask"]) as mask:
                assert (mask.mode, mask.size) == ("1", image.size)


def test_training_reads_an_imported_set(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    plant_busbra(tmp_path / "source")
    import_set("busbra", tmp_path / "source", tmp_path / "target")
    catalogue = read_catalogue(tmp_path / "target", "train", sets=("busbra",))
    assert len(catalogue) > 0
    assert set(catalogue.categories) <= {"3", "5"}


def test_training_passes_over_other_pictures_unless_named(tmp_path: Path) -> None:
    for name in ("busbra", "mias", "inbreast"):
        PLANTED[name](tmp_path / name)
        import_set(name, tmp_path / name, tmp_path / "target", side=64)
    listing = read_listing(tmp_path / "target", "train")
    assert {row.set for row in listing.rows} == {"busbra"}
    assert any("mias: skipped, not ultrasound" in line for line in listing.notices)
    rows = manifest(tmp_path / "target" / "inbreast")
    assert rows["inbreast_20586934"]["split"] != "excluded"


def test_a_descriptor_survives_the_import(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    plant_breast(tmp_path / "source")
    import_set("breast", tmp_path / "source", tmp_path / "target", side=30)
    row = manifest(tmp_path / "target" / "breast")["breast_001"]
    assert (row["shape"], row["boundary"], row["calcification"]) == (
        "irregular",
        "echogenic halo",
        "none",
    )
    assert (row["margin_angular"], row["margin_spiculated"]) == ("1", "0")
    assert float(row["pixel_mm"]) == pytest.approx(0.16)
    assert float(row["lesion_w_mm"]) == pytest.approx(17 * 0.08, abs=0.2)


def test_a_picture_saved_twice_stays_in_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "Dataset_BUSI_with_GT"
    plant_busi(tmp_path / "source")
    twin = picture(3).resize((90, 60)).point(lambda value: min(255, value + 12))
    save(twin, folder / "benign" / "benign (700).png")
    save(
        disc(30, 30, 8, rows=60, columns=90),
        folder / "benign" / "benign (700)_mask.png",
    )
    import_set("busi", tmp_path / "source", tmp_path / "target")
    rows = manifest(tmp_path / "target" / "busi")
    one, other = rows["busi_benign_003"], rows["busi_benign_700"]
    assert one["group_id"] == other["group_id"]
    assert one["split"] == other["split"]
    assert (one["dup_cluster_size"], one["dup_primary"], other["dup_primary"]) == (
        "2",
        "1",
        "0",
    )


def test_copies_with_other_labels_are_excluded(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "Dataset_BUSI_with_GT"
    plant_busi(tmp_path / "source")
    save(picture(3), folder / "malignant" / "malignant (700).png")
    save(disc(20, 20, 5), folder / "malignant" / "malignant (700)_mask.png")
    imported = import_set("busi", tmp_path / "source", tmp_path / "target")
    rows = manifest(tmp_path / "target" / "busi")
    assert rows["busi_malignant_700"]["split"] == "excluded"
    assert rows["busi_benign_003"]["shipped"] == "0"
    assert imported.contradicting == 2


def test_the_hash_knows_a_copy_and_no_stranger() -> None:
    pictures = [picture(seed) for seed in range(12)]
    copy = pictures[4].resize((31, 22)).point(lambda value: value * 9 // 10)
    hashes = [picture_hash(image) for image in [*pictures, copy]]
    assert list(near_pairs(hashes)) == [(4, 12)]


def test_a_picture_cut_otherwise_is_known_and_strangers_with_one_logo_are_not() -> None:
    def speckle(seed: int) -> np.ndarray:
        grain = np.random.default_rng(seed).integers(0, 256, (100, 80)).astype(np.uint8)
        image = Image.fromarray(grain).resize((320, 400), Image.Resampling.BICUBIC)
        ImageDraw.Draw(image).text((200, 30), "SCANNER 5000", fill=255, font_size=24)
        return np.asarray(image)

    whole = speckle(1)
    pictures = [whole, speckle(2), whole[37:380, 11:], speckle(3)]
    found = shifted_pairs([points_of(grey) for grey in pictures], pictures.__getitem__)
    assert list(found) == [(0, 2)]


@pytest.mark.parametrize("shape", [(1, 1), (40, 60), (32, 32)])
def test_pictures_too_small_for_points_have_none_in_common(shape) -> None:
    points = points_of(np.zeros(shape, np.uint8))
    assert (
        list(shifted_pairs([points, points], lambda _: np.zeros(shape, np.uint8))) == []
    )


def test_groups_never_span_splits_and_the_shares_hold() -> None:
    rows = [
        (f"g{group}", "malignant" if group % 3 == 0 else "benign")
        for group in range(200)
        for _ in range(1 + group % 4)
    ]
    drawn = draw_splits(rows, seed=1)
    assert drawn == draw_splits(list(reversed(rows)), seed=1)
    assert drawn != draw_splits(rows, seed=2)
    for split, share in SPLITS.items():
        held = sum(drawn[group] == split for group, _ in rows)
        assert held / len(rows) == pytest.approx(share, abs=0.02)


def test_a_lesion_smaller_than_a_pixel_does_not_vanish() -> None:
    mask = np.zeros((400, 400), bool)
    mask[200:203, 200:203] = True
    small = reduce(Image.new("L", (400, 400)), mask, 20)
    assert small.mask is not None
    assert small.mask.sum() == 1


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_a_wrong_folder_is_one_line(name: str, tmp_path: Path) -> None:
    save(picture(1), tmp_path / "holiday.jpg")
    with pytest.raises(DatasetError) as told:
        ADAPTERS[name](tmp_path)
    assert "is not" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    plant_busbra(tmp_path)
    table = tmp_path / "BUSBRA" / "bus_data.csv"
    table.write_text(table.read_text().replace("Pathology", "Pathologie"))
    with pytest.raises(DatasetError, match="column Pathology is missing"):
        ADAPTERS["busbra"](tmp_path)


def test_a_missing_table_of_inbreast_says_what_to_do(tmp_path: Path) -> None:
    plant_inbreast(tmp_path)
    (tmp_path / "INbreast Release 1.0" / "INbreast.csv").unlink()
    with pytest.raises(DatasetError, match=r"save INbreast\.xls as"):
        ADAPTERS["inbreast"](tmp_path)


def test_a_label_outside_the_lexicon_skips_its_row_by_name(tmp_path: Path) -> None:
    plant_breast(tmp_path, breast_row(1), breast_row(2, Shape="starlike"))
    skipped: dict[str, str] = {}
    examples = ADAPTERS["breast"](tmp_path, skipped.__setitem__)
    assert [example.id for example in examples] == ["breast_001"]
    assert list(skipped.values()) == ["Shape 'starlike' is outside the lexicon"]
    assert next(iter(skipped)).endswith("row 3")


def test_a_strict_reader_refuses_the_first_such_row(tmp_path: Path) -> None:
    plant_breast(tmp_path, breast_row(1, BIRADS="7"))
    with pytest.raises(DatasetError, match="row 2: '7' is not a BI-RADS category"):
        ADAPTERS["breast"](tmp_path)


def test_what_cannot_be_decoded_is_skipped_and_counted(tmp_path: Path) -> None:
    plant_busbra(tmp_path / "source")
    images = tmp_path / "source" / "BUSBRA" / "Images"
    (images / "bus_0001-l.png").write_bytes(b"no image")
    (images / "bus_0001-r.png").unlink()
    (images.parent / "Masks" / "mask_0002-l.png").unlink()
    save(Image.new("L", (60, 40)), images.parent / "Masks" / "mask_0002-r.png")
    save(
        disc(5, 5, 3, rows=20, columns=20), images.parent / "Masks" / "mask_0003-l.png"
    )
    imported = import_set("busbra", tmp_path / "source", tmp_path / "target")
    assert imported.rows == 11
    assert sorted(imported.skipped.values()) == [
        "image bus_0001-l.png cannot be decoded",
        "image bus_0001-r.png is missing",
        "mask mask_0002-l.png is missing",
        "mask mask_0003-l.png is 20 x 20, its image 60 x 40",
        "the mask is empty",
    ]


def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match="cannot be decoded"):
        open_picture(tmp_path / "a.tif")


def test_a_set_without_any_usable_row_leaves_no_manifest(tmp_path: Path) -> None:
    plant_breast(tmp_path / "source", breast_row(1, Classification="perhaps"))
    with pytest.raises(DatasetError, match="no row can be used"):
        import_set("breast", tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target" / "breast" / "manifest.csv").exists()


def test_the_command_ends_with_one_line_and_never_overwrites(tmp_path: Path) -> None:
    from inference.training.__main__ import app

    (tmp_path / "source").mkdir()
    plant_bach(tmp_path / "source")
    run = ["import", "bach", "--from", str(tmp_path / "source"), "--to", str(tmp_path)]
    first = CliRunner().invoke(app, run)
    assert first.exit_code == 0, first.output
    assert "4 rows" in first.stderr
    again = CliRunner().invoke(app, run)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    wrong = CliRunner().invoke(app, ["import", "imagenet", *run[2:]])
    assert wrong.exit_code == 2
