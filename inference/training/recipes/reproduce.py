"""Command line: `python -m inference.training reproduce PAPER`."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from inference.record import WEIGHTS, read_record
from inference.training.comparison import command_line
from inference.training.initial import SCRATCH
from inference.training.recipes import multilevel, two_stage, us_ct
from inference.training.recipes.schedule import Schedule
from inference.training.recipes.standins import (
    lesion_crops,
    mammograms,
    paired_views,
    phantoms,
    whole_images,
)
from inference.training.recipes.tables import write_page
from inference.training.teacher import Lite0, load_teacher

SMOKE_STEPS = 2
SMOKE_IMAGES = 4


class Paper(StrEnum):
    MULTILEVEL = "paper-multilevel"
    TWO_STAGE = "paper-two-stage"
    US_CT = "paper-us-ct"


def reproduce(
    paper: Paper,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="SONONODE_SAMPLES", help="Folder with <set>/manifest.csv inside."
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two steps on phantoms; needs no data.")
    ] = False,
    side: Annotated[int | None, typer.Option(help="Pixels; else as published.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Bound; else the published epochs.")
    ] = None,
    transfer_steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Weights of EfficientNet-Lite0 (.pth).")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Frozen base of paper-us-ct; else the release.")
    ] = None,
    seed: int = Schedule("adam", 0, 0, 0, 0).seed,
    threads: int = 2,
    out: Annotated[Path | None, typer.Option(help="Page to write.")] = None,
) -> None:
    """Run a paper's comparison on public stand-ins and write its page."""
    torch.set_num_threads(threads)
    published = {
        Paper.MULTILEVEL: multilevel.PUBLISHED,
        Paper.TWO_STAGE: two_stage.PUBLISHED,
        Paper.US_CT: us_ct.PUBLISHED,
    }[paper]
    if smoke:
        # Inception-v3 cannot look at less than 75 px.
        side = side or (80 if paper is Paper.TWO_STAGE else 32)
        steps = transfer_steps = SMOKE_STEPS
        batch = SMOKE_IMAGES // 2
    elif data is None:
        raise typer.BadParameter("name the images with --data, or use --smoke")
    schedule = published.shortened(
        side=side,
        steps=steps,
        transfer_steps=transfer_steps,
        learning_rate=learning_rate,
        batch=batch,
        seed=seed,
    )
    base = str(weights or WEIGHTS / read_record(WEIGHTS / "model.json").weights)
    started = time.monotonic()
    if paper is Paper.MULTILEVEL:
        title = multilevel.TITLE
        facts, body = multilevel.run(_multilevel(data, smoke, teacher), schedule)
    elif paper is Paper.TWO_STAGE:
        title = two_stage.TITLE
        facts, body = two_stage.run(_two_stage(data, smoke, teacher), schedule)
    else:
        title = us_ct.TITLE
        facts, body = us_ct.run(_us_ct(data, smoke, base), schedule)
    out = out or Path("docs/model") / f"{paper}{'-smoke' if smoke else ''}.md"
    write_page(
        out,
        title,
        command=command_line(),
        seconds=time.monotonic() - started,
        smoke=smoke,
        facts=facts,
        body=body,
    )
    Console().print(f"{out}")


def _multilevel(
    data: Path | None, smoke: bool, teacher: Path | None
) -> multilevel.Images:
    if smoke or data is None:
        train, val = phantoms(SMOKE_IMAGES, 1), phantoms(SMOKE_IMAGES, 2)
        return multilevel.Images(train, val, Lite0().eval())
    return multilevel.Images(
        whole_images(data, "train"), whole_images(data, "val"), load_teacher(teacher)
    )


def _two_stage(
    data: Path | None, smoke: bool, teacher: Path | None
) -> two_stage.Images:
    if smoke or data is None:
        train, val = phantoms(SMOKE_IMAGES, 1), phantoms(SMOKE_IMAGES, 2)
        return two_stage.Images(train, val, phantoms(SMOKE_IMAGES, 3), Lite0().eval())
    return two_stage.Images(
        lesion_crops(data, "train"),
        lesion_crops(data, "val"),
        mammograms(data / "mias"),
        load_teacher(teacher),
    )


def _us_ct(data: Path | None, smoke: bool, weights: str) -> us_ct.Images:
    if smoke or data is None:
        first, second = phantoms(SMOKE_IMAGES, 1), phantoms(SMOKE_IMAGES, 2)
        return us_ct.Images((first, second), (second, first), SCRATCH)
    return us_ct.Images(paired_views(data, "train"), paired_views(data, "val"), weights)
