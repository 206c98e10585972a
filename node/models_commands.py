"""`python -m node models`: which model reads, which reads along, how they compare."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Column, Table

from config.settings import Settings, load_settings
from node.logs import configure_logging
from node.screen import console

if TYPE_CHECKING:
    from node.model_choice import ShadowComparison
    from node.store.store import Store

T = TypeVar("T")

cli = typer.Typer(help="The models that read.", no_args_is_help=True)

Reason = Annotated[str, typer.Option(help="Why; kept in the audit trail.")]
Named = Annotated[
    str, typer.Argument(help="name-version, version, or the start of the weights' hash")
]


@cli.command("list")
def list_models() -> None:
    """List the models: what each does, and what ails it."""
    from node import model_choice

    settings = _settings()
    table = Table(Column("model", no_wrap=True), "weights", "does", "came")
    for row in _with_store(settings, lambda store: model_choice.rows(store, settings)):
        table.add_row(*row)
    console.print(table)
    for line in _with_store(settings, model_choice.troubles):
        console.print(line, style="red", highlight=False, soft_wrap=True)


@cli.command("add")
def add(
    folder: Annotated[Path, typer.Argument(help="A folder with model.json.")],
) -> None:
    """Check a model and put it on the shelf; it reads nothing yet."""
    from node import model_choice

    settings = _settings()
    model = _with_store(
        settings, lambda store: model_choice.add_model(store, settings, folder)
    )
    console.print(f"{model.label}: added", f"weights {model.weights_sha256}", sep="\n")


@cli.command("activate")
def activate(name: Named, reason: Reason = "") -> None:
    """Let a model read from the next study on; `release` follows the software."""
    from node import model_choice

    settings = _settings()
    _say(settings, lambda s: model_choice.activate(s, settings, name, reason))


@cli.command("rollback")
def roll_back(reason: Reason = "") -> None:
    """Let the model read that read before the present one."""
    from node import model_choice

    settings = _settings()
    _say(settings, lambda s: model_choice.roll_back(s, settings, reason))


@cli.command("shadow")
def shadow(name: Named, reason: Reason = "") -> None:
    """Let a model read along: what it says is kept and shown nowhere."""
    from node import model_choice

    settings = _settings()
    _say(settings, lambda s: model_choice.shadow(s, settings, name, reason))


@cli.command("stop-shadow")
def stop_shadow(reason: Reason = "") -> None:
    """Let no model read along any more; what was kept stays for `compare`."""
    from node import model_choice

    _with_store(_settings(), lambda s: model_choice.stop_shadow(s, reason))
    console.print("no model reads along")


@cli.command("compare")
def compare_shadows(
    name: Annotated[
        str, typer.Argument(help="One shadow; none = every one that has read.")
    ] = "",
) -> None:
    """Show how far shadows agree with the drafts and with the signed reports."""
    from node import model_choice

    settings = _settings()
    found = _with_store(settings, lambda s: model_choice.comparisons(s, settings, name))
    if not found:
        console.print("no shadow has read here yet")
    for comparison in found:
        console.print(_comparison_table(comparison))


def _settings() -> Settings:
    settings = load_settings(os.environ)
    # What the loading of a model logs is for the node; here its outcome is told.
    configure_logging("error", settings.log.format)
    return settings


def _with_store(settings: Settings, work: "Callable[[Store], Awaitable[T]]") -> T:
    from node.administration import with_store

    with console.status("looking"):
        return with_store(settings, work)


def _say(settings: Settings, work: "Callable[[Store], Awaitable[str]]") -> None:
    console.print(_with_store(settings, work), highlight=False, soft_wrap=True)


def _comparison_table(found: "ShadowComparison") -> Table:
    title = f"{found.shadow} beside {found.other}: {found.studies} studies"
    table = Table("field", "compared", "same", "kappa", title=title)
    for field in found.fields:
        same = f"{field.agreement.value:.0%}" if field.agreement else "-"
        kappa = field.kappa
        interval = (
            f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]" if kappa else "-"
        )
        table.add_row(field.field, str(field.compared), same, interval)
    if found.apart:
        mean, most = found.apart
        table.caption = f"probability differs by {mean:.3f} on average, {most:.3f} most"
    return table
