"""Several interactions in one Bundle: batch and transaction (FHIR R4 3.1.0.11).

A batch is as many requests as it has entries, each with its own answer. A
transaction happens as a whole: either a doctor edits one report
(`fhir.rest.transaction`), or another system brings patients, people and orders
that refer to each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from aiohttp import hdrs, web

from fhir.conformance.validation import check, read_resource
from fhir.content.editing import edit_report
from fhir.encoding.formats import prefers, read_body
from fhir.encoding.outcome import ISSUE_CODE, Issue, Refused, outcome, refusal
from fhir.encoding.patch import Patch, read_patch_of_entry
from fhir.encoding.wire import Json, as_list, instant, parse, to_bytes
from fhir.rest.creation import Clerk
from fhir.rest.entries import Entry, Links, in_order, read_entry, require_apart
from fhir.rest.exchange import (
    LAST_UPDATED,
    NOTES,
    PREFIX,
    Answers,
    Asked,
    Verb,
    answered,
)
from fhir.rest.reading import Reading
from fhir.rest.transaction import (
    MAX_ENTRIES,
    read_transaction,
    resolve_patches,
    to_response,
)
from fhir.rest.writing import Writing
from fhir.security.access import DEFINED, Interaction, require, require_scope
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.audit import note_interaction, note_part
from node.domain.errors import ErrorKind, NodeError
from node.http import HTTP_STATUS, identity
from node.store.resources import StaleVersion

if TYPE_CHECKING:
    from node.store.store import Store

log = structlog.get_logger("fhir")

# Searches, histories and $everything: one costs as much as many reads.
MAX_SEARCHES = 20
MAX_ANSWER_BYTES = 32 * 1024 * 1024
# A transaction holds what it has locked until its end.
LONGEST = timedelta(seconds=30)
_EDITED = frozenset({"DiagnosticReport", "Observation"})
_TOLD_WITH_IT = frozenset({"Provenance", "Communication"})
_OF_REPORTS = _EDITED | _TOLD_WITH_IT
_STORED_TOGETHER = frozenset({"Patient", "Practitioner", "ServiceRequest"})
# What others than `Reading` answer: papers, the audit trail, definitions.
_READ_ALONE = frozenset({"Binary", "AuditEvent", *DEFINED})
_OUTCOME = b'{"resourceType":"OperationOutcome"'
# What says something of an entry; the rest says something of the node.
_TOLD = frozenset(ErrorKind) - {ErrorKind.INTEGRITY, ErrorKind.UNAVAILABLE}


class Bundled:
    """Takes Bundles to the interactions that their entries ask for."""

    def __init__(
        self,
        store: "Store",
        settings: FhirSettings,
        reading: Reading,
        writing: Writing,
        everything: Verb,
    ) -> None:
        self._store = store
        self._settings = settings
        self._answers = Answers(store, settings)
        self._writing = writing
        self._verbs: Mapping[str, Verb] = {
            "GET type": reading.search,
            "GET type _history": reading.type_history,
            "GET one": reading.read,
            "GET one _history": reading.history,
            "GET one _history/version": reading.read_version,
            "GET one $everything": everything,
            "POST type": writing.create,
            "PUT type": writing.update_found,
            "PUT one": writing.update,
            "PATCH one": writing.patch,
            "PATCH type": writing.patch_found,
            "DELETE one": writing.delete,
        }

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the system-level interactions."""
        return [web.post(PREFIX, self.take), web.post(f"{PREFIX}/", self.take)]

    async def take(self, request: web.Request) -> web.Response:
        """Carry out a batch or a transaction."""
        caller, raw = identity(request), await read_body(request)
        bundle = parse(raw)
        items = as_list(bundle.get("entry"))
        # What entries bring is judged with them: in a batch one faulty resource
        # spoils no other, in a transaction links are put in before.
        bare = [_without_resource(item) for item in items]
        shape = {**bundle, "entry": bare} if "entry" in bundle else bundle
        read_resource(to_bytes(shape), "Bundle")
        if bundle["type"] not in ("batch", "transaction"):
            raise _unsupported("send a batch or a transaction", "Bundle.type")
        if not 0 < len(items) <= MAX_ENTRIES:
            raise _unsupported(f"1 to {MAX_ENTRIES} entries", "Bundle.entry")
        if bundle["type"] == "batch":
            note_interaction("batch")
            return await self._batch(request, caller, items)
        entries = [self._entry(request, i, item) for i, item in enumerate(items)]
        if any(e.kind in _OF_REPORTS and not e.looks for e in entries):
            for entry in entries:
                _require_of_edit(entry)
            whole = read_resource(raw, "Bundle")
            return await self._edit(request, caller, whole)
        return await self._store_together(caller, entries)

    # --- batch ----------------------------------------------------------------------

    async def _batch(
        self, request: web.Request, caller: Identity, items: list[Json]
    ) -> web.Response:
        """Carry out every entry on its own; a faulty one spoils no other."""
        answers: list[Json] = []
        allowance = _Allowance(self._store.clock)
        for index, item in enumerate(items):
            entry: Entry | None = None
            try:
                entry = self._entry(request, index, item)
                allowance.take(entry)
                response = await self._perform(caller, entry, None)
            except NodeError as error:
                response = refusal(error)
            except Exception:
                # What other entries have stored is told all the same.
                log.exception("batch_entry_failed", entry=index)
                issue = Issue("exception", "the node failed on this entry")
                response = refusal(Refused([issue], 500, ErrorKind.INTEGRITY))
            note_part("?" if entry is None else entry.kind, response.status)
            answers.append(self._answer(response, entry))
            allowance.spend(response)
        return _response("batch-response", answers)

    # --- transaction ----------------------------------------------------------------

    async def _edit(
        self, request: web.Request, caller: Identity, bundle: Json
    ) -> web.Response:
        """Carry out a transaction that edits one report."""
        wanted = prefers(request, "return")
        shown = wanted == "representation"
        async with self._store.db.transaction() as tx:

            async def seen(kind: str, resource_id: str, expected: int) -> Json:
                require(caller, kind, Interaction.PATCH)
                require(caller, kind, Interaction.READ)
                return await self._writing.seen(tx, caller, kind, resource_id, expected)

            edit, entries = read_transaction(await resolve_patches(bundle, seen))
            for entry in entries:
                written = entry.method == hdrs.METH_POST
                interaction = Interaction.CREATE if written else Interaction.UPDATE
                kind = str(entry.resource["resourceType"])
                require(caller, kind, interaction)
                if shown:
                    require_scope(caller, kind, "r", whole=True)
            done = await edit_report(tx, self._store, self._settings, caller, edit)
        show = self._answers.show(caller) if shown else None
        told = wanted == "OperationOutcome"
        return answered(
            to_response(entries, done, self._settings.base_url, show, told=told)
        )

    async def _store_together(
        self, caller: Identity, entries: Sequence[Entry]
    ) -> web.Response:
        """Store what another system sends, all or nothing; reads come last."""
        for entry in entries:
            _require_storable(entry)
        require_apart(entries)
        answers: dict[int, Json] = {}
        allowance = _Allowance(self._store.clock)
        async with self._store.db.transaction() as tx:
            clerk = Clerk(tx, self._store, self._settings, caller)
            links = Links(clerk, self._settings.base_url, entries)
            await clerk.reserve(links.conditions())
            for entry in [*in_order(entries), *(e for e in entries if e.looks)]:
                with _within(entry):
                    allowance.take(entry)
                    linked = await links.put_in(entry)
                    response = await self._perform(caller, linked, clerk)
                    if entry.names_new:
                        links.learn(entry, response)
                    answers[entry.index] = self._answer(response, entry)
                    allowance.spend(response)
            await clerk.record()
        return _response(
            "transaction-response", [answers[entry.index] for entry in entries]
        )

    # --- entries --------------------------------------------------------------------

    def _entry(self, request: web.Request, index: int, item: Json) -> Entry:
        entry = read_entry(item, index, self._settings.base_url)
        # What was written is shown only to who asks for it.
        entry.headers["Prefer"] = f"return={prefers(request, 'return') or 'minimal'}"
        if prefers(request, "handling") == "strict":
            entry.headers.add("Prefer", "handling=strict")
        return entry

    async def _perform(
        self, caller: Identity, entry: Entry, clerk: Clerk | None
    ) -> web.Response:
        """Answer one entry as a request of its own would be answered."""

        async def resource(kind: str) -> Json:
            if entry.resource is None:
                issue = Issue("required", f"a {kind} is needed", entry.where)
                raise Refused([issue], 400)
            return read_resource(to_bytes(entry.resource), kind)

        async def patch() -> Patch:
            if entry.resource is None:
                raise Refused(
                    [Issue("required", "a patch is needed", entry.where)], 400
                )
            check(entry.resource)
            return read_patch_of_entry(entry.resource, f"{entry.where}.resource")

        asked = Asked(
            caller=caller,
            method=entry.method,
            kind=entry.kind,
            resource_id=entry.resource_id,
            version=entry.version,
            query=entry.query,
            headers=entry.headers,
            resource=resource,
            patch=patch,
            clerk=clerk,
        )
        return await self._verb(entry)(asked)

    def _verb(self, entry: Entry) -> Verb:
        one = "one" if entry.resource_id else "type"
        versions = "/version" if entry.version else ""
        asked = f"{entry.method} {one} {entry.tail}{versions}".strip()
        verb = self._verbs.get(asked)
        if verb is None or entry.kind in _READ_ALONE:
            message = f"{entry.method} of this address is not offered in a Bundle"
            issue = Issue("not-supported", message, f"{entry.where}.request")
            raise Refused([issue], 405, ErrorKind.UNSUPPORTED)
        return verb

    def _answer(self, response: web.Response, entry: Entry | None) -> Json:
        """Return a response as an entry of the Bundle that answers."""
        told: Json = {"status": f"{response.status} {_phrase(response.status)}"}
        location = response.headers.get(hdrs.LOCATION)
        if location is not None:
            told["location"] = location
        if hdrs.ETAG in response.headers:
            told["etag"] = response.headers[hdrs.ETAG]
        if LAST_UPDATED in response:
            told["lastModified"] = instant(response[LAST_UPDATED])
        if response.get(NOTES):
            noted = [
                Issue("informational", n, None, "warning") for n in response[NOTES]
            ]
            told["outcome"] = outcome(noted)
        answer: Json = {"response": told}
        body = response.body
        if not isinstance(body, bytes) or not body:
            return answer
        if body.startswith(_OUTCOME):
            told["outcome"] = orjson.Fragment(body)
            return answer
        if location is not None:
            answer["fullUrl"] = location.partition("/_history/")[0]
        elif entry is not None and LAST_UPDATED in response:
            address = f"{entry.kind}/{entry.resource_id}"
            answer["fullUrl"] = f"{self._settings.base_url}/{address}"
        return {**answer, "resource": orjson.Fragment(body)}


