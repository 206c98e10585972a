"""`python -m node subscriptions`: who is told of what, and what waits."""

import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit
from uuid import UUID

import typer
from rich.table import Table

from node.command import read_settings, with_store
from node.domain.audit import AuditEntry
from node.screen import console

if TYPE_CHECKING:
    from node.store.notifying import Waiting
    from node.store.store import Store
    from node.store.subscriptions import Subscription


def list_subscriptions() -> None:
    """Show every subscription: how its channel stands, and what it is still owed."""
    from node.store import notifying

    async def read(store: "Store") -> "list[Waiting]":
        async with store.db.transaction(readonly=True) as tx:
            return await notifying.backlogs(tx, store)

    table = Table(
        "id", "topic", "status", "where", "newest", "waiting", "oldest", "trouble"
    )
    for one in with_store(read_settings(), read):
        told = one.subscription
        table.add_row(
            str(told.subscription_id),
            told.topic.rpartition("/")[2],
            told.status,
            urlsplit(told.endpoint).netloc or told.channel,
            str(told.events_count),
            str(one.undelivered),
            f"{one.oldest:%Y-%m-%d %H:%M}" if one.oldest else "",
            _trouble(told),
        )
    console.print(table)


def change_secret(
    subscription_id: UUID,
    overlap_h: Annotated[
        float | None,
        typer.Option(help="Hours for which the one before signs too; as set without."),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Sign with the secret of the site again.")
    ] = False,
) -> None:
    """Sign the calls of a subscriber with a new secret; it is shown this once."""
    from node.store import audit, subscriptions

    settings = read_settings()
    hours = settings.fhir.hook_secret_overlap_h if overlap_h is None else overlap_h
    secret = None if remove else secrets.token_urlsafe(32)

    async def work(store: "Store") -> None:
        async with store.db.transaction() as tx:
            entry = AuditEntry(
                store.clock(),
                "command line",
                "",
                "subscription-secret",
                f"Subscription/{subscription_id}",
                detail={"removed": str(remove).lower(), "overlap_h": f"{hours:g}"},
            )
            # As signing has it: the trail, then rows of subscribers.
            await audit.record(tx, entry)
            await subscriptions.set_secret(
                tx,
                store,
                subscription_id,
                None if secret is None else secret.encode(),
                overlap=timedelta(hours=hours),
            )

    with_store(settings, work)
    console.print(secret or f"{subscription_id}: no secret of its own", soft_wrap=True)


def _trouble(told: "Subscription") -> str:
    if told.error is not None:
        return told.error
    if told.failing_since is None:
        return ""
    return f"failing since {told.failing_since:%Y-%m-%d %H:%M}, {told.failures} times"
