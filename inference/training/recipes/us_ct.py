"""The US + CT paper: two images of one lesion through two branches with attention.

No public pair of ultrasound and CT was found. The two views of a BUS-BRA case take
the two places: a synthetic pairing that shows that the code path works and whether a
second look helps. Nothing here is a figure about CT.

ResNet50 with CBAM, frozen base, 300 px, 80/20; attention and classifier are trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from inference.network import LesionNet
from inference.training.initial import SCRATCH, initialise
from inference.training.recipes.schedule import Array, Schedule, fit, scores
from inference.training.recipes.standins import Cases, hold_out
from inference.training.recipes.tables import (
    area,
    at_threshold,
    best_threshold,
    confusion,
    heading,
    row,
    z_test,
)
from inference.training.windows import normalise

TITLE = "Two branches with attention: a synthetic pairing in place of US + CT"
PUBLISHED = Schedule("adam", 1e-4, batch=16, side=300, epochs=40)
_HELD_OUT = 0.2
_PAPER = {
    "first view": "US 0.883",
    "second view": "CT 0.871",
    "both views": "US+CT 0.947",
}


@dataclass(frozen=True)
class Images:
    """The two views of each case, to learn from and to be scored on.

    `weights`: where the frozen base comes from, as `initial.initialise` takes it.
    """

    train: tuple[Cases, Cases]
    val: tuple[Cases, Cases]
    weights: str


class Branches(nn.Module):
    """One frozen ResNet50 per view with attention of its own; one linear layer."""

    def __init__(self, views: int, weights: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList([LesionNet(cbam=True) for _ in range(views)])
        self.base = SCRATCH
        for branch in self.branches:
            self.base = initialise(branch, weights)
            for name, parameter in branch.named_parameters():
                parameter.requires_grad = name.startswith("attention.")
        self.head = nn.Linear(2048 * views, 1)
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Branches:
        """Keep the base in evaluation: frozen means its statistics as well."""
        super().train(mode)
        self.branches.eval()
        return self

    def forward(self, *views: Tensor) -> Tensor:
        """Return logits (n,) of grey levels 0..255, one (n, side, side) per view."""
        pooled = [
            branch(
                normalise(view).contiguous(memory_format=torch.channels_last)
            ).features.mean(dim=(2, 3))
            for branch, view in zip(self.branches, views, strict=True)
        ]
        return self.head(torch.cat(pooled, dim=1))[:, 0]  # type: ignore[no-any-return]


def run(images: Images, schedule: Schedule) -> tuple[list[str], list[str]]:
    """Return facts and tables of the page."""
    parts = [hold_out(view, _HELD_OUT, schedule.seed) for view in images.train]
    learned, held_out = [part[0] for part in parts], [part[1] for part in parts]
    groups = images.val[0].groups
    truth = _truth(images.val[0])
    table = heading(
        "model", "AUC", "accuracy", "sensitivity", "specificity", "paper's AUC"
    )
    logits: dict[str, Array] = {}
    for name, used in (
        ("first view", (0,)),
        ("second view", (1,)),
        ("both views", (0, 1)),
    ):
        torch.manual_seed(schedule.seed)
        model = Branches(len(used), images.weights)
        kept = [held_out[view] for view in used]
        fit(model, [learned[view] for view in used], kept, schedule, title=name)
        threshold = best_threshold(_truth(kept[0]), scores(model, kept, schedule.side))
        values = scores(model, [images.val[view] for view in used], schedule.side)
        found, passed = at_threshold(truth, values, threshold)
        accuracy = confusion(truth, values, threshold).accuracy
        auc = area(truth, values, groups)
        table.append(row(name, auc, accuracy, found, passed, _PAPER[name]))
        logits[name] = values
    mean = (logits["first view"] + logits["second view"]) / 2
    table.append(
        row("mean of both logits", area(truth, mean, groups), None, None, None, None)
    )
    tests = heading("comparison", "difference of AUCs (DeLong, paired, by patient)")
    for other in ("first view", "second view"):
        difference = z_test(truth, logits["both views"], logits[other], groups)
        tests.append(row(f"both views - {other}", difference))
    body = ["## Figures (Table 1)", "", *table, "", "## Z tests of AUCs", "", *tests]
    return _facts(images, learned[0], schedule, model.base), body


def _truth(cases: Cases) -> Array:
    return cases.malignancy.numpy().astype(np.float64)


def _facts(images: Images, learned: Cases, schedule: Schedule, base: str) -> list[str]:
    bound = "its epochs" if schedule.steps is None else f"{schedule.steps} steps"
    return [
        "**Synthetic pairing, not CT.** The two BUS-BRA views of a case take the "
        "places of ultrasound and CT. The paper's column shows what stood in these "
        "places there; no row of ours says anything about CT.",
        f"Train: two views each of {learned.described()}, the rest of `train` (20 % of "
        f"the cases) for the threshold. Val: two views each of "
        f"{images.val[0].described()}.",
        f"{bound} of {schedule.batch} pairs at {schedule.side} px, Adam "
        f"{schedule.learning_rate:g} (published: 300 px; optimiser and rate are not "
        f"stated); one seed ({schedule.seed}).",
        f"The base ({base}) is frozen, as published; only attention (CBAM after each "
        "stage) and the classifier learn. The released base had seen the diagnoses of "
        "`train`, also of the cases held out for the threshold, and was chosen on "
        "`val`: these figures flatter it. What they can say is how one view compares "
        "with two. The paper's base came from a larger set of its domain.",
        "Crops around the drawn lesion, an oracle that the product does not have.",
    ]