def _without_resource(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {key: value for key, value in item.items() if key != "resource"}


class _Allowance:
    """What one Bundle may cost."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._until = clock() + LONGEST
        self._searches = 0
        self._bytes = 0

    def take(self, entry: Entry) -> None:
        """Count an entry that is about to be carried out; Refused beyond the limits."""
        self._searches += entry.searches
        if self._searches > MAX_SEARCHES:
            raise _too_costly(f"{MAX_SEARCHES} searches and histories at most", entry)
        if self._bytes > MAX_ANSWER_BYTES:
            raise _too_costly("the answer is long already: ask in parts", entry)
        if self._clock() > self._until:
            raise _too_costly("this takes long already: ask in parts", entry)

    def spend(self, response: web.Response) -> None:
        """Count what was answered."""
        if isinstance(response.body, bytes):
            self._bytes += len(response.body)


@contextmanager
def _within(entry: Entry) -> Iterator[None]:
    """Let what fails be told with the entry at which a transaction ended."""
    try:
        yield
    except Refused as error:
        issues = [replace(i, expression=_at(entry, i.expression)) for i in error.issues]
        raise Refused(issues, error.status, error.kind) from None
    except StaleVersion as error:
        issue = Issue("conflict", error.message, f"{entry.where}.request.ifMatch")
        raise Refused([issue], 412, error.kind) from None
    except NodeError as error:
        if error.kind not in _TOLD:
            raise
        at = _at(entry, error.expression)
        issue = Issue(ISSUE_CODE[error.kind], error.message, at)
        raise Refused([issue], int(HTTP_STATUS[error.kind]), error.kind) from None


def _at(entry: Entry, expression: str | None) -> str:
    """Return where in the Bundle something is that is wrong with an entry."""
    if expression is None:
        return entry.where
    if expression.startswith("Bundle."):
        return expression
    kind, _, element = expression.partition(".")
    if kind == entry.kind and element:
        return f"{entry.where}.resource.{element}"
    return f"{entry.where}.request"


def _require_of_edit(entry: Entry) -> None:
    changes = entry.method in ("PUT", "PATCH") and entry.kind in _EDITED
    if not changes and not (entry.method == "POST" and entry.kind in _TOLD_WITH_IT):
        raise _unsupported(
            "a transaction that edits a report has PUT or PATCH of it and of its"
            " Observations, POST of a Provenance or a Communication, and nothing else;"
            " reports are written here, not stored",
            f"{entry.where}.request",
        )


def _require_storable(entry: Entry) -> None:
    if not entry.looks and entry.kind not in _STORED_TOGETHER:
        raise _unsupported(
            f"a transaction stores {', '.join(sorted(_STORED_TOGETHER))}, or edits one"
            " report; send the rest by itself or in a batch",
            f"{entry.where}.request",
        )


def _unsupported(message: str, expression: str) -> Refused:
    return Refused([Issue("not-supported", message, expression)], 422, ErrorKind.RULE)


def _too_costly(message: str, entry: Entry) -> Refused:
    issue = Issue("too-costly", message, entry.where)
    return Refused([issue], 422, ErrorKind.RULE)


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase


def _response(kind: str, answers: Sequence[Json]) -> web.Response:
    return answered({"resourceType": "Bundle", "type": kind, "entry": list(answers)})
