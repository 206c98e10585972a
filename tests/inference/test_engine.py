"""Many readings, one network: joint batches, back-pressure, an end to stuck ones."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.engine import STUCK_STATUS, Engine
from inference.network import LesionNet, TorchNetwork
from inference.record import CHOICE_KEYS, Array, Reading
from node.domain.errors import ErrorKind, NodeError

WAIT_S = 60.0


def echo(windows: Array) -> Reading:
    """Answer each window with its own first pixel, in every field."""
    first = windows[:, 0, 0, 0]
    return Reading(
        malignancy=first,
        lesion=first,
        birads=np.repeat(first[:, None], 5, axis=1),
        margin=np.repeat(first[:, None], 5, axis=1),
        choices={field: first[:, None] for field in CHOICE_KEYS},
        mask=first[:, None, None],
        features=first[:, None, None, None],
        evidence=first[:, None, None],
    )


class Gate:
    """A network that answers once it is let go, and tells what it was asked."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, windows: Array) -> Reading:
        self.sizes.append(len(windows))
        self.entered.release()
        assert self.go.acquire(timeout=WAIT_S)
        return echo(windows)


def windows(*values: float) -> Array:
    return np.full((len(values), 1, 4, 4), 1, np.float32) * np.array(
        values, np.float32
    ).reshape(-1, 1, 1, 1)


def waiting(engine: Engine, count: int) -> Callable[[], bool]:
    return lambda: engine.waiting_windows == count


def until(engine: Engine, wanted: Callable[[], bool]) -> None:
    """Wait until the engine's queue is as wanted; no timed sleep is involved."""
    with engine._changed:
        assert engine._changed.wait_for(wanted, timeout=WAIT_S)


def test_readings_that_wait_together_are_read_together() -> None:
    gate = Gate()
    engine = Engine(gate, batch=8)
    with ThreadPoolExecutor() as readers:
        first = readers.submit(engine, windows(1, 2))
        assert gate.entered.acquire(timeout=WAIT_S)
        others = [readers.submit(engine, windows(n, n)) for n in (3, 4, 5)]
        until(engine, waiting(engine, 6))
        gate.go.release(2)
        assert first.result(WAIT_S).malignancy.tolist() == [1, 2]
        for number, other in zip((3, 4, 5), others, strict=True):
            answer = other.result(WAIT_S)
            assert answer.malignancy.tolist() == [number, number]
            assert answer.choices["shape"][:, 0].tolist() == [number, number]
    assert gate.sizes == [2, 6]
    engine.close()


def test_large_question_is_cut_into_batches_and_joined_again() -> None:
    engine = Engine(echo, batch=4)
    answer = engine(windows(*range(11)))
    assert answer.malignancy.tolist() == list(range(11))
    assert answer.mask.shape == (11, 1, 1)
    engine.close()


def test_full_queue_makes_the_reader_wait() -> None:
    gate = Gate()
    engine = Engine(gate, batch=2, queue=4)
    with ThreadPoolExecutor() as readers:
        asked = [readers.submit(engine, windows(1, 2)) for _ in range(5)]
        assert gate.entered.acquire(timeout=WAIT_S)
        until(engine, waiting(engine, 4))
        assert engine.waiting_windows == 4  # one more reader stands outside
        gate.go.release(5)
        for one in asked:
            assert one.result(WAIT_S).malignancy.tolist() == [1, 2]
    assert gate.sizes == [2] * 5
    engine.close()


def test_fault_of_the_network_reaches_the_readers_and_the_engine_goes_on() -> None:
    faults = [NodeError("no memory", ErrorKind.EXHAUSTED)]

    def network(asked: Array) -> Reading:
        if faults:
            raise faults.pop()
        return echo(asked)

    engine = Engine(network)
    with pytest.raises(NodeError, match="no memory"):
        engine(windows(1))
    assert engine(windows(2)).malignancy.tolist() == [2]
    engine.close()


def test_stuck_batch_is_noticed_and_an_ordinary_one_is_not() -> None:
    gate, stuck = Gate(), threading.Event()
    engine = Engine(gate, stuck_after_s=0.05, on_stuck=stuck.set)
    gate.go.release()
    engine(windows(1))
    assert not stuck.is_set()
    with ThreadPoolExecutor() as readers:
        late = readers.submit(engine, windows(2))
        assert stuck.wait(WAIT_S)
        gate.go.release()
        assert late.result(WAIT_S).malignancy.tolist() == [2]
    engine.close()


def test_closed_engine_turns_readers_away() -> None:
    gate = Gate()
    engine = Engine(gate, batch=1, queue=1)
    with ThreadPoolExecutor() as readers:
        running = readers.submit(engine, windows(1))
        assert gate.entered.acquire(timeout=WAIT_S)
        left = [readers.submit(engine, windows(2)) for _ in range(2)]
        until(engine, waiting(engine, 1))
        closing = readers.submit(engine.close)
        until(engine, waiting(engine, 0))
        gate.go.release()
        closing.result(WAIT_S)
        assert running.result(WAIT_S).malignancy.tolist() == [1]
        for one in left:
            with pytest.raises(NodeError, match="put away"):
                one.result(WAIT_S)
    with pytest.raises(NodeError, match="put away"):
        engine(windows(3))


class _SmallGpu(LesionNet):
    """Runs out of memory above three windows."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, batch):  # type: ignore[no-untyped-def]
        self.sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(batch)


def test_gpu_out_of_memory_falls_back_to_smaller_batches(thin_trunk: None) -> None:
    torch.manual_seed(1)
    gpu = _SmallGpu()
    asked = np.random.default_rng(1).normal(size=(10, 1, 32, 32)).astype(np.float32)
    answer = TorchNetwork(gpu)(asked)
    assert gpu.sizes == [10, 5, 2, 2, 2, 2, 2]
    plain = LesionNet()
    plain.load_state_dict(gpu.state_dict())
    whole = TorchNetwork(plain)(asked)
    assert np.allclose(answer.malignancy, whole.malignancy, atol=1e-5)
    assert answer.features.shape == whole.features.shape


def test_gpu_that_holds_not_even_one_window_says_so() -> None:
    class NoGpu(LesionNet):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(NodeError) as caught:
        TorchNetwork(NoGpu())(np.zeros((4, 1, 32, 32), np.float32))
    assert caught.value.kind is ErrorKind.EXHAUSTED


STUCK = """
import threading
import numpy as np
from inference.engine import Engine

engine = Engine(lambda windows: threading.Event().wait(), stuck_after_s=0.05)
engine(np.zeros((1, 1, 4, 4), np.float32))
"""


def test_process_with_a_stuck_batch_ends_itself_and_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STUCK],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == STUCK_STATUS
    assert ended.stdout.count("engine.stuck") == 1
    assert not ended.stderr
