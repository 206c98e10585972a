"""`python -m inference.training import SET --from DIR --to DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from inference.training.adapters import ADAPTERS, DatasetError
from inference.training.adapters.importing import LONGEST_SIDE, Imported, import_set

EXIT_UNUSABLE = 2
SHOWN_REASONS = 10


def import_command(
    name: Annotated[
        str, typer.Argument(metavar="SET", help=f"One of {', '.join(ADAPTERS)}.")
    ],
    source: Annotated[
        Path, typer.Option("--from", help="The folder as its publisher gives it out.")
    ],
    target: Annotated[Path, typer.Option("--to", help="Gets SET/manifest.csv.")],
    seed: Annotated[int, typer.Option(help="Draws the splits.")] = 20261121,
    side: Annotated[
        int, typer.Option(min=64, help="Longest side in pixels that is kept.")
    ] = LONGEST_SIDE,
    strict: Annotated[
        bool, typer.Option(help="End with status 1 when any row was skipped.")
    ] = False,
) -> None:
    """Bring a published image set into the layout that training reads."""
    console = Console(stderr=True, soft_wrap=True)
    try:
        with Progress(
            TextColumn(name), BarColumn(), MofNCompleteColumn(), console=console
        ) as bar:
            task = bar.add_task("", total=None)
            imported = import_set(
                name,
                source,
                target,
                seed=seed,
                side=side,
                progress=lambda done, total: bar.update(
                    task, completed=done, total=total
                ),
            )
    except (DatasetError, OSError) as error:
        console.print(str(error), style="red", highlight=False)
        raise typer.Exit(EXIT_UNUSABLE) from None
    _show(imported, console)
    raise typer.Exit(1 if strict and imported.skipped else 0)


def _show(imported: Imported, console: Console) -> None:
    table = Table("split", "images", "labels", title=f"{imported.name}")
    for split, labels in sorted(imported.by_split.items()):
        told = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        table.add_row(split, str(sum(labels.values())), told)
    console.print(table)
    console.print(
        f"{imported.rows} rows, {imported.duplicates} of them near-duplicates,"
        f" {imported.contradicting} excluded as duplicates with other labels,"
        f" {len(imported.skipped)} skipped"
    )
    for row, reason in list(imported.skipped.items())[:SHOWN_REASONS]:
        console.print(f"skipped {row}: {reason}", highlight=False)
    if len(imported.skipped) > SHOWN_REASONS:
        console.print(f"and {len(imported.skipped) - SHOWN_REASONS} more")
