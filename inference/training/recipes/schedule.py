"""Training as the papers state it, shortened where the command says so, and scoring."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from inference.training.pretraining import batches
from inference.training.recipes.classifiers import Classifier
from inference.training.recipes.standins import Cases, cut
from inference.training.teacher import SIDE, WIDTH, Lite0

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A paper's settings. `steps`: None for its epochs, or a bound that is sooner.

    `patience`: epochs without a better loss on the held-out groups before training
    stops and the best weights are taken.
    """

    optimiser: Literal["adam", "sgd"]
    learning_rate: float
    batch: int
    side: int
    epochs: int
    patience: int | None = None
    steps: int | None = None
    transfer_steps: int = 1000
    seed: int = 20261121

    def shortened(
        self,
        *,
        side: int | None,
        steps: int | None,
        transfer_steps: int | None,
        learning_rate: float | None,
        batch: int | None,
        seed: int,
    ) -> Schedule:
        """Return this schedule with what the command says instead."""
        return replace(
            self,
            side=side or self.side,
            steps=steps or self.steps,
            transfer_steps=transfer_steps or self.transfer_steps,
            learning_rate=learning_rate or self.learning_rate,
            batch=batch or self.batch,
            seed=seed,
        )


def fit(
    model: nn.Module,
    views: Sequence[Cases],
    held_out: Sequence[Cases],
    schedule: Schedule,
    *,
    title: str,
) -> int:
    """Train `model` on one or several views of the same cases; return the steps taken.

    The loss is binary cross-entropy, the augmentation the published one.
    """
    random = torch.Generator().manual_seed(schedule.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = _optimiser(parameters, schedule)
    truth = views[0].malignancy
    per_epoch = max(1, len(truth) // schedule.batch)
    wanted = schedule.epochs * per_epoch
    wanted = wanted if schedule.steps is None else min(wanted, schedule.steps)
    best, best_state, waited = math.inf, None, 0
    started = time.monotonic()
    order = torch.empty(0, dtype=torch.long)
    done = 0
    while done < wanted:
        if len(order) < min(schedule.batch, len(truth)):
            order = torch.randperm(len(truth), generator=random)
        rows, order = order[: schedule.batch], order[schedule.batch :]
        state = random.get_state()
        seen = []
        for view in views:
            # The views of a case are moved alike.
            random.set_state(state)
            seen.append(cut(view, rows, schedule.side, random))
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(*seen)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), truth[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        done += 1
        if schedule.patience is not None and done % per_epoch == 0:
            now = _loss(model, held_out, schedule)
            waited = 0 if now < best else waited + 1
            if now < best:
                best, best_state = now, copy.deepcopy(model.state_dict())
            if waited >= schedule.patience:
                break
    if best_state is not None:
        model.load_state_dict(best_state)
    minutes = (time.monotonic() - started) / 60
    Console().print(f"{title}: {done} steps, {minutes:.1f} min")
    return done


def _optimiser(
    parameters: list[nn.Parameter], schedule: Schedule
) -> torch.optim.Optimizer:
    if schedule.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=schedule.learning_rate)
    return torch.optim.SGD(parameters, lr=schedule.learning_rate, momentum=0.9)


def _loss(model: nn.Module, views: Sequence[Cases], schedule: Schedule) -> float:
    logits = torch.from_numpy(scores(model, views, schedule.side))
    return float(
        functional.binary_cross_entropy_with_logits(
            logits, views[0].malignancy.double()
        )
    )


@torch.inference_mode()
def scores(model: nn.Module, views: Sequence[Cases], side: int) -> Array:
    """Return the logit of every case, without augmentation."""
    model.eval()
    parts = []
    for rows in batches(len(views[0])):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(model(*[cut(view, rows, side) for view in views]).float())
    return torch.cat(parts).numpy().astype(np.float64)


@torch.inference_mode()
def teacher_features(teacher: Lite0, cases: Cases) -> Tensor:
    """Return the teacher's features of every case, standardised over the cases."""
    parts = [teacher(cut(cases, rows, SIDE)) for rows in batches(len(cases))]
    answers = torch.cat(parts)
    return (answers - answers.mean(dim=0)) / answers.std(dim=0).clamp(min=1e-3)


def transfer(
    model: Classifier, cases: Cases, targets: Tensor, schedule: Schedule
) -> None:
    """Teach the trunk the teacher's features: the stand-in for ImageNet weights.

    A linear layer in between is thrown away. Adam at 3e-4 for every trunk.
    """
    random = torch.Generator().manual_seed(schedule.seed)
    projection = nn.Linear(model.width, WIDTH)
    optimiser = torch.optim.Adam(
        [*model.trunk.parameters(), *projection.parameters()], lr=3e-4
    )
    model.train()
    for _ in range(schedule.transfer_steps):
        rows = torch.randint(len(cases), (schedule.batch,), generator=random)
        seen = cut(cases, rows, schedule.side, random)
        with torch.autocast("cpu", torch.bfloat16):
            said = projection(model.pooled(seen))
        loss = functional.mse_loss(said.float(), targets[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
