"""The released weights and their record belong together, or nothing is read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.network import LesionNet, TorchNetwork, load_model, save_model
from inference.record import (
    BIRADS_STEPS,
    CHOICE_KEYS,
    MARGIN_KEYS,
    read_record,
)
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.lexicon import FieldKey
from tests.inference import records as tiny

RECORD = replace(
    tiny.RECORD,
    lesion_threshold=-50.0,
    speaks_on={"shape": ("oval", "irregular"), "orientation": ("parallel",)},
)


pytestmark = pytest.mark.usefixtures("thin_trunk")


@pytest.fixture(scope="module")
def saved(thin_trunk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("weights")
    save_model(LesionNet(), RECORD, directory)
    return directory


def test_weights_come_back_as_they_were_rounded(saved: Path) -> None:
    network, record = load_model(saved)
    assert record == replace(RECORD, sha256=record.sha256)
    assert len(record.sha256) == 64
    again = LesionNet()
    again.load_state_dict(network.state_dict())
    assert not network.training


def test_changed_weights_are_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    content = bytearray((saved / "tiny.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "tiny.safetensors").write_bytes(content)
    (tmp_path / "model.json").write_bytes((saved / "model.json").read_bytes())
    with pytest.raises(NodeError) as caught:
        load_model(tmp_path)
    assert caught.value.kind is ErrorKind.INTEGRITY
    assert "SHA-256" in caught.value.message
    assert "\n" not in caught.value.message


def test_missing_weights_are_told_apart_from_changed_ones(
    saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.json").write_bytes((saved / "model.json").read_bytes())
    with pytest.raises(NodeError, match="missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "x"}'])
def test_broken_record_is_an_integrity_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(NodeError) as caught:
        read_record(path)
    assert caught.value.kind is ErrorKind.INTEGRITY


def test_record_is_plain_json_that_names_its_weights(saved: Path) -> None:
    content = json.loads((saved / "model.json").read_text())
    assert content["weights"] == "tiny.safetensors"
    assert content["speaks_on"]["shape"] == ["oval", "irregular"]


def test_every_head_speaks_the_lexicon() -> None:
    for field, keys in CHOICE_KEYS.items():
        if field != "calcifications":
            lexicon.check_values(FieldKey(field), (keys[0],))
            for key in keys:
                lexicon.FIELDS[FieldKey(field)].term(key)
    for key in MARGIN_KEYS:
        lexicon.FIELDS[FieldKey.MARGIN].term(key)
    ranks = [lexicon.category(key).rank for key in BIRADS_STEPS]
    assert ranks == sorted(ranks)


def test_mask_has_a_quarter_of_the_windows_side() -> None:
    reading = TorchNetwork(LesionNet())(np.zeros((2, 1, 96, 96), np.float32))
    assert reading.mask.shape == (2, 24, 24)
    assert reading.birads.shape == (2, len(BIRADS_STEPS) - 1)
    assert reading.features.shape == (2, 2048, 3, 3)


def test_evidence_adds_up_to_the_malignancy_logit() -> None:
    network = LesionNet()
    random = np.random.default_rng(1)
    reading = TorchNetwork(network)(random.normal(size=(2, 1, 96, 96)).astype("f4"))
    bias = float(network.malignancy.bias.detach())
    mean = reading.evidence.mean(axis=(1, 2)) + bias
    assert mean == pytest.approx(reading.malignancy, abs=1e-5)
