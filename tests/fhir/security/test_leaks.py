"""Nothing below /fhir shows what a token does not open: every route, every way.

SMART App Launch 2.2 scopes, default-deny. The walk is made from the router and the
CapabilityStatement of the whole node: a route, an operation or an interaction that
has no row here fails, and so does one that shows more than was opened.
"""

import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from aiohttp import web

from config.settings import load_settings
from fhir.search.parameters import PARAMETERS
from fhir.security.access import PERMITS
from fhir.security.registration import register_client
from node.app import route_groups_of
from node.domain.access import Role
from node.domain.report import Report
from node.domain.scopes import Scopes, read_scopes
from node.http import HttpSettings, make_app
from node.parts import fhir_settings_of
from node.store import clients, people
from node.store.clients import Client
from node.store.people import User
from node.store.store import Store
from tests.factories import make_patient
from tests.fhir.rig import publish_draft, receive_study
from tests.fhir.smart_rig import jwks

Sent = tuple[str, Any, dict[str, str]]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ASYNC = {"Prefer": "respond-async", "Accept": "application/fhir+json"}
PATCH = {"Content-Type": "application/json-patch+json", "If-Match": 'W/"1"'}
# What is about requests and answers, not about anybody.
NEUTRAL = {"Bundle", "OperationOutcome", "Parameters", "CapabilityStatement"}


@dataclass
class World:
    """A whole node with two women, and what is known of each."""

    store: Store
    root: str
    session: aiohttp.ClientSession
    program: Client
    doctor: User
    reports: list[Report] = field(default_factory=list)
    patients: list[UUID] = field(default_factory=list)
    needles: list[list[str]] = field(default_factory=list)
    ids: dict[str, list[str]] = field(default_factory=dict)
    owner: dict[tuple[str, str], int] = field(default_factory=dict)
    routes: frozenset[tuple[str, str]] = frozenset()

    async def add(self, number: int, name: str, accession: str) -> None:
        settings = fhir_settings_of(_settings(self.root))
        mrn, uid = f"MRN-{number}-7401", f"2.25.{880000 + number}"
        person = make_patient(patient_id=mrn, name=name)
        patient_id = await receive_study(
            self.store, person, study_uid=uid, accession=accession
        )
        report = await publish_draft(self.store, settings, study_uid=uid)
        self.patients.append(patient_id)
        self.reports.append(report)
        surname = re.split(r"[\^=]", name)[-2:]
        self.needles.append(["".join(surname), mrn, uid, accession])

    async def learn_ids(self) -> None:
        """Note what there is, and whose."""
        async with self.store.db.connection() as tx:
            rows = await tx.fetch(
                "select resource_type, resource_id, patient_id from resources"
            )
        for row in rows:
            kind, name = row["resource_type"], row["resource_id"]
            self.ids.setdefault(kind, []).append(name)
            if row["patient_id"] in self.patients:
                self.owner[kind, name] = self.patients.index(row["patient_id"])

    def some(self, kind: str) -> list[str]:
        """Return one id of each woman, or one that belongs to nobody."""
        found: dict[int | None, str] = {}
        for name in self.ids.get(kind, ["none"]):
            found.setdefault(self.owner.get((kind, name)), name)
        return list(found.values())

    async def token(self, scope: str, patient: UUID | None = None) -> str:
        opened = Scopes(read_scopes(scope), None if patient is None else str(patient))
        user_id = None if patient is None else self.doctor.user_id
        async with self.store.db.transaction() as tx:
            return await clients.open_token(
                tx,
                self.program.client_id,
                opened,
                now=self.store.clock(),
                user_id=user_id,
            )

    async def ask(self, token: str, method: str, sent: Sent) -> tuple[int, bytes]:
        path, body, headers = sent
        told = {"Content-Type": "application/fhir+json"} | headers
        told["Authorization"] = f"Bearer {token}"
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        async with self.session.request(
            method, f"{self.root}{path}", data=raw, headers=told
        ) as answer:
            return answer.status, await answer.read()


def _settings(root: str) -> Any:
    told = {
        "SONONODE_HTTP__PUBLIC_URL": root,
        "SONONODE_RELAY__ENABLED": "false",
        "SONONODE_DATA": str(Path("/tmp")),
    }
    return load_settings(told)


