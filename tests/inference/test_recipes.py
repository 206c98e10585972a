"""The papers' recipes run from end to end on phantoms, and keep patients apart."""

from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from inference.training.recipes import two_stage
from inference.training.recipes.classifiers import build
from inference.training.recipes.multilevel import neighbour_accuracy
from inference.training.recipes.reproduce import reproduce
from inference.training.recipes.schedule import Schedule, fit, scores
from inference.training.recipes.standins import (
    cut,
    hold_out,
    mammograms,
    phantoms,
    whole_images,
)
from inference.training.recipes.tables import confusion, z_test
from inference.training.recipes.us_ct import Branches
from node.domain.errors import NodeError

app = typer.Typer()
app.command()(reproduce)


@pytest.mark.parametrize(
    ("paper", "said"),
    [
        ("paper-multilevel", ["CNN-ViT", "called malignant", "by image"]),
        ("paper-two-stage", ["Inception-v3 two", "Youden", "mammograms"]),
        ("paper-us-ct", ["both views - first view", "not CT"]),
    ],
)
def test_smoke_writes_a_page_that_says_it_means_nothing(
    tmp_path: Path, paper: str, said: list[str]
) -> None:
    page = tmp_path / "page.md"
    result = CliRunner().invoke(
        app, [paper, "--smoke", "--threads", "1", "--out", str(page)]
    )
    assert result.exit_code == 0, result.output
    text = page.read_text()
    for words in ("these figures mean nothing", "Wall time", *said):
        assert words in text


def test_recipe_without_images_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SONONODE_SAMPLES", raising=False)
    result = CliRunner().invoke(app, ["paper-us-ct"])
    assert result.exit_code == 2


def test_recipes_cannot_be_scored_on_the_test_split(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="not on test"):
        whole_images(tmp_path, "test")


def test_held_out_groups_share_no_patient_with_the_rest() -> None:
    learned, held_out = hold_out(phantoms(20, seed=1), 0.3, seed=4)
    assert len(learned) + len(held_out) == 20
    assert not set(learned.groups) & set(held_out.groups)


def test_nearest_neighbour_is_right_when_it_may_look_at_the_same_patient() -> None:
    features = torch.eye(4).repeat_interleave(2, dim=0)
    features[1::2] += 0.1
    malignancy = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    even, odd = torch.arange(0, 8, 2), torch.arange(1, 8, 2)
    assert neighbour_accuracy(features, malignancy, even, odd) == 1.0


def test_augmentation_moves_no_further_than_published() -> None:
    cases = phantoms(2, seed=1)
    spot = torch.zeros_like(cases.pixels)
    spot[:, 120:136, 120:136] = 255
    marked = type(cases)(spot, cases.windows, cases.malignancy, cases.groups)
    random = torch.Generator().manual_seed(1)
    for _ in range(10):
        seen = cut(marked, torch.arange(2), 64, random)
        for image in seen:
            where = torch.nonzero(image > 128).float().mean(dim=0) - 31.5
            assert float(where.abs().max()) < 64 * 0.08 + 1.5


def test_mammograms_without_a_place_are_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = ["id,file,group_id,background_tissue,abnormality,label,x,y,r"]
    for name, place in (("a", ",,"), ("b", "50,40,10"), ("c", ",,")):
        Image.fromarray(np.full((100, 80), 90, np.uint8)).save(
            tmp_path / "images" / f"{name}.png"
        )
        label = {"a": "malignant", "b": "benign", "c": "normal"}[name]
        rows.append(f"{name},images/{name}.png,p{name},F,CIRC,{label},{place}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    found = mammograms(tmp_path)
    assert found.malignancy.tolist() == [1.0, 0.0]
    assert found.windows.tolist() == [[40.0, 50.0, 100.0], [50.0, 40.0, 32.0]]


def test_missing_mammograms_are_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="no mammograms"):
        mammograms(tmp_path / "mias")


def test_early_stop_takes_the_best_weights() -> None:
    cases = phantoms(8, seed=1)
    model = build("CNN-ViT")
    schedule = Schedule("sgd", 10.0, batch=4, side=32, epochs=50, patience=2)
    steps = fit(model, [cases], [cases], schedule, title="test")
    assert steps < 100
    assert np.isfinite(scores(model, [cases], 32)).all()


def test_frozen_base_stays_as_it_was_while_attention_learns() -> None:
    torch.manual_seed(1)
    model = Branches(1, "scratch")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cases = phantoms(4, seed=1)
    schedule = Schedule("adam", 1e-2, batch=2, side=32, epochs=1, steps=2)
    fit(model, [cases], [], schedule, title="test")
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert "head.weight" in changed
    assert all("attention" in name or name.startswith("head.") for name in changed)


def test_confusion_counts_what_was_called() -> None:
    truth = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    counts = confusion(truth, np.array([2.0, -1.0, 1.0, -1.0, -3.0]))
    assert (counts.hits, counts.misses, counts.false_alarms, counts.passes) == (
        1,
        1,
        1,
        2,
    )
    assert counts.accuracy == pytest.approx(0.6)
    assert counts.f1 == pytest.approx(0.5)
    assert confusion(truth, np.full(5, -9.0)).precision is None


def test_z_test_of_a_score_with_itself_finds_nothing() -> None:
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    score = np.array([0.1, 0.6, 0.4, 0.9])
    assert z_test(truth, score, score, list("abcd")) == "+0.000, z = 0.00, p = 1.000"


def test_networks_are_those_of_the_paper() -> None:
    assert two_stage.MODELS == ("VGG16", "Inception-v3", "ResNet-50")
    with pytest.raises(NodeError, match="no classifier is called AlexNet"):
        build("AlexNet")
    with pytest.raises(NodeError, match="not specified"):
        build("CNN-ViT", weights="imagenet")
