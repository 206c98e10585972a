"""Training on a tiny synthetic tree in the layout of the public sets."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference.network import TorchNetwork, load_model
from inference.training.data import Sampler, birads_targets, read_catalogue
from inference.training.evaluate import report
from inference.training.measures import (
    auc,
    calibration_error,
    interval,
    kappa,
    threshold_for_sensitivity,
)
from inference.training.release import release
from inference.training.train import Recipe, masked_binary, masked_choice, train

COLUMNS = [
    "id",
    "set",
    "file",
    "mask",
    "shipped",
    "label",
    "split",
    "group_id",
    "birads",
    "shape",
    "orientation",
    "boundary",
    "calcification",
    "echogenicity",
    "posterior",
    "margin_circumscribed",
    "margin_indistinct",
    "margin_angular",
    "margin_microlobulated",
    "margin_spiculated",
]
MARGINS = [name for name in COLUMNS if name.startswith("margin_")]
RECIPE = Recipe(
    steps=2, minutes=5, batch=4, side_first=64, side=64, threads=1, dropout=0.0
)


def make_row(name: str, index: int, split: str, label: str) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "")
    key = f"{name}_{split}_{index}"
    row |= {
        "id": key,
        "set": name,
        "file": f"{name}/images/{key}.png",
        "mask": "" if label == "normal" else f"{name}/masks/{key}.png",
        "shipped": "1",
        "label": label,
        "split": split,
        "group_id": f"{name}_p{index // 2}_{split}",
        "orientation": "" if label == "normal" else "parallel",
    }
    if name == "breast" and label != "normal":
        bad = label == "malignant"
        row |= {
            "birads": "5" if bad else "3",
            "shape": "irregular" if bad else "oval",
            "boundary": "echogenic halo" if bad else "abrupt interface",
            "calcification": "none",
            "echogenicity": "hypoechoic",
            "posterior": "shadowing" if bad else "none",
        }
        row |= {name: str(int(bad)) for name in MARGINS}
        row["margin_circumscribed"] = str(int(not bad))
    return row


def draw(data: Path, row: dict[str, str], random: np.random.Generator) -> None:
    grey = random.rayleigh(50, (90, 120)).clip(0, 255).astype(np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    if row["mask"]:
        top, left = random.integers(10, 40), random.integers(10, 60)
        mask[top : top + 25, left : left + 40] = 255
        grey[mask > 0] //= 4 if row["label"] == "malignant" else 2
        Image.fromarray(mask).save(data / row["mask"])
    Image.fromarray(grey).save(data / row["file"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(4)
    for name in ("busi", "breast", "busbra"):
        (data / name / "images").mkdir(parents=True)
        (data / name / "masks").mkdir()
        rows = [
            make_row(name, index, split, label)
            for split in ("train", "val", "test")
            for index, label in enumerate(
                ["benign", "malignant"] * 2 + ["normal"] * (name == "busi")
            )
        ]
        for row in rows:
            draw(data, row, random)
        rows.append(make_row(name, 99, "excluded", "benign"))
        with (data / name / "manifest.csv").open("w", newline="") as lines:
            writer = csv.DictWriter(lines, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return data


def test_catalogue_keeps_absent_labels_absent(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train")
    assert len(catalogue) == 13
    normal = catalogue.names.index("busi_train_4")
    assert math.isnan(float(catalogue.malignancy[normal]))
    assert torch.isnan(catalogue.boxes[normal]).all()
    unlabelled = catalogue.names.index("busbra_train_0")
    assert int(catalogue.choices["shape"][unlabelled]) == -1
    assert torch.isnan(catalogue.margin[unlabelled]).all()


def test_excluded_rows_are_in_no_split(tree: Path) -> None:
    for split in ("train", "val", "test"):
        assert not any("99" in name for name in read_catalogue(tree, split).names)


def test_margin_is_never_trained_on_busi(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train", sets=("busi",))
    assert torch.isnan(catalogue.margin).all()


def test_missing_data_says_which_split_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="split val"):
        read_catalogue(tmp_path, "val")


def test_plain_category_4_says_nothing_about_its_subdivision() -> None:
    above2, above3, above4a, above4b, above4c = birads_targets("4")
    assert (above2, above3, above4c) == (1.0, 1.0, 0.0)
    assert math.isnan(above4a)
    assert math.isnan(above4b)
    assert birads_targets("4b") == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert all(math.isnan(target) for target in birads_targets(""))


def test_background_windows_carry_no_diagnosis(tree: Path) -> None:
    sampler = Sampler(read_catalogue(tree, "train"), weights={}, seed=1)
    batch = sampler.batch(24, 64, crop_share=0.0, background_share=1.0)
    assert torch.isnan(batch.malignancy).all()
    assert (batch.choices["shape"] == -1).all()
    empty = batch.masks.amax(dim=(1, 2)) == 0
    assert (batch.lesion[empty] == 0).all()


def test_same_seed_draws_the_same_batch(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train")
    first, second = (
        Sampler(catalogue, weights={}, seed=7).batch(
            8, 64, crop_share=0.5, background_share=0.1
        )
        for _ in range(2)
    )
    assert torch.equal(first.windows, second.windows)
    assert torch.equal(first.masks, second.masks)


def test_losses_pass_over_absent_labels() -> None:
    nan = math.nan
    logits = torch.tensor([3.0, -2.0, 50.0])
    some = masked_binary(logits, torch.tensor([1.0, 0.0, nan]))
    assert float(some) == pytest.approx(
        float(masked_binary(logits[:2], torch.tensor([1.0, 0.0])))
    )
    assert float(masked_binary(logits, torch.full((3,), nan))) == 0
    assert float(masked_choice(torch.zeros(2, 3), torch.tensor([-1, -1]))) == 0


def test_training_resumes_releases_and_is_scored(tree: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    train(tree, checkpoint, RECIPE, check_every=2)
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 2
    network = train(tree, checkpoint, Recipe(**{**state["recipe"], "steps": 3}))
    assert torch.load(checkpoint, weights_only=True)["step"] == 3
    record = release(
        network,
        read_catalogue(tree, "val"),
        tmp_path / "weights",
        version="0.0.1",
        side=64,
        training={"steps_done": 3},
    )
    assert 0 < record.threshold < 1
    assert "calcifications" not in record.speaks_on
    assert "echo_pattern" not in record.speaks_on
    loaded, again = load_model(tmp_path / "weights")
    figures = report(
        TorchNetwork(loaded), again, read_catalogue(tree, "test"), rounds=20
    )
    json.dumps(figures)
    assert figures["pooled"]["n"] == 12
    assert figures["normal"]["normals"] == 1
    assert 0 <= figures["pooled"]["auc"]["value"] <= 1


def test_auc_counts_ties_half() -> None:
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(truth, np.array([0.1, 0.4, 0.4, 0.9])) == pytest.approx(0.875)
    assert math.isnan(auc(np.ones(3), np.ones(3)))


def test_threshold_keeps_the_wanted_sensitivity() -> None:
    truth = np.array([1.0] * 10 + [0.0] * 5)
    chance = np.concatenate([np.linspace(0.1, 1.0, 10), np.zeros(5)])
    level = threshold_for_sensitivity(truth, chance, 0.9)
    assert (chance[:10] >= level).sum() == 9


def test_perfectly_calibrated_chances_have_no_error() -> None:
    truth = np.array([0.0, 0.0, 0.0, 1.0])
    assert calibration_error(truth, np.full(4, 0.25)) == pytest.approx(0.0)


def test_kappa_is_one_for_the_same_reading_and_zero_for_a_constant() -> None:
    reading = np.array([0.0, 1.0, 2.0, 1.0])
    assert kappa(reading, reading, 3) == pytest.approx(1.0)
    assert kappa(reading, np.ones(4), 3) == pytest.approx(0.0)


def test_interval_draws_whole_groups() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    drawn = interval(lambda rows: float(values[rows].mean()), ["a", "a", "b", "b"])
    assert drawn["value"] == 0.5
    assert drawn["low"] == 0.0
    assert drawn["high"] == 1.0
