"""Which weights are worth starting from: short matched runs, scored on `val`.

Matched means: same steps, same learning-rate rule, same seeds, and with them the
same fresh heads and the same batches in the same order. Every run is kept as soon as
it is done, so a comparison that was interrupted goes on.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from safetensors import safe_open
from torch import Tensor

from inference.network import LesionNet, TorchNetwork
from inference.training.data import Catalogue, Sampler, read_catalogue
from inference.training.evaluate import score
from inference.training.initial import SCRATCH, initialise
from inference.training.losses import total_loss
from inference.training.measures import auc, interval
from inference.training.pretraining import Data, Effort, descend, in_bfloat16
from inference.training.train import Recipe

Array = NDArray[np.float64]

WITH_CBAM = " + CBAM"


@dataclass(frozen=True, slots=True)
class Start:
    """One row of the table: weights to start from, with or without attention."""

    name: str
    source: str
    cbam: bool = False
    extra_steps: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What one start with one seed gave on `val`.

    `own`: the product's way, mean malignancy logit of the whole image and of the crop
    that the network found. `oracle`: logit of the crop around the true box.
    """

    start: Start
    seed: int
    steps: int
    seconds: float
    own: tuple[float, ...]
    oracle: tuple[float, ...]
    dice: float


def fine_tune(
    start: Start, training: Catalogue, validation: Catalogue, effort: Effort
) -> Run:
    """Train all tasks briefly from `start` and score `val`."""
    torch.manual_seed(effort.seed)
    network = LesionNet(dropout=Recipe().dropout, cbam=start.cbam)
    initialise(network, start.source)
    network.to(memory_format=torch.channels_last).train()
    sampler = Sampler(
        training,
        weights={"breast": Recipe().breast_weight, "normal": Recipe().normal_weight},
        seed=effort.seed,
    )

    def loss_of_step() -> Tensor:
        batch = sampler.batch(
            effort.batch,
            effort.side,
            crop_share=Recipe().crop_share,
            background_share=Recipe().background_share,
        )
        windows = batch.windows.to(memory_format=torch.channels_last)
        return total_loss(network(windows), batch)

    steps, seconds = descend(
        network.parameters(), in_bfloat16(loss_of_step), effort, title=start.name
    )
    with torch.autocast("cpu", torch.bfloat16):
        scored = score(TorchNetwork(network), validation, effort.side, oracle=True)
    own = (scored.own.whole.malignancy + scored.own.crop.malignancy) / 2
    return Run(
        start=start,
        seed=effort.seed,
        steps=steps,
        seconds=seconds,
        own=tuple(float(value) for value in own),
        oracle=tuple(
            float(value) for value in (scored.oracle or scored.own).crop.malignancy
        ),
        dice=float(np.nanmean(scored.dice)),
    )


def compare(
    starts: list[Start],
    training: Catalogue,
    validation: Catalogue,
    effort: Effort,
    *,
    seeds: int,
    kept: Path,
) -> list[Run]:
    """Run every start with every seed, but for those that the file `kept` holds."""
    runs = _read_runs(kept)
    for seed in range(effort.seed, effort.seed + seeds):
        for start in starts:
            steps = effort.steps + start.extra_steps
            if any(r.start == start and r.seed == seed for r in runs):
                continue
            plan = Effort(**{**asdict(effort), "seed": seed, "steps": steps})
            runs.append(fine_tune(start, training, validation, plan))
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps([asdict(run) for run in runs]))
    return [run for run in runs if run.start in starts]


def _read_runs(kept: Path) -> list[Run]:
    if not kept.exists():
        return []
    return [
        Run(
            start=Start(**run.pop("start")),
            own=tuple(run.pop("own")),
            oracle=tuple(run.pop("oracle")),
            **run,
        )
        for run in json.loads(kept.read_text())
    ]


