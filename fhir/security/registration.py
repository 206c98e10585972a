"""Registration of programs: what an administrator enters, and what is looked at."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from fhir.security.assertions import read_jwks
from fhir.security.scoping import understood
from node.domain.access import Action, Identity, Role
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import BESIDE, read_scope
from node.fetching import may_call
from node.http import KNOWN_CALLERS, RouteGroup, identity, read_json_object
from node.store import audit, clients, refreshes
from node.store.clients import Client
from node.store.refreshes import Family

if TYPE_CHECKING:
    from node.store.store import Store


def route_group(store: "Store", key_hosts: frozenset[str]) -> RouteGroup:
    """Return /auth/clients and /auth/grants, for administrators."""
    desk = _Desk(store, key_hosts)
    return RouteGroup(
        "/auth",
        [
            web.get("/auth/clients", desk.list_clients),
            web.post("/auth/clients", desk.register),
            web.post("/auth/clients/{id}/disable", desk.disable),
            web.post("/auth/clients/{id}/keys", desk.rotate),
            web.get("/auth/grants", desk.list_grants),
            web.delete("/auth/grants/{id}", desk.end_grant),
        ],
    )


class _Desk:
    def __init__(self, store: "Store", key_hosts: frozenset[str]) -> None:
        self._store = store
        self._key_hosts = key_hosts

    async def list_clients(self, request: web.Request) -> web.Response:
        """List the programs to an administrator."""
        identity(request).require(Action.MANAGE_USERS)
        async with self._store.db.connection() as tx:
            known = await clients.list_clients(tx)
        return web.json_response([shown(client) for client in known])

    async def register(self, request: web.Request) -> web.Response:
        """Register a program; 201 with the client_id that it is told."""
        caller = identity(request)
        caller.require(Action.MANAGE_USERS)
        told = await read_json_object(request)
        jwks = told.get("jwks")
        async with self._store.db.transaction() as tx:
            client = await register_client(
                tx,
                self._store,
                self._key_hosts,
                name=str(told.get("name", "")),
                roles=_roles(told.get("roles")),
                scopes=str(told.get("scopes", "")),
                jwks=None if jwks is None else json.dumps(jwks),
                jwks_uri=_text_or_none(told.get("jwks_uri")),
                redirect_uris=_texts(told.get("redirect_uris")),
                launch_url=_text_or_none(told.get("launch_url")),
            )
            await self._record(tx, caller, "client-add", str(client.client_id))
        return web.json_response(shown(client), status=201)

    async def disable(self, request: web.Request) -> web.Response:
        """Shut a program and take its tokens back."""
        caller = identity(request)
        caller.require(Action.MANAGE_USERS)
        client_id = request.match_info["id"]
        async with self._store.db.transaction() as tx:
            await clients.disable(tx, client_id, now=self._store.clock())
            await self._record(tx, caller, "client-disable", client_id)
        request.app[KNOWN_CALLERS].forget_all()
        return web.Response(status=204)

    async def rotate(self, request: web.Request) -> web.Response:
        """Give a program other keys and take its tokens back."""
        caller = identity(request)
        caller.require(Action.MANAGE_USERS)
        told, client_id = await read_json_object(request), request.match_info["id"]
        jwks = told.get("jwks")
        async with self._store.db.transaction() as tx:
            await rotate_keys(
                tx,
                client_id,
                self._key_hosts,
                jwks=None if jwks is None else json.dumps(jwks),
                jwks_uri=_text_or_none(told.get("jwks_uri")),
            )
            await self._record(tx, caller, "client-rotate", client_id)
        request.app[KNOWN_CALLERS].forget_all()
        return web.Response(status=204)

    async def list_grants(self, request: web.Request) -> web.Response:
        """List what people have left to programs: refresh tokens, by family."""
        identity(request).require(Action.MANAGE_USERS)
        async with self._store.db.connection() as tx:
            found = await refreshes.list_families(tx, now=self._store.clock())
        return web.json_response([shown_grant(*row) for row in found])

    async def end_grant(self, request: web.Request) -> web.Response:
        """Take back what a person has left to a program."""
        caller = identity(request)
        caller.require(Action.MANAGE_USERS)
        family_id = request.match_info["id"]
        async with self._store.db.transaction() as tx:
            await refreshes.end(tx, family_id)
            await self._record(tx, caller, "grant-end", family_id)
        request.app[KNOWN_CALLERS].forget_all()
        return web.Response(status=204)

    async def _record(
        self, tx: Any, caller: Identity, action: str, client_id: str
    ) -> None:
        role = ",".join(sorted(role.value for role in caller.roles))
        entry = AuditEntry(
            self._store.clock(), caller.user_id, role, action, f"client/{client_id}"
        )
        await audit.record(tx, entry)


async def register_client(
    tx: Any,
    store: "Store",
    key_hosts: frozenset[str],
    *,
    name: str,
    roles: Sequence[Role],
    scopes: str,
    jwks: str | None = None,
    jwks_uri: str | None = None,
    redirect_uris: Sequence[str] = (),
    launch_url: str | None = None,
) -> Client:
    """Store a program after all about it was looked at; INVALID names a fault."""
    _check_keys(jwks, jwks_uri, key_hosts)
    for scope in scopes.split():
        if scope in BESIDE:
            continue
        if not understood(read_scope(scope)):
            raise NodeError(
                f"the node cannot hold resources against {scope}",
                ErrorKind.INVALID,
                expression="scopes",
            )
    for address in redirect_uris:
        if not _may_redirect(address):
            raise NodeError(
                "a redirect address is https, or http on this machine",
                ErrorKind.INVALID,
                expression="redirect_uris",
            )
    if launch_url is not None and not _may_redirect(launch_url):
        raise NodeError(
            "a launch address is https, or http on this machine",
            ErrorKind.INVALID,
            expression="launch_url",
        )
    return await clients.register(
        tx,
        name=name,
        roles=roles,
        scopes=scopes,
        now=store.clock(),
        jwks=jwks,
        jwks_uri=jwks_uri,
        redirect_uris=redirect_uris,
        launch_url=launch_url,
    )


async def rotate_keys(
    tx: Any,
    client_id: str,
    key_hosts: frozenset[str],
    *,
    jwks: str | None,
    jwks_uri: str | None,
) -> None:
    """Give a program other keys, after they were looked at."""
    _check_keys(jwks, jwks_uri, key_hosts)
    await clients.rotate(tx, client_id, jwks=jwks, jwks_uri=jwks_uri)


def shown(client: Client) -> dict[str, Any]:
    """Return a registration as administrators see it."""
    return {
        "client_id": str(client.client_id),
        "name": client.name,
        "roles": sorted(role.value for role in client.roles),
        "scopes": client.scopes,
        "keys": client.jwks_uri or ("registered" if client.jwks else "none"),
        "fingerprints": fingerprints(client),
        "redirect_uris": list(client.redirect_uris),
        "launch_url": client.launch_url,
        "last_used": client.last_used_at and client.last_used_at.isoformat(),
        "disabled": client.disabled,
    }


def fingerprints(client: Client) -> list[dict[str, str]]:
    """Return kid, kind and RFC 7638 thumbprint of each key that is registered."""
    if client.jwks is None:
        return []
    return [
        {"kid": str(key.kid), "kind": str(key.key_type), "sha256": key.thumbprint()}
        for key in read_jwks(client.jwks).keys
    ]


def shown_grant(family: Family, program: str, person: str) -> dict[str, Any]:
    """Return what a person has left to a program as administrators see it."""
    return {
        "grant_id": str(family.family_id),
        "client_id": str(family.client_id),
        "program": program,
        "person": Identity("", frozenset(), person).shown,
        "scopes": family.scopes,
        "offline": family.offline,
        "begun": family.begun_at.isoformat(),
        "used": family.used_at.isoformat(),
        "ends": family.expires_at.isoformat(),
    }


def _check_keys(
    jwks: str | None, jwks_uri: str | None, key_hosts: frozenset[str]
) -> None:
    if jwks is not None:
        read_jwks(jwks)
    if jwks_uri is not None and not may_call(jwks_uri, key_hosts):
        raise NodeError(
            "jwks_uri: https, and its host in fhir.key_hosts",
            ErrorKind.INVALID,
            expression="jwks_uri",
        )


def _may_redirect(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
    plain = not re.search(r"[\s\x00-\x1f;,'\"]", address)
    whole = bool(parts.hostname) and not parts.fragment and parts.username is None
    return (parts.scheme == "https" or local) and plain and whole


def _roles(told: object) -> list[Role]:
    try:
        return [Role(name) for name in _texts(told)]
    except ValueError:
        raise NodeError("no such role", ErrorKind.INVALID, expression="roles") from None


def _texts(told: object) -> list[str]:
    if told is None:
        return []
    if not isinstance(told, list) or not all(isinstance(t, str) for t in told):
        raise NodeError("a list of texts is needed", ErrorKind.INVALID)
    return told


def _text_or_none(told: object) -> str | None:
    if told is None or isinstance(told, str):
        return told
    raise NodeError("a text is needed", ErrorKind.INVALID)
