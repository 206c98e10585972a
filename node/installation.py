"""One installation on one machine: its keys, its database, its processes.

With `database.url` empty a PostgreSQL of our own runs below the data directory
while the node does, and keys are made on the very first start. With a DSN nothing
is made by itself: a missing key then means that somebody lost it.
"""

import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from config.settings import Settings
from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database
from node.store.keys import KeyRing, create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.supervisor import (
    Supervisor,
    end_leftovers,
    environment_with,
    role_command,
    supervised,
)
from wechat.relay.sealing import create_key_file

_ORDER = ("relay", "worker", "inference", "web", "scp")
_RUNNING = "running.json"
_START_TRIES = 3


@dataclass(frozen=True)
class Addresses:
    """Where the two databases of a running installation are.

    `look_after` is to be called again and again: it starts an embedded server
    that has died.
    """

    node: str
    relay: str
    look_after: Callable[[], object] = lambda: None


def serve_all(settings: Settings, *, announce: Callable[[str], None]) -> int:
    """Run every role until SIGTERM; return the exit status."""
    supervisor = Supervisor(grace_s=settings.dicom.shutdown_grace_s + 15)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    with prepared(settings) as addresses:
        start_roles(supervisor, settings, addresses)
        announce(f"review page    {settings.http.base_url}/")
        announce(f"FHIR R4        {settings.http.base_url}/fhir")
        announce(
            f"DICOM          {settings.dicom.ae_title}, port {settings.dicom.port}"
        )
        return supervisor.run(addresses.look_after)


def start_roles(
    supervisor: Supervisor, settings: Settings, addresses: Addresses
) -> None:
    """Start one process per role; those that receive come last."""
    environment = environment_with(
        SONONODE_DATABASE__URL=addresses.node,
        SONONODE_RELAY__DATABASE_URL=addresses.relay,
        SONONODE_DATA=str(settings.data),
        **supervised(settings.data),
    )
    for role in _ORDER:
        if role == "relay" and not settings.relay.enabled:
            continue
        supervisor.add(role, role_command(role), environment)


