"""Runs that are killed, run out of memory, are released and judged by others."""

import csv
import json
import math
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from inference.network import LesionNet, load_model
from inference.training.__main__ import app, main
from inference.training.data import read_catalogue
from inference.training.publish import publish
from inference.training.train import Feed, Recipe, Run, train
from inference.unfamiliar import read_familiarity
from node.domain.errors import ErrorKind, NodeError

RECIPE = Recipe(steps=4, batch=4, side_first=32, side=64, last_side=64, threads=1)

pytestmark = pytest.mark.usefixtures("thin_trunk")


class Killed(BaseException):
    pass


def end_of(checkpoint: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    lines = [
        json.loads(line)
        for line in checkpoint.with_name("metrics.jsonl").read_text().splitlines()
    ]
    for line in lines:
        del line["minutes"]
    return torch.load(checkpoint, weights_only=True)["average"], lines


def test_killed_run_ends_where_it_would_have_ended(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole" / "model.pt", tmp_path / "broken" / "model.pt"
    train(tree, whole, RECIPE, check_every=2, device="cpu")
    advance = Run.advance

    def die_in_the_fourth_step(run: Run) -> float:
        if run.step == 3:
            raise Killed
        return advance(run)

    monkeypatch.setattr(Run, "advance", die_in_the_fourth_step)
    with pytest.raises(Killed):
        train(tree, broken, RECIPE, check_every=2, device="cpu")
    monkeypatch.undo()
    torch.manual_seed(99)
    train(tree, broken, RECIPE, check_every=2, device="cpu")
    weights, lines = end_of(whole)
    again, lines_again = end_of(broken)
    assert [line["step"] for line in lines] == [2, 4]
    assert json.dumps(lines) == json.dumps(lines_again)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_batches_drawn_ahead_for_a_gpu_are_the_same(tree: Path) -> None:
    catalogue = read_catalogue(tree, "train")
    once, ahead = (Feed(catalogue, RECIPE, ahead=count) for count in (0, 3))
    for step, side in enumerate((32, 32, 64, 64)):
        first, second = once.batch(step, side), ahead.batch(step, side)
        assert first.windows.shape[-1] == side
        assert torch.equal(first.windows, second.windows)
        assert torch.equal(first.masks, second.masks)


def test_run_that_is_told_to_stop_keeps_its_last_step(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Run.advance

    def be_told(run: Run) -> float:
        # What the signal would call: a real one ends the tests if nobody listens.
        listener = signal.getsignal(signal.SIGTERM)
        assert callable(listener)
        listener(signal.SIGTERM, None)
        return advance(run)

    monkeypatch.setattr(Run, "advance", be_told)
    checkpoint = tmp_path / "model.pt"
    assert train(tree, checkpoint, RECIPE, device="cpu") is None
    assert torch.load(checkpoint, weights_only=True)["step"] == 1


def test_another_recipe_is_another_run(tree: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    train(tree, checkpoint, RECIPE, device="cpu", stop_after=0)
    with pytest.raises(NodeError, match="learning_rate") as caught:
        train(tree, checkpoint, replace(RECIPE, learning_rate=0.5), device="cpu")
    assert caught.value.kind is ErrorKind.CONFLICT


def test_damaged_checkpoint_says_what_to_do(tree: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(NodeError, match="start anew"):
        train(tree, checkpoint, RECIPE, device="cpu")


def no_memory_above(images: int) -> Callable[[LesionNet, Tensor], Any]:
    forward = LesionNet.forward

    def crowded(network: LesionNet, windows: Tensor) -> Any:
        if network.training and len(windows) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(network, windows)

    return crowded


def test_out_of_memory_goes_on_with_smaller_pieces(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LesionNet, "forward", no_memory_above(2))
    checkpoint = tmp_path / "model.pt"
    assert train(tree, checkpoint, RECIPE, device="cpu") is not None
    state = torch.load(checkpoint, weights_only=True)
    assert state["pieces"] == 2
    assert state["lines"][-1]["pieces"] == 2
    assert not any(value.isnan().any() for value in state["average"].values())


def test_no_memory_for_one_image_is_one_clear_line(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LesionNet, "forward", no_memory_above(0))
    with pytest.raises(NodeError, match="smaller windows") as caught:
        train(tree, tmp_path / "model.pt", RECIPE, device="cpu")
    assert caught.value.kind is ErrorKind.EXHAUSTED


def test_cuda_is_asked_for_only_where_there_is_one(tree: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(NodeError, match="--device cpu"):
        train(tree, tmp_path / "model.pt", RECIPE, device="cuda")


@pytest.fixture(scope="module")
def released(
    thin_trunk: None, tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("run")
    train(tree, run / "model.pt", RECIPE, check_every=2, device="cpu")
    publish(run / "model.pt", tree, run, version="0.0.1", rounds=20)
    return run


def test_run_leaves_everything_that_tells_how_it_went(released: Path) -> None:
    names = {path.name for path in released.iterdir()}
    pictures = {"curves.png", "roc.png", "calibration.png", "confusion.png"}
    assert pictures | {"config.json", "metrics.jsonl", "metrics.json"} <= names
    assert all((released / name).stat().st_size > 5000 for name in pictures)
    config = json.loads((released / "config.json").read_text())
    assert config["recipe"]["seed"] == RECIPE.seed
    assert config["data"]["train"]["sets"]["busi"]["malignant"] == 2
    assert len(config["data"]["train"]["sha256"]) == 64
    assert "torch" in config["libraries"]


def test_record_of_a_release_is_complete(released: Path) -> None:
    _, record = load_model(released)
    assert record.version == "0.0.1"
    assert record.side == 64
    assert 0 < record.threshold < 1
    assert record.training["steps"] == 4
    assert "calcifications" not in record.speaks_on


def test_release_knows_what_is_familiar_to_it(released: Path) -> None:
    _, record = load_model(released)
    familiarity = read_familiarity(released, record)
    assert familiarity is not None
    assert np.isfinite(familiarity.distance(np.zeros((1, 2048), np.float32))).all()
    assert list(record.category_cuts) == sorted(record.category_cuts)


def test_card_has_every_table_and_no_figure_by_hand(released: Path) -> None:
    card = (released / "card.md").read_text()
    for heading in (
        "## Data and training",
        "## Results on the validation split",
        "### What localisation costs",
        "### Descriptors against the radiologists' labels",
        "### Where the heat map looks",
        "### Subgroups",
        "## Calibration",
        "## Does it read callipers and text?",
        "## Against the targets (validation split)",
        "## Known defects",
    ):
        assert heading in card
    assert not re.search(r"\bnan\b", card)
    assert "fewer than 10 of a class" in card
    (released / "defects.md").write_text("- One lesion per study.\n")
    refusals = {"photographs": {"read": 1, "unlike": 19}}
    (released / "strangers.json").write_text(json.dumps({"refusals": refusals}))
    assert CliRunner().invoke(app, ["card", "--model", str(released)]).exit_code == 0
    card = (released / "card.md").read_text()
    assert "- One lesion per study." in card
    assert "| photographs | 20 | 19 | unlike 19 |" in card


def test_figures_of_other_weights_make_no_card(released: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(released, model)
    (model / "figures-test.json").write_text('{"sha256": "0"}')
    result = CliRunner().invoke(app, ["card", "--model", str(model)])
    assert isinstance(result.exception, NodeError)
    assert "other weights" in str(result.exception)


def judge(model: Path, data: Path, split: str, *more: str) -> dict[str, Any]:
    """Evaluate as an independent party would; return the figures."""
    figures = model.parent / "figures.json"
    command = ["evaluate", "--data", str(data), "--split", split, "--rounds", "20"]
    command += ["--model", str(model), "--json", str(figures), *more]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(figures.read_text())
    return content


def test_evaluation_tells_what_localisation_costs(
    released: Path, tree: Path, tmp_path: Path
) -> None:
    told = judge(released, tree, "test", "--oracle-roi", "--report", str(tmp_path))
    assert told["pooled"]["n"] == 12
    assert told["normal"]["normals"] == 1
    gain = told["pooled"]["oracle_gain"]
    assert gain["first"] - gain["second"] == pytest.approx(gain["difference"])
    assert gain["bootstrap_low"] <= gain["bootstrap_high"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json",
        "report.md",
        "roc.png",
        "calibration.png",
        "confusion.png",
    }
    assert "auc_oracle_roi" not in judge(released, tree, "test")["pooled"]


def test_every_part_of_the_split_is_listed(released: Path, tree: Path) -> None:
    parts = judge(released, tree, "test")["subgroups"]
    named = {(part["kind"], part["name"]): part for part in parts}
    assert named["device", "Phantom 1"]["n"] == 12
    assert named["device", "Phantom 1"]["auc"] is None
    assert {"set", "device", "share of the image", "callipers"} <= {k for k, _ in named}


def relabelled(
    tree: Path, data: Path, change: Callable[[dict[str, str]], None]
) -> Path:
    """Return a copy of one set under a name that nobody knows, its rows changed."""
    shutil.copytree(tree / "busbra", data / "clinic")
    manifest = data / "clinic" / "manifest.csv"
    with manifest.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        for column in ("file", "mask"):
            row[column] = row[column].replace("busbra/", "clinic/")
        change(row)
    with manifest.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return data


def test_unknown_set_without_masks_or_labels_is_evaluated(
    released: Path, tree: Path, tmp_path: Path
) -> None:
    def strip(row: dict[str, str]) -> None:
        row["mask"] = ""
        row["surgeon"] = "?"
        del row["birads"], row["shape"], row["calliper_marks"]

    (tmp_path / "mammograms").mkdir()
    (tmp_path / "mammograms" / "manifest.csv").write_text("id,file,label\n1,a,benign\n")
    told = judge(released, relabelled(tree, tmp_path, strip), "test", "--oracle-roi")
    assert told["sets"] == ["clinic"]
    assert told["clinic"]["n"] == 4
    assert told["clinic"]["dice"]["value"] is None
    assert told["clinic"]["oracle_gain"]["n"] == 0
    assert told["notices"] == ["mammograms: skipped, no column split"]


@pytest.mark.parametrize("only", ["malignant", "benign", "normal"])
def test_one_class_alone_has_no_auc_and_no_traceback(
    released: Path, tree: Path, tmp_path: Path, only: str
) -> None:
    def keep(row: dict[str, str]) -> None:
        if row["split"] == "test":
            row["label"] = only

    data = relabelled(tree, tmp_path, keep)
    told = judge(released, data, "test", "--report", str(tmp_path / "report"))
    assert told["pooled"]["auc"]["value"] is None
    assert told["pooled"]["n"] == (0 if only == "normal" else 4)
    assert not re.search(r"\bnan\b", (tmp_path / "report" / "report.md").read_text())


def test_shortcuts_are_measured_on_pairs(released: Path, tree: Path) -> None:
    figures = released.parent / "shortcuts.json"
    command = ["shortcuts", "--data", str(tree), "--split", "test", "--rounds", "20"]
    command += ["--model", str(released), "--json", str(figures)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(figures.read_text())
    drawn = told["changes"]["callipers at the lesion"]
    assert drawn["n"] == 6
    assert not math.isclose(drawn["logit_change"]["value"], 0.0)
    assert told["marks_alone"]["busi"]["calliper_marks"]["auc"]["value"] == 1.0


def test_without_matplotlib_no_hours_are_spent_first(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.training.figures.find_spec", lambda _: None)
    command = ["train", "--data", str(tree), "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert "sononode[training]" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_known_failure_is_one_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["training", "evaluate", "--data", str(tmp_path / "nowhere")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    printed = capsys.readouterr().err.strip()
    assert "give the folder that holds the sets" in printed
    assert "\n" not in printed
