"""No request goes by the audit trail: every route of the web role is asked once."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from node.app import route_groups_of
from node.domain.access import Role
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import NodeError
from node.http import HttpSettings, RouteGroup, make_app
from node.recording import EVERYBODY, MOST_TOLD, Recorder
from node.store import audit, people
from node.store.people import SessionKind
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import NOW
from tests.node.test_app import make_settings

# What shows nothing of anybody: to be lengthened only with that reason.
UNRECORDED = {
    "/",
    # What the node is and can: discovery, public keys, the names of programs.
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/.well-known/smart-configuration",
    "/assets/{name}",
    "/auth/authorize.css",
    "/auth/keys",
    "/auth/me",
    "/auth/programs",
    "/auth/sign-in",
    "/fhir/.well-known/smart-configuration",
    "/fhir/metadata",
    "/healthz",
    "/metrics",
    "/readyz",
}


async def count(store: Store) -> int:
    async with store.db.connection() as connection:
        return (await audit.head(connection)).sequence


async def test_every_route_leaves_an_entry_whoever_asks(
    store: Store, tmp_path: Path, clock: FrozenClock
) -> None:
    settings = make_settings(tmp_path, SONONODE_RELAY__ENABLED="false")
    async with store.db.transaction() as tx:
        user = await people.create_user(
            tx,
            login="dr",
            password="correct horse battery",
            display="Dr",
            roles=[Role.RADIOLOGIST],
            now=NOW,
        )
        token = await people.open_session(
            tx, user, SessionKind.BEARER, now=store.clock()
        )
    async with ClientSession() as session:
        groups = route_groups_of(store, settings, session)
        routes = {
            (route.method, resource.canonical)
            for group in groups
            for route in web.Application().add_routes(group.routes)
            if (resource := route.resource) is not None
        }
        told = frozenset().union(*(group.unrecorded for group in groups))
        assert told <= UNRECORDED
        assert len(routes) > 40
        app = make_app(store, HttpSettings(), groups)
        async with TestClient(TestServer(app)) as node:
            for method, pattern in sorted(routes):
                if pattern in UNRECORDED:
                    continue
                path = re.sub(r"\{type\}", "Patient", pattern)
                path = re.sub(r"\{[^}]*\}", "2.25.1.1", path)
                verb = "POST" if method == "*" else method
                for headers in ({}, {"Authorization": f"Bearer {token}"}):
                    clock.advance(seconds=61)
                    before = await count(store)
                    answer = await node.request(
                        verb, path, headers=headers, allow_redirects=False
                    )
                    case = (verb, pattern, answer.status, bool(headers))
                    assert await count(store) > before, case
    async with store.db.transaction() as tx:
        await audit.verify(tx)


async def test_what_goes_out_in_pieces_is_recorded_before_the_first(
    store: Store,
) -> None:
    seen: list[int] = []

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen.append(await count(store))
        await response.write(b"a")
        await response.write_eof()
        return response

    group = RouteGroup(
        "/x", [web.get("/x/{id}", in_pieces)], public=frozenset({"/x/{id}"})
    )
    app = make_app(store, HttpSettings(), [group])
    async with TestClient(TestServer(app)) as node:
        assert await (await node.get("/x/2.25.1")).read() == b"a"
    assert seen == [1]
    assert await count(store) == 1


def entry(number: int = 0, **changes: str) -> AuditEntry:
    detail = {"status": "404", "address": "10.0.0.1"} | changes
    return AuditEntry(
        NOW, "somebody", "", "fhir read", f"Patient/{number}", Outcome.REFUSED, detail
    )


async def test_entries_of_one_moment_are_appended_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    append = audit.append

    async def counted(connection: object, entries: list[AuditEntry]) -> None:
        batches.append(len(entries))
        await append(connection, entries)  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "append", counted)
    recorder = Recorder(store)
    await asyncio.gather(*(recorder.record(entry(n)) for n in range(500)))
    assert sum(batches) == 500
    assert len(batches) < 10
    async with store.db.transaction() as tx:
        assert await audit.verify(tx) == 500


async def test_an_entry_that_fails_fails_for_all_who_wait_and_the_next_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError

    recorder = Recorder(store)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "append", broken)
        results = await asyncio.gather(
            *(recorder.record(entry(n)) for n in range(5)), return_exceptions=True
        )
        assert all(isinstance(one, NodeError) for one in results)
    await recorder.record(entry())
    assert await count(store) == 1


async def test_a_denial_that_was_not_written_is_not_taken_for_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError

    recorder = Recorder(store)
    with monkeypatch.context() as patched:
        patched.setattr(audit, "append", broken)
        with pytest.raises(NodeError):
            await recorder.record_once(entry(), timedelta(minutes=1))
    await recorder.record_once(entry(), timedelta(minutes=1))
    assert await count(store) == 1


async def test_a_scan_of_many_ids_does_not_fill_the_disk(store: Store) -> None:
    recorder = Recorder(store)
    window = timedelta(minutes=1)
    for number in range(MOST_TOLD + 50):
        await recorder.record_once(entry(number), window)
    assert await count(store) == MOST_TOLD + 1
    await recorder.flush(all_of_them=True)
    async with store.db.connection() as connection:
        told = await audit.following(connection, MOST_TOLD, 10)
    assert [one.entry.actor for one in told] == [EVERYBODY, EVERYBODY]
    assert told[1].entry.detail["repeated"] == "49"
