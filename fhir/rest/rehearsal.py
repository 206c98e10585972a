"""What a write would answer, found by carrying it out and undoing it ($validate).

The write is the write: permissions, references, versions, life cycle and worklist
are asked by the same code. Its transaction never ends well, so nothing of it is
stored, no job or notification leaves, and no entry of it joins the audit trail; that
somebody has asked is recorded as for every request.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import CIMultiDict

from fhir.encoding.outcome import ISSUE_CODE, Issue, Refused
from fhir.encoding.wire import Json
from fhir.rest.creation import Clerk
from fhir.rest.exchange import NOTES, Asked, Verb
from fhir.settings import FhirSettings
from node.domain.audit import note_patient, noting
from node.domain.errors import ErrorKind, NodeError
from node.store import resources

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# What says something of the resource; the rest says something of the node.
_TOLD = frozenset(ErrorKind) - {ErrorKind.INTEGRITY, ErrorKind.UNAVAILABLE}
_FOUND = Issue(
    "informational",
    "If-None-Exist finds one already: nothing would be stored",
    severity="information",
)
_NEWEST = Issue(
    "informational",
    "an update needs If-Match; the newest version was taken here",
    severity="information",
)


class _Undone(Exception):
    """Ends a transaction in which nothing went wrong."""


class Rehearsal:
    """Tries writes for who wants to know what they would be refused for."""

    def __init__(self, store: "Store", settings: FhirSettings) -> None:
        self._store = store
        self._settings = settings

    async def of(self, verb: Verb, asked: Asked, resource: Json) -> list[Issue]:
        """Return why a write of `resource` would be refused, and what it would note."""

        async def sent(_: str) -> Json:
            return resource

        said: list[Issue] = []
        answers: list[web.Response] = []
        headers = CIMultiDict(asked.headers)
        headers["Prefer"] = "return=minimal"  # nothing is to be shown

        async def carry_out(tx: "Transaction") -> None:
            if asked.resource_id and hdrs.IF_MATCH not in headers:
                headers[hdrs.IF_MATCH] = await self._read_by(tx, asked, resource, said)
            clerk = Clerk(tx, self._store, self._settings, asked.caller)
            part = replace(asked, headers=headers, resource=sent, clerk=clerk)
            answers.append(await verb(part))

        # Nothing was written, so nothing is noted but whose data were opened.
        with noting() as tried:
            refused = await self._refusal_of(carry_out)
        made = _made(answers)
        for patient_id in tried.patients:
            if str(patient_id) != made:  # she has never been
                note_patient(patient_id)
        if refused or not answers:
            return [*said, *refused]
        (response,) = answers
        if not asked.resource_id and response.status == HTTPStatus.OK:
            said.append(_FOUND)
        noted = response.get(NOTES, ())
        return [*said, *(Issue("informational", n, None, "warning") for n in noted)]

    async def _refusal_of(
        self, carry_out: Callable[["Transaction"], Awaitable[None]]
    ) -> Sequence[Issue]:
        try:
            await self._undone(carry_out)
        except Refused as error:
            return error.issues
        except resources.StaleVersion as error:
            return [Issue("conflict", error.message)]
        except NodeError as error:
            if error.kind not in _TOLD:
                raise
            return [Issue(ISSUE_CODE[error.kind], error.message, error.expression)]
        return []

    async def _undone(
        self, carry_out: Callable[["Transaction"], Awaitable[None]]
    ) -> None:
        try:
            async with self._store.db.transaction() as tx:
                await carry_out(tx)
                raise _Undone
        except _Undone:
            return

    async def _read_by(
        self, tx: "Transaction", asked: Asked, resource: Json, said: list[Issue]
    ) -> str:
        """Return the If-Match of who sends none: the version that the body tells."""
        told = str(resource.get("meta", {}).get("versionId", ""))
        if told.isdecimal() and len(told) <= 9:
            return f'W/"{told}"'
        newest = await resources.lock(tx, asked.kind, asked.resource_id)
        said.append(_NEWEST)
        return f'W/"{newest}"'


def _made(answers: Sequence[web.Response]) -> str | None:
    """Return the id that a new resource was given before it was undone."""
    made = [r for r in answers if r.status == HTTPStatus.CREATED]
    if not made:
        return None
    return made[0].headers[hdrs.LOCATION].split("/")[-3]
