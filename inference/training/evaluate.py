"""Scores a network on labelled images, in the very passes that the product makes.

"own" figures are what the product does: the network finds its region of interest.
"oracle" figures hand it the true box and say what better localisation could gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.assess import (
    CATEGORY_LIKELIHOODS,
    category_for,
    describe,
    fused_logits,
    lesion_logits,
    orientation_of,
    shows_lesion,
)
from inference.preprocess import cut_windows
from inference.record import (
    BIRADS_STEPS,
    CHOICE_KEYS,
    MARGIN_KEYS,
    ModelRecord,
    Network,
)
from inference.training.data import Catalogue
from inference.training.measures import (
    auc,
    calibration_error,
    interval,
    kappa,
    macro_f1,
    sensitivity,
    specificity,
)
from inference.two_pass import RegionAnswers, read_boxes, read_regions, sigmoid
from node.domain.lexicon import FieldKey

Array = NDArray[np.float64]

SUSPICIOUS = dict(CATEGORY_LIKELIHOODS)["3"]
"""From this probability on a lesion is drafted as 4A or higher."""


@dataclass(frozen=True)
class Scored:
    """A catalogue with the network's answers: its own way, and with the true boxes."""

    catalogue: Catalogue
    own: RegionAnswers
    oracle: RegionAnswers
    dice: Array


def score(network: Network, catalogue: Catalogue, side: int) -> Scored:
    """Read every image of a catalogue; images without lesion keep their own box."""
    pixels, sizes = catalogue.pixels.numpy(), catalogue.sizes.numpy()
    own = read_regions(network, pixels, sizes, side)
    known = catalogue.boxes.numpy()
    boxes = np.where(np.isnan(known), own.boxes, known)
    oracle = read_boxes(network, pixels, sizes, boxes, side, whole=own.whole)
    return Scored(catalogue, own, oracle, _dice(catalogue, own))


def _dice(catalogue: Catalogue, answers: RegionAnswers) -> Array:
    """Return the overlap of each crop's mask with the truth; NaN without lesion.

    Lesion beyond the crop counts as missed.
    """
    side = answers.crop.chances.shape[-1]
    masks = catalogue.masks.numpy()
    truth = cut_windows(masks, answers.windows, side) > 127
    found = answers.crop.chances > 0.5
    per_pixel = (side / answers.windows[:, 2]) ** 2
    whole = (masks > 127).sum(axis=(1, 2)) * per_pixel
    both = (truth & found).sum(axis=(1, 2))
    dice = 2 * both / (whole + found.sum(axis=(1, 2))).clip(min=1)
    dice[catalogue.lesion.numpy() == 0] = np.nan
    return np.asarray(dice, dtype=np.float64)


def quick_scores(network: Network, catalogue: Catalogue, side: int) -> dict[str, float]:
    """Return the few figures that are watched while training."""
    scored = score(network, catalogue, side)
    truth = catalogue.malignancy.numpy().astype(np.float64)
    keep = ~np.isnan(truth)
    ways = {
        "whole": scored.own.whole.malignancy,
        "crop": scored.own.crop.malignancy,
        "oracle": scored.oracle.crop.malignancy,
        "both": scored.own.whole.malignancy + scored.own.crop.malignancy,
    }
    result = {
        name: auc(truth[keep], way[keep].astype(np.float64))
        for name, way in ways.items()
    }
    for name in sorted(set(catalogue.sets)):
        rows = keep & (np.array(catalogue.sets) == name)
        result[name] = auc(truth[rows], ways["both"][rows].astype(np.float64))
    result["dice"] = float(np.nanmean(scored.dice))
    return result


def report(
    network: Network, record: ModelRecord, catalogue: Catalogue, *, rounds: int = 1000
) -> dict[str, Any]:
    """Return every figure of the model card for one split, with 95 % intervals."""
    scored = score(network, catalogue, record.side)
    sets = np.array(catalogue.sets)
    lesions = (catalogue.malignancy == catalogue.malignancy).numpy()
    figures: dict[str, Any] = {"model": record.name, "sha256": record.sha256}
    for name in ("pooled", *sorted(set(catalogue.sets))):
        rows = lesions & ((sets == name) | (name == "pooled"))
        figures[name] = _malignancy_figures(scored, record, rows, rounds)
    figures["busbra_per_case"] = _per_case(scored, record, sets == "busbra", rounds)
    figures["normal"] = _normal_figures(scored, record)
    figures["birads"] = _category_figures(scored, record, rounds)
    figures["fields"] = _field_figures(scored, record)
    return figures


