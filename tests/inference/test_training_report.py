"""Shortcuts, subgroups, heat maps, pictures and targets, on models of known habits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.record import BIRADS_STEPS, CHOICE_KEYS, Array, Network, Reading
from inference.training.card import TARGETS
from inference.training.data import Catalogue, read_catalogue
from inference.training.figures import (
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_roc,
    roc_band,
)
from inference.training.heat import pointing_figures
from inference.training.measures import roc_curve
from inference.training.shortcuts import marks_alone, shortcut_figures
from inference.training.subgroups import Suspicions, subgroup_table
from inference.two_pass import read_regions
from tests.inference.records import RECORD


def network_that_sees(look: Callable[[Array], Array]) -> Network:
    """Return a network whose malignancy and evidence are `look` of the windows.

    `look`: (n, side, side) -> evidence (n, side/32, side/32).
    """

    def network(windows: Array) -> Reading:
        n, side = len(windows), windows.shape[-1]
        evidence = look(windows[:, 0])
        return Reading(
            malignancy=evidence.mean(axis=(1, 2)),
            lesion=np.ones(n, np.float32),
            birads=np.zeros((n, len(BIRADS_STEPS) - 1), np.float32),
            margin=np.zeros((n, 5), np.float32),
            choices={
                field: np.zeros((n, len(keys)), np.float32)
                for field, keys in CHOICE_KEYS.items()
            },
            mask=np.ones((n, side // 4, side // 4), np.float32),
            features=np.zeros((n, 8, side // 32, side // 32), np.float32),
            evidence=evidence,
        )

    return network


def cells(windows: Array) -> Array:
    n, side = len(windows), windows.shape[-1]
    parts = windows.reshape(n, side // 32, 32, side // 32, 32)
    return np.asarray(parts.mean(axis=(2, 4)), np.float32)


def white(windows: Array) -> Array:
    """See only pixels as bright as marks are."""
    return 100 * cells((windows > 2.5).astype(np.float32))


def nothing(windows: Array) -> Array:
    return np.zeros_like(cells(windows))


def dark(windows: Array) -> Array:
    """See what is darker than tissue and no black border."""
    return cells(((windows > -1.2) & (windows < -0.6)).astype(np.float32))


@pytest.fixture(scope="module")
def test_split(tree: Path) -> Catalogue:
    return read_catalogue(tree, "test")


def test_model_that_reads_callipers_is_caught(test_split: Catalogue) -> None:
    calm = replace(test_split, pixels=test_split.pixels // 2)
    told = shortcut_figures(network_that_sees(white), RECORD, calm, rounds=20)
    changes = told["changes"]
    assert changes["callipers at the lesion"]["logit_change"]["low"] > 0
    assert changes["text"]["logit_change"]["value"] > 0
    assert changes["border strips blacked out"]["logit_change"]["value"] == 0
    assert changes["callipers at the lesion"]["n"] == 6


def test_model_that_does_not_look_is_not_moved(test_split: Catalogue) -> None:
    told = shortcut_figures(network_that_sees(nothing), RECORD, test_split, rounds=20)
    for change in told["changes"].values():
        assert change["absolute_change"] == 0
        assert change["newly_called"] == {"malignant": 0, "benign": 0}


def test_marks_that_go_with_cancer_are_told(test_split: Catalogue) -> None:
    alone = marks_alone(test_split, rounds=20)["pooled"]["calliper_marks"]
    assert alone["auc"]["value"] == 1.0
    assert (alone["malignant_of_marked"], alone["malignant_of_others"]) == (1.0, 0.0)


def test_heat_on_dark_lesions_points_better_than_chance(test_split: Catalogue) -> None:
    network = network_that_sees(dark)
    answers = read_regions(
        network, test_split.pixels.numpy(), test_split.sizes.numpy(), 128
    )
    told = pointing_figures(network, test_split, answers, 128, rounds=20)
    assert told["lesions"]["n"] == 12
    assert told["lesions"]["energy"]["value"] > told["lesions"]["by_chance"]
    assert told["malignant"]["n"] + told["benign"]["n"] == 12


def many(catalogue: Catalogue, copies: int) -> tuple[Catalogue, Suspicions]:
    truth = catalogue.malignancy.numpy().astype(float)
    rows = np.tile(np.flatnonzero(~np.isnan(truth)), copies)
    chance = np.random.default_rng(2).uniform(size=len(rows))
    called = (chance > 0.5).astype(float)
    return catalogue, Suspicions(truth[rows], chance, called, rows)


def test_part_with_few_cases_has_no_figure(test_split: Catalogue) -> None:
    few = subgroup_table(*many(test_split, 1), rounds=10)
    assert all(part["auc"] is None for part in few if part["kind"] == "set")
    enough = subgroup_table(*many(test_split, 3), rounds=10)
    whole = next(part for part in enough if part["kind"] == "device")
    assert (whole["n"], whole["malignant"]) == (36, 18)
    assert 0 <= whole["auc"]["low"] <= whole["auc"]["high"] <= 1


@pytest.mark.parametrize(
    ("column", "text", "kind", "name"),
    [
        ("age", "39.5", "age", "< 40"),
        ("age", "49", "age", "40-49"),
        ("age", "60", "age", "60 and older"),
        ("age", "not available", "age", "unknown"),
        ("tissue", "homogeneous: fat", "tissue", "homogeneous: fat"),
    ],
)
def test_parts_are_named_as_people_name_them(
    test_split: Catalogue, column: str, text: str, kind: str, name: str
) -> None:
    rows = list(test_split.rows)
    for place, row in enumerate(rows):
        known = {"age": "70"} if column == "age" else {}
        rows[place] = replace(row, values={**row.values, **known})
    rows[0] = replace(rows[0], values={**rows[0].values, column: text})
    table = subgroup_table(*many(replace(test_split, rows=tuple(rows)), 1), rounds=5)
    assert name in {part["name"] for part in table if part["kind"] == kind}


def test_sets_without_a_manifest_have_parts_too(test_split: Catalogue) -> None:
    bare = replace(test_split, rows=())
    kinds = {part["kind"] for part in subgroup_table(*many(bare, 1), rounds=5)}
    assert kinds == {"set", "share of the image"}


def test_band_holds_the_curve() -> None:
    random = np.random.default_rng(1)
    truth = np.repeat([0.0, 1.0], 60)
    score = random.normal(truth, 1)
    low, high = roc_band(truth, score, [str(i) for i in range(120)], rounds=100)
    false_rate, true_rate, _ = roc_curve(truth, score)
    at = np.searchsorted(false_rate, np.linspace(0, 1, 101), side="right") - 1
    inside = (low <= true_rate[at] + 1e-9) & (true_rate[at] <= high + 1e-9)
    assert inside.mean() > 0.95


def test_pictures_are_drawn_of_little_and_of_one_class(tmp_path: Path) -> None:
    truth, chance = np.ones(3), np.array([0.1, 0.5, 0.9])
    draw_roc(tmp_path / "roc.png", truth, {"own": chance}, ["a", "b", "c"], rounds=5)
    draw_calibration(tmp_path / "calibration.png", truth, {"said": chance})
    draw_confusion(tmp_path / "confusion.png", {"none": (("a", "b"), np.zeros((2, 2)))})
    draw_curves(tmp_path / "curves.png", [{"step": 1, "loss": None}])
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.width > 300


def test_target_that_was_not_measured_is_not_met() -> None:
    pooled = {"auc": {"value": 0.91, "low": 0.85}, "ece": {"value": 0.06}}
    verdicts = {target.words: target.met({"pooled": pooled}) for target in TARGETS}
    assert verdicts["pooled AUC >= .90"] == (0.91, True)
    assert verdicts["pooled AUC, lower bound >= .86"] == (0.85, False)
    assert verdicts["calibration error <= .05"] == (0.06, False)
    assert verdicts["BrEaST AUC >= .85"] is None
