"""`python -m node doctor`: what is wrong here and around us, and what to do."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import aiohttp
import typer
from rich.markup import escape
from rich.table import Table

from config.settings import Settings
from node.command import read_settings, with_store
from node.domain.errors import ErrorKind, NodeError
from node.screen import console

if TYPE_CHECKING:
    from dicom_scp.sending.probe import Finding, Probe
    from node.outbound import Outbound
    from node.store.store import Store

T = TypeVar("T")
LATELY = timedelta(days=7)
STRANGERS_SINCE = timedelta(hours=1)

cli = typer.Typer(
    help="Look at this installation and say what is wrong and what to do.",
    invoke_without_command=True,
)


@cli.callback()
def doctor(context: typer.Context) -> None:
    """Look at this installation and say what is wrong and what to do.

    Ends with 1 where something is to be mended; what can wait leaves it 0.
    """
    if context.invoked_subcommand is not None:
        return
    from node.administration import examine

    settings = read_settings()
    findings = with_store(settings, lambda store: examine(store, settings))
    table = Table(show_header=False, box=None)
    for one in findings:
        _add(table, one.well, one.what, one.told, can_wait=one.can_wait)
    console.print(table)
    raise typer.Exit(1 if any(finding.failed for finding in findings) else 0)


@cli.command("pacs")
def pacs(
    name: Annotated[
        str | None, typer.Argument(help="One destination; none = every one.")
    ] = None,
) -> None:
    """Ask archives, step by step, whether results can go there, and what to change.

    Nothing is stored there. The answer is remembered and used when sending.
    """
    settings = read_settings()
    outbound = _outbound(settings, name)
    try:
        probes = with_store(settings, lambda store: _ask(store, outbound, name))
    except NodeError as error:
        if error.kind not in (ErrorKind.SETTING, ErrorKind.UNAVAILABLE):
            raise
        console.print("no database here just now: the answer is not remembered")
        probes = asyncio.run(_ask(None, outbound, name))
    for destination, address, probe in probes:
        console.print(f"{destination}: {address}", style="bold", highlight=False)
        _show((one.well, one.step, one.told) for one in probe.findings)
    raise typer.Exit(0 if all(probe.well for _, _, probe in probes) else 1)


def _outbound(settings: Settings, name: str | None) -> "Outbound":
    from functools import partial

    from node.outbound import outbound_of
    from node.parts import calling_tls_of

    outbound = outbound_of(settings, partial(calling_tls_of, settings))
    if name is not None and name not in outbound.names:
        known = ", ".join(outbound.names) or "none"
        raise NodeError(
            f"{name}: no such destination in pacs or routing; there is {known}",
            ErrorKind.SETTING,
        )
    if not outbound.names:
        raise NodeError(
            "pacs.ae_title: no archive is set, nor in routing.destinations",
            ErrorKind.SETTING,
        )
    return outbound


@cli.command("modality")
def modality(
    title: Annotated[
        str | None, typer.Argument(help="Its AE title; none = who called lately.")
    ] = None,
    wait: Annotated[
        int, typer.Option(min=0, help="Wait so many seconds for its next call.")
    ] = 0,
) -> None:
    """Look at the connection of one machine, and say what to change where."""
    settings = read_settings()
    if title is None:
        _show(with_store(settings, _callers))
        return
    if wait:
        console.print(f"Press Verification (echo) on {title} now …", highlight=False)
    findings = with_store(
        settings, lambda store: _examine_machine(store, settings, title, wait)
    )
    _show((one.well, one.step, one.told) for one in findings)
    raise typer.Exit(0 if all(one.well for one in findings) else 1)


async def _callers(store: "Store") -> list[tuple[bool, str, str]]:
    from node.store import callers

    async with store.db.connection() as connection:
        calls = await callers.since(connection, store.clock() - LATELY)
    rows = [
        (
            call.outcome == callers.ACCEPTED,
            call.calling_ae or "without a title",
            f"{call.address}, {call.at:%Y-%m-%d %H:%M} UTC: {call.outcome}",
        )
        for call in calls
    ]
    return rows or [(False, "calls", "nobody has called the DICOM port lately")]


async def _examine_machine(
    store: "Store", settings: Settings, title: str, wait_s: int
) -> "list[Finding]":
    from dicom_scp.sending.machine_probe import Around, examine_machine
    from dicom_scp.sending.probe import probe_machine
    from node.parts import machines_of, peers_of, services_of
    from node.store import callers

    started = store.clock()
    around = Around(
        settings.dicom.ae_title,
        peers_of(settings),
        {
            uid: service.name
            for service in services_of(settings)
            for uid in service.abstract_syntaxes
        },
    )
    entered = [peer.ae_title for peer in around.peers]
    while True:
        async with store.db.connection() as connection:
            calls = await callers.of_title(connection, title)
            lately = await callers.since(connection, started - STRANGERS_SINCE)
        waited_s = (store.clock() - started).total_seconds()
        if waited_s >= wait_s or any(call.at >= started for call in calls):
            break
        await asyncio.sleep(0.5)
    strangers = [c for c in lately if c.calling_ae not in (*entered, title)]
    findings = examine_machine(title, calls, strangers, around, now=store.clock())
    destination = machines_of(settings).get(title)
    if destination is not None:
        now = store.clock()
        reached = await asyncio.to_thread(probe_machine, destination, now=now)
        findings += reached
    return findings


async def _ask(
    store: "Store | None", outbound: "Outbound", name: str | None
) -> "list[tuple[str, str, Probe]]":
    from dicom_scp.sending.probe import ask, targets_of

    async with aiohttp.ClientSession() as session:
        targets = targets_of(outbound.dimse, outbound.stow, session)
        return [
            (target.name, target.address, await ask(target, store))
            for target in targets
            if name in (None, target.name)
        ]


def _show(rows: Iterable[tuple[bool, str, str]]) -> None:
    table = Table(show_header=False, box=None)
    for row in rows:
        _add(table, *row)
    console.print(table)


def _add(
    table: Table, well: bool, what: str, told: str, *, can_wait: bool = False
) -> None:
    sign = "[yellow]decide[/]" if can_wait else "[red]mend[/]"
    # A setting in brackets is no markup.
    table.add_row("[green]ok[/]" if well else sign, escape(what), escape(told))