def _malignancy_figures(
    scored: Scored, record: ModelRecord, rows: NDArray[np.bool_], rounds: int
) -> dict[str, Any]:
    truth = scored.catalogue.malignancy.numpy().astype(np.float64)[rows]
    groups = [g for g, kept in zip(scored.catalogue.groups, rows, strict=True) if kept]
    chance = probabilities(scored.own, record)[rows]
    oracle = probabilities(scored.oracle, record)[rows]
    called = (chance >= record.threshold).astype(np.float64)
    suspicious = (chance >= SUSPICIOUS).astype(np.float64)
    dice = scored.dice[rows]
    with_interval = {
        "auc": lambda i: auc(truth[i], chance[i]),
        "auc_oracle_roi": lambda i: auc(truth[i], oracle[i]),
        "sensitivity": lambda i: sensitivity(truth[i], called[i]),
        "specificity": lambda i: specificity(truth[i], called[i]),
        "sensitivity_4a": lambda i: sensitivity(truth[i], suspicious[i]),
        "specificity_4a": lambda i: specificity(truth[i], suspicious[i]),
        "ece": lambda i: calibration_error(truth[i], chance[i]),
        "dice": lambda i: float(np.nanmean(dice[i])),
    }
    figures: dict[str, Any] = {
        name: interval(measure, groups, rounds=rounds)
        for name, measure in with_interval.items()
    }
    ways = {
        "auc_whole_only": scored.own.whole.malignancy,
        "auc_crop_only": scored.own.crop.malignancy,
    }
    figures |= {k: auc(truth, v[rows].astype(np.float64)) for k, v in ways.items()}
    figures["n"] = int(rows.sum())
    figures["malignant"] = int(truth.sum())
    return figures


def probabilities(answers: RegionAnswers, record: ModelRecord) -> Array:
    """Return the calibrated probability of malignancy of every region."""
    logits = fused_logits(answers, record.fusion)
    return sigmoid(logits).astype(np.float64)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the chances of each row's choices."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _per_case(
    scored: Scored, record: ModelRecord, rows: NDArray[np.bool_], rounds: int
) -> dict[str, Any]:
    """Return the AUC over cases: the mean logit of all images of a case."""
    if not rows.any():
        return {}
    names = np.array(scored.catalogue.groups)
    logits = fused_logits(scored.own, record.fusion)
    truth = scored.catalogue.malignancy.numpy()
    cases = sorted(set(names[rows]))
    mean = np.array([logits[names == case].mean() for case in cases])
    worst = np.array([truth[names == case].max() for case in cases])
    value = interval(lambda i: auc(worst[i], mean[i]), cases, rounds=rounds)
    return {"auc": value, "n": len(cases)}


def _normal_figures(scored: Scored, record: ModelRecord) -> dict[str, Any]:
    truth = scored.catalogue.lesion.numpy().astype(np.float64)
    logits = lesion_logits(scored.own).astype(np.float64)
    called = shows_lesion(scored.own, record).astype(np.float64)
    malignant = scored.catalogue.malignancy.numpy() == 1
    return {
        "normals": int((truth == 0).sum()),
        "auc": auc(truth, logits),
        "lesions_seen": sensitivity(truth, called),
        "normals_recognised": specificity(truth, called),
        "malignant_called_normal": int((called[malignant] == 0).sum()),
    }


def _category_figures(
    scored: Scored, record: ModelRecord, rounds: int
) -> dict[str, Any]:
    """Compare the drafted category with the radiologist's, 4A-4C taken as 4 if need be.

    Weighted kappa on BrEaST over 2, 3, 4A, 4B, 4C, 5; on BUS-BRA over 2, 3, 4, 5.
    """
    known = scored.catalogue
    chance = probabilities(scored.own, record)
    above = scored.own.crop.birads[:, 0]
    drafted = [
        category_for(float(p), float(a), record)
        for p, a in zip(chance, above, strict=True)
    ]
    return {
        name: _category_agreement(known, drafted, name, scale, rounds)
        for name, scale in (("breast", BIRADS_STEPS), ("busbra", ("2", "3", "4", "5")))
        if any(_graded(known, row, name, scale) for row in range(len(known)))
    }


