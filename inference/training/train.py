"""Trains the lesion network: masked losses of many tasks, one schedule, resumable.

From scratch, because no ImageNet ResNet50 is at hand whose licence and source
could be named. Every loss passes over labels that an image does not have.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from inference.network import LesionNet, Logits, TorchNetwork
from inference.training.data import Batch, Catalogue, Sampler, read_catalogue
from inference.training.evaluate import quick_scores

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the weights become; written into the model's record.

    `minutes` bounds the run: the schedule follows steps or wall time, whichever is
    further on, so that a busy machine still ends with an annealed model. Windows have
    `side_first` pixels for the first `first_share` of the schedule, `last_side` for
    the last `last_share`, and `side` between. `initial` names where weights come
    from: "scratch", or a file of this network's own weights to go on from.
    """

    steps: int = 5000
    minutes: float = 60.0
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
    initial: str = "scratch"
    average_decay: float = 0.998
    threads: int = 2
    seed: int = 20261121


def train(
    data: Path, checkpoint: Path, recipe: Recipe, *, check_every: int = 250
) -> nn.Module:
    """Train on `data`, write `checkpoint` at every check, return the averaged network.

    Continues from `checkpoint` when it exists. The checkpoint always holds the
    averaged weights under "average", ready for release.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    training = read_catalogue(data, "train")
    validation = read_catalogue(data, "val")
    run = _Run(training, recipe)
    if checkpoint.exists():
        run.restore(torch.load(checkpoint, weights_only=True))
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("training", total=recipe.steps, completed=run.step)
        while run.share < 1:
            loss = run.advance()
            bar.update(task, completed=run.step, description=f"loss {loss:.3f}")
            if run.step % check_every == 0 or run.share >= 1:
                scores = quick_scores(
                    TorchNetwork(run.average), validation, recipe.last_side
                )
                log.info(
                    "validated",
                    step=run.step,
                    minutes=round(run.minutes, 1),
                    loss=round(run.recent_loss, 3),
                    **{name: round(value, 3) for name, value in scores.items()},
                )
                _write(checkpoint, run.state(), scores)
    return run.average


class _Run:
    """The state of one training run."""

    def __init__(self, catalogue: Catalogue, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network = initial_network(recipe).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(
            _parameter_groups(self.network, recipe.weight_decay),
            lr=recipe.learning_rate,
        )
        self.sampler = Sampler(
            catalogue,
            weights={"breast": recipe.breast_weight, "normal": recipe.normal_weight},
            seed=recipe.seed,
        )
        self.step = 0
        self.recent_loss = math.nan
        self._seconds_before = 0.0
        self._started = time.monotonic()

    @property
    def minutes(self) -> float:
        return (self._seconds_before + time.monotonic() - self._started) / 60

    @property
    def share(self) -> float:
        """Return how much of the schedule lies behind, 0..1."""
        return min(
            1.0, max(self.step / self.recipe.steps, self.minutes / self.recipe.minutes)
        )

    def advance(self) -> float:
        recipe, share = self.recipe, self.share
        rate = recipe.learning_rate * _schedule(share, recipe.warm_up_share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        side = _side(recipe, share)
        batch = self.sampler.batch(
            recipe.batch,
            side,
            crop_share=recipe.crop_share,
            background_share=recipe.background_share,
        )
        self.network.train()
        windows = batch.windows.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            reading = self.network(windows)
        loss = total_loss(reading, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimiser.step()
        self.step += 1
        self._follow()
        value = float(loss.detach())
        old = value if math.isnan(self.recent_loss) else self.recent_loss
        self.recent_loss = 0.98 * old + 0.02 * value
        return self.recent_loss

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

    def state(self) -> dict[str, object]:
        return {
            "average": self.average.state_dict(),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "sampler": self.sampler.state(),
            "step": self.step,
            "seconds": self.minutes * 60,
            "recipe": asdict(self.recipe),
        }

    def restore(self, state: dict[str, object]) -> None:
        self.average.load_state_dict(state["average"])  # type: ignore[arg-type]
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.optimiser.load_state_dict(state["optimiser"])  # type: ignore[arg-type]
        self.sampler.restore(state["sampler"])  # type: ignore[arg-type]
        self.step = int(state["step"])  # type: ignore[call-overload]
        self._seconds_before = float(state["seconds"])  # type: ignore[arg-type]
        self._started = time.monotonic()


def initial_network(recipe: Recipe) -> LesionNet:
    """Return the network that training starts from; ValueError names a bad file."""
    network = LesionNet(dropout=recipe.dropout)
    if recipe.initial == "scratch":
        return network
    try:
        state = load_file(recipe.initial)
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"initial weights {recipe.initial} do not fit: {error}"
        ) from error
    return network


def _side(recipe: Recipe, share: float) -> int:
    if share < recipe.first_share:
        return recipe.side_first
    return recipe.side if share < 1 - recipe.last_share else recipe.last_side


def total_loss(reading: Logits, batch: Batch) -> Tensor:
    """Return the weighted sum of all tasks' losses; absent labels weigh nothing."""
    loss = masked_binary(reading.malignancy, batch.malignancy)
    loss = loss + 0.2 * masked_binary(reading.lesion, batch.lesion)
    loss = loss + 0.6 * masked_binary(reading.birads, batch.birads)
    loss = loss + 0.3 * masked_binary(reading.margin, batch.margin)
    for field, logits in reading.choices.items():
        loss = loss + 0.1 * masked_choice(logits, batch.choices[field])
    return loss + mask_loss(reading.mask, batch.masks)


def masked_binary(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the targets that exist (not NaN)."""
    known = ~torch.isnan(targets)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), torch.nan_to_num(targets), reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def masked_choice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the targets that exist (not -1)."""
    losses = functional.cross_entropy(
        logits.float(), targets, ignore_index=-1, reduction="sum"
    )
    return losses / (targets >= 0).sum().clamp(min=1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice where the window shows a lesion."""
    logits = logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, targets)
    chance = torch.sigmoid(logits)
    shown = targets.amax(dim=(1, 2)) > 0.5
    overlap = 2 * (chance * targets).sum(dim=(1, 2)) + 1
    total = chance.sum(dim=(1, 2)) + targets.sum(dim=(1, 2)) + 1
    dice = (1 - overlap / total) * shown
    return entropy + dice.sum() / shown.sum().clamp(min=1)


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


def _write(
    checkpoint: Path, state: dict[str, object], scores: dict[str, float]
) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(checkpoint)
    summary = {"step": state["step"], "seconds": state["seconds"], "val": scores}
    checkpoint.with_suffix(".json").write_text(
        json.dumps(summary, indent=2), encoding="utf-8"
    )
