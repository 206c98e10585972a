"""The network on OpenVINO: exported once per installation, and never trusted unseen.

An export is a folder: the graph, its constants, probe windows with the answers of the
torch reference, and a manifest that hashes them and says which weights and which
network they come from. A child process makes it (`inference.openvino_export`); this
process loads it without importing torch. Whatever does not fit is made anew, and
an engine whose answers to the probe stray from the reference does not read.

Windows are read in pairs, always two at a time: on a CPU larger batches gain a few per
cent, and fixed ones give a window the same answer whoever else is being read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino as ov
import structlog

from inference.preprocess import normalise
from inference.record import CHOICE_KEYS, Array, ModelRecord, Reading
from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger(__name__)

PAIR: Final = 2
FORMAT: Final = 1
GRAPH, CONSTANTS, PROBE = "network.xml", "network.bin", "probe.npz"
MANIFEST: Final = "manifest.json"
EXPORT_LIMIT_S: Final = 900.0
THREADS_PER_STREAM: Final = 4
PROBE_WINDOWS: Final = 8

TOLERANCE: Final[Mapping[str, float]] = {"f32": 0.0005, "bf16": 0.01}
"""How far an answer may lie from the torch reference, by precision.

A share of the largest reference value of that output over the probe, or of 1 where
all are smaller. For the malignancy logit 0.01 means at most 0.0025 of probability for
each unit of the largest logit.
"""

_SOURCES: Final = ("network.py", "attention.py")
"""The code that says what the weights mean: an export of an older one is stale."""


class ExportFault(Exception):
    """An export cannot be used; the text says why, in one line."""


class OpenVinoNetwork:
    """An exported network as `record.Network`; calls take their turn."""

    def __init__(self, compiled: Any, precision: str) -> None:
        self.precision = precision
        self.side = int(compiled.input().shape[-1])
        self._queue = ov.AsyncInferQueue(compiled)
        self._queue.set_callback(_keep)
        self._shapes = {
            port.any_name: tuple(port.shape)[1:] for port in compiled.outputs
        }
        self._turn = threading.Lock()

    def __call__(self, windows: Array) -> Reading:
        """Read windows, float32 (n, 1, side, side)."""
        count = len(windows)
        pairs = np.ascontiguousarray(_even(windows), dtype=np.float32)
        answers = {
            name: np.empty((len(pairs), *shape), dtype=np.float32)
            for name, shape in self._shapes.items()
        }
        with self._turn:
            for start in range(0, len(pairs), PAIR):
                self._queue.start_async(
                    [pairs[start : start + PAIR]], (answers, start), share_inputs=True
                )
            self._queue.wait_all()
        return reading_of({name: values[:count] for name, values in answers.items()})


def _keep(request: Any, place: tuple[dict[str, Array], int]) -> None:
    """Copy a pair's answers to where they belong; the request is used again."""
    answers, start = place
    for name, values in answers.items():
        values[start : start + PAIR] = request.get_tensor(name).data


def _even(windows: Array) -> Array:
    if len(windows) % PAIR == 0:
        return windows
    return np.concatenate([windows, np.zeros_like(windows[:1])])


def answers_of(reading: Reading) -> dict[str, Array]:
    """Return a reading's arrays by the names that they have in an export."""
    return {
        "malignancy": reading.malignancy,
        "lesion": reading.lesion,
        "birads": reading.birads,
        "margin": reading.margin,
        **{f"choices.{field}": reading.choices[field] for field in CHOICE_KEYS},
        "mask": reading.mask,
        "features": reading.features,
        "evidence": reading.evidence,
    }


def reading_of(answers: Mapping[str, Array]) -> Reading:
    """Return a reading from arrays by name."""
    return Reading(
        malignancy=answers["malignancy"],
        lesion=answers["lesion"],
        birads=answers["birads"],
        margin=answers["margin"],
        choices={field: answers[f"choices.{field}"] for field in CHOICE_KEYS},
        mask=answers["mask"],
        features=answers["features"],
        evidence=answers["evidence"],
    )


# --- opening ---------------------------------------------------------------------


def open_network(
    weights: Path, record: ModelRecord, exports: Path, *, threads: int = 0
) -> OpenVinoNetwork:
    """Return the network of the verified weights in `weights`, exporting when needed.

    `exports`: a folder of this installation. `threads`: CPU cores, 0 for all.
    Raises NodeError(UNAVAILABLE) when no export agrees with the reference.
    """
    folder = exports / f"{record.sha256[:32]}-{record.side}"
    try:
        return load_export(folder, record, threads=threads)
    except ExportFault as fault:
        log.info("model.export", model=record.name, reason=str(fault))
    export_in_child(weights, folder, threads=threads)
    try:
        return load_export(folder, record, threads=threads)
    except ExportFault as fault:
        raise NodeError(
            f"the export of {record.name} cannot be used: {fault}",
            ErrorKind.UNAVAILABLE,
        ) from None


def load_export(
    folder: Path, record: ModelRecord, *, threads: int = 0
) -> OpenVinoNetwork:
    """Return the network exported to `folder`; ExportFault says why it may not read."""
    _check_manifest(folder, record)
    windows, wanted = _read_probe(folder / PROBE)
    strayed = ""
    for precision in _precisions():
        compiled = compile_graph(folder / GRAPH, precision, threads=threads)
        network = OpenVinoNetwork(compiled, precision)
        strayed = disagreement(network(windows), wanted, TOLERANCE[precision])
        if not strayed:
            return network
        log.warning("model.imprecise", precision=precision, output=strayed)
    raise ExportFault(f"its answers stray from the reference: {strayed}")


