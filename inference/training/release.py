"""Turns trained weights into a released model: calibrated, and silent where it guesses.

Every choice is made on the validation split and written into the model's record.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.assess import fused_logits, lesion_logits
from inference.network import TorchNetwork, save_model
from inference.preprocess import whole_windows
from inference.record import (
    CHOICE_KEYS,
    MARGIN_KEYS,
    Array,
    Fusion,
    ModelRecord,
    Network,
)
from inference.training.categories import Graded, fit_cuts
from inference.training.data import Catalogue
from inference.training.evaluate import (
    Scored,
    orientation_agreement,
    probabilities,
    score,
    softmax,
    uncalibrated,
)
from inference.training.manifest import DataFault
from inference.training.measures import (
    auc,
    calibration_error,
    threshold_for_sensitivity,
    youden_threshold,
)
from inference.two_pass import RegionAnswers, read_windows, sigmoid
from inference.unfamiliar import FILE as FAMILIARITY
from inference.unfamiliar import fit as fit_familiarity
from inference.unfamiliar import write_familiarity

NAME = "sononode-breast-resnet50"
WANTED_SENSITIVITY = 0.90
SEEN_LESIONS = 0.99
"""Share of validation lesions that the lesion head must not take for normal tissue."""

FEWEST_CASES = 4
LEAST_AUC = 0.65
LEAST_KAPPA = 0.30
LEAST_COVERED = 0.80
"""A term is spoken only with so many validation cases, and told apart so well."""


def release(
    network: nn.Module,
    validation: Catalogue,
    directory: Path,
    *,
    version: str,
    side: int,
    training: dict[str, Any],
    trained_on: Catalogue | None = None,
) -> ModelRecord:
    """Fit calibration and thresholds, decide on which fields to speak, write it all.

    Images unlike those of `trained_on` will be refused; without it, none are.
    """
    reading = TorchNetwork(network)
    scored = score(reading, validation, side)
    fusion = fit_fusion(scored.own, validation.malignancy)
    truth = validation.malignancy.numpy().astype(np.float64)
    known = ~np.isnan(truth)
    chance = sigmoid(fused_logits(scored.own, fusion)).astype(np.float64)
    record = ModelRecord(
        name=NAME,
        version=version,
        weights=f"{NAME}.safetensors",
        sha256="",
        side=side,
        fusion=fusion,
        threshold=threshold_for_sensitivity(
            truth[known], chance[known], WANTED_SENSITIVITY
        ),
        lesion_threshold=lesion_threshold(scored),
        speaks_on=spoken_fields(scored),
        margin_thresholds=margin_thresholds(scored),
        training=training,
        category_cuts=fit_cuts(graded(scored, fusion)),
    )
    if trained_on is not None:
        directory.mkdir(parents=True, exist_ok=True)
        familiarity = fit_familiarity(
            whole_features(reading, trained_on, side), scored.own.whole.pooled
        )
        digest = write_familiarity(familiarity, directory)
        record = replace(record, files=record.files | {FAMILIARITY: digest})
    return save_model(network, record, directory)


def fit_fusion(answers: RegionAnswers, malignancy: Tensor) -> Fusion:
    """Fit the weights of both passes and the ordinal head by logistic regression."""
    known = ~torch.isnan(malignancy)
    if len(set(malignancy[known].tolist())) < 2:
        raise DataFault(
            "the validation split needs benign and malignant lesions: "
            "without both there is nothing to calibrate on"
        )
    return _fitted(_parts(answers)[known], malignancy[known])


def calibration_figures(
    scored: Scored, record: ModelRecord, *, folds: int = 5, seed: int = 20261121
) -> dict[str, float]:
    """Return the calibration error before fitting, after, and on cases left out.

    The fit was made on the very split, so "after" flatters; "left out" fits on four
    fifths of the patients and measures on the last.
    """
    malignancy = scored.catalogue.malignancy
    known = ~torch.isnan(malignancy)
    truth = malignancy[known].numpy().astype(np.float64)
    parts = _parts(scored.own)[known]
    groups = np.array(scored.catalogue.groups)[known.numpy()]
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    crossed = np.full(len(truth), np.nan)
    for fold in range(folds):
        out = np.isin(groups, names[fold::folds])
        if out.any() and 0 < truth[~out].mean() < 1:
            fusion = _fitted(parts[~out], malignancy[known][~out])
            weights = torch.tensor([fusion.whole, fusion.crop, fusion.ordinal])
            logits = parts[out] @ weights + fusion.offset
            crossed[out] = torch.sigmoid(logits).numpy()
    done = ~np.isnan(crossed)
    rows = known.numpy()
    return {
        "before": calibration_error(truth, uncalibrated(scored.own)[rows]),
        "after, on the split it was fitted on": calibration_error(
            truth, probabilities(scored.own, record)[rows]
        ),
        "after, on patients left out": calibration_error(truth[done], crossed[done]),
    }


def _parts(answers: RegionAnswers) -> Tensor:
    return torch.from_numpy(
        np.stack(
            [
                answers.whole.malignancy,
                answers.crop.malignancy,
                answers.crop.birads.mean(axis=1),
            ],
            axis=1,
        )
    )


def _fitted(parts: Tensor, truth: Tensor, *, ridge: float = 0.01) -> Fusion:
    """Fit weights that are kept from turning negative.

    More suspicion in one part must never mean less in the whole.
    """
    raw = torch.full((3,), -0.7, requires_grad=True)
    offset = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([raw, offset], max_iter=200)

    def closure() -> Tensor:
        optimiser.zero_grad()
        weights = functional.softplus(raw)
        loss = functional.binary_cross_entropy_with_logits(
            parts @ weights + offset, truth
        )
        loss = loss + ridge * (weights**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    whole, crop, ordinal = functional.softplus(raw).tolist()
    return Fusion(whole, crop, ordinal, float(offset.detach()))


def lesion_threshold(scored: Scored) -> float:
    """Return the lesion logit that lets pass all but a few validation lesions."""
    lesions = scored.catalogue.lesion.numpy() > 0
    logits = lesion_logits(scored.own)[lesions].astype(np.float64)
    return threshold_for_sensitivity(np.ones(len(logits)), logits, SEEN_LESIONS)


def whole_features(network: Network, catalogue: Catalogue, side: int) -> Array:
    """Return what each image looks like to the network, (n, features)."""
    windows = whole_windows(catalogue.sizes.numpy())
    return read_windows(network, catalogue.pixels.numpy(), windows, side).pooled


def graded(scored: Scored, fusion: Fusion) -> Graded:
    """Return the images with the suspicion and the category that each one got."""
    known = scored.catalogue
    return Graded(
        fused_logits(scored.own, fusion).astype(np.float64),
        np.array(known.sets),
        np.array(known.groups),
        np.array(known.categories),
        known.malignancy.numpy().astype(np.float64),
    )


def spoken_fields(scored: Scored) -> dict[str, tuple[str, ...]]:
    """Return the fields and terms that the validation split supports.

    A single-choice field needs two such terms, since one alone would be said always,
    and they must be true of most lesions: whoever cannot say "none" should not speak.
    """
    fields: dict[str, tuple[str, ...]] = {}
    for field, keys in CHOICE_KEYS.items():
        if field == "orientation":
            continue
        truth = scored.catalogue.choices[field].numpy()
        chances = softmax(scored.own.crop.choices[field])
        rows = truth >= 0
        good = tuple(
            key
            for index, key in enumerate(keys)
            if _supported(truth[rows] == index, chances[rows, index])
        )
        covered = np.isin(truth[rows], [keys.index(key) for key in good])
        if len(good) > 1 and len(covered) and covered.mean() >= LEAST_COVERED:
            fields[field] = good
    if orientation_agreement(scored)["box"] >= LEAST_KAPPA:
        fields["orientation"] = CHOICE_KEYS["orientation"]
    margin = scored.catalogue.margin.numpy()
    rows = ~np.isnan(margin[:, 0])
    logits = scored.own.crop.margin
    good = tuple(
        key
        for index, key in enumerate(MARGIN_KEYS)
        if _supported(margin[rows, index] > 0.5, logits[rows, index])
    )
    if good:
        fields["margin"] = good
    return fields


def margin_thresholds(scored: Scored) -> dict[str, float]:
    """Return the logit above which each margin term is said (Youden on validation)."""
    margin = scored.catalogue.margin.numpy().astype(np.float64)
    rows = ~np.isnan(margin[:, 0])
    logits = scored.own.crop.margin.astype(np.float64)
    return {
        key: youden_threshold(margin[rows, index], logits[rows, index])
        if rows.any()
        else 0.0
        for index, key in enumerate(MARGIN_KEYS)
    }


def _supported(truth: Any, score: Any) -> bool:
    if min(int(truth.sum()), int((~truth).sum())) < FEWEST_CASES:
        return False
    return auc(truth.astype(np.float64), score.astype(np.float64)) >= LEAST_AUC