def summarise(
    runs: list[Run], validation: Catalogue, *, rounds: int = 1000
) -> list[dict[str, Any]]:
    """Return one row per start: mean AUC over seeds, its interval, and the gain.

    Intervals come from a bootstrap over patients; they know nothing of how other seeds
    would have gone, which is why the AUC of each seed stands beside them. The gain is
    taken seed by seed against the first start.
    """
    truth = validation.malignancy.numpy().astype(np.float64)
    keep = ~np.isnan(truth)
    truth = truth[keep]
    groups = [g for g, kept in zip(validation.groups, keep, strict=True) if kept]
    starts = list(dict.fromkeys(run.start for run in runs))
    rows = []
    for start in starts:
        row: dict[str, Any] = {"start": start}
        mine = [run for run in runs if run.start == start]
        seeds = {run.seed for run in mine}
        first = [r for r in runs if r.start == starts[0] and r.seed in seeds]
        for way in ("own", "oracle"):
            scores = [np.array(getattr(run, way))[keep] for run in mine]
            against = [np.array(getattr(run, way))[keep] for run in first]
            level = partial(_mean_auc, truth, scores)
            gain = partial(_gain, truth, scores, against)
            row[way] = interval(level, groups, rounds=rounds)
            row[f"{way}_gain"] = interval(gain, groups, rounds=rounds)
            row[f"{way}_seeds"] = [auc(truth, values) for values in scores]
        bare = replace(start, name=start.name.removesuffix(WITH_CBAM), cbam=False)
        beside = [r for r in runs if r.start == bare and r.seed in seeds]
        if start.cbam and len(beside) == len(mine):
            row["attention"] = interval(
                partial(
                    _gain,
                    truth,
                    [np.array(run.own)[keep] for run in mine],
                    [np.array(run.own)[keep] for run in beside],
                ),
                groups,
                rounds=rounds,
            )
        row["steps"] = mine[0].steps
        row["dice"] = float(np.mean([run.dice for run in mine]))
        row["seconds"] = sum(run.seconds for run in mine)
        rows.append(row)
    return rows


def _mean_auc(truth: Array, scores: list[Array], rows: NDArray[np.int64]) -> float:
    return float(np.mean([auc(truth[rows], values[rows]) for values in scores]))


def _gain(
    truth: Array, scores: list[Array], against: list[Array], rows: NDArray[np.int64]
) -> float:
    return _mean_auc(truth, scores, rows) - _mean_auc(truth, against, rows)


