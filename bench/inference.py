"""Reading of images: the product's engine beside plain torch, and what the CPU allows.

Plain torch is the same network as most people would run it: eager, float32, one call.
The ceiling is the exported graph alone: infer requests on tensors that lie ready, with
nobody to take the answers. All take turns in one process; medians count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.peers import ROOT
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from inference.assess import ImageToRead, Reader
from inference.engine import Engine
from inference.network import load_model, reading_of
from inference.openvino_network import (
    GRAPH,
    PAIR,
    OpenVinoNetwork,
    compile_graph,
    open_network,
    probe_windows,
)
from inference.record import WEIGHTS, Array, Reading
from inference.select import ImageHeader
from node.logs import configure_logging

BATCHES = (1, 8, 32)
STILLS = 10
STUDIES = 4
SIDE_BY_SIDE = 2

READY = """
import sys
from pathlib import Path
from inference.engine import EngineSettings, open_model
open_model(EngineSettings(Path(sys.argv[1]), sys.argv[2]))[0].close()
"""


def measure(folder: Path, repeats: int) -> list[dict[str, object]]:
    """Export the shipped model, then let engine, torch and bare graph take turns."""
    configure_logging("error", "console")
    exports = folder / "exports"
    module, record = load_model()
    plain = _Plain(module)
    # First on one core and in its own time, which a busy machine does not stretch.
    torch.set_num_threads(1)
    network = open_network(WEIGHTS, record, exports, threads=1)
    rows = _all_calls(network, plain, exports, 1, repeats)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = open_network(WEIGHTS, record, exports)
    rows += _all_calls(network, plain, exports, 0, repeats)
    engine = Engine(network)
    readers = [Reader(n, record, read_simulated=True) for n in (engine, plain)]
    rows += _turnaround(readers, repeats)
    engine.close()
    rows.append(_ready(exports, repeats))
    for row in rows:
        row["what"] = f"{row['what']} ({network.precision})"
    return rows


class _Plain:
    """Torch as it comes; studies that are read side by side take turns."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._turn = threading.Lock()

    @torch.inference_mode()
    def __call__(self, windows: Array) -> Reading:
        with self._turn:
            return reading_of(self._module(torch.from_numpy(windows.copy())))


class _Ceiling:
    """The graph alone, on tensors that lie ready; its answers stay where they are."""

    def __init__(self, compiled: Any) -> None:
        self._queue = ov.AsyncInferQueue(compiled)
        for request in self._queue:
            request.get_input_tensor().data[:] = 0.5

    def __call__(self, windows: Array) -> None:
        for _ in range(0, len(windows), PAIR):
            self._queue.start_async()
        self._queue.wait_all()


def _all_calls(
    network: OpenVinoNetwork,
    plain: _Plain,
    exports: Path,
    threads: int,
    repeats: int,
) -> list[dict[str, object]]:
    """Time calls of several sizes; with one thread the process's own seconds count."""
    clock, unit = (
        (time.process_time, "CPU ms on one core")
        if threads == 1
        else (time.perf_counter, "ms on all cores")
    )
    (export,) = exports.iterdir()
    graph = export / GRAPH
    ceiling = _Ceiling(compile_graph(graph, network.precision, threads=threads))
    engine = Engine(network)
    windows = np.concatenate([probe_windows(network.side)] * 4)
    rows = [
        _calls(windows[:size], (engine, plain, ceiling), 3 * repeats, clock, unit)
        for size in BATCHES
    ]
    engine.close()
    return rows


def _calls(
    windows: Array,
    networks: Sequence[Callable[[Array], object]],
    rounds: int,
    clock: Callable[[], float],
    unit: str,
) -> dict[str, object]:
    took: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network(windows)
    for _ in range(rounds):
        for times, network in zip(took, networks, strict=True):
            times.append(_seconds(network, windows, clock=clock))
    ours, plain, bare = (1000 * statistics.median(times) for times in took)
    about = {"ceiling": round(bare, 1), "of the ceiling": f"{bare / ours:.0%}"}
    return _row(f"{len(windows)} windows in one call, {unit}", ours, plain) | about


def _turnaround(readers: Sequence[Reader], repeats: int) -> list[dict[str, object]]:
    """Read studies, a few side by side, with each reader in turn."""
    stills = [_still(number) for number in range(STILLS)]
    studies = [stills] * STUDIES
    took: list[list[float]] = [[] for _ in readers]
    spent = [0.0 for _ in readers]
    for _ in range(repeats):
        for number, reader in enumerate(readers):
            began = time.perf_counter()
            with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
                took[number] += pool.map(
                    lambda s, r=reader: _seconds(_read, r, s), studies
                )
            spent[number] += time.perf_counter() - began
    ours, plain = (sorted(times) for times in took)
    images = STILLS * STUDIES * repeats
    what = f"study of {STILLS} stills, {SIDE_BY_SIDE} at once"
    return [
        _row(f"{what}, median s", statistics.median(ours), statistics.median(plain)),
        _row(f"{what}, p95 s", _p95(ours), _p95(plain)),
        _row("images a second", images / spent[0], images / spent[1], more=True),
    ]


def _still(number: int) -> ImageToRead:
    """Return a JPEG in memory that shows one mass."""
    mass = PhantomLesion(20, 15, 12, 6 + number, shape="irregular")
    pixels = build_phantom((mass,), seed=number).pixels
    file = BytesIO()
    Image.fromarray(pixels).convert("RGB").save(file, "JPEG", quality=90)

    def decode(indices: Sequence[int]) -> NDArray[np.uint8]:
        frame = np.asarray(Image.open(BytesIO(file.getvalue())))
        return np.stack([frame] * len(indices))

    header = ImageHeader(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
        sop_instance_uid=f"2.25.{number}",
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        body_part_examined="BREAST",
        simulated=True,
    )
    return ImageToRead(header, decode)


def _read(reader: Reader, study: Sequence[ImageToRead]) -> None:
    reading = reader.read_study(study, tracking_uid=lambda place: f"2.25.9{place.key}")
    if reading.frames_read != len(study):
        raise SystemExit("bench: an image was not read")


def _ready(exports: Path, repeats: int) -> dict[str, object]:
    """Measure a start from nothing to a model that may read, in a fresh process."""
    took: dict[str, list[float]] = {"openvino": [], "torch": []}
    for _ in range(repeats):
        for kind, times in took.items():
            command = [sys.executable, "-c", READY, str(exports), kind]
            began = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
    ours, plain = (statistics.median(times) for times in took.values())
    return _row("start of a process until it may read, s", ours, plain)


def _row(
    what: str, ours: float, plain: float, *, more: bool = False
) -> dict[str, object]:
    """Return a row; the ratio says how many times better, `more` is better or less."""
    ratio = ours / plain if more else plain / ours
    return {
        "what": what,
        "sononode": round(ours, 2),
        "plain torch": round(plain, 2),
        "times better": f"{ratio:.1f}",
        "ceiling": "-",
        "of the ceiling": "-",
    }


def _seconds(
    call: Callable[..., object],
    *arguments: object,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    began = clock()
    call(*arguments)
    return clock() - began


def _p95(times: Sequence[float]) -> float:
    return times[min(len(times) - 1, int(0.95 * len(times)))]
