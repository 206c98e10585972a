"""`python -m node subscriptions`: who is told of what, and what waits."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.table import Table

from node.command import read_settings, with_store
from node.screen import console

if TYPE_CHECKING:
    from node.store.store import Store
    from node.store.subscriptions import Subscription, Waiting


def list_subscriptions() -> None:
    """Show every subscription: how its channel stands, and what it is still owed."""
    from node.store import subscriptions

    async def read(store: "Store") -> "list[Waiting]":
        async with store.db.transaction(readonly=True) as tx:
            return await subscriptions.backlogs(tx, store)

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


def _trouble(told: "Subscription") -> str:
    if told.error is not None:
        return told.error
    if told.failing_since is None:
        return ""
    return f"failing since {told.failing_since:%Y-%m-%d %H:%M}, {told.failures} times"