@contextmanager
def prepared(settings: Settings) -> Iterator[Addresses]:
    """Yield the migrated databases; the embedded server runs until the end.

    SETTING names a taken port, a missing key or a newer schema, before any role
    has started. What a killed supervisor left running is ended first.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_supervisor(settings.data):
        end_leftovers(settings.data)
        _require_files(settings)
        _require_free_ports(settings)
        with _databases(settings) as addresses:
            yield addresses


@contextmanager
def _databases(settings: Settings) -> Iterator[Addresses]:
    if settings.database.url:
        addresses = Addresses(settings.database.url, settings.relay.database_url)
        _require_relay_database(settings, addresses)
        asyncio.run(_migrate_and_open(addresses.node, settings))
        yield addresses
        return
    first = not (settings.data / "pg").exists()
    if first:
        make_secrets(settings)
    _require_root_key(settings)
    server = EmbeddedPostgres(settings.data / "pg")
    try:
        addresses = _started(server, settings)
        with _told_to_others(settings, addresses):
            yield addresses
    finally:
        server.stop()


def _started(server: EmbeddedPostgres, settings: Settings) -> Addresses:
    """Start the embedded server with both databases, again when it was ended."""
    for tries_left in reversed(range(_START_TRIES)):
        try:
            server.start()
            addresses = Addresses(
                server.create_database("node"),
                server.create_database("relay"),
                server.revive,
            )
            asyncio.run(_migrate_and_open(addresses.node, settings))
            break
        except NodeError as error:
            server.stop()
            if error.kind is not ErrorKind.UNAVAILABLE or not tries_left:
                raise
    return addresses


def attached(settings: Settings) -> Settings:
    """Return `settings` with the database of the running node, for the command line.

    SETTING when the embedded database is wanted and no node runs.
    """
    if settings.database.url:
        return settings
    try:
        told = json.loads((settings.data / _RUNNING).read_text("utf-8"))
    except OSError:
        raise NodeError(
            "database.url: is empty and no node is running here; start one with"
            " `make run`, or name a PostgreSQL",
            ErrorKind.SETTING,
        ) from None
    return replace(settings, database=replace(settings.database, url=told["node"]))


def make_secrets(settings: Settings) -> list[Path]:
    """Make the keys that are not there yet; return their files.

    Where node and relay run on different machines, the hook's secret is copied from
    one to the other and each keeps its own key.
    """
    made = []
    for path, make in (
        (settings.keys.root_file, create_root_key),
        (settings.relay.key_file, create_key_file),
        (settings.relay.hook_secret_file, _create_hook_secret),
    ):
        if not path.exists():
            make(path)
            made.append(path)
    return made


async def migrate_database(dsn: str) -> list[str]:
    """Bring the node's database to this version's schema; return what was applied."""
    database = await Database.connect(dsn, max_size=2)
    try:
        return await migrate(database)
    finally:
        await database.close()


async def _migrate_and_open(dsn: str, settings: Settings) -> None:
    """Bring the schema up to date and try the root key, before any role needs it."""
    database = await Database.connect(dsn, max_size=2)
    try:
        await migrate(database)
        await KeyRing.open(database, settings.keys.root_file)
    finally:
        await database.close()


# --- inside -------------------------------------------------------------------------


@contextmanager
def _only_supervisor(data: Path) -> Iterator[None]:
    """Hold the data directory; SETTING when another supervisor holds it."""
    with open(data / "node.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NodeError(
                f"SONONODE_DATA: another node is running with {data}; stop it or"
                " choose another folder",
                ErrorKind.SETTING,
            ) from None
        yield


def _create_hook_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32))


def _require_root_key(settings: Settings) -> None:
    if not settings.keys.root_file.exists():
        raise NodeError(
            f"keys.root_file: {settings.keys.root_file} is missing, and there is data"
            " that only it opens; restore it from its copy",
            ErrorKind.SETTING,
        )


def _require_relay_database(settings: Settings, addresses: Addresses) -> None:
    if settings.relay.enabled and not addresses.relay:
        raise NodeError(
            "relay.database_url: is empty; the relay has a database of its own, or set"
            " relay.enabled = false",
            ErrorKind.SETTING,
        )


def _require_files(settings: Settings) -> None:
    """Raise SETTING when a file that a setting names cannot be used."""
    weights = settings.inference.weights
    if weights and not (settings.data / weights / "model.json").is_file():
        raise NodeError(
            f"inference.weights: there is no model in {settings.data / weights}; name"
            " its folder, or leave it empty for the model that ships with the node",
            ErrorKind.SETTING,
        )
    _require_peers(settings)
    _require_hooks(settings)


def _require_hooks(settings: Settings) -> None:
    """Raise for what is wrong with topics and hooks of Subscriptions."""
    from node import parts

    parts.require_hooks(settings)


def _require_peers(settings: Settings) -> None:
    """Raise for what is wrong with DICOM peers and with TLS, to them and from them."""
    from dicom_scp.receiving.scp import (
        tls_context,  # only here: `keys init` needs no DICOM
    )
    from node import parts
    from node.outbound import outbound_of
    from node.repositories import repositories_of

    try:
        tls_context(parts.scp_settings_of(settings))
        outbound_of(settings, partial(parts.calling_tls_of, settings))
        repositories_of(settings)
    except NodeError as error:
        raise NodeError(
            f"{error.message}; correct the path, or leave the setting empty",
            ErrorKind.SETTING,
        ) from None


def _require_free_ports(settings: Settings) -> None:
    """Raise SETTING for the first port that somebody else listens on."""
    wanted = {
        "dicom.port": (settings.dicom.host, settings.dicom.port),
        "http.port": (settings.http.host, settings.http.port),
        "relay.port": (settings.relay.host, settings.relay.port),
    }
    if settings.dicom.tls_certificate:
        wanted["dicom.tls_port"] = (settings.dicom.host, settings.dicom.tls_port)
    for name, address in wanted.items():
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise NodeError(
                    f"{name}: {address[1]} cannot be used ({error.strerror}); end the"
                    " other program or choose another port",
                    ErrorKind.SETTING,
                ) from None


@contextmanager
def _told_to_others(settings: Settings, addresses: Addresses) -> Iterator[None]:
    """Let `python -m node user …` and the like find the running database."""
    path: Path = settings.data / _RUNNING
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"node": addresses.node, "relay": addresses.relay}, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