def write_table(
    rows: list[dict[str, Any]],
    file: Path,
    *,
    command: str,
    effort: Effort,
    seeds: int,
    lesions: int,
    minutes: float,
    notes: list[str],
) -> None:
    """Write the comparison as Markdown, with what a reader needs to doubt it."""
    overlapping = [
        row["start"].name
        for row in rows[1:]
        if row["own_gain"]["low"] <= 0 <= row["own_gain"]["high"]
    ]
    lines = [
        "# Which weights to start from",
        "",
        "Written by the command below; the figures are on the split `val` "
        f"({lesions} lesions), never on `test`.",
        "",
        f"    {command}",
        "",
        f"- **Short runs.** {effort.steps} steps of {effort.batch} windows at "
        f"{effort.side} px, AdamW at {effort.learning_rate:g}, {seeds} seeds; all "
        f"runs together took {minutes:.0f} min of training. They say which start is "
        "ahead early, not which wins a full schedule.",
        "- **Matched.** Same steps, same learning-rate rule, same seeds, hence the "
        "same batches in the same order. Pretraining costs extra, see its note; the "
        "row with more steps from scratch shows what more steps alone give.",
        "- *own*: the network finds its crop, as in the product. *oracle*: the true "
        "box is handed to it. Intervals: 95 %, bootstrap over patients, of the mean "
        "over seeds; single seeds in brackets behind.",
        *[f"- {note}" for note in notes],
        "- torchvision's own ImageNet weights are compared by `--start "
        "imagenet=imagenet`, or a local file of them by its path.",
        "",
        "| start | steps | AUC own | AUC oracle | gain own | Dice |",
        "|---|---|---|---|---|---|",
        *[_line(row) for row in rows],
        "",
        "The interval of the gain over scratch includes zero for: "
        f"{', '.join(overlapping) or 'none'}. Where it does, this table does not tell "
        "the start from scratch.",
        "",
        *[_attention_line(row) for row in rows if "attention" in row],
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _attention_line(row: dict[str, Any]) -> str:
    """Say whether attention helped, against the same start without it."""
    gain = row["attention"]
    verdict = "it helps here" if gain["low"] > 0 else "no help shown, it stays off"
    bare = row["start"].name.removesuffix(WITH_CBAM)
    return f"- Attention (CBAM) on {bare}: {_span(gain, sign='+')}; {verdict}."


def _past(start: Start) -> str:
    """Return what a start's file says of its own past, or nothing."""
    file = Path(start.source)
    if start.cbam or file.suffix != ".safetensors":
        return ""
    with safe_open(file, framework="pt") as weights:
        past = weights.metadata() or {}
    if "method" not in past:
        return (
            f"{start.name}: `{file.name}`, a full schedule on the diagnoses of `train` "
            "before. That is supervised pretraining on the same images: its row says "
            "what going on from it gives, not that it is a fair rival."
        )
    return (
        f"{start.name}: {past['method']} before, {past['steps']} steps in "
        f"{int(past['seconds']) / 60:.1f} min; R2 on `val` {float(past['r2_val']):.2f}."
    )


def _line(row: dict[str, Any]) -> str:
    cells = [row["start"].name, str(row["steps"])]
    for way in ("own", "oracle"):
        seeds = ", ".join(f"{value:.3f}" for value in row[f"{way}_seeds"])
        cells.append(f"{_span(row[way])} ({seeds})")
    gain = row["own_gain"]
    told = gain["low"] or gain["high"]
    cells += [_span(gain, sign="+") if told else "-", f"{row['dice']:.2f}"]
    return f"| {' | '.join(cells)} |"


def _span(value: dict[str, float], *, sign: str = "") -> str:
    """Return "0.812 [0.75, 0.87]"; `sign` "+" writes the sign of gains."""
    digits = 3 if sign else 2
    low, high = (f"{value[end]:{sign}.{digits}f}" for end in ("low", "high"))
    return f"{value['value']:{sign}.3f} [{low}, {high}]"


def compare_initial(
    data: Data,
    start: Annotated[
        list[str] | None, typer.Option(help="NAME=SOURCE: a file, or imagenet.")
    ] = None,
    cbam: Annotated[
        list[str] | None, typer.Option(help="NAME to run with attention as well.")
    ] = None,
    longer: Annotated[
        int, typer.Option(help="Extra steps of a control from scratch; 0 for none.")
    ] = 0,
    steps: int = 160,
    batch: int = 16,
    side: int = 96,
    seeds: int = 2,
    learning_rate: float = 5e-4,
    threads: int = 1,
    out: Path = Path("docs/model/initial-weights.md"),
    kept: Path = Path("var/training/initial/runs.json"),
) -> None:
    """Compare weights to start from in short matched runs, scored on `val`."""
    torch.set_num_threads(threads)
    began = time.monotonic()
    effort = Effort(steps=steps, batch=batch, side=side, learning_rate=learning_rate)
    training, validation = read_catalogue(data, "train"), read_catalogue(data, "val")
    starts = starts_of(start or [], cbam or [], longer)
    runs = compare(starts, training, validation, effort, seeds=seeds, kept=kept)
    rows = summarise(runs, validation)
    write_table(
        rows,
        out,
        command=command_line(),
        effort=effort,
        seeds=seeds,
        lesions=int((~torch.isnan(validation.malignancy)).sum()),
        minutes=sum(run.seconds for run in runs) / 60,
        notes=[note for note in map(_past, starts) if note],
    )
    Console().print(f"{out} after {(time.monotonic() - began) / 60:.1f} min")


def starts_of(named: list[str], cbam: list[str], longer: int) -> list[Start]:
    """Return the rows to run: scratch first, then what was named, then attention."""
    starts = [Start("scratch", SCRATCH)]
    if longer:
        starts.append(Start("scratch, longer", SCRATCH, extra_steps=longer))
    for text in named:
        name, found, source = text.partition("=")
        if not found:
            raise typer.BadParameter(f"{text!r} is not NAME=SOURCE")
        starts.append(Start(name, source))
    by_name = {start.name: start for start in starts}
    for name in cbam:
        if name not in by_name:
            raise typer.BadParameter(f"--cbam {name} names no start")
        starts.append(Start(name + WITH_CBAM, by_name[name].source, cbam=True))
    return starts


def command_line() -> str:
    """Return the command that is running, as somebody else would type it."""
    words = ["python", "-m", "inference.training"]
    for word in sys.argv[1:]:
        words.append(f'"{word}"' if " " in word else word)
    return " ".join(words)
