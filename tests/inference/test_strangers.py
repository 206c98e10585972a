"""What a model refuses is counted by what the reader itself does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from inference.assess import Reader
from inference.network import LesionNet, TorchNetwork, save_model
from inference.training import strangers
from inference.training.__main__ import app
from inference.training.strangers import (
    as_breast,
    drawn_strangers,
    folder_of_strangers,
    refusals,
)
from tests.inference.records import RECORD

pytestmark = pytest.mark.usefixtures("thin_trunk")


@pytest.fixture(scope="module")
def model(thin_trunk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    directory = tmp_path_factory.mktemp("weights")
    save_model(LesionNet(), RECORD, directory)
    return directory


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "DRAWN", 3)


def test_drawn_strangers_are_refused_by_their_texture() -> None:
    reader = Reader(TorchNetwork(LesionNet()), RECORD)
    for name, images in drawn_strangers():
        assert len(images) == 3
        if name in ("text screens", "noise"):
            assert dict(+refusals(reader, images)) == {"no_speckle": 3}


def test_pictures_of_a_folder_are_one_group(tmp_path: Path) -> None:
    grains = np.random.default_rng(1).integers(20, 200, (60, 80), np.uint8)
    grey = np.kron(grains, np.ones((4, 4), np.uint8))
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((90, 90), np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    ((name, images),) = folder_of_strangers(tmp_path)
    assert name == tmp_path.name
    reader = Reader(TorchNetwork(LesionNet()), RECORD)
    assert dict(refusals(reader, images)) == {"read": 1, "blank": 1}


def test_more_images_than_are_read_at_once_are_all_counted() -> None:
    black = np.zeros((90, 90, 3), np.uint8)
    reader = Reader(TorchNetwork(LesionNet()), RECORD)
    found = refusals(reader, [as_breast(black, n) for n in range(40)])
    assert found["blank"] == 40


def test_command_writes_what_was_refused(
    model: Path, tree: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "refused.json"
    options = ["strangers", "--data", tree, "--model", model, "--json", figures]
    ran = CliRunner().invoke(app, [str(option) for option in options])
    assert ran.exit_code == 0, ran.output
    counted = json.loads(figures.read_text())["refusals"]
    assert {"busi", "breast", "busbra", "text screens"} <= set(counted)
