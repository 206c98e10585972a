"""Everything a release needs, from a checkpoint to the card, in one call.

Also what every training run ends with: a run is a release that nobody has installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from torch import nn

from inference.network import LesionNet, TorchNetwork, load_model
from inference.record import ModelRecord
from inference.training.card import (
    CARD,
    METRICS,
    TEST_FIGURES,
    model_card,
    result_lines,
)
from inference.training.data import Catalogue, read_catalogue
from inference.training.evaluate import (
    Scored,
    probabilities,
    report,
    suspicions,
    uncalibrated,
)
from inference.training.figures import (
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_roc,
)
from inference.training.manifest import DataFault
from inference.training.release import calibration_figures, release
from inference.training.runs import CONFIG, read_log, write_config, write_json
from inference.training.shortcuts import shortcut_figures
from inference.training.train import read_checkpoint

log = structlog.get_logger()


def publish(
    checkpoint: Path,
    data: Path,
    directory: Path,
    *,
    version: str,
    rounds: int = 1000,
) -> ModelRecord:
    """Turn a checkpoint into a released model with its figures, pictures and card.

    Fits calibration, thresholds, cut points of categories and what is familiar on
    `train` and `val`, writes weights and record into `directory`, reads them back, and
    measures on `val` what was written. The test split is never touched.
    """
    state = read_checkpoint(checkpoint)
    recipe = state["recipe"]
    network = network_of_state(state["average"])
    training = read_catalogue(data, "train")
    validation = read_catalogue(data, "val")
    log.info("fitting", version=version, validation=len(validation))
    release(
        network,
        validation,
        directory,
        version=version,
        side=recipe.get("last_side", recipe["side"]),
        training={
            "steps": state["step"],
            "minutes": round(state["seconds"] / 60, 1),
            "sets": ", ".join(sorted(set(training.sets))),
            "recipe": recipe,
        },
        trained_on=training,
    )
    config = checkpoint.with_name(CONFIG)
    if not config.exists():
        splits = {"train": training, "val": validation}
        write_config(directory, recipe, "not recorded", splits)
    elif config.parent != directory:
        (directory / CONFIG).write_bytes(config.read_bytes())
    loaded, record = load_model(directory)
    _forget_other_weights(directory / TEST_FIGURES, record)
    reading = TorchNetwork(loaded)
    log.info("measuring on the validation split")
    scored, figures = report(reading, record, validation, rounds=rounds, oracle=True)
    figures["split"] = "val"
    figures["calibration"] = calibration_figures(scored, record)
    log.info("asking what callipers and text do")
    figures["shortcuts"] = shortcut_figures(reading, record, validation, rounds=rounds)
    write_json(directory / METRICS, figures)
    lines = read_log(checkpoint.parent)
    if lines:
        draw_curves(directory / "curves.png", lines)
    draw_pictures(directory, scored, record, figures)
    (directory / CARD).write_text(model_card(directory), encoding="utf-8")
    return record


def _forget_other_weights(path: Path, record: ModelRecord) -> None:
    """Take test figures away that the weights which lay here before have earned."""
    if path.exists() and record.sha256 not in path.read_text(encoding="utf-8"):
        path.unlink()
        log.warning("figures of other weights removed", file=path.name)


def draw_pictures(
    directory: Path, scored: Scored, record: ModelRecord, figures: Mapping[str, Any]
) -> None:
    """Draw ROC, calibration and confusion of one evaluated split."""
    said = suspicions(scored, record)
    groups = [scored.catalogue.groups[row] for row in said.rows]
    scores = {"own region": said.chance}
    if scored.oracle is not None:
        scores["true box"] = probabilities(scored.oracle, record)[said.rows]
    draw_roc(
        directory / "roc.png", said.truth, scores, groups, threshold=record.threshold
    )
    chances = {
        "uncalibrated": uncalibrated(scored.own)[said.rows],
        "calibrated": said.chance,
    }
    draw_calibration(directory / "calibration.png", said.truth, chances)
    counts = figures["pooled"]["at_threshold"]
    tables: dict[str, tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]] = {
        f"at the threshold {record.threshold:.3f}": (
            ["benign", "malignant"],
            np.array(
                [
                    [counts["true_negative"], counts["false_positive"]],
                    [counts["false_negative"], counts["true_positive"]],
                ]
            ),
        )
    }
    for name, found in figures["birads"].items():
        table = np.array(found["given_by_drafted"])
        tables[f"BI-RADS, {name}"] = (found["categories"], table)
    draw_confusion(directory / "confusion.png", tables)


def write_report(
    directory: Path,
    scored: Scored,
    record: ModelRecord,
    figures: Mapping[str, Any],
    split: str,
) -> None:
    """Write figures, tables and pictures of one evaluated split into a folder."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / METRICS, figures)
    title = f"# {record.name} {record.version}, split {split}"
    text = "\n".join([title, "", *result_lines(figures, f"split {split}")])
    (directory / "report.md").write_text(text.rstrip() + "\n", encoding="utf-8")
    draw_pictures(directory, scored, record, figures)


def network_of_state(state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return the network of a checkpoint's weights, with attention where it has some.

    Raises DataFault when they are of another network.
    """
    network = LesionNet(cbam=any(name.startswith("attention.") for name in state))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise DataFault("the checkpoint is of another network") from error
    return network.eval()


def evaluated_catalogue(data: Path, split: str) -> Catalogue:
    """Return a split of every set under `data`, also of sets without a known name."""
    catalogue = read_catalogue(data, split, None)
    for notice in catalogue.notices:
        log.warning("data", note=notice)
    return catalogue