def _check_manifest(folder: Path, record: ModelRecord) -> None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        hashes = dict(manifest.pop("files"))
    except FileNotFoundError:
        raise ExportFault("not exported yet") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ExportFault("its manifest cannot be read") from None
    if manifest != origin_of(record):
        raise ExportFault("it comes from other weights or another version")
    for name in (GRAPH, CONSTANTS, PROBE):
        try:
            found = file_hash(folder / name)
        except OSError:
            raise ExportFault(f"{name} is missing") from None
        if found != hashes.get(name):
            raise ExportFault(f"{name} is not what was exported")


def _read_probe(path: Path) -> tuple[Array, dict[str, Array]]:
    try:
        with np.load(path, allow_pickle=False) as probe:
            stored = {name: probe[name] for name in probe.files}
        return stored.pop("windows"), stored
    except (OSError, ValueError, KeyError) as error:
        raise ExportFault(
            f"its probe cannot be read ({type(error).__name__})"
        ) from None


def _precisions() -> tuple[str, ...]:
    """Return the precisions to try, the fastest first.

    Without instructions for it (AVX512_BF16, AMX) bf16 would be emulated.
    """
    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "f32") if "BF16" in able else ("f32",)


def compile_graph(graph: Path, precision: str, *, threads: int = 0) -> Any:
    """Return an exported graph ready to run on the CPU, as this product runs it."""
    cores = threads or len(os.sched_getaffinity(0))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": max(1, cores // THREADS_PER_STREAM),
        # Other processes of the node want the same cores: none is ours alone.
        "ENABLE_CPU_PINNING": False,
    }
    core = ov.Core()
    try:
        return core.compile_model(core.read_model(graph), "CPU", settings)
    except RuntimeError as error:
        raise ExportFault(f"it does not compile ({type(error).__name__})") from None


def disagreement(
    reading: Reading, wanted: Mapping[str, Array], tolerance: float
) -> str:
    """Return the first output that strays from the reference, and how far; or ""."""
    for name, values in answers_of(reading).items():
        reference = wanted.get(name)
        if reference is None or reference.shape != values.shape:
            return f"{name} has another shape"
        scale = max(1.0, float(np.abs(reference).max()))
        strayed = float(np.abs(values - reference).max()) / scale
        if not strayed <= tolerance:  # NaN strays too
            return f"{name} by {strayed:.4f}, at most {tolerance}"
    return ""


# --- exporting -------------------------------------------------------------------


def export_in_child(weights: Path, folder: Path, *, threads: int = 0) -> None:
    """Export the model in `weights` to `folder`, in a process that imports torch.

    The folder appears whole or not at all. Raises NodeError(UNAVAILABLE).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    _put_away(folder)
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "inference.openvino_export"]
    try:
        subprocess.run(  # noqa: S603
            [*command, str(weights.absolute()), str(partial), str(threads)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            check=True,
            capture_output=True,
            timeout=EXPORT_LIMIT_S,
        )
        _put_in_place(partial, folder)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [""]
        raise NodeError(
            f"the model cannot be exported to OpenVINO: {lines[-1]}",
            ErrorKind.UNAVAILABLE,
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NodeError(
            f"the model cannot be exported to OpenVINO ({type(error).__name__})",
            ErrorKind.UNAVAILABLE,
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_away(folder: Path) -> None:
    """Remove a faulty export; who has it in memory reads on."""
    away = folder.with_name(f".{folder.name}.{os.getpid()}.faulty")
    with suppress(OSError):
        folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Give an export its name, unless another process was faster with the same."""
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise


def origin_of(record: ModelRecord) -> dict[str, object]:
    """Return what an export must come from to serve `record`."""
    sources = hashlib.sha256()
    for name in _SOURCES:
        sources.update(Path(__file__).with_name(name).read_bytes())
    return {
        "format": FORMAT,
        "weights_sha256": record.sha256,
        "side": record.side,
        "network_sha256": sources.hexdigest(),
        "openvino": ov.__version__,
    }


def write_manifest(folder: Path, record: ModelRecord) -> None:
    """Write down what the files of an export are and where they come from."""
    files = {name: file_hash(folder / name) for name in (GRAPH, CONSTANTS, PROBE)}
    text = json.dumps(origin_of(record) | {"files": files}, indent=2)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def probe_windows(side: int) -> Array:
    """Return the windows of the probe: speckle that darkens, around dark ellipses.

    The same ones every time: (8, 1, side, side), float32.
    """
    random = np.random.default_rng(20261121)
    down, across = (np.mgrid[0:side, 0:side] + 0.5) / side
    windows = np.empty((PROBE_WINDOWS, side, side), dtype=np.float32)
    for window in windows:
        x, y = random.uniform(0.35, 0.65, 2)
        width, height = random.uniform(0.1, 0.35, 2)
        inside = ((across - x) / width) ** 2 + ((down - y) / height) ** 2 < 1
        speckle = random.rayleigh(55, (side, side)) * np.exp(-1.2 * down)
        window[:] = np.where(inside, speckle * random.uniform(0.1, 0.5), speckle)
    return normalise(windows.clip(0, 255))
