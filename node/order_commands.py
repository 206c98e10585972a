"""`python -m node order`: orders by hand, where no system sends them."""

import json
import sys
from datetime import UTC, datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer
from rich.table import Column, Table

from node.command import read_settings, with_store
from node.domain.errors import ErrorKind, NodeError
from node.screen import console

if TYPE_CHECKING:
    from node.store.orders import ListedOrder
    from node.store.store import Store

T = TypeVar("T")

cli = typer.Typer(help="Orders: what machines find on their worklist.")
_MOST = 500


@cli.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="JSON as for POST /orders, - = stdin.")],
) -> None:
    """Place an order, or change it under the same accession number."""
    from dicom_scp.web.orders import place_json
    from node.parts import site_offset

    settings, body = read_settings(), _read(file)
    site = timezone(site_offset(settings))
    shown, placed = with_store(
        settings, lambda store: place_json(store, body, site, by=_operator())
    )
    console.print(f"{shown['id']}: {placed.value.removeprefix('order-')}")


@cli.command("list")
def list_orders(
    day: Annotated[
        datetime | None,
        typer.Option("--date", formats=["%Y-%m-%d"], help="Default: from today on."),
    ] = None,
) -> None:
    """List what is scheduled or under way. Patients are named by their number only."""
    from node.parts import site_offset
    from node.store import orders

    settings = read_settings()
    today = (datetime.now(UTC) + site_offset(settings)).date()
    query = orders.OrderQuery(
        first_day=day.date() if day else today, last_day=day.date() if day else None
    )

    async def search(store: "Store") -> "list[ListedOrder]":
        async with store.db.transaction() as tx:
            return await orders.search(tx, store, query, limit=_MOST)

    table = Table(
        Column("id", no_wrap=True), "when", "patient", "accession", "at", "status"
    )
    for one in with_store(settings, search):
        step = one.order.step
        table.add_row(
            str(one.order.order_id),
            f"{step.scheduled_on} {step.scheduled_time or ''}".strip(),
            one.identity.patient_id,
            step.accession_number,
            ", ".join(step.station_titles) or "any machine",
            one.order.status.value,
        )
    console.print(table)


@cli.command("cancel")
def cancel(order: Annotated[UUID, typer.Argument(metavar="ID")]) -> None:
    """Take an order off the worklist."""
    from dicom_scp.web.orders import cancel_json

    with_store(read_settings(), lambda store: cancel_json(store, order, by=_operator()))
    console.print(f"{order}: cancelled")


@cli.command("conflicts")
def conflicts() -> None:
    """List studies that name an order of another patient."""
    from node.store import orders

    async def look(store: "Store") -> list[tuple[str, UUID]]:
        async with store.db.transaction() as tx:
            return await orders.conflicts(tx)

    found = with_store(read_settings(), look)
    for study, order in found:
        console.print(f"study {study}: order {order}", highlight=False, soft_wrap=True)
    if not found:
        console.print("every study that names an order is of its patient")


def _operator() -> Any:
    from node.administration import ADMINISTRATOR
    from node.workflow.orders import By

    return By(ADMINISTRATOR, "administrator")


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        body = json.loads(text)
    except (OSError, ValueError):
        raise NodeError(f"{file}: is no JSON file", ErrorKind.INVALID) from None
    if not isinstance(body, dict):
        raise NodeError(f"{file}: is no JSON object", ErrorKind.INVALID)
    return body
