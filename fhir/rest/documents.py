"""Reading a Binary: the signed report, PDF or page (FHIR R4 2.39; IHE RAD-144).

A PDF is kept once, as the DICOM object that the archive has too, and unwrapped for
whoever asks. As a Binary in JSON or XML a paper comes to those who name these forms, as
it is to everybody else. It carries the whole identity: reading it is printing it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.content.documents import content_type_of, read_binary_id, to_binary
from fhir.encoding.formats import negotiated, readable, shaped, wants_native
from fhir.encoding.outcome import CONTENT_TYPE, Refused, refusal
from fhir.encoding.wire import to_bytes
from fhir.rest.exchange import PREFIX, require_seen
from fhir.rest.freshness import matches
from fhir.security.access import Interaction, require
from node.domain.audit import note_shown
from node.domain.errors import ErrorKind, NodeError
from node.http import identity
from node.paper import HTML, find_paper
from node.store import reports, resources

if TYPE_CHECKING:
    from node.store.store import Store

_ETAG = 'W/"1"'  # another version of a report has a paper of its own
_PAGE_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


class Documents:
    """The handler of the papers; negotiates by itself, as no other resource does."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    def routes(self) -> list[web.RouteDef]:
        """Return the route of Binary."""
        return [web.get(f"{PREFIX}/Binary/{{id:[A-Za-z0-9.-]{{1,64}}}}", self.read)]

    async def read(self, request: web.Request) -> web.Response:
        """Answer a paper; GONE when its report was withdrawn."""
        kind = content_type_of(request.match_info["id"])
        try:
            native = wants_native(request, kind)
            how = None if native else negotiated(request)
        except Refused as error:
            return shaped(refusal(error), readable(request))
        caller = identity(request)
        require(caller, "Binary", Interaction.READ)
        report_id, number = read_binary_id(request.match_info["id"])
        store = self._store
        async with store.db.transaction(readonly=True) as tx:
            require_seen(
                caller,
                await resources.read(tx, store, "DiagnosticReport", str(report_id)),
            )
            report = await reports.read(tx, store, report_id)
            found = await find_paper(tx, store, report, number, kind)
            if found is None:
                raise NodeError("this version has no paper", ErrorKind.NOT_FOUND)
            headers = {
                hdrs.ETAG: _ETAG,
                hdrs.LAST_MODIFIED: found.made_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
                hdrs.VARY: hdrs.ACCEPT,
                "X-Security-Context": f"DiagnosticReport/{report_id}",
            }
            if matches(request.headers, _ETAG):
                return web.Response(status=304, headers=headers)
        note_shown("Binary", request.match_info["id"], 1, report.patient_id)
        content = await found.read()
        if how is None:
            return _as_it_is(kind, content, headers)
        binary = to_binary(report_id, number, found, content)
        return shaped(
            web.Response(
                body=to_bytes(binary), content_type=CONTENT_TYPE, headers=headers
            ),
            how,
        )


def _as_it_is(kind: str, content: bytes, headers: Mapping[str, str]) -> web.Response:
    """Return a paper for who shows it.

    A page comes from our own address, and people typed what it says: nothing runs in
    it, and nothing is loaded.
    """
    if kind == HTML:
        headers = {**headers, "Content-Security-Policy": _PAGE_POLICY}
    charset = "utf-8" if kind == HTML else None
    return web.Response(
        body=content, content_type=kind, charset=charset, headers=headers
    )
