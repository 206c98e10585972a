"""All that the node knows of one patient (FHIR R4 Patient/$everything)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlencode
from uuid import UUID

from aiohttp import hdrs, web

from fhir.conformance.validation import read_resource
from fhir.encoding.formats import read_body
from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused, outcome
from fhir.encoding.wire import Json, as_list, date_range, to_bytes
from fhir.rest.exchange import (
    PREFIX,
    Answers,
    Asked,
    Parameters,
    over_http,
    require_seen,
)
from fhir.search.bundles import MAX_COUNT, entry_of, with_entries
from fhir.search.cursors import sealed, unsealed
from fhir.security.access import PERMITS, Interaction, may_read
from fhir.security.scoping import sees
from fhir.settings import FhirSettings
from node.domain.errors import ErrorKind, NodeError
from node.store import merges, resources
from node.store.database import limited
from node.store.resources import NEVER
from node.store.search import related
from node.store.search.related import Belonging

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.opened import OpenedBodies
    from node.store.store import Store

_PARAMETERS = frozenset(
    {"start", "end", "_since", "_type", "_count", "_page", "_format", "_pretty"}
)
_ENDLESS = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class _Page:
    """What is asked for of a patient, and after which resource the page begins."""

    wanted: Belonging
    types: tuple[str, ...]
    count: int
    after: tuple[str, str] | None = None
    ignored: tuple[str, ...] = ()


class Everything:
    """The handler of `$everything`."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings
        self._answers = Answers(store, settings)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the operation."""
        path = f"{PREFIX}/{{type:Patient}}/{{id}}/$everything"
        return [
            web.get(path, over_http(self.everything)),
            web.post(path, over_http(self.everything, read_form=_parameters)),
        ]

    async def everything(self, asked: Asked) -> web.Response:
        """Answer the patient and what belongs to her, with what that refers to.

        In pages, of the types that the caller may read and as she may see them.
        """
        if asked.kind != "Patient":
            told = "$everything is offered for a Patient"
            raise NodeError(told, ErrorKind.NOT_FOUND)
        asked.allowed(Interaction.READ)
        page = self._read_page(asked)
        if asked.tx is not None:
            async with limited(asked.tx):
                body = await self._answer(asked.tx, asked, page, None)
        else:
            async with self._store.db.reading() as tx:
                body = await self._answer(tx, asked, page, self._store.opened)
        return web.Response(body=body, content_type=CONTENT_TYPE)

    def _read_page(self, asked: Asked) -> _Page:
        cursor = asked.asked_for("_page")
        if cursor is not None:
            since, start, end, types, count, kind, resource_id = unsealed(
                self._store, _about(asked), cursor
            )
            times = (datetime.fromisoformat(one) for one in (since, start, end))
            after = (kind, resource_id)
            return _Page(Belonging(*times), self._types(asked, types), count, after)
        unknown = [name for name, _ in asked.query if name not in _PARAMETERS]
        if unknown and asked.strict:
            told = f"$everything takes {', '.join(sorted(_PARAMETERS))}"
            raise Refused([Issue("not-supported", told)], 400)
        wanted = Belonging(
            _moment(asked, "_since", NEVER, 0),
            _moment(asked, "start", NEVER, 0),
            _moment(asked, "end", _ENDLESS, 1),
        )
        told_types = [v for name, v in asked.query if name == "_type"]
        types = [kind for told in told_types for kind in told.split(",")]
        count = asked.number("_count", self._settings.page_size, 1, MAX_COUNT)
        return _Page(
            wanted, self._types(asked, types), count, ignored=tuple(set(unknown))
        )

    def _types(self, asked: Asked, told: list[str]) -> tuple[str, ...]:
        """Return the types that were asked for and that the caller may read."""
        unknown = set(told) - set(PERMITS)
        if unknown:
            issue = Issue("value", "_type names a type that is not here", "_type")
            raise Refused([issue], 400)
        kinds = told or sorted(PERMITS)
        return tuple(kind for kind in kinds if may_read(asked.caller, kind))

    async def _answer(
        self,
        tx: "Transaction",
        asked: Asked,
        page: _Page,
        bodies: "OpenedBodies | None",
    ) -> bytes:
        patient = await resources.read(tx, self._store, "Patient", asked.resource_id)
        require_seen(asked.caller, patient)
        matches, following = await related.of_patient(
            tx,
            self._store,
            sorted(await merges.rows_of(tx, UUID(patient.resource_id))),
            page.wanted,
            types=page.types,
            after=page.after,
            count=page.count,
            bodies=bodies,
        )
        matches = [one for one in matches if sees(asked.caller, one)]
        others = await related.shared(
            tx, self._store, matches, types=page.types, bodies=bodies
        )
        base_url, show = self._settings.base_url, self._answers.show(asked.caller)
        entries = [entry_of(base_url, show, one, b"match") for one in matches]
        entries += [
            entry_of(base_url, show, one, b"include")
            for one in others
            if sees(asked.caller, one)
        ]
        if page.ignored:
            told = "ignored: $everything does not take all that was asked"
            issue = Issue("not-supported", told, severity="warning")
            warning = {"resource": outcome([issue]), "search": {"mode": "outcome"}}
            entries.append(to_bytes(warning))
        address = f"{base_url}/Patient/{patient.resource_id}/$everything"
        used = [(name, value) for name, value in asked.query if name in _PARAMETERS]
        here = f"{address}?{urlencode(used)}" if used else address
        links = [{"relation": "self", "url": here}]
        if following is not None:
            told_times = (page.wanted.since, page.wanted.start, page.wanted.end)
            times = [t.isoformat() for t in told_times]
            place = [*times, list(page.types), page.count, *following]
            cursor = sealed(self._store, _about(asked), place)
            links.append({"relation": "next", "url": f"{address}?_page={cursor}"})
        bundle: Json = {"resourceType": "Bundle", "type": "searchset", "link": links}
        return with_entries(bundle, entries)


async def _parameters(request: web.Request) -> Parameters:
    """Return what a Parameters resource asks, as a query would."""
    if not await request.read() and hdrs.CONTENT_TYPE not in request.headers:
        return []
    told = read_resource(await read_body(request), "Parameters")
    pairs = []
    for item in as_list(told.get("parameter")):
        values = [value for key, value in item.items() if key.startswith("value")]
        pairs += [(str(item["name"]), str(value)) for value in values]
    return pairs


def _about(asked: Asked) -> str:
    return f"Patient/{asked.resource_id}/$everything"


def _moment(asked: Asked, name: str, default: datetime, end: int) -> datetime:
    told = asked.asked_for(name)
    if told is None:
        return default
    try:
        return date_range(told)[end]
    except NodeError as error:
        raise Refused([Issue("value", error.message, name)], 400) from None
