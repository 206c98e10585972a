"""Trains the lesion network: masked losses of many tasks, one schedule, resumable.

Everything random in step k (which images, how they are turned and marked, which
features are dropped) is drawn from the seed and k alone. A run that was killed and
goes on from its last checkpoint therefore ends where it would have ended anyway,
bit for bit on one thread of one machine, as long as the schedule counts steps and
not minutes.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import structlog
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from inference.network import LesionNet, TorchNetwork
from inference.training.data import Batch, Catalogue, Sampler, read_catalogue
from inference.training.evaluate import quick_scores
from inference.training.initial import SCRATCH, initialise
from inference.training.losses import total_loss
from inference.training.runs import write_config, write_log
from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger()

_MAY_CHANGE = frozenset({"steps", "minutes", "threads"})
"""What may differ when a run goes on; anything else would be another run."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the weights become; written into the model's record.

    With `minutes` the schedule follows steps or wall time, whichever is further on, so
    that a busy machine still ends with an annealed model, but a second run gives other
    weights; without, it follows steps alone. Windows have
    `side_first` pixels for the first `first_share` of the schedule, `last_side` for
    the last `last_share`, and `side` between. `initial` names where weights come
    from: "scratch", "imagenet", or a file (`initialise`); `cbam` adds attention.

    Classes are imbalanced (2 benign to 1 malignant, few normals, few lesions with all
    descriptors): `breast_weight` and `normal_weight` draw those images more often.
    Malignancy is not reweighed, since its probability is to mean something; the
    threshold is set afterwards.
    """

    steps: int = 5000
    minutes: float | None = None
    batch: int = 32
    side_first: int = 96
    side: int = 128
    first_share: float = 0.25
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up_share: float = 0.06
    dropout: float = 0.3
    crop_share: float = 0.55
    background_share: float = 0.12
    breast_weight: float = 2.0
    normal_weight: float = 1.6
    last_side: int = 128
    last_share: float = 0.35
    initial: str = SCRATCH
    cbam: bool = False
    average_decay: float = 0.998
    threads: int = 2
    seed: int = 20261121


def train(
    data: Path,
    checkpoint: Path,
    recipe: Recipe,
    *,
    check_every: int = 250,
    device: str = "auto",
    stop_after: int | None = None,
) -> nn.Module | None:
    """Train on `data`, write `checkpoint` at every check, return the averaged network.

    Continues from `checkpoint` when it exists. The checkpoint always holds the
    averaged weights under "average", ready for release; its folder gets the run's
    configuration and the log of checks. SIGTERM, Ctrl-C, and `stop_after` steps in
    this call write the checkpoint and return None: the run is not done.
    """
    torch.set_num_threads(recipe.threads)
    training = read_catalogue(data, "train")
    validation = read_catalogue(data, "val")
    for notice in training.notices:
        log.warning("data", note=notice)
    run = Run(training, recipe, device=_device(device))
    if checkpoint.exists():
        run.restore(read_checkpoint(checkpoint))
    splits = {"train": training, "val": validation}
    write_config(checkpoint.parent, asdict(recipe), str(run.device), splits)
    last = math.inf if stop_after is None else run.step + stop_after
    with _stop_signal() as stopped, _progress() as bar:
        task = bar.add_task("training", total=recipe.steps, completed=run.step)
        while run.share < 1 and run.step < last and not stopped():
            loss = run.advance()
            bar.update(task, completed=run.step, description=f"loss {loss:.3f}")
            if run.step % check_every == 0 or run.share >= 1:
                _check(run, validation)
                _write(checkpoint, run)
    if run.share < 1:
        log.info("stopped", step=run.step, note="the same command goes on from here")
        _write(checkpoint, run)
        return None
    run.average.cpu()
    return run.average


def _check(run: Run, validation: Catalogue) -> None:
    side = run.recipe.last_side
    scores = quick_scores(TorchNetwork(run.average), validation, side)
    line = {
        "step": run.step,
        "loss": run.recent_loss,
        "learning_rate": run.optimiser.param_groups[0]["lr"],
        "pieces": run.pieces,
        **scores,
    }
    run.lines.append({**line, "minutes": round(run.minutes, 2)})
    shown = {k: round(v, 3) for k, v in scores.items()}
    log.info("validated", step=run.step, loss=round(run.recent_loss, 3), **shown)


class Run:
    """The state of one training run.

    `pieces`: how many parts a batch is cut into; 1 until memory runs out. `lines`:
    the log of checks so far.
    """

    def __init__(
        self, catalogue: Catalogue, recipe: Recipe, *, device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = device
        self.network = initial_network(recipe).to(memory_format=torch.channels_last)
        self.network.to(device)
        self.average = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.network, recipe.weight_decay),
            lr=recipe.learning_rate,
        )
        self.step = 0
        self.pieces = 1
        self.recent_loss = math.nan
        self.lines: list[dict[str, Any]] = []
        self._precision = _precision(device)
        halves = self._precision is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=halves)
        self._feed = Feed(catalogue, recipe, ahead=8 if device.type == "cuda" else 0)
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def minutes(self) -> float:
        return (self._seconds_before + time.monotonic() - self._started) / 60

    @property
    def share(self) -> float:
        """Return how much of the schedule lies behind, 0..1."""
        done = self.step / self.recipe.steps
        if self.recipe.minutes is not None:
            done = max(done, self.minutes / self.recipe.minutes)
        return min(1.0, done)

    def advance(self) -> float:
        """Make one step; return the running mean of the loss.

        Out of memory on the GPU, cuts the batch into twice as many pieces, whose
        gradients add up, and tries again. Batch normalisation then sees smaller
        batches; the log says from which step on.
        """
        rate = self.recipe.learning_rate * _schedule(
            self.share, self.recipe.warm_up_share
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self._feed.batch(self.step, _side(self.recipe, self.share))
        while True:
            try:
                value = self._learn(batch)
                break
            except torch.OutOfMemoryError as error:
                self._cut_smaller(len(batch.windows), error)
        self.step += 1
        self._follow()
        old = value if math.isnan(self.recent_loss) else self.recent_loss
        self.recent_loss = 0.98 * old + 0.02 * value
        return self.recent_loss

    def _learn(self, batch: Batch) -> float:
        torch.manual_seed(_mixed(self.recipe.seed, self.step))
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        size = len(batch.windows)
        value = 0.0
        for rows in torch.arange(size).tensor_split(self.pieces):
            piece = _moved(batch, rows, self.device)
            with torch.autocast(self.device.type, self._precision):
                reading = self.network(piece.windows)
            loss = total_loss(reading, piece) * (len(rows) / size)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        self._scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self._scaler.step(self.optimiser)
        self._scaler.update()
        return value

    def _cut_smaller(self, size: int, error: Exception) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.pieces >= size:
            raise NodeError(
                "the GPU has no memory for a single image: free it, or take "
                "smaller windows",
                ErrorKind.EXHAUSTED,
            ) from error
        self.pieces = min(2 * self.pieces, size)
        log.warning("out of GPU memory", step=self.step, pieces=self.pieces)

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights, quickly at first, or they would hold noise."""
        decay = min(self.recipe.average_decay, (1 + self.step) / (20 + self.step))
        current = self.network.state_dict()
        for name, value in self.average.state_dict().items():
            if value.dtype.is_floating_point:
                value.lerp_(current[name], 1 - decay)
            else:
                value.copy_(current[name])

    def state(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "pieces": self.pieces,
            "recent_loss": self.recent_loss,
            "lines": self.lines,
            "seconds": self.minutes * 60,
            "recipe": asdict(self.recipe),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was written; NodeError when it is of another run."""
        before, now = state["recipe"], asdict(self.recipe)
        known = {field.name for field in fields(Recipe)} - _MAY_CHANGE
        for name in sorted(known & before.keys()):
            if before[name] != now[name]:
                raise NodeError(
                    f"this run was started with {name} {before[name]}, not "
                    f"{now[name]}: keep it, or give the run another name",
                    ErrorKind.CONFLICT,
                )
        self.average.load_state_dict(state["average"])
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state.get("scaler", {}))
        self.step = int(state["step"])
        self.pieces = int(state.get("pieces", 1))
        self.recent_loss = float(state.get("recent_loss", math.nan))
        self.lines = list(state.get("lines", ()))
        self._seconds_before = float(state["seconds"])
        self._started = time.monotonic()


class Feed:
    """Draws the batch of a step, or, for a GPU, those of the next steps in advance."""

    def __init__(self, catalogue: Catalogue, recipe: Recipe, *, ahead: int) -> None:
        self._sampler = Sampler(
            catalogue,
            weights={"breast": recipe.breast_weight, "normal": recipe.normal_weight},
            seed=recipe.seed,
        )
        self._recipe = recipe
        self._ahead = ahead
        self._drawn: dict[int, Future[Batch]] = {}
        self._pool = ThreadPoolExecutor(ahead) if ahead else None

    def batch(self, step: int, side: int) -> Batch:
        if self._pool is None:
            return self._draw(step, side)
        for later in range(step, step + self._ahead):
            if later not in self._drawn:
                self._drawn[later] = self._pool.submit(self._draw, later, side)
        batch = self._drawn.pop(step).result()
        # Drawn before the schedule moved on to larger windows: draw it again.
        same = batch.windows.shape[-1] == side
        return batch if same else self._draw(step, side)

    def _draw(self, step: int, side: int) -> Batch:
        return self._sampler.at(step).batch(
            self._recipe.batch,
            side,
            crop_share=self._recipe.crop_share,
            background_share=self._recipe.background_share,
        )


def _moved(batch: Batch, rows: Tensor, device: torch.device) -> Batch:
    """Return some rows of a batch on the device that learns."""

    def move(part: Tensor) -> Tensor:
        return part[rows].to(device, non_blocking=True)

    return Batch(
        windows=move(batch.windows).contiguous(memory_format=torch.channels_last),
        masks=move(batch.masks),
        malignancy=move(batch.malignancy),
        lesion=move(batch.lesion),
        birads=move(batch.birads),
        margin=move(batch.margin),
        choices={field: move(part) for field, part in batch.choices.items()},
    )


def initial_network(recipe: Recipe) -> LesionNet:
    """Return the network that training starts from; NodeError names a bad file."""
    network = LesionNet(dropout=recipe.dropout, cbam=recipe.cbam)
    initialise(network, recipe.initial)
    return network


def _side(recipe: Recipe, share: float) -> int:
    if share < recipe.first_share:
        return recipe.side_first
    return recipe.side if share < 1 - recipe.last_share else recipe.last_side


def _schedule(share: float, warm_up: float) -> float:
    if share < warm_up:
        return 0.05 + 0.95 * share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) + 1e-3


def _parameter_groups(
    network: nn.Module, weight_decay: float
) -> list[dict[str, object]]:
    """Spare biases and normalisation from weight decay."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    spared = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def _mixed(seed: int, step: int) -> int:
    """Return the seed of one step."""
    return (seed * 1_000_003 + step) % 2**63


def _device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NodeError(
            "no CUDA device here: leave --device out, or say --device cpu",
            ErrorKind.SETTING,
        )
    return torch.device(name)


def _precision(device: torch.device) -> torch.dtype:
    """Return bfloat16; float16, with scaled losses, on GPUs that know no bfloat16."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or Ctrl-C asked for the end."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {
        number: signal.signal(number, lambda *_: asked.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's state; NodeError(INTEGRITY) when it is damaged."""
    try:
        state: dict[str, Any] = torch.load(
            checkpoint, weights_only=True, map_location="cpu"
        )
        _ = state["average"], state["recipe"], state["step"]
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        UnpicklingError,
    ) as error:
        raise NodeError(
            f"checkpoint {checkpoint.name} cannot be read ({type(error).__name__}): "
            "take it away to start anew",
            ErrorKind.INTEGRITY,
        ) from error
    return state


def _write(checkpoint: Path, run: Run) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save(run.state(), partial)
    partial.replace(checkpoint)
    write_log(checkpoint.parent, run.lines)
