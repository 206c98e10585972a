"""The two-stage transfer paper: three networks after none, one and two transfers.

SGD 1e-4, batches of 16, at most 200 epochs, stopped after 10 without gain, crops of
256 px around the mass; AUC with interval, Z test of AUCs, Youden index.

The paper counts its transfers loosely (it starts from ImageNet and calls mammography
the first). Here: none is from scratch, one is ImageNet features, two is ImageNet
features and then mammograms; ultrasound follows in every row.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from inference.training.recipes.classifiers import Classifier, build
from inference.training.recipes.schedule import (
    Array,
    Schedule,
    fit,
    scores,
    teacher_features,
    transfer,
)
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
from inference.training.teacher import Lite0

TITLE = "Two-stage transfer: three networks after none, one and two transfers"
PUBLISHED = Schedule("sgd", 1e-4, batch=16, side=256, epochs=200, patience=10)
MODELS = ("VGG16", "Inception-v3", "ResNet-50")
TRANSFERS = ("none", "one", "two")
_PAPER_AUC = {"VGG16": 0.841, "Inception-v3": 0.865, "ResNet-50": 0.915}
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Images:
    """Ultrasound to learn from and to be scored on, mammograms, and the teacher."""

    train: Cases
    val: Cases
    mammograms: Cases
    teacher: Lite0


def run(images: Images, schedule: Schedule) -> tuple[list[str], list[str]]:
    """Return facts and tables of the page."""
    learned, held_out = hold_out(images.train, _HELD_OUT, schedule.seed)
    targets = teacher_features(images.teacher, learned)
    logits: dict[tuple[str, str], Array] = {}
    thresholds: dict[tuple[str, str], float] = {}
    for name in MODELS:
        torch.manual_seed(schedule.seed)
        fresh = build(name.replace("ResNet-50", "ResNet50"))
        taught = copy.deepcopy(fresh)
        transfer(taught, learned, targets, schedule)
        starts = {"none": fresh, "one": taught, "two": copy.deepcopy(taught)}
        _see_mammograms(starts["two"], images.mammograms, schedule, name)
        for count in TRANSFERS:
            model = starts[count]
            title = f"{name}, {count} transferred"
            fit(model, [learned], [held_out], schedule, title=title)
            logits[name, count] = scores(model, [images.val], schedule.side)
            thresholds[name, count] = best_threshold(
                _truth(held_out), scores(model, [held_out], schedule.side)
            )
    body = ["## Figures (Table 1)", "", *_table(images.val, logits, thresholds), ""]
    body += ["## Z tests of AUCs", "", *_tests(images.val, logits)]
    return _facts(images, learned, held_out, schedule), body


def _see_mammograms(
    model: Classifier, mammograms: Cases, schedule: Schedule, name: str
) -> None:
    learned, held_out = hold_out(mammograms, _HELD_OUT, schedule.seed)
    half = None if schedule.steps is None else max(1, schedule.steps // 2)
    stage = replace(schedule, steps=half)
    fit(model, [learned], [held_out], stage, title=f"{name}, mammograms")
    # What was malignant in a mammogram is asked anew of ultrasound.
    model.head.reset_parameters()


def _table(
    val: Cases,
    logits: dict[tuple[str, str], Array],
    thresholds: dict[tuple[str, str], float],
) -> list[str]:
    truth = _truth(val)
    table = heading(
        "network",
        "transfers",
        "AUC",
        "accuracy",
        "sensitivity",
        "specificity",
        "precision",
        "F1",
        "Youden",
        "paper's AUC",
    )
    for (name, count), values in logits.items():
        threshold = thresholds[name, count]
        counts = confusion(truth, values, threshold)
        found, passed = at_threshold(truth, values, threshold)
        table.append(
            row(
                name,
                count,
                area(truth, values, val.groups),
                counts.accuracy,
                found,
                passed,
                counts.precision,
                counts.f1,
                found + passed - 1,
                _PAPER_AUC[name] if count == "two" else None,
            )
        )
    return table


def _tests(val: Cases, logits: dict[tuple[str, str], Array]) -> list[str]:
    truth = _truth(val)
    table = heading("comparison", "difference of AUCs (DeLong, paired, by patient)")
    pairs = [
        *(((name, "one"), (name, "none")) for name in MODELS),
        *(((name, "two"), (name, "one")) for name in MODELS),
        (("ResNet-50", "two"), ("VGG16", "two")),
        (("ResNet-50", "two"), ("Inception-v3", "two")),
    ]
    for first, second in pairs:
        label = f"{' '.join(first)} - {' '.join(second)}"
        found = z_test(truth, logits[first], logits[second], val.groups)
        table.append(row(label, found))
    return table


def _truth(cases: Cases) -> Array:
    return cases.malignancy.numpy().astype(np.float64)


def _facts(
    images: Images, learned: Cases, held_out: Cases, schedule: Schedule
) -> list[str]:
    bound = "its epochs" if schedule.steps is None else f"{schedule.steps} steps"
    return [
        f"Train: {learned.described()}; {held_out.described()} of `train` are held out "
        f"for early stopping and for the threshold. Val: {images.val.described()}.",
        f"Mammograms (mini-MIAS in place of CBIS-DDSM, research only, not shipped): "
        f"{images.mammograms.described()}, half the steps.",
        f"{bound} of {schedule.batch} at {schedule.side} px, SGD with momentum 0.9 at "
        f"{schedule.learning_rate:g} (published: up to {PUBLISHED.epochs} epochs at "
        f"{PUBLISHED.side} px, {PUBLISHED.learning_rate:g}; momentum not stated); one "
        f"seed ({schedule.seed}). **Far shorter than published**, and the rate raised "
        "with it.",
        "Transfers: none is from scratch; one is "
        f"{schedule.transfer_steps} steps of distillation from EfficientNet-Lite0's "
        "ImageNet features, in place of ImageNet weights; two is that and then the "
        "mammograms. Each transfer adds steps that the rows without do not get.",
        "Crops around the drawn lesion, as the paper cropped by hand: an oracle that "
        "the product does not have. Eight tests at 0.05 give a false alarm every third "
        "time if nothing differs.",
    ]