@pytest.fixture
async def world(store: Store) -> AsyncIterator[World]:
    """Everything that the web role serves, over a database with two women."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        root = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with aiohttp.ClientSession() as session:
            groups = route_groups_of(store, _settings(root), session)
            runner = web.AppRunner(
                make_app(store, HttpSettings(), groups), access_log=None
            )
            await runner.setup()
            listening.listen(64)
            await web.SockSite(runner, listening).start()
            async with store.db.transaction() as tx:
                program = await register_client(
                    tx,
                    store,
                    frozenset(),
                    name="EHR",
                    roles=[Role.EHR],
                    scopes="system/*.cruds",
                    jwks=jwks("EC"),
                )
                doctor = await people.create_user(
                    tx,
                    login="doctor",
                    password="correct horse battery",
                    display="D",
                    roles=[Role.RADIOLOGIST],
                    now=store.clock(),
                )
            made = World(store, root, session, program, doctor)
            await made.add(1, "Ouyang^Yixian=欧阳^一仙", "ACC-1-5511")
            await made.add(2, "Sima^Erzhu=司马^二珠", "ACC-2-6622")
            await made.learn_ids()
            made.routes = frozenset(_routes(runner.app))
            yield made
            await runner.cleanup()


def _routes(app: web.Application) -> Iterator[tuple[str, str]]:
    for route in app.router.routes():
        if route.resource is None or route.method == "HEAD":
            continue
        pattern = route.resource.canonical
        if pattern == "/fhir" or pattern.startswith("/fhir/"):
            yield route.method, pattern


# --- one row for each route -----------------------------------------------------------


def _each(path: str, body: Any = None) -> Callable[[World], Iterator[Sent]]:
    """Return requests for a path with {type} and {id}, of everything that there is."""

    def made(world: World) -> Iterator[Sent]:
        for kind in PERMITS:
            for name in world.some(kind):
                yield path.format(type=kind, id=name), body, {}

    return made


def _questions(world: World) -> Iterator[tuple[str, str]]:
    """Yield (type, query): plain, bringing along all that can be, and sideways."""
    for kind in PERMITS:
        yield kind, ""
        yield kind, "_total=accurate&_summary=count"
        along = [f"_include={kind}:{p.name}" for p in _references(kind)]
        along += [f"_include:iterate={kind}:{p.name}" for p in _references(kind)]
        for other in PARAMETERS:
            along += [
                f"_revinclude={other}:{p.name}"
                for p in _references(other)
                if kind in p.targets
            ]
        if along:
            yield kind, "&".join(along)
        yield from ((kind, query) for query in _sideways(kind))


def _references(kind: str) -> Iterator[Any]:
    return (p for p in PARAMETERS.get(kind, ()) if p.kind == "reference")


def _sideways(kind: str) -> Iterator[str]:
    """Yield questions about other resources: chained, and by who refers to them."""
    for parameter in _references(kind):
        for target in parameter.targets:
            yield f"{parameter.name}:{target}._id=none"
            yield f"{parameter.name}:{target}._lastUpdated=gt2020"
        yield f"{parameter.name}:identifier=x|y"
    for other in PARAMETERS:
        for parameter in _references(other):
            if kind in parameter.targets:
                yield f"_has:{other}:{parameter.name}:_id=none"
                break


def _searches(world: World) -> Iterator[Sent]:
    for kind, query in _questions(world):
        yield f"/fhir/{kind}?{query}", None, {}


def _posted_searches(world: World) -> Iterator[Sent]:
    for kind, query in _questions(world):
        if ":" in query and not query.startswith("_include"):
            continue  # asked sideways by GET
        yield f"/fhir/{kind}/_search", query.encode(), FORM


def _bundles(world: World) -> Iterator[Sent]:
    """Yield transactions and batches of every kind of entry."""
    entries: list[Any] = []
    for kind in PERMITS:
        for name in world.some(kind)[:1]:
            body = {"resourceType": kind, "id": name}
            asked = [
                ("GET", f"{kind}/{name}", None),
                ("GET", f"{kind}?_include=*", None),
                ("GET", f"{kind}/{name}/_history", None),
                ("PUT", f"{kind}/{name}", body),
                ("POST", kind, {"resourceType": kind}),
                ("DELETE", f"{kind}/{name}", None),
            ]
            for method, url, resource in asked:
                entry = {"request": {"method": method, "url": url}}
                entries.append(entry | ({"resource": resource} if resource else {}))
    for name in world.some("Patient"):
        url = f"Patient/{name}/$everything"
        entries.append({"request": {"method": "GET", "url": url}})
    for kind in ("transaction", "batch"):
        reads = [e for e in entries if e["request"]["method"] == "GET"]
        yield "/fhir", _bundle(kind, reads), {}
        for entry in entries:
            if kind == "batch" or entry["request"]["method"] != "GET":
                yield "/fhir", _bundle(kind, [entry]), {}


def _bundle(kind: str, entries: list[Any]) -> Any:
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


def _changes(world: World) -> Iterator[Sent]:
    for kind in PERMITS:
        for name in world.some(kind)[:2]:
            body = {"resourceType": kind, "id": name}
            yield f"/fhir/{kind}/{name}", body, {"If-Match": 'W/"1"'}


def _patches(world: World) -> Iterator[Sent]:
    patch = [{"op": "test", "path": "/id", "value": "x"}]
    for kind in PERMITS:
        for name in world.some(kind)[:2]:
            yield f"/fhir/{kind}/{name}", patch, PATCH


def _creations(world: World) -> Iterator[Sent]:
    for kind in PERMITS:
        headers = {"If-None-Exist": "_lastUpdated=gt2020"}
        yield f"/fhir/{kind}", {"resourceType": kind}, headers
        yield f"/fhir/{kind}", {"resourceType": kind}, {}


def _exports(path: str) -> Callable[[World], Iterator[Sent]]:
    def made(_: World) -> Iterator[Sent]:
        yield path, None, ASYNC
        for kind in PERMITS:
            yield f"{path}?_type={kind}", None, ASYNC

    return made


def _posted_exports(path: str) -> Callable[[World], Iterator[Sent]]:
    def made(_: World) -> Iterator[Sent]:
        body = {"resourceType": "Parameters"}
        yield path, body, ASYNC | {"Content-Type": "application/fhir+json"}

    return made


def _paths(*paths: str) -> Callable[[World], Iterator[Sent]]:
    def made(_: World) -> Iterator[Sent]:
        for path in paths:
            yield path, None, {}

    return made


def _type_histories(_: World) -> Iterator[Sent]:
    for kind in PERMITS:
        yield f"/fhir/{kind}/_history?_count=100", None, {}


def _validations(world: World) -> Iterator[Sent]:
    for kind in PERMITS:
        yield f"/fhir/{kind}/$validate", {"resourceType": kind}, {}
        for name in world.some(kind)[:1]:
            parts = [
                {"name": "mode", "valueCode": "update"},
                {"name": "resource", "resource": {"resourceType": kind, "id": name}},
            ]
            body = {"resourceType": "Parameters", "parameter": parts}
            yield f"/fhir/{kind}/$validate", body, {}


def _terminology(place: str) -> Callable[[World], Iterator[Sent]]:
    def made(_: World) -> Iterator[Sent]:
        path = place.format(id="breast-side")
        yield f"{path}?code=4A", {"resourceType": "Parameters"}, {}

    return made


def _conditional(_: World) -> Iterator[Sent]:
    for kind in PERMITS:
        yield f"/fhir/{kind}?_lastUpdated=gt2020", {"resourceType": kind}, {}


def _posted_audit(_: World) -> Iterator[Sent]:
    yield "/fhir/AuditEvent/_search", b"_count=10", FORM


def _operation(place: str, name: str) -> Callable[[World], Iterator[Sent]]:
    def made(world: World) -> Iterator[Sent]:
        for one in world.some("Subscription"):
            path = f"/fhir/Subscription{place.format(id=one)}/${name}"
            yield f"{path}?content=full-resource", {"resourceType": "Parameters"}, {}

    return made


def _papers(world: World) -> Iterator[Sent]:
    for report in world.reports:
        for accept in ("application/fhir+json", "application/pdf"):
            yield f"/fhir/Binary/{report.id}-v2", None, {"Accept": accept}
        yield f"/fhir/Binary/{report.id}-v2-html", None, {"Accept": "text/html"}


NOBODY = "00000000-0000-4000-8000-000000000000"
ROWS: dict[tuple[str, str], Callable[[World], Iterator[Sent]]] = {
    ("GET", "/fhir/metadata"): _paths("/fhir/metadata"),
    ("GET", "/fhir/.well-known/smart-configuration"): _paths(
        "/fhir/.well-known/smart-configuration"
    ),
    ("GET", "/fhir/{type}"): _searches,
    ("POST", "/fhir/{type}/_search"): _posted_searches,
    ("GET", "/fhir/{type}/{id}"): _each("/fhir/{type}/{id}"),
    ("GET", "/fhir/{type}/{id}/_history"): _each("/fhir/{type}/{id}/_history"),
    ("GET", "/fhir/{type}/{id}/_history/{version}"): _each(
        "/fhir/{type}/{id}/_history/1"
    ),
    ("GET", "/fhir/Binary/{id}"): _papers,
    ("POST", "/fhir"): _bundles,
    ("POST", "/fhir/"): lambda world: islice(_bundles(world), 2),
    ("POST", "/fhir/{type}"): _creations,
    ("PUT", "/fhir/{type}/{id}"): _changes,
    ("PATCH", "/fhir/{type}/{id}"): _patches,
    ("GET", "/fhir/$export"): _exports("/fhir/$export"),
    ("POST", "/fhir/$export"): _posted_exports("/fhir/$export"),
    ("GET", "/fhir/Patient/$export"): _exports("/fhir/Patient/$export"),
    ("POST", "/fhir/Patient/$export"): _posted_exports("/fhir/Patient/$export"),
    ("GET", "/fhir/exports/{export_id}"): _paths(f"/fhir/exports/{NOBODY}"),
    ("DELETE", "/fhir/exports/{export_id}"): _paths(f"/fhir/exports/{NOBODY}"),
    ("GET", "/fhir/exports/{export_id}/{number}.ndjson"): _paths(
        f"/fhir/exports/{NOBODY}/1.ndjson"
    ),
    ("GET", "/fhir/{type}/_history"): _type_histories,
    ("GET", "/fhir/{type}/{id}/$everything"): _each(
        "/fhir/{type}/{id}/$everything?_count=100"
    ),
    ("POST", "/fhir/{type}/{id}/$everything"): _each(
        "/fhir/{type}/{id}/$everything", {"resourceType": "Parameters"}
    ),
    ("POST", "/fhir/{type}/$validate"): _validations,
    ("POST", "/fhir/{type}/{id}/$validate"): _each(
        "/fhir/{type}/{id}/$validate", {"resourceType": "Parameters"}
    ),
    **{
        (method, f"/fhir/{place}"): _terminology(f"/fhir/{place}")
        for method in ("GET", "POST")
        for place in (
            "CodeSystem/$lookup",
            "ValueSet/$expand",
            "ValueSet/{id}/$expand",
            "ValueSet/$validate-code",
            "ValueSet/{id}/$validate-code",
        )
    },
    ("GET", "/fhir/{type}/{id}/$validate"): _each(
        "/fhir/{type}/{id}/$validate?mode=profile"
    ),
    ("DELETE", "/fhir/{type}/{id}"): _each("/fhir/{type}/{id}"),
    ("PUT", "/fhir/{type}"): _conditional,
    ("PATCH", "/fhir/{type}"): _conditional,
    ("GET", "/fhir/AuditEvent"): _paths(
        "/fhir/AuditEvent", "/fhir/AuditEvent?_include=*", "/fhir/AuditEvent?_count=0"
    ),
    ("POST", "/fhir/AuditEvent/_search"): _posted_audit,
    ("GET", "/fhir/AuditEvent/{id}"): _paths("/fhir/AuditEvent/1"),
    ("GET", "/fhir/ws/subscriptions"): _paths("/fhir/ws/subscriptions"),
    **{
        (method, f"/fhir/Subscription{place}/${name}"): _operation(place, name)
        for method, place, name in (
            *(
                (method, place, name)
                for method in ("GET", "POST")
                for place, name in (
                    ("", "status"),
                    ("", "get-ws-binding-token"),
                    ("/{id}", "status"),
                    ("/{id}", "events"),
                    ("/{id}", "get-ws-binding-token"),
                )
            ),
            ("POST", "/{id}", "resend"),
        )
    },
}
INTERACTIONS = {
    "read": ("GET", "/fhir/{type}/{id}"),
    "vread": ("GET", "/fhir/{type}/{id}/_history/{version}"),
    "history-type": ("GET", "/fhir/{type}/_history"),
    "history-instance": ("GET", "/fhir/{type}/{id}/_history"),
    "search-type": ("GET", "/fhir/{type}"),
    "create": ("POST", "/fhir/{type}"),
    "update": ("PUT", "/fhir/{type}/{id}"),
    "patch": ("PATCH", "/fhir/{type}/{id}"),
    "transaction": ("POST", "/fhir"),
    "batch": ("POST", "/fhir"),
}


async def test_every_route_and_every_claim_has_its_row_in_the_walk(
    world: World,
) -> None:
    served = world.routes
    assert served - ROWS.keys() == set(), "a new route needs a row"
    assert ROWS.keys() - served == set(), "a row has no route any more"
    async with world.session.get(f"{world.root}/fhir/metadata") as answer:
        (rest,) = (await answer.json())["rest"]
    claimed = [i["code"] for i in rest["interaction"]]
    operations = [o["name"] for o in rest.get("operation", [])]
    for resource in rest["resource"]:
        claimed += [i["code"] for i in resource["interaction"]]
        operations += [o["name"] for o in resource.get("operation", [])]
    assert set(claimed) <= INTERACTIONS.keys()
    for name in operations:
        assert any(p.endswith(f"/${name}") for _, p in ROWS), name


# --- what may be shown ----------------------------------------------------------------


def _shown(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (type, id) of every resource in an answer, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("resourceType"), str):
            yield value["resourceType"], str(value.get("id", ""))
        for item in value.values():
            yield from _shown(item)
    elif isinstance(value, list):
        for item in value:
            yield from _shown(item)


async def _walk(world: World, token: str) -> list[tuple[str, Sent, int, bytes]]:
    return [
        (method, sent, *await world.ask(token, method, sent))
        for (method, _), row in ROWS.items()
        for sent in row(world)
    ]


def _resources(raw: bytes) -> set[tuple[str, str]]:
    try:
        return set(_shown(json.loads(raw)))
    except ValueError:
        return {("not JSON", "")} if raw else set()


@pytest.mark.parametrize(
    "scope",
    [
        "system/DiagnosticReport.rs",
        "system/Observation.rs?status=final system/Patient.s",
        "system/*.cud",
    ],
)
async def test_a_token_shows_its_types_and_no_other_by_any_route(
    world: World, scope: str
) -> None:
    token = await world.token(scope)
    looks = [s for s in read_scopes(scope) if s.letters & {"r", "s"}]
    opened = {s.kind for s in looks}
    # Nothing is final yet: what is narrowed to that opens nothing.
    opened -= {s.kind for s in looks if s.narrowing}
    seen: set[str] = set()
    for method, sent, status, raw in await _walk(world, token):
        where = (scope, method, sent[0], status)
        assert status < 500, (where, raw)
        found = {kind for kind, _ in _resources(raw)} - NEUTRAL
        public = ".well-known" in sent[0]
        assert found <= opened or public, (where, found)
        seen |= found & opened
        if opened.isdisjoint({"Patient", "DiagnosticReport", "ServiceRequest"}):
            for needle in (n for ns in world.needles for n in ns):
                assert needle.encode() not in raw, (where, needle)
    assert seen == opened


async def test_nobody_asks_sideways_about_what_is_not_open(world: World) -> None:
    token = await world.token("system/DiagnosticReport.rs system/Patient.rs")
    for kind in ("DiagnosticReport", "Patient"):
        for query in _sideways(kind):
            sent = (f"/fhir/{kind}?{query}", None, {"Prefer": "handling=strict"})
            status, raw = await world.ask(token, "GET", sent)
            other = re.match(r"[a-z-]+:([A-Z][A-Za-z]+)\.|_has:([A-Za-z]+):", query)
            target = other and (other[1] or other[2])
            if target in ("DiagnosticReport", "Patient"):
                assert status in (200, 400), (kind, query, raw)
            elif target:
                assert status in (400, 403), (kind, query, raw)


async def test_a_token_for_one_patient_shows_no_other_by_any_route(
    world: World,
) -> None:
    token = await world.token("patient/*.rs", world.patients[0])
    mine = 0
    for method, sent, status, raw in await _walk(world, token):
        where = (method, sent[0], status)
        assert status < 500, (where, raw)
        asked = f"{sent[0]} {sent[1]}"
        for needle in world.needles[1]:
            # What was asked for by its id may stand in the refusal.
            assert needle.encode() not in raw or needle in asked, (where, needle)
        for shown in _resources(raw):
            assert world.owner.get(shown, 0) == 0, (where, shown)
            mine += shown in world.owner
        for (kind, name), owner in world.owner.items():
            told = f"{kind}/{name}".encode()
            assert owner == 0 or told not in raw or name in asked, (where, told)
    assert mine > 10


async def test_looking_scopes_change_nothing_by_any_route(world: World) -> None:
    async def versions() -> Any:
        async with world.store.db.connection() as tx:
            return await tx.fetch(
                "select resource_type, resource_id, version from resources order by 1,2"
            )

    before = await versions()
    token = await world.token("system/*.rs")
    for (method, _), row in ROWS.items():
        for sent in row(world):
            if method in ("GET", "HEAD") or sent[0].endswith(("_search", "$export")):
                continue
            status, raw = await world.ask(token, method, sent)
            reads = '"GET"' in str(sent[1]).replace("'", '"') or "/$" in sent[0]
            batch = '"batch"' in str(sent[1]).replace("'", '"')
            assert 400 <= status < 500 or reads or batch, (method, sent, status, raw)
            # A batch tells of each entry by itself.
            assert reads or b'"status":"2' not in raw, (sent, raw)
    assert await versions() == before
