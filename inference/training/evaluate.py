"""Scores a network on labelled images, in the very passes that the product makes.

"own" figures are what the product does: the network finds its region of interest.
"oracle" figures hand it the true box and say what better localisation could gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from inference.assess import (
    category_for,
    describe,
    fused_logits,
    lesion_logits,
    orientation_of,
    probability_of,
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
from inference.training.heat import pointing_figures
from inference.training.measures import (
    auc,
    calibration_error,
    compare_areas,
    delong_interval,
    interval,
    kappa,
    macro_f1,
    mean_known,
    sensitivity,
    sensitivity_at,
    specificity,
    youden_index,
)
from inference.training.subgroups import Suspicions, subgroup_table
from inference.two_pass import RegionAnswers, read_boxes, read_regions, sigmoid
from node.domain.lexicon import FieldKey

Array = NDArray[np.float64]

log = structlog.get_logger()


@dataclass(frozen=True)
class Scored:
    """A catalogue with the network's answers: its own way, and with the true boxes.

    `oracle` is None where nobody asked; images without a true box keep their own.
    """

    catalogue: Catalogue
    own: RegionAnswers
    oracle: RegionAnswers | None
    dice: Array


def score(
    network: Network, catalogue: Catalogue, side: int, *, oracle: bool = False
) -> Scored:
    """Read every image of a catalogue, with `oracle` also around the true boxes."""
    pixels, sizes = catalogue.pixels.numpy(), catalogue.sizes.numpy()
    own = read_regions(network, pixels, sizes, side)
    given = None
    if oracle:
        known = catalogue.boxes.numpy()
        boxes = np.where(np.isnan(known), own.boxes, known)
        given = read_boxes(network, pixels, sizes, boxes, side, whole=own.whole)
    return Scored(catalogue, own, given, _dice(catalogue, own))


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
    dice[np.isnan(catalogue.boxes.numpy()[:, 0])] = np.nan
    return np.asarray(dice, dtype=np.float64)


def quick_scores(network: Network, catalogue: Catalogue, side: int) -> dict[str, float]:
    """Return the few figures that are watched while training."""
    scored = score(network, catalogue, side, oracle=True)
    truth = catalogue.malignancy.numpy().astype(np.float64)
    keep = ~np.isnan(truth)
    ways = {
        "whole": scored.own.whole.malignancy,
        "crop": scored.own.crop.malignancy,
        "both": scored.own.whole.malignancy + scored.own.crop.malignancy,
    }
    if scored.oracle is not None:
        ways["oracle"] = scored.oracle.crop.malignancy
    result = {name: auc(truth[keep], way[keep]) for name, way in ways.items()}
    for name in sorted(set(catalogue.sets)):
        rows = keep & (np.array(catalogue.sets) == name)
        result[name] = auc(truth[rows], ways["both"][rows])
    result["dice"] = mean_known(scored.dice)
    return result


def report(
    network: Network,
    record: ModelRecord,
    catalogue: Catalogue,
    *,
    rounds: int = 1000,
    oracle: bool = False,
) -> tuple[Scored, dict[str, Any]]:
    """Return the answers and every figure of the model card for one split.

    Intervals are 95 %. With `oracle` also what a true box would gain. A split may
    hold one class only, or lesions without masks: what cannot be measured is NaN.
    """
    log.info("reading", images=len(catalogue), model=record.name, oracle=oracle)
    scored = score(network, catalogue, record.side, oracle=oracle)
    log.info("measuring", bootstrap_rounds=rounds)
    sets = np.array(catalogue.sets)
    lesions = (catalogue.malignancy == catalogue.malignancy).numpy()
    figures: dict[str, Any] = {
        "model": record.name,
        "version": record.version,
        "sha256": record.sha256,
        "sets": sorted(set(catalogue.sets)),
        "images": len(catalogue),
        "threshold": record.threshold,
    }
    for name in ("pooled", *figures["sets"]):
        rows = lesions & ((sets == name) | (name == "pooled"))
        figures[name] = _malignancy_figures(scored, record, rows, rounds)
    figures["per_case"] = _per_case_figures(scored, record, lesions, rounds)
    figures["normal"] = _normal_figures(scored, record)
    figures["birads"] = _category_figures(scored, record, rounds)
    figures["fields"] = _field_figures(scored, record, rounds)
    figures["heat_map"] = pointing_figures(
        network, catalogue, scored.own, record.side, rounds=rounds
    )
    figures["subgroups"] = subgroup_table(
        catalogue, suspicions(scored, record), rounds=rounds
    )
    figures["notices"] = list(catalogue.notices)
    return scored, figures


def suspicions(scored: Scored, record: ModelRecord) -> Suspicions:
    """Return what was said about the lesions whose diagnosis is known."""
    truth = scored.catalogue.malignancy.numpy().astype(np.float64)
    rows = np.flatnonzero(~np.isnan(truth))
    chance = probabilities(scored.own, record)[rows]
    called = (chance >= record.threshold).astype(np.float64)
    return Suspicions(truth[rows], chance, called, rows)


def _malignancy_figures(
    scored: Scored, record: ModelRecord, rows: NDArray[np.bool_], rounds: int
) -> dict[str, Any]:
    truth = scored.catalogue.malignancy.numpy().astype(np.float64)[rows]
    groups = [g for g, kept in zip(scored.catalogue.groups, rows, strict=True) if kept]
    chance = probabilities(scored.own, record)[rows]
    plain = uncalibrated(scored.own)[rows]
    called = (chance >= record.threshold).astype(np.float64)
    from_4a = probability_of(record.category_cuts[1])
    suspicious = (chance >= from_4a).astype(np.float64)
    dice = scored.dice[rows]
    with_interval: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "auc": lambda i: auc(truth[i], chance[i]),
        "sensitivity": lambda i: sensitivity(truth[i], called[i]),
        "specificity": lambda i: specificity(truth[i], called[i]),
        "sensitivity_at_90_specificity": lambda i: sensitivity_at(
            truth[i], chance[i], 0.90
        ),
        "sensitivity_4a": lambda i: sensitivity(truth[i], suspicious[i]),
        "specificity_4a": lambda i: specificity(truth[i], suspicious[i]),
        "ece": lambda i: calibration_error(truth[i], chance[i]),
        "dice": lambda i: mean_known(dice[i]),
    }
    figures: dict[str, Any] = {
        name: interval(measure, groups, rounds=rounds)
        for name, measure in with_interval.items()
    }
    figures["auc_delong"] = delong_interval(truth, chance, groups)
    if scored.oracle is not None:
        figures |= _oracle_figures(scored, record, rows, rounds)
    index, threshold = youden_index(truth, chance)
    ways = {
        "auc_whole_only": scored.own.whole.malignancy,
        "auc_crop_only": scored.own.crop.malignancy,
    }
    figures |= {k: auc(truth, v[rows]) for k, v in ways.items()}
    figures["youden_index"] = index
    figures["youden_threshold"] = threshold
    figures["ece_uncalibrated"] = calibration_error(truth, plain)
    figures["brier"] = mean_known((chance - truth) ** 2)
    figures["n"] = int(rows.sum())
    figures["malignant"] = int(truth.sum())
    figures["at_threshold"] = _two_by_two(truth, called)
    return figures


def _oracle_figures(
    scored: Scored, record: ModelRecord, rows: NDArray[np.bool_], rounds: int
) -> dict[str, Any]:
    """Return what the model gains when it is handed the true box.

    Only lesions that somebody has drawn; the paired difference is given box less own.
    """
    assert scored.oracle is not None  # noqa: S101 - the caller has looked
    drawn = rows & ~np.isnan(scored.catalogue.boxes.numpy()[:, 0])
    truth = scored.catalogue.malignancy.numpy().astype(np.float64)[drawn]
    groups = [g for g, kept in zip(scored.catalogue.groups, drawn, strict=True) if kept]
    own = probabilities(scored.own, record)[drawn]
    given = probabilities(scored.oracle, record)[drawn]
    both = interval(
        lambda i: auc(truth[i], given[i]) - auc(truth[i], own[i]), groups, rounds=rounds
    )
    return {
        "auc_oracle_roi": interval(
            lambda i: auc(truth[i], given[i]), groups, rounds=rounds
        ),
        "oracle_gain": {
            **asdict(compare_areas(truth, given, own, groups)),
            "bootstrap_low": both["low"],
            "bootstrap_high": both["high"],
            "n": int(drawn.sum()),
        },
    }


def _two_by_two(truth: Array, called: Array) -> dict[str, int]:
    bad, said = truth > 0.5, called > 0.5
    return {
        "true_positive": int((bad & said).sum()),
        "false_negative": int((bad & ~said).sum()),
        "false_positive": int((~bad & said).sum()),
        "true_negative": int((~bad & ~said).sum()),
    }


def uncalibrated(answers: RegionAnswers) -> Array:
    """Return the chance that the malignancy heads state themselves, both passes."""
    mean = (answers.whole.malignancy + answers.crop.malignancy) / 2
    return sigmoid(mean.astype(np.float32)).astype(np.float64)


def probabilities(answers: RegionAnswers, record: ModelRecord) -> Array:
    """Return the calibrated probability of malignancy of every region."""
    logits = fused_logits(answers, record.fusion)
    return sigmoid(logits).astype(np.float64)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the chances of each row's choices."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def _per_case_figures(
    scored: Scored, record: ModelRecord, lesions: NDArray[np.bool_], rounds: int
) -> dict[str, Any]:
    """Return the AUC over cases, the mean logit of all images of a case.

    For sets that have several images of one case.
    """
    logits = fused_logits(scored.own, record.fusion)
    truth = scored.catalogue.malignancy.numpy()
    names, sets = np.array(scored.catalogue.groups), np.array(scored.catalogue.sets)
    result = {}
    for name in sorted(set(scored.catalogue.sets)):
        rows = lesions & (sets == name)
        cases = sorted(set(names[rows].tolist()))
        if len(cases) == int(rows.sum()):
            continue
        members = [rows & (names == case) for case in cases]
        mean = np.array([float(logits[kept].mean()) for kept in members])
        worst = np.array([float(truth[kept].max()) for kept in members])
        result[name] = {
            "auc": _case_interval(worst, mean, cases, rounds),
            "n": len(cases),
        }
    return result


def _case_interval(
    truth: Array, score: Array, cases: list[str], rounds: int
) -> dict[str, float]:
    return interval(lambda i: auc(truth[i], score[i]), cases, rounds=rounds)


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
    """Compare the drafted category with the radiologist's, set by set.

    Weighted kappa over 2, 3, 4A, 4B, 4C, 5, or over 2, 3, 4, 5 in sets that do not
    subdivide 4.
    """
    known = scored.catalogue
    drafted = [
        category_for(float(logit), record.category_cuts)
        for logit in fused_logits(scored.own, record.fusion)
    ]
    result = {}
    for name in sorted(set(known.sets)):
        given = {
            known.categories[r] for r in range(len(known)) if known.sets[r] == name
        }
        scale = ("2", "3", "4", "5") if "4" in given else BIRADS_STEPS
        if given & set(scale):
            result[name] = _category_agreement(known, drafted, name, scale, rounds)
    return result


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


def _field_figures(scored: Scored, record: ModelRecord, rounds: int) -> dict[str, Any]:
    """Return, for each field, how well its terms are told apart, spoken on or not.

    `kappa` and `macro_f1` are of what the model drafts, where it speaks; `head_...`
    of what each head thinks likeliest, also where it is not allowed to say so.
    """
    known = scored.catalogue
    result: dict[str, Any] = {}
    said = [describe(scored.own, row, record) for row in range(len(known))]
    for field, keys in CHOICE_KEYS.items():
        truth = known.choices[field].numpy()
        rows = np.flatnonzero(truth >= 0)
        if not len(rows):
            continue
        figures = _choice_figures(scored, field, rows, rounds)
        figures["spoken"] = sorted(record.speaks_on.get(field, ()))
        if figures["spoken"]:
            spoken = np.array(
                [r for r in rows if FieldKey(field) in said[r]], dtype=int
            )
            drafted = np.array(
                [keys.index(said[r][FieldKey(field)][0]) for r in spoken], float
            )
            figures["coverage"] = len(spoken) / len(rows)
            groups = [known.groups[row] for row in spoken]
            figures |= _agreement(
                truth[spoken].astype(float), drafted, len(keys), groups, rounds
            )
        result[field] = figures
    result["margin"] = _margin_figures(scored, record, said, rounds)
    return result


def _agreement(
    truth: Array, said: Array, classes: int, groups: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    return {
        "kappa": interval(
            lambda i: kappa(truth[i], said[i], classes), groups, rounds=rounds
        ),
        "macro_f1": interval(
            lambda i: macro_f1(truth[i], said[i], range(classes)), groups, rounds=rounds
        ),
    }


def _choice_figures(
    scored: Scored, field: str, rows: NDArray[np.int64], rounds: int
) -> dict[str, Any]:
    keys = CHOICE_KEYS[field]
    truth = scored.catalogue.choices[field].numpy()[rows].astype(np.float64)
    chances = softmax(scored.own.crop.choices[field][rows])
    one_against_rest = {
        key: {
            "n": int((truth == index).sum()),
            "auc": auc((truth == index).astype(np.float64), chances[:, index]),
        }
        for index, key in enumerate(keys)
    }
    best = chances.argmax(axis=1).astype(np.float64)
    groups = [scored.catalogue.groups[row] for row in rows]
    head = _agreement(truth, best, len(keys), groups, rounds)
    return {
        "n": len(rows),
        "keys": one_against_rest,
        **{f"head_{name}": value for name, value in head.items()},
    }


def _margin_figures(
    scored: Scored,
    record: ModelRecord,
    said: list[dict[FieldKey, tuple[str, ...]]],
    rounds: int,
) -> dict[str, Any]:
    """Return each margin term against all lesions without it, and their means."""
    known = scored.catalogue
    truth = known.margin.numpy().astype(np.float64)
    rows = np.flatnonzero(~np.isnan(truth[:, 0]))
    if not len(rows):
        return {}
    given = truth[rows]
    logits = scored.own.crop.margin[rows].astype(np.float64)
    levels = [record.margin_thresholds.get(key, 0.0) for key in MARGIN_KEYS]
    head = (logits > np.array(levels)).astype(np.float64)
    terms = [said[row].get(FieldKey.MARGIN, ()) for row in rows]
    drafted = np.array([[float(key in term) for key in MARGIN_KEYS] for term in terms])
    spoken = record.speaks_on.get("margin", ())
    places = [place for place, key in enumerate(MARGIN_KEYS) if key in spoken]
    groups = [known.groups[row] for row in rows]
    keys: dict[str, Any] = {}
    for place, key in enumerate(MARGIN_KEYS):
        keys[key] = {
            "n": int(given[:, place].sum()),
            "auc": auc(given[:, place], logits[:, place]),
            "kappa": kappa(given[:, place], drafted[:, place], 2),
            "f1": _f1(given[:, place], drafted[:, place]),
        }
    everything = list(range(len(MARGIN_KEYS)))
    heads = _mean_agreement(given, head, everything, groups, rounds)
    figures: dict[str, Any] = {
        "n": len(rows),
        "keys": keys,
        "spoken": sorted(spoken),
        **{f"head_{name}": value for name, value in heads.items()},
    }
    if places:
        figures |= _mean_agreement(given, drafted, places, groups, rounds)
    return figures


def _mean_agreement(
    given: Array, said: Array, places: list[int], groups: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the means of kappa and F1 over the terms at `places`."""

    def mean_kappa(i: NDArray[np.int64]) -> float:
        found = [kappa(given[i, place], said[i, place], 2) for place in places]
        return mean_known(np.array(found))

    def mean_f1(i: NDArray[np.int64]) -> float:
        return float(np.mean([_f1(given[i, p], said[i, p]) for p in places]))

    return {
        "kappa": interval(mean_kappa, groups, rounds=rounds),
        "macro_f1": interval(mean_f1, groups, rounds=rounds),
    }


def _f1(given: Array, said: Array) -> float:
    return float(2 * (given * said).sum() / max((given + said).sum(), 1.0))


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
