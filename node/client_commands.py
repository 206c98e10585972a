"""`python -m node client`: programs of other systems that get tokens by SMART."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from node.command import read_settings, with_store
from node.domain.access import Role
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.screen import console

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

T = TypeVar("T")

cli = typer.Typer(
    help="Programs of other systems (SMART clients).", no_args_is_help=True
)
_KEYS = Annotated[
    Path | None, typer.Option("--jwks", help="File with its public keys.")
]
_KEYS_URI = Annotated[
    str | None,
    typer.Option("--jwks-uri", help="Where it publishes them; a host of key_hosts."),
]


@cli.command("add")
def add(
    name: str,
    scope: Annotated[list[str], typer.Option(help="May be given several times.")],
    role: Annotated[
        list[Role] | None, typer.Option(help="What it may do for itself at most.")
    ] = None,
    jwks: _KEYS = None,
    jwks_uri: _KEYS_URI = None,
    redirect_uri: Annotated[
        list[str] | None, typer.Option(help="Where people return to it.")
    ] = None,
    launch_url: Annotated[
        str | None, typer.Option(help="Where the review page opens it on a report.")
    ] = None,
) -> None:
    """Register a program and tell the client_id that it uses from now on."""
    from fhir.security.registration import register_client

    settings = read_settings()

    async def work(store: "Store") -> str:
        async with store.db.transaction() as tx:
            client = await register_client(
                tx,
                store,
                frozenset(settings.fhir.key_hosts),
                name=name,
                roles=role or [],
                scopes=" ".join(scope),
                jwks=_read(jwks),
                jwks_uri=jwks_uri,
                redirect_uris=redirect_uri or [],
                launch_url=launch_url,
            )
            await _record(store, tx, "client-add", str(client.client_id))
        return str(client.client_id)

    console.print(f"{name}: {with_store(settings, work)}", soft_wrap=True)


@cli.command("list")
def list_clients() -> None:
    """List the programs."""
    from fhir.security.registration import shown
    from node.store import clients

    async def work(store: "Store") -> list[clients.Client]:
        async with store.db.connection() as tx:
            return await clients.list_clients(tx)

    table = Table("client_id", "name", "roles", "scopes", "keys", "state")
    for client in with_store(read_settings(), work):
        told = shown(client)
        state = "disabled" if client.disabled else "active"
        roles = ", ".join(told["roles"])
        table.add_row(
            told["client_id"], client.name, roles, client.scopes, told["keys"], state
        )
    console.print(table)


@cli.command("disable")
def disable(client_id: str) -> None:
    """Shut a program; its tokens end at once."""
    from node.store import clients

    async def work(store: "Store") -> None:
        async with store.db.transaction() as tx:
            await clients.disable(tx, client_id, now=store.clock())
            await _record(store, tx, "client-disable", client_id)

    with_store(read_settings(), work)
    console.print(f"{client_id}: disabled")


@cli.command("rotate")
def rotate(client_id: str, jwks: _KEYS = None, jwks_uri: _KEYS_URI = None) -> None:
    """Give a program other keys; what the old ones opened ends at once."""
    from fhir.security.registration import rotate_keys

    settings = read_settings()

    async def work(store: "Store") -> None:
        async with store.db.transaction() as tx:
            await rotate_keys(
                tx,
                client_id,
                frozenset(settings.fhir.key_hosts),
                jwks=_read(jwks),
                jwks_uri=jwks_uri,
            )
            await _record(store, tx, "client-rotate", client_id)

    with_store(settings, work)
    console.print(f"{client_id}: new keys")


@cli.command("grants")
def list_grants() -> None:
    """List what people have left to programs: who, which program, until when."""
    from fhir.security.registration import shown_grant
    from node.store import refreshes

    async def work(store: "Store") -> list[tuple[refreshes.Family, str, str]]:
        async with store.db.connection() as tx:
            return await refreshes.list_families(tx, now=store.clock())

    table = Table("grant_id", "program", "person", "scopes", "last used", "ends")
    for row in with_store(read_settings(), work):
        told = shown_grant(*row)
        table.add_row(
            *(told[k] for k in ("grant_id", "program", "person", "scopes")),
            told["used"][:16],
            told["ends"][:16],
        )
    console.print(table)


@cli.command("end-grant")
def end_grant(grant_id: str) -> None:
    """Take back what a person has left to a program."""
    from node.store import refreshes

    async def work(store: "Store") -> None:
        async with store.db.transaction() as tx:
            await refreshes.end(tx, grant_id)
            await _record(store, tx, "grant-end", grant_id)

    with_store(read_settings(), work)
    console.print(f"{grant_id}: ended")


@cli.command("new-signing-key")
def new_signing_key(
    drop: Annotated[
        bool, typer.Option("--drop", help="The old one is not shown any more.")
    ] = False,
) -> None:
    """Sign id_tokens with a new key; the node does it by itself every 90 days."""
    from fhir.security.openid import new_key
    from node.store import signing

    async def work(store: "Store") -> str:
        async with store.db.transaction() as tx:
            key = await signing.renew(tx, store, new_key())
            if drop:
                await signing.forget_earlier(tx)
            await _record(store, tx, "signing-key", key.kid)
        return key.kid

    console.print(f"signing with {with_store(read_settings(), work)}", soft_wrap=True)


def _read(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise NodeError(f"{path} cannot be read", ErrorKind.INVALID) from None


async def _record(
    store: "Store", tx: "Transaction", action: str, client_id: str
) -> None:
    from node.store import audit

    entry = AuditEntry(store.clock(), "command line", "", action, f"client/{client_id}")
    await audit.record(tx, entry)
