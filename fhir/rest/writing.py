"""Writing: create, update, patch, and what cannot be deleted (FHIR R4 3.1.0.4-8)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.capability import CONDITIONALLY_UPDATED
from fhir.conformance.validation import check, read_resource
from fhir.content.editing import Change, Edit, edit_report, reason_of
from fhir.content.tasks import failed_task, retry_task
from fhir.encoding.formats import (
    JSON_PATCH,
    PATCH_TYPES,
    check_content_type,
    prefers,
    read_body,
)
from fhir.encoding.outcome import STORED, Issue, Refused, outcome
from fhir.encoding.patch import Patch, read_fhirpath_patch, read_json_patch
from fhir.encoding.wire import Json, parse
from fhir.rest.creation import Clerk, Condition
from fhir.rest.exchange import (
    ONE,
    TYPE,
    Answers,
    Asked,
    answered,
    not_offered,
    over_http,
)
from fhir.rest.transaction import version_of_etag
from fhir.search.parameters import CONTROL
from fhir.security.access import PERMITS, Interaction, require
from fhir.settings import FhirSettings
from node.domain.access import Identity
from node.domain.errors import ErrorKind, NodeError
from node.store import resources
from node.store.resources import StaleVersion

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_EDITED = frozenset({"DiagnosticReport", "Observation"})
_KEPT: Mapping[str, str] = {
    "DiagnosticReport": "a report is withdrawn with the status entered-in-error",
    "Observation": "it is withdrawn with its report",
    "ServiceRequest": "an order ends with the status revoked or entered-in-error",
    "Subscription": "a subscription ends with the status off",
    "Patient": "a patient is erased by those who run the node, never over FHIR",
}


def why_kept(kind: str) -> str:
    """Return what is done instead of deleting a resource of a type."""
    instead = _KEPT.get(kind, "what others may have read is kept")
    return f"nothing is deleted: {instead}"


class Writing:
    """All that changes something."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings
        self._answers = Answers(store, settings)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the writing interactions."""
        return [
            web.post(TYPE, over_http(self.create)),
            web.put(TYPE, over_http(self.update_found)),
            web.put(ONE, over_http(self.update)),
            web.patch(ONE, over_http(self.patch, read_patch=_read_patch)),
            web.patch(TYPE, over_http(self.patch_found, read_patch=_read_patch)),
            web.delete(ONE, over_http(self.delete)),
        ]

    async def create(self, asked: Asked) -> web.Response:
        """Store a new resource; 200 with the old one when If-None-Exist finds it."""
        asked.allowed(Interaction.CREATE)
        caller, kind = asked.caller, asked.kind
        condition: Condition | None = asked.headers.get("If-None-Exist")
        if condition is None:
            # Where some clients put it; left unheeded it would make a second one.
            named = [pair for pair in asked.query if pair[0] not in CONTROL]
            condition = named or None
        resource = await asked.resource(kind)
        if kind == "Provenance":
            raise NodeError(
                "a Provenance is sent in the transaction whose reason it gives",
                ErrorKind.RULE,
            )
        if kind == "Communication":
            async with self._transaction(asked) as tx:
                edit = Edit(communication=resource)
                done = await edit_report(tx, self._store, self._settings, caller, edit)
            if done.communication is None:
                raise NodeError("nothing was written", ErrorKind.INTEGRITY)
            return self._answers.written(asked, done.communication, 201)
        async with self._clerk(asked) as clerk:
            if condition is not None:
                known = await clerk.find_existing(kind, condition, "If-None-Exist")
                if known is not None:
                    return self._answers.written(asked, known, 200)
            stored = await clerk.create(resource)
            notes = clerk.noted()
        return self._answers.written(asked, stored, 201, notes)

    async def update(self, asked: Asked) -> web.Response:
        """Store the next version of a resource; needs If-Match (428, 412)."""
        asked.allowed(Interaction.UPDATE)
        resource = await asked.resource(asked.kind)
        if resource.get("id") != asked.resource_id:
            issue = Issue("invalid", "id and address differ", f"{asked.kind}.id")
            raise Refused([issue], 400)
        if asked.kind == "Task":
            return await self._retry(asked, resource)
        expected = version_of_etag(asked.headers.get(hdrs.IF_MATCH))
        try:
            return await self._replaced(asked, resource, expected)
        except NodeError as error:
            if error.kind is ErrorKind.NOT_FOUND and not await self._is_here(asked):
                told = "there is none of this id, and ids are chosen here: POST it"
                raise not_offered(told, asked.kind, one=True) from None
            raise

    async def _is_here(self, asked: Asked) -> bool:
        if asked.tx is not None:
            there = await resources.lock(asked.tx, asked.kind, asked.resource_id)
        else:
            async with self._store.db.transaction() as tx:
                there = await resources.lock(tx, asked.kind, asked.resource_id)
        return there > 0

    async def update_found(self, asked: Asked) -> web.Response:
        """Update what a search finds, or create it (conditional update, 3.1.0.4.3).

        Who names a resource by its own identifier has not read it and knows no
        version: If-Match is taken, but not needed.
        """
        kind = asked.kind
        if kind in PERMITS and kind not in CONDITIONALLY_UPDATED:
            raise not_offered(f"a {kind} is updated by its id", kind, one=False)
        asked.allowed(Interaction.UPDATE)
        resource = await asked.resource(kind)
        expected = _expected(asked)
        async with self._clerk(asked) as clerk:
            known = await clerk.find_existing(kind, asked.query, "a conditional update")
            if known is None:
                asked.allowed(Interaction.CREATE)
                if "id" in resource:
                    issue = Issue("invalid", "ids are chosen here", f"{kind}.id")
                    raise Refused([issue], 422, ErrorKind.RULE)
                if expected is not None:
                    raise StaleVersion(kind, "", 0)
                stored, status = await clerk.create(resource), 201
            else:
                if resource.setdefault("id", known.resource_id) != known.resource_id:
                    issue = Issue("invalid", "another id is found", f"{kind}.id")
                    raise Refused([issue], 400)
                version = known.version if expected is None else expected
                stored, status = await clerk.update(resource, version), 200
            notes = clerk.noted()
        return self._answers.written(asked, stored, status, notes)

    async def patch(self, asked: Asked) -> web.Response:
        """Store what a patch makes of a resource; the rest is as for a PUT of that."""
        asked.allowed(Interaction.PATCH)
        require(asked.caller, asked.kind, Interaction.READ)  # it can try what is there
        patched = await asked.patch()
        if asked.kind == "Task":
            async with self._store.db.connection() as tx:
                task = await failed_task(tx, self._store, asked.resource_id)
            return await self._retry(asked, _valid(patched(task)))
        expected = version_of_etag(asked.headers.get(hdrs.IF_MATCH))

        async def wanted(tx: "Transaction") -> Json:
            seen = await self.seen(
                tx, asked.caller, asked.kind, asked.resource_id, expected
            )
            return _valid(patched(seen))

        return await self._replaced(asked, wanted, expected)

    async def patch_found(self, asked: Asked) -> web.Response:
        """Patch what a search finds (conditional patch, 3.1.0.6); If-Match if known."""
        kind = asked.kind
        if kind in PERMITS and kind not in CONDITIONALLY_UPDATED:
            raise not_offered(f"a {kind} is patched by its id", kind, one=False)
        asked.allowed(Interaction.PATCH)
        require(asked.caller, kind, Interaction.READ)
        patched, expected = await asked.patch(), _expected(asked)
        async with self._clerk(asked) as clerk:
            known = await clerk.find_existing(kind, asked.query, "a conditional patch")
            if known is None:
                issue = Issue("not-found", "a conditional patch finds nothing")
                raise Refused([issue], 404, ErrorKind.NOT_FOUND)
            version = known.version if expected is None else expected
            seen = await self.seen(
                clerk.tx, asked.caller, kind, known.resource_id, version
            )
            stored = await clerk.update(_valid(patched(seen)), version)
            notes = clerk.noted()
        return self._answers.written(asked, stored, 200, notes)

    async def delete(self, asked: Asked) -> web.Response:
        """Refuse (405), and say what is done instead: what was told stays told."""
        require(asked.caller, asked.kind, Interaction.READ)
        raise not_offered(why_kept(asked.kind), asked.kind, one=True)

    async def seen(
        self,
        tx: "Transaction",
        caller: Identity,
        kind: str,
        resource_id: str,
        expected: int,
    ) -> Json:
        """Return the version that a patch is for, as its sender sees it.

        A patch of what is masked would tell by its success what is behind.
        """
        stored = await resources.read(tx, self._store, kind, resource_id)
        seen = parse(self._answers.show(caller)(stored))
        if stored.version != expected:
            raise StaleVersion(kind, resource_id, stored.version)
        return seen

    async def _replaced(
        self,
        asked: Asked,
        wanted: "Json | Callable[[Transaction], Awaitable[Json]]",
        expected: int,
    ) -> web.Response:
        """Store the next version of a resource: the one way for PUT and PATCH."""
        notes: Sequence[str] = ()
        if asked.kind in _EDITED:
            async with self._transaction(asked) as tx:
                resource = wanted if isinstance(wanted, dict) else await wanted(tx)
                edit = _edit_of(asked, Change(resource, expected))
                done = await edit_report(
                    tx, self._store, self._settings, asked.caller, edit
                )
            stored = done.resources[asked.kind, asked.resource_id]
            return self._answers.written(asked, stored, 200)
        async with self._clerk(asked) as clerk:
            resource = wanted if isinstance(wanted, dict) else await wanted(clerk.tx)
            stored = await clerk.update(resource, expected)
            notes = clerk.noted()
        return self._answers.written(asked, stored, 200, notes)

    @asynccontextmanager
    async def _clerk(self, asked: Asked) -> AsyncIterator[Clerk]:
        """Yield who takes it in, for the transaction that this is a part of."""
        if asked.clerk is not None:
            yield asked.clerk
            return
        async with self._store.db.transaction() as tx:
            clerk = Clerk(tx, self._store, self._settings, asked.caller)
            yield clerk
            await clerk.record()

    @asynccontextmanager
    async def _transaction(self, asked: Asked) -> AsyncIterator["Transaction"]:
        """Yield the transaction that this is a part of, or one of its own."""
        if asked.tx is not None:
            yield asked.tx
            return
        async with self._store.db.transaction() as tx:
            yield tx

    async def _retry(self, asked: Asked, task: Json) -> web.Response:
        async with self._transaction(asked) as tx:
            done = await retry_task(tx, self._store, asked.caller, task["id"], task)
        wanted = prefers(asked, "return")
        if wanted == "OperationOutcome":
            return answered(outcome([STORED]))
        return web.Response() if wanted == "minimal" else answered(done)


async def _read_patch(request: web.Request) -> Patch:
    check_content_type(request, PATCH_TYPES)
    if request.content_type == JSON_PATCH:
        return read_json_patch(await request.read())
    return read_fhirpath_patch(read_resource(await read_body(request), "Parameters"))


def _expected(asked: Asked) -> int | None:
    """Return the version in an If-Match that need not be sent."""
    condition = asked.headers.get(hdrs.IF_MATCH)
    return version_of_etag(condition) if condition else None


def _valid(resource: Json) -> Json:
    check(resource)
    return resource


def _edit_of(asked: Asked, change: Change) -> Edit:
    header = asked.headers.get("X-Provenance")
    reason = reason_of(parse(header.encode())) if header else None
    if asked.kind == "DiagnosticReport":
        return Edit(report=change, reason=reason)
    return Edit(observations=(change,), reason=reason)
