"""AuditEvent over HTTP: read and search, for auditors (FHIR R4 AuditEvent, BALP).

The trail only grows, and only by what the node itself records: nobody creates,
changes or deletes an AuditEvent here. Reading the trail is recorded in it.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

from aiohttp import hdrs, web

from fhir.audit.access import told_query
from fhir.audit.events import OWN_SYSTEM, Person, Teller, read_id, user_system
from fhir.encoding.formats import FORM, form, prefers
from fhir.encoding.outcome import Issue, Refused, outcome
from fhir.encoding.wire import Json, date_range
from fhir.rest.exchange import PREFIX, answered
from fhir.search.bundles import MAX_COUNT
from fhir.security.access import Interaction, require, require_scope
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.audit import note_query
from node.domain.audit_codes import DCM, INTERACTION, REST, RESTFUL, act_of, code_of
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.store import audit, clients, merges, people
from node.store.audit import Recorded, Sought
from node.store.database import TooCostly

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

KIND = "AuditEvent"
# Name and type as the capability statement tells them.
SEARCHED = (
    ("date", "date"),
    ("agent", "reference"),
    ("patient", "reference"),
    ("entity", "reference"),
    ("action", "token"),
    ("type", "token"),
    ("subtype", "token"),
    ("outcome", "token"),
    ("source", "reference"),
    ("_id", "token"),
)
_CONTROL = frozenset({"_count", "_page", "_format", "_pretty", "_total", "_summary"})
# What FHIR calls a resource that the trail knows by the name of its content.
_ALSO = {"DiagnosticReport": "report", "ImagingStudy": "study"}

Asked = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class _After:
    """Where a page begins: behind this event of this entry."""

    at: datetime
    sequence: int
    place: int


class AuditEvents:
    """The handlers of AuditEvent."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._base_url = settings.base_url
        self._page_size = settings.page_size

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; they stand before those of all other types."""
        return [
            web.get(f"{PREFIX}/{KIND}", self.search),
            web.post(f"{PREFIX}/{KIND}/_search", self.search),
            web.get(f"{PREFIX}/{KIND}/{{id:[A-Za-z0-9.-]{{1,64}}}}", self.read),
        ]

    async def read(self, request: web.Request) -> web.Response:
        """Answer one event."""
        _auditor(request, Interaction.READ)
        told = read_id(request.match_info["id"])
        if told is not None:
            sequence, place = told
            async with self._store.db.reading() as tx:
                found = await audit.search(tx, Sought(sequences=(sequence,)), limit=1)
                events = (await self._teller(tx)).events(found[0]) if found else []
            for event in events:
                if read_id(event["id"]) == (sequence, place):
                    return answered(event)
        raise NodeError(f"there is no such {KIND}", ErrorKind.NOT_FOUND)

    async def search(self, request: web.Request) -> web.Response:
        """Answer events by GET or by POST _search, the newest first."""
        _auditor(request, Interaction.SEARCH)
        asked = list(request.query.items())
        if request.method == hdrs.METH_POST:
            if request.content_type != FORM:
                raise Refused([Issue("not-supported", f"_search takes {FORM}")], 415)
            asked += form(await request.read())
        after = None
        pages = [value for name, value in asked if name == "_page"]
        if pages:
            asked, after = self._open_page(pages[0])
        note_query(told_query(self._store, KIND, asked))
        ignored: list[str] = []
        try:
            async with self._store.db.reading() as tx:
                sought, used = await self._sought(tx, asked, ignored)
                hers = await merges.all_rows_of(tx, sought.patients)
                sought = replace(sought, patients=hers)
                if ignored and prefers(request, "handling") == "strict":
                    raise NodeError(ignored[0], ErrorKind.INVALID)
                count = _count(asked, self._page_size)
                page, more = await self._page(tx, sought, count, after)
        except TooCostly:
            raise Refused(
                [Issue("too-costly", "this takes too long; narrow it by date")], 422
            ) from None
        links = [("self", f"{self._base_url}/{KIND}?{urlencode(used)}")]
        if more is not None:
            links.append(("next", self._page_link(used, more)))
        return answered(self._bundle(page, links, ignored))

    # --- finding ----------------------------------------------------------------------

    async def _page(
        self, tx: "Transaction", sought: Sought, count: int, after: _After | None
    ) -> tuple[list[Json], _After | None]:
        """Return up to `count` events, and where the next page begins."""
        if count == 0:
            return [], None
        teller = await self._teller(tx)
        wanted = {str(patient) for patient in sought.patients}
        found: list[tuple[Json, _After]] = []
        if after is not None and after.place:
            begun = replace(sought, sequences=(after.sequence,))
            for recorded in await audit.search(tx, begun, limit=1):
                found += [
                    one
                    for one in _told(teller, recorded, wanted)
                    if one[1].place > after.place
                ]
        if len(found) <= count:
            position = None if after is None else (after.at, after.sequence)
            for recorded in await audit.search(
                tx, sought, limit=count + 1, after=position
            ):
                found += _told(teller, recorded, wanted)
        page = found[:count]
        return [event for event, _ in page], page[-1][1] if len(found) > count else None

    async def _sought(
        self, tx: "Transaction", asked: Asked, ignored: list[str]
    ) -> tuple[Sought, list[tuple[str, str]]]:
        """Return what is sought, and the parameters that were understood."""
        sought, used = Sought(), []
        known = await audit.actions(tx)
        for name, value in asked:
            if name in _CONTROL:
                if name in ("_total", "_summary"):
                    ignored.append(f"{name} is not offered for {KIND}")
                elif name != "_page":
                    used.append((name, value))
                continue
            if not value:
                continue
            narrowed = await self._narrowed(tx, sought, known, name, value)
            if narrowed is None:
                ignored.append(
                    f"{_sane(name)} is not a search parameter of {KIND} here"
                )
            else:
                sought = narrowed
                used.append((name, value))
        return sought, used

    async def _narrowed(
        self,
        tx: "Transaction",
        sought: Sought,
        known: Sequence[str],
        name: str,
        value: str,
    ) -> Sought | None:
        values = [one for one in value.split(",") if one]
        match name:
            case "date":
                return _within(sought, value)
            case "patient":
                return _about(sought, values, self._base_url)
            case "agent" | "agent:identifier":
                actors = [await self._actor(tx, name, one) for one in values]
                named = [one for one in actors if one]
                if named and await _are_programs(tx, named):
                    programs = _both(sought.programs, named)
                    return replace(sought, programs=programs)
                return replace(sought, actors=_both(sought.actors, named))
            case "entity":
                return self._entities(sought, values)
            case "outcome":
                codes = [_code(v, "audit-event-outcome") for v in values]
                return replace(sought, outcomes=_both(sought.outcomes, codes))
            case "action" | "type" | "subtype":
                means = {
                    "action": _has_letter,
                    "type": _has_type,
                    "subtype": self._has_subtype,
                }[name]
                found = [a for a in known if any(means(a, v) for v in values)]
                return replace(sought, actions=_both(sought.actions, found))
            case "source" | "source:identifier":
                ours = any(v.rpartition("|")[2] == self._base_url for v in values)
                return sought if ours else replace(sought, sequences=())
            case "_id":
                ids = [told[0] for v in values if (told := read_id(v)) is not None]
                return replace(sought, sequences=tuple(ids))
        return None

    async def _actor(self, tx: "Transaction", name: str, value: str) -> str:
        """Return the actor that a reference or an identifier names."""
        if name == "agent:identifier":
            system, _, code = value.rpartition("|")
            return code if system in ("", user_system(self._base_url)) else ""
        told = value.removeprefix(f"{self._base_url}/")
        kind, _, rest = told.partition("/")
        if kind == "Practitioner":
            users = await people.list_users(tx)
            mine = [str(u.user_id) for u in users if u.practitioner_id == rest]
            return mine[0] if mine else ""
        return rest or told

    def _entities(self, sought: Sought, values: Sequence[str]) -> Sought:
        if sought.entities is not None:
            raise _invalid("entity", "is asked once")
        entities: list[str] = []
        patients: list[str] = []
        for value in values:
            told = value.removeprefix(f"{self._base_url}/").partition("/_history/")[0]
            kind, _, rest = told.partition("/")
            if kind == "Patient":
                patients.append(told)
            elif rest:
                entities.append(told)
                if kind in _ALSO:
                    entities += [f"{_ALSO[kind]}/{rest}", f"{_ALSO[kind]}/{rest}/"]
        if not patients:
            return replace(sought, entities=tuple(entities))
        if entities:
            raise _invalid("entity", "asks for patients or for other resources")
        return _about(sought, patients, self._base_url)

    def _has_subtype(self, action: str, value: str) -> bool:
        system, bar, code = value.rpartition("|")
        act = act_of(action)
        codes = {
            (INTERACTION, act.interaction),
            (DCM, act.subtype),
            (OWN_SYSTEM, code_of(action)),
        }
        return any(c == code and (not bar or s == system) for s, c in codes)

    # --- telling ----------------------------------------------------------------------

    async def _teller(self, tx: "Transaction") -> Teller:
        """Return what makes events, with the names of professionals and programs."""
        actors = {
            str(user.user_id): Person(user.identity.shown, user.practitioner_id)
            for user in await people.list_users(tx)
        }
        for client in await clients.list_clients(tx):
            actors[str(client.client_id)] = Person(client.name)
        return Teller(self._base_url, actors)

    def _bundle(
        self,
        events: Sequence[Json],
        links: Sequence[tuple[str, str]],
        ignored: Sequence[str],
    ) -> Json:
        entries: list[Json] = [
            {
                "fullUrl": f"{self._base_url}/{KIND}/{event['id']}",
                "resource": event,
                "search": {"mode": "match"},
            }
            for event in events
        ]
        if ignored:
            issues = [Issue("not-supported", t, severity="warning") for t in ignored]
            entries.append({"resource": outcome(issues), "search": {"mode": "outcome"}})
        bundle: Json = {
            "resourceType": "Bundle",
            "type": "searchset",
            "link": [{"relation": relation, "url": url} for relation, url in links],
        }
        return {**bundle, "entry": entries} if entries else bundle

    def _page_link(self, used: Asked, after: _After) -> str:
        text = json.dumps(
            [list(used), after.at.isoformat(), after.sequence, after.place]
        )
        sealed = self._store.ring.node.seal(text.encode(), **_PAGE)
        cursor = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
        return f"{self._base_url}/{KIND}?_page={cursor}"

    def _open_page(self, cursor: str) -> tuple[list[tuple[str, str]], _After]:
        try:
            sealed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            text = self._store.ring.node.open(sealed, **_PAGE)
        except (NodeError, binascii.Error, ValueError):
            raise _invalid("_page", "is not one of our links") from None
        used, at, sequence, place = json.loads(text)
        after = _After(datetime.fromisoformat(at), sequence, place)
        return [(str(name), str(value)) for name, value in used], after


_PAGE = {"table": "search", "row": KIND, "column": "page"}


def _told(
    teller: Teller, recorded: Recorded, wanted: set[str]
) -> list[tuple[Json, _After]]:
    """Return the events of an entry with their places; only those of `wanted`."""
    told = []
    for event in teller.events(recorded):
        place = (read_id(event["id"]) or (0, 0))[1]
        if not wanted or _names(event, wanted):
            after = _After(recorded.entry.at, recorded.sequence, place)
            told.append((event, after))
    return told


def _names(event: Json, patients: set[str]) -> bool:
    told = {one.get("what", {}).get("reference") for one in event.get("entity", ())}
    return any(f"Patient/{patient}" in told for patient in patients)


async def _are_programs(tx: "Transaction", named: Sequence[str]) -> bool:
    """Tell whether all of these are programs, and so agents of what others do too."""
    known = {str(client.client_id) for client in await clients.list_clients(tx)}
    return known.issuperset(named)


def _auditor(request: web.Request, interaction: Interaction) -> Identity:
    caller = identity(request)
    require(caller, KIND, interaction)
    require_scope(
        caller, KIND, "r" if interaction is Interaction.READ else "s", whole=True
    )
    return caller


def _within(sought: Sought, value: str) -> Sought:
    prefix = value[:2] if value[:2].isalpha() else "eq"
    low, high = date_range(value.removeprefix(prefix))
    since = {"eq": low, "ge": low, "gt": high, "sa": high}.get(prefix)
    until = {"eq": high, "le": high, "lt": low, "eb": low}.get(prefix)
    if since is None and until is None:
        raise _invalid("date", f"{_sane(prefix)} is not offered")
    if since is not None and sought.since is not None:
        since = max(since, sought.since)
    if until is not None and sought.until is not None:
        until = min(until, sought.until)
    return replace(sought, since=since or sought.since, until=until or sought.until)


def _about(sought: Sought, values: Sequence[str], base_url: str) -> Sought:
    """Return what is also about one of these patients; what is no id finds nothing."""
    if sought.patients:
        raise _invalid("patient", "is asked once")
    patients = []
    for value in values:
        with suppress(ValueError):
            told = value.removeprefix(f"{base_url}/").removeprefix("Patient/")
            patients.append(UUID(told))
    nothing = () if not patients else sought.sequences
    return replace(sought, patients=tuple(patients), sequences=nothing)


def _code(value: str, system: str) -> str:
    told, bar, code = value.rpartition("|")
    return code if not bar or told.endswith(f"/{system}") else ""


def _has_letter(action: str, value: str) -> bool:
    return act_of(action).letter == _code(value, "audit-event-action")


def _has_type(action: str, value: str) -> bool:
    system, bar, code = value.rpartition("|")
    act = act_of(action)
    own = (REST, RESTFUL) if act.interaction else (DCM, act.code)
    return code == own[1] and (not bar or system == own[0])


def _both(before: tuple[str, ...] | None, now: Sequence[str]) -> tuple[str, ...]:
    """Return what is asked twice: what both name."""
    return tuple(now if before is None else (one for one in now if one in before))


def _count(asked: Asked, default: int) -> int:
    count = default
    for name, value in asked:
        if name == "_count":
            if not value.isdecimal() or len(value) > 9:
                raise _invalid("_count", "is a number")
            count = min(int(value), MAX_COUNT)
    return count


def _invalid(name: str, what: str) -> NodeError:
    return NodeError(f"{name} {what}", ErrorKind.INVALID, expression=name)


def _sane(name: str) -> str:
    sane = len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum()
    return name if sane and name.isascii() else "a parameter"
