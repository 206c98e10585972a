"""`python -m node deliveries`: what went where, what waits, and doing it again."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Column, Table

from dicom_scp.sending.routing import SEND
from node.command import read_settings, with_store
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.screen import console
from node.store import audit, routes, studies
from node.store.routes import Backlog, Delivery, DeliveryState

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

T = TypeVar("T")

cli = typer.Typer(help="Where results and images go.", no_args_is_help=True)
_MOST = 10_000

To = Annotated[str | None, typer.Option("--to", help="A destination.")]
Study = Annotated[str | None, typer.Option(help="A Study Instance UID.")]


@cli.command("list")
def list_deliveries(
    to: To = None,
    study: Study = None,
    state: Annotated[
        DeliveryState | None, typer.Option(help="Only what stands so.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 100,
) -> None:
    """Show what waits for each destination, and single deliveries."""

    async def read(store: "Store") -> tuple[list[Backlog], list[Delivery]]:
        async with store.db.connection() as connection:
            return await routes.backlogs(connection), await routes.deliveries(
                connection,
                destination=to,
                study_instance_uid=study,
                state=state,
                limit=limit,
            )

    backlogs, found = _with_store(read)
    table = Table("destination", "sent", "waiting", "failed", "since", "last error")
    for one in backlogs:
        since = f"{one.since:%Y-%m-%d %H:%M}" if one.since else ""
        counts = map(str, (one.sent, one.waiting, one.failed))
        table.add_row(one.destination, *counts, since, one.error)
    console.print(table if backlogs else "nothing was ever routed anywhere")
    if not (to or study or state) or not found:
        return
    table = Table(
        Column("instance", no_wrap=True), "to", "state", "since", "rule", "error"
    )
    for each in found:
        again = f" x{each.times}" if each.times > 1 else ""
        table.add_row(
            each.sop_instance_uid,
            each.destination,
            f"{each.state.value}{again}",
            f"{each.at:%Y-%m-%d %H:%M}",
            each.rule,
            each.error,
        )
    console.print(table)


@cli.command("replay")
def replay(
    to: To = None,
    study: Study = None,
    sent: Annotated[
        bool,
        typer.Option("--sent", help="Also what has arrived: the archive lost it."),
    ] = False,
) -> None:
    """Have failed deliveries done again; name a destination, a study, or both."""
    count = _with_store(
        lambda store: replay_deliveries(
            store, destination=to, study_instance_uid=study, sent=sent
        )
    )
    console.print(f"{count} deliveries are queued again")


async def replay_deliveries(
    store: "Store",
    *,
    destination: str | None,
    study_instance_uid: str | None,
    sent: bool = False,
) -> int:
    """Queue again what has failed, and what was `sent` too if so told; audited.

    SETTING when neither a destination nor a study is named: nobody sends a whole
    archive again by a slip of the hand.
    """
    if destination is None and study_instance_uid is None:
        raise NodeError("name a destination (--to) or a --study", ErrorKind.SETTING)
    wanted = [DeliveryState.FAILED, *([DeliveryState.SENT] if sent else [])]
    count = 0
    async with store.db.transaction() as tx:
        found = [
            one
            for state in wanted
            for one in await routes.deliveries(
                tx,
                destination=destination,
                study_instance_uid=study_instance_uid,
                state=state,
                limit=_MOST,
            )
        ]
        for name in {one.destination for one in found}:
            await routes.doubt_probe(tx, name)
        for one in found:
            if one.state is DeliveryState.FAILED and one.job_id is not None:
                await store.jobs.replay(tx, one.job_id)
            else:
                await _send_again(store, tx, one)
            count += 1
        if count:
            await audit.record(
                tx, _entry(store, destination, study_instance_uid, found)
            )
    return count


async def _send_again(store: "Store", tx: "Transaction", one: Delivery) -> None:
    study = await studies.study(tx, one.study_instance_uid)
    job_id = await store.jobs.defer(
        tx,
        SEND,
        {
            "sop_instance_uid": one.sop_instance_uid,
            "study_instance_uid": one.study_instance_uid,
            "destination": one.destination,
        },
        key=f"{one.sop_instance_uid}/{one.destination}",
        order_key=f"{one.study_instance_uid}/{one.destination}",
        patient_id=study.patient_id if study else None,
        lane=one.destination,
    )
    await routes.reopen(
        tx, one.sop_instance_uid, one.destination, job_id=job_id, at=store.clock()
    )


def _entry(
    store: "Store", destination: str | None, study: str | None, found: list[Delivery]
) -> AuditEntry:
    from node.administration import ADMINISTRATOR

    sent = sum(one.state is DeliveryState.SENT for one in found)
    return AuditEntry(
        at=store.clock(),
        actor=ADMINISTRATOR,
        role="administrator",
        action="deliveries-replay",
        entity=f"study/{study}" if study else f"destination/{destination}",
        detail={
            "to": destination or "all",
            "failed": str(len(found) - sent),
            "sent_before": str(sent),
        },
    )


def _with_store(work: "Callable[[Store], Awaitable[T]]") -> T:
    return with_store(read_settings(), work)
