"""The exported network answers as the reference does, or it does not read at all."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inference import engine as engines
from inference import openvino_network as exported
from inference.engine import EngineSettings, open_model
from inference.network import LesionNet, TorchNetwork, load_model, save_model
from inference.openvino_export import export
from inference.record import ModelRecord, read_record
from node.domain.errors import ErrorKind, NodeError
from tests.inference import records as tiny

ROOT = Path(__file__).parents[2]
RECORD = replace(tiny.RECORD, side=32)


@pytest.fixture(scope="module")
def weights(thin_trunk: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    directory = tmp_path_factory.mktemp("weights")
    save_model(LesionNet(), RECORD, directory)
    return directory


@pytest.fixture(scope="module")
def record(weights: Path) -> ModelRecord:
    return read_record(weights / "model.json")


@pytest.fixture(scope="module")
def exports(
    weights: Path, record: ModelRecord, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("data") / "exports"
    export(weights, directory / f"{record.sha256[:32]}-32", threads=1)
    return directory


@pytest.fixture
def folder(exports: Path, tmp_path: Path) -> Path:
    """Give a copy of the export that a test may break; the constants are a link."""
    (whole,) = exports.iterdir()
    copy = tmp_path / "exports" / whole.name
    copy.mkdir(parents=True)
    for file in whole.iterdir():
        if file.name == exported.CONSTANTS:
            (copy / file.name).hardlink_to(file)
        else:
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def some_windows(count: int, seed: int = 1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 1, 32, 32)).astype(np.float32)


def test_export_answers_as_the_reference_does_on_windows_it_never_saw(
    weights: Path, record: ModelRecord, exports: Path
) -> None:
    module, _ = load_model(weights)
    network = exported.open_network(weights, record, exports, threads=1)
    windows = some_windows(5)
    reference = exported.answers_of(TorchNetwork(module)(windows))
    tolerance = exported.TOLERANCE[network.precision]
    assert not exported.disagreement(network(windows), reference, tolerance)


def test_window_gets_the_same_answer_in_whatever_company(
    weights: Path, record: ModelRecord, exports: Path
) -> None:
    network = exported.open_network(weights, record, exports, threads=1)
    windows = some_windows(7)
    together = network(windows)
    for row in range(7):
        alone = network(windows[row : row + 1])
        assert np.array_equal(alone.mask[0], together.mask[row])
        assert alone.malignancy[0] == together.malignancy[row]


def _change_graph(folder: Path) -> None:
    text = (folder / exported.GRAPH).read_text()
    (folder / exported.GRAPH).write_text(text.replace("ReLU", "Tanh", 1))


def _change_origin(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / exported.MANIFEST).read_text())
    (folder / exported.MANIFEST).write_text(json.dumps(manifest | values))


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "graph": (_change_graph, "network.xml is not what was exported"),
    "probe": (
        lambda folder: (folder / exported.PROBE).write_bytes(b"PK"),
        "probe.npz is not what was exported",
    ),
    "constants": (
        lambda folder: (folder / exported.CONSTANTS).unlink(),
        "network.bin is missing",
    ),
    "manifest": (
        lambda folder: (folder / exported.MANIFEST).write_text("[]"),
        "manifest cannot be read",
    ),
    "weights": (
        lambda folder: _change_origin(folder, weights_sha256="0" * 64),
        "other weights or another version",
    ),
    "network": (
        lambda folder: _change_origin(folder, network_sha256="0" * 64),
        "other weights or another version",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_tampered_or_stale_export_is_refused(
    what: str, folder: Path, record: ModelRecord
) -> None:
    damage, told = BREAKS[what]
    damage(folder)
    with pytest.raises(exported.ExportFault, match=told):
        exported.load_export(folder, record, threads=1)


def test_refused_export_is_made_anew(
    weights: Path,
    record: ModelRecord,
    exports: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (whole,) = exports.iterdir()
    asked = []

    def export_again(source: Path, target: Path, *, threads: int = 0) -> None:
        asked.append(source)
        (target / exported.GRAPH).write_bytes((whole / exported.GRAPH).read_bytes())

    _change_graph(folder)
    monkeypatch.setattr(exported, "export_in_child", export_again)
    network = exported.open_network(weights, record, folder.parent, threads=1)
    assert asked == [weights]
    assert network(some_windows(1)).malignancy.shape == (1,)


def test_answers_that_stray_from_the_reference_never_read(
    folder: Path, record: ModelRecord
) -> None:
    with np.load(folder / exported.PROBE) as probe:
        stored = {name: probe[name] for name in probe.files}
    stored["lesion"] = stored["lesion"] + 0.5
    np.savez(folder / exported.PROBE, **stored)
    exported.write_manifest(folder, record)
    with pytest.raises(exported.ExportFault, match="lesion by 0\\."):
        exported.load_export(folder, record, threads=1)


def test_nobody_is_told_that_openvino_is_used() -> None:
    assert sys.modules["openvino_telemetry"] is None
    reporter = type(exported.ov.tools.ovc.telemetry)
    assert reporter.__module__ == "openvino.tools.ovc.telemetry_stub"


def test_not_a_number_strays(record: ModelRecord) -> None:
    reading = TorchNetwork(LesionNet())(some_windows(2))
    wanted = exported.answers_of(reading)
    assert exported.disagreement(reading, wanted, 0.1) == ""
    reading.malignancy[0] = np.nan
    wanted = wanted | {"malignancy": np.zeros(2, np.float32)}
    assert "malignancy" in exported.disagreement(reading, wanted, 0.1)


def test_model_that_cannot_be_exported_falls_back_to_torch_in_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NodeError("no room for the export", ErrorKind.UNAVAILABLE)

    monkeypatch.setattr(exported, "export_in_child", fail)
    monkeypatch.setattr(engines, "cuda_at_hand", lambda: False)
    told: list[dict[str, object]] = []
    monkeypatch.setattr(
        engines.log, "warning", lambda event, **about: told.append(about)
    )
    engine, _ = open_model(EngineSettings(tmp_path, threads=1), weights)
    assert engine(some_windows(3)).malignancy.shape == (3,)
    assert told == [{"engine": "torch", "reason": "no room for the export"}]
    engine.close()
    with pytest.raises(NodeError, match="no room"):
        open_model(EngineSettings(tmp_path, kind="openvino"), weights)


def test_child_that_fails_says_why_in_one_line(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.json").write_bytes((weights / "model.json").read_bytes())
    with pytest.raises(NodeError) as caught:
        exported.export_in_child(broken, tmp_path / "exports" / "x", threads=1)
    assert "model weights tiny.safetensors are missing" in caught.value.message
    assert list((tmp_path / "exports").iterdir()) == []


READ_WITHOUT_TORCH = """
import sys
from functools import partial
from pathlib import Path
import inference.loaded, inference.reading, inference.shadow, node.app
from config.settings import load_settings
from inference.models import verify_folder
from node.store.models import ModelRole

weights, data = sys.argv[1:]
settings = load_settings(
    {"SONONODE_DATA": data, "SONONODE_INFERENCE__ENGINE": "openvino"}
)
folder = verify_folder(Path(weights))
load = partial(node.app.load_model, settings)
# Reads a study, heat map and all.
inference.loaded.load_and_try(folder, ModelRole.ACTIVE, load).close()
loaded = sorted(name for name in sys.modules if name.split(".")[0] == "torch")
assert not loaded, loaded[:3]
"""


def test_studies_are_read_without_torch(weights: Path, exports: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_TORCH, str(weights), str(exports.parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
