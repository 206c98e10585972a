"""One network for all studies that are being read: a bounded queue and joint batches.

Readings run in threads and ask at the same time; what waits while a batch runs makes
the next batch. A full queue lets the readers wait, so that memory stays bounded and
further studies stay in the job table. A batch that does not end cannot be called back:
the process ends, its supervisor starts it again, and the jobs return to the table,
where each has its attempts. Receiving images is another process and goes on.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from inference.record import (
    WEIGHTS,
    Array,
    ModelRecord,
    Network,
    Reading,
    joined,
    mapped,
    verified_weights,
)
from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger(__name__)

STUCK_STATUS: Final = 70
"""Exit status of a process that ended itself because a batch did not."""

NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an installation runs its network.

    `kind`: auto, openvino or torch. `threads`: CPU cores, 0 for all. `exports`: the
    folder for exported networks. `stuck_after_s`: seconds after which a batch counts
    as stuck. `batch`: windows of one batch; `queue`: windows that may wait.
    """

    exports: Path
    kind: str = "auto"
    threads: int = 0
    stuck_after_s: float = 60.0
    batch: int = 32
    queue: int = 128


def open_model(
    settings: EngineSettings,
    weights: Path = WEIGHTS,
    *,
    on_stuck: Callable[[], object] | None = None,
) -> tuple[Engine, ModelRecord]:
    """Return the engine of the model in `weights`, warmed up, and the model's record.

    `on_stuck` is the engine's. INTEGRITY when the weights are not the released ones;
    UNAVAILABLE when the engine that the setting asks for cannot run it.
    """
    began = time.monotonic()
    content, record = verified_weights(weights)
    network, runs_on = _open_network(settings, content, record, weights)
    log.info(
        "model.loaded",
        model=record.name,
        version=record.version,
        engine=runs_on,
        seconds=round(time.monotonic() - began, 2),
    )
    engine = Engine(
        network,
        batch=settings.batch,
        queue=settings.queue,
        stuck_after_s=settings.stuck_after_s,
        on_stuck=on_stuck,
    )
    return engine, record


def _open_network(
    settings: EngineSettings, content: bytes, record: ModelRecord, weights: Path
) -> tuple[Network, str]:
    """Return the network and what runs it: CUDA, OpenVINO, torch, in this order."""
    if settings.kind == "torch" or (settings.kind == "auto" and cuda_at_hand()):
        return _torch_network(content, settings.threads)
    try:
        return _openvino_network(settings, record, weights)
    except (NodeError, ImportError) as error:
        if settings.kind == "openvino":
            raise
        reason = error.message if isinstance(error, NodeError) else str(error)
        log.warning("model.fallback", engine="torch", reason=reason)
        return _torch_network(content, settings.threads)


def cuda_at_hand() -> bool:
    """Tell whether torch may use a GPU, without importing torch where there is none."""
    if not NVIDIA_DRIVER.exists():
        return False
    import torch

    return torch.cuda.is_available()


def _torch_network(content: bytes, threads: int) -> tuple[Network, str]:
    import torch

    from inference.network import TorchNetwork, network_of, use_threads

    use_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchNetwork(network_of(content).to(device)), f"torch {device}"


def _openvino_network(
    settings: EngineSettings, record: ModelRecord, weights: Path
) -> tuple[Network, str]:
    from inference.openvino_network import open_network

    network = open_network(weights, record, settings.exports, threads=settings.threads)
    return network, f"openvino {network.precision}"


# --- the queue -------------------------------------------------------------------


@dataclass(slots=True)
class _Request:
    """Windows of one reading, at most a batch, and where its answer goes."""

    windows: Array
    answer: Future[Reading] = field(default_factory=Future)


class Engine:
    """A `record.Network` that many threads may call at once.

    Calls of different threads run as one batch of up to `batch` windows. At most
    `queue` windows wait; further callers wait outside. `on_stuck` is called once a
    batch has run for `stuck_after_s`; by default it ends the process.
    """

    def __init__(
        self,
        network: Network,
        *,
        batch: int = 32,
        queue: int = 128,
        stuck_after_s: float = 60.0,
        on_stuck: Callable[[], object] | None = None,
    ) -> None:
        self._network = network
        self._batch = batch
        self._room = max(queue, batch)
        self._stuck_after_s = stuck_after_s
        self._on_stuck = on_stuck or end_process
        self._waiting: deque[_Request] = deque()
        self._waiting_windows = 0
        self._running_since: float | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._run, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, windows: Array) -> Reading:
        """Read windows, float32 (n, 1, side, side); waits for room and for the answer.

        Raises what the network raised; NodeError(UNAVAILABLE) once closed.
        """
        requests = [
            _Request(windows[start : start + self._batch])
            for start in range(0, len(windows), self._batch)
        ]
        for request in requests:
            self._put(request)
        return joined([request.answer.result() for request in requests])

    @property
    def waiting_windows(self) -> int:
        """Windows in the queue, not counting the batch that runs."""
        return self._waiting_windows

    def close(self) -> None:
        """Take no further windows and let go of the network; waits for the last batch.

        Windows that wait are answered UNAVAILABLE.
        """
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._waiting_windows = 0
            self._changed.notify_all()
        for request in left:
            request.answer.set_exception(_closed())
        for thread in self._threads:
            thread.join()

    def _put(self, request: _Request) -> None:
        size = len(request.windows)
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._waiting_windows + size <= self._room
            )
            if self._closed:
                raise _closed()
            self._waiting.append(request)
            self._waiting_windows += size
            self._changed.notify_all()

    def _run(self) -> None:
        while batch := self._next_batch():
            try:
                reading = self._network(
                    np.concatenate([request.windows for request in batch])
                )
            except Exception as error:
                for request in batch:
                    request.answer.set_exception(error)
            else:
                _hand_out(reading, batch)
            finally:
                self._ended()

    def _next_batch(self) -> list[_Request]:
        """Wait for windows and take what fits into one batch; none once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            batch: list[_Request] = []
            free = self._batch
            while self._waiting and len(self._waiting[0].windows) <= free:
                request = self._waiting.popleft()
                free -= len(request.windows)
                self._waiting_windows -= len(request.windows)
                batch.append(request)
            if batch:
                self._running_since = time.monotonic()
            self._changed.notify_all()
            return batch

    def _ended(self) -> None:
        with self._changed:
            self._running_since = None
            self._changed.notify_all()

    def _watch(self) -> None:
        """Call `on_stuck` when a batch does not end."""
        with self._changed:
            while not (self._closed and self._running_since is None):
                since = self._running_since
                if since is None:
                    self._changed.wait()
                    continue
                left = since + self._stuck_after_s - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            else:
                return
        log.critical("engine.stuck", seconds=self._stuck_after_s)
        self._on_stuck()


def end_process() -> None:
    """End this process at once: no thread of it can be trusted to end in order."""
    os._exit(STUCK_STATUS)


def _closed() -> NodeError:
    return NodeError("the model was put away", ErrorKind.UNAVAILABLE)


def _hand_out(reading: Reading, batch: list[_Request]) -> None:
    start = 0
    for request in batch:
        rows = slice(start, start + len(request.windows))
        request.answer.set_result(mapped(itemgetter(rows), [reading]))
        start = rows.stop
