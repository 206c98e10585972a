"""Command line: `python -m inference.training train|release|evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from inference.network import LesionNet, TorchNetwork, load_model
from inference.record import WEIGHTS
from inference.training.adapters.command import import_command
from inference.training.data import read_catalogue
from inference.training.evaluate import report
from inference.training.release import release as write_release
from inference.training.train import Recipe
from inference.training.train import train as run_training

app = typer.Typer(help="Train, release and evaluate the lesion network.")
app.command("import")(import_command)

Data = Annotated[
    Path,
    typer.Option(
        envvar="SONONODE_SAMPLES", help="Folder with <set>/manifest.csv inside."
    ),
]
Checkpoint = Annotated[Path, typer.Option(help="Where training keeps its state.")]


@app.command()
def train(
    data: Data,
    checkpoint: Checkpoint = Path("var/training/model.pt"),
    steps: int = Recipe().steps,
    minutes: float = Recipe().minutes,
    side: int = Recipe().side,
    batch: int = Recipe().batch,
    threads: int = Recipe().threads,
    seed: int = Recipe().seed,
) -> None:
    """Train from scratch, or go on from the checkpoint."""
    recipe = Recipe(
        steps=steps,
        minutes=minutes,
        side=side,
        batch=batch,
        threads=threads,
        seed=seed,
    )
    run_training(data, checkpoint, recipe)


@app.command()
def release(
    data: Data,
    version: str,
    checkpoint: Checkpoint = Path("var/training/model.pt"),
    directory: Path = WEIGHTS,
) -> None:
    """Calibrate on the validation split and write weights with their record."""
    state = torch.load(checkpoint, weights_only=True)
    network = LesionNet()
    network.load_state_dict(state["average"])
    recipe = state["recipe"]
    training = {
        "steps_done": state["step"],
        "minutes_used": round(state["seconds"] / 60, 1),
        "recipe": recipe,
        "data": ["BUSI", "BrEaST-Lesions-USG", "BUS-BRA"],
    }
    record = write_release(
        network,
        read_catalogue(data, "val"),
        directory,
        version=version,
        side=recipe["side"],
        training=training,
    )
    Console().print(f"{record.name} {record.version}, SHA-256 {record.sha256}")


@app.command()
def evaluate(
    data: Data,
    split: str = "val",
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
    directory: Path = WEIGHTS,
    rounds: Annotated[int, typer.Option(help="Bootstrap rounds.")] = 1000,
) -> None:
    """Score the released model. Look at `test` once, for a model that is final."""
    network, record = load_model(directory)
    figures = report(
        TorchNetwork(network), record, read_catalogue(data, split), rounds=rounds
    )
    figures["split"] = split
    if json_file is not None:
        text = json.dumps(_without_nan(figures), indent=2, allow_nan=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    table = Table(title=f"{record.name} {record.version}, split {split}")
    for heading in ("set", "n", "AUC", "oracle", "sens", "spec", "ECE", "Dice"):
        table.add_column(heading)
    for name in ("pooled", "busi", "breast", "busbra"):
        if name in figures:
            row = figures[name]
            measures = ("auc", "auc_oracle_roi", "sensitivity", "specificity", "ece")
            cells = [_cell(row[measure]) for measure in (*measures, "dice")]
            table.add_row(name, str(row["n"]), *cells)
    Console().print(table)


def _without_nan(value: Any) -> Any:
    """Return figures with None where there is no number; JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.2f}-{value['high']:.2f}]"


if __name__ == "__main__":
    app()
