"""Command line: `python -m inference.training train|release|evaluate|...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inference.network import TorchNetwork, load_model
from inference.record import WEIGHTS
from inference.training.adapters.command import import_command
from inference.training.card import CARD, TEST_FIGURES, model_card
from inference.training.comparison import compare_initial
from inference.training.evaluate import report
from inference.training.figures import require_matplotlib
from inference.training.pretraining import app as pretraining
from inference.training.publish import evaluated_catalogue, publish, write_report
from inference.training.recipes.reproduce import reproduce
from inference.training.runs import CHECKPOINT, without_nan, write_json
from inference.training.shortcuts import shortcut_figures
from inference.training.strangers import measure_strangers
from inference.training.train import Recipe
from inference.training.train import train as run_training
from node.domain.errors import NodeError

app = typer.Typer(help="Train, release and evaluate the lesion network.")
app.command("import")(import_command)
app.add_typer(pretraining, name="pretrain")
app.command("compare-initial")(compare_initial)
app.command("reproduce")(reproduce)
app.command("strangers")(measure_strangers)

Data = Annotated[
    Path,
    typer.Option(
        envvar="SONONODE_SAMPLES", help="Folder with <set>/manifest.csv inside."
    ),
]
Run = Annotated[Path, typer.Option(help="The run's folder; a run goes on from it.")]
Model = Annotated[Path, typer.Option(help="Folder of a released model.")]
Rounds = Annotated[int, typer.Option(help="Bootstrap rounds of the intervals.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
RUNS = Path("var/training")
DEFAULTS = Recipe()


@app.command()
def train(
    data: Data,
    run: Run = RUNS / "run",
    steps: int = DEFAULTS.steps,
    minutes: Annotated[
        float | None,
        typer.Option(help="End by the clock; weights then depend on the machine."),
    ] = None,
    side: Annotated[int, typer.Option(help="Pixels of a window.")] = DEFAULTS.side,
    batch: int = DEFAULTS.batch,
    learning_rate: float = DEFAULTS.learning_rate,
    weights: Annotated[
        str, typer.Option(help="Start from scratch, imagenet, or a file.")
    ] = DEFAULTS.initial,
    cbam: Annotated[bool, typer.Option(help="With attention (CBAM).")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: int = DEFAULTS.threads,
    seed: int = DEFAULTS.seed,
    check_every: Annotated[int, typer.Option(help="Steps between checks.")] = 250,
    figures: Annotated[
        bool, typer.Option(help="End with figures, pictures and card.")
    ] = True,
) -> None:
    """Train, or go on from the run's last checkpoint; end with figures and card."""
    recipe = Recipe(
        steps=steps,
        minutes=minutes,
        side=side,
        last_side=side,
        side_first=min(side, DEFAULTS.side_first),
        batch=batch,
        learning_rate=learning_rate,
        initial=weights,
        cbam=cbam,
        threads=threads,
        seed=seed,
    )
    if figures:
        require_matplotlib()
    checkpoint = run / CHECKPOINT
    done = run_training(
        data, checkpoint, recipe, check_every=check_every, device=device
    )
    if done is not None and figures:
        publish(checkpoint, data, run, version=f"0.0.0+{run.name}")
        Console().print(f"{run / CARD} says how good it is")


@app.command()
def release(
    version: str,
    data: Data,
    run: Run = RUNS / "run",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Instead of the run's own.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where it is written.")] = WEIGHTS,
    rounds: Rounds = 1000,
) -> None:
    """Fit all choices on the validation split; write weights, record, figures, card."""
    require_matplotlib()
    record = publish(
        checkpoint or run / CHECKPOINT, data, directory, version=version, rounds=rounds
    )
    Console().print(f"{record.name} {record.version}, SHA-256 {record.sha256}")
    Console().print(f"write what you know against it into {directory}/defects.md")


@app.command()
def evaluate(
    data: Data,
    split: str = "val",
    json_file: Json = None,
    model: Model = WEIGHTS,
    oracle_roi: Annotated[
        bool, typer.Option(help="Also hand it the true box: what localisation costs.")
    ] = False,
    report_directory: Annotated[
        Path | None, typer.Option("--report", help="Write tables and pictures here.")
    ] = None,
    rounds: Rounds = 1000,
) -> None:
    """Score a released model. Look at `test` once, for a model that is final."""
    if report_directory is not None:
        require_matplotlib()
    catalogue = evaluated_catalogue(data, split)
    network, record = load_model(model)
    scored, figures = report(
        TorchNetwork(network), record, catalogue, rounds=rounds, oracle=oracle_roi
    )
    figures["split"] = split
    if json_file is not None:
        write_json(json_file, figures)
    if report_directory is not None:
        write_report(report_directory, scored, record, figures, split)
    Console().print(_overview(f"{record.name} {record.version}, {split}", figures))


@app.command()
def shortcuts(
    data: Data,
    split: str = "val",
    json_file: Json = None,
    model: Model = WEIGHTS,
    rounds: Rounds = 1000,
) -> None:
    """Draw and remove callipers and text, and see what the model makes of it."""
    catalogue = evaluated_catalogue(data, split)
    network, record = load_model(model)
    figures = shortcut_figures(TorchNetwork(network), record, catalogue, rounds=rounds)
    if json_file is not None:
        write_json(json_file, figures)
    table = Table(title=f"{record.name} {record.version}, {split}")
    for heading in ("change", "n", "malignancy logit", "AUC before", "after", "p"):
        table.add_column(heading)
    for name, found in figures["changes"].items():
        area = found["auc"]
        table.add_row(
            name,
            str(found["n"]),
            _cell(found["logit_change"]),
            *(_cell(area[part]) for part in ("second", "first", "p")),
        )
    Console().print(table)


@app.command()
def card(
    model: Model = WEIGHTS,
    output: Annotated[
        Path | None, typer.Option(help="Instead of card.md in the model's folder.")
    ] = None,
) -> None:
    """Write the model card again, from the figures beside the weights.

    Takes figures-test.json (`evaluate --split test --json`) and defects.md with it,
    where they lie in the model's folder.
    """
    text = model_card(model)
    (output or model / CARD).write_text(text, encoding="utf-8")
    if not (model / TEST_FIGURES).exists():
        Console().print(f"without {TEST_FIGURES}: targets are judged on validation")


def _overview(title: str, figures: dict[str, Any]) -> Table:
    table = Table(title=title)
    measures = {
        "AUC": "auc",
        "true box": "auc_oracle_roi",
        "sens": "sensitivity",
        "spec": "specificity",
        "ECE": "ece",
        "Dice": "dice",
    }
    for heading in ("set", "n", *measures):
        table.add_column(heading)
    for name in ("pooled", *figures["sets"]):
        row = figures[name]
        cells = [_cell(row.get(measure)) for measure in measures.values()]
        table.add_row(name, str(row["n"]), *cells)
    return table


def _cell(value: Any) -> str:
    """Return a figure, with its interval where it has one; "-" for none."""
    known = without_nan(value)
    if isinstance(known, dict):
        if known["value"] is None or known["low"] is None:
            return _cell(known["value"])
        return f"{known['value']:.3f} [{known['low']:.2f}, {known['high']:.2f}]"
    return "-" if known is None else f"{known:.3f}"


def main() -> None:
    """Run a command; a known failure is one line and exit code 1."""
    try:
        app()
    except NodeError as error:
        print(error.message, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