def _category_agreement(
    known: Catalogue, drafted: list[str], name: str, scale: tuple[str, ...], rounds: int
) -> dict[str, Any]:
    rows = [row for row in range(len(known)) if _graded(known, row, name, scale)]
    given = np.array([scale.index(known.categories[row]) for row in rows], float)
    said = np.array([scale.index(_on_scale(drafted[r], scale)) for r in rows], float)

    def agreement(drawn: NDArray[np.int64]) -> float:
        return kappa(given[drawn], said[drawn], len(scale), weighted=True)

    groups = [known.groups[row] for row in rows]
    table = np.zeros((len(scale), len(scale)), dtype=int)
    np.add.at(table, (given.astype(int), said.astype(int)), 1)
    return {
        "weighted_kappa": interval(agreement, groups, rounds=rounds),
        "n": len(rows),
        "categories": list(scale),
        "given_by_drafted": table.tolist(),
    }


def _graded(known: Catalogue, row: int, name: str, scale: tuple[str, ...]) -> bool:
    return known.sets[row] == name and known.categories[row] in scale


def _on_scale(category: str, scale: tuple[str, ...]) -> str:
    return category if category in scale else category[0]


def _field_figures(scored: Scored, record: ModelRecord) -> dict[str, Any]:
    """Return, for each field, how well its terms are told apart, spoken on or not."""
    result: dict[str, Any] = {}
    said = [describe(scored.own, row, record) for row in range(len(scored.catalogue))]
    for field, keys in CHOICE_KEYS.items():
        truth = scored.catalogue.choices[field].numpy()
        rows = np.flatnonzero(truth >= 0)
        if not len(rows):
            continue
        figures = _choice_figures(scored, field, rows)
        figures["spoken"] = sorted(record.speaks_on.get(field, ()))
        if figures["spoken"]:
            spoken = [r for r in rows if FieldKey(field) in said[r]]
            given = truth[spoken].astype(float)
            drafted = np.array(
                [keys.index(said[r][FieldKey(field)][0]) for r in spoken], float
            )
            figures["coverage"] = len(spoken) / len(rows)
            figures["kappa"] = kappa(given, drafted, len(keys))
            figures["macro_f1"] = macro_f1(given, drafted, range(len(keys)))
        result[field] = figures
    result["margin"] = _margin_figures(scored, record, said)
    return result


def _choice_figures(
    scored: Scored, field: str, rows: NDArray[np.int64]
) -> dict[str, Any]:
    truth = scored.catalogue.choices[field].numpy()[rows]
    logits = scored.own.crop.choices[field][rows]
    chances = softmax(logits).astype(np.float64)
    keys = CHOICE_KEYS[field]
    one_against_rest = {
        key: {
            "n": int((truth == index).sum()),
            "auc": auc(
                (truth == index).astype(float), chances[:, index].astype(np.float64)
            ),
        }
        for index, key in enumerate(keys)
    }
    return {"n": len(rows), "keys": one_against_rest}


def _margin_figures(
    scored: Scored, record: ModelRecord, said: list[dict[FieldKey, tuple[str, ...]]]
) -> dict[str, Any]:
    truth = scored.catalogue.margin.numpy().astype(np.float64)
    rows = np.flatnonzero(~np.isnan(truth[:, 0]))
    if not len(rows):
        return {}
    spoken = record.speaks_on.get("margin", ())
    keys: dict[str, Any] = {}
    f1 = []
    for index, key in enumerate(MARGIN_KEYS):
        given = truth[rows, index]
        logits = scored.own.crop.margin[rows, index].astype(np.float64)
        keys[key] = {"n": int(given.sum()), "auc": auc(given, logits)}
        if key in spoken:
            drafted = np.array(
                [float(key in said[r].get(FieldKey.MARGIN, ())) for r in rows]
            )
            keys[key]["kappa"] = kappa(given, drafted, 2)
            hit = float((given * drafted).sum())
            f1.append(2 * hit / max(float(given.sum() + drafted.sum()), 1.0))
            keys[key]["f1"] = f1[-1]
    return {
        "n": len(rows),
        "keys": keys,
        "spoken": sorted(spoken),
        "macro_f1": float(np.mean(f1)) if f1 else None,
    }


def orientation_agreement(scored: Scored) -> dict[str, float]:
    """Return kappa of orientation from the drawn box and from the head, all sets."""
    truth = scored.catalogue.choices["orientation"].numpy()
    rows = np.flatnonzero(truth >= 0)
    keys = CHOICE_KEYS["orientation"]
    boxes = np.array(
        [keys.index(orientation_of(scored.own.boxes[r].tolist())) for r in rows]
    )
    head = scored.own.crop.choices["orientation"].argmax(axis=1)[rows]
    return {
        "box": kappa(truth[rows], boxes, 2),
        "head": kappa(truth[rows], head, 2),
    }
