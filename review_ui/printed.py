"""Serves the signed report as printed: with her name, so only to doctors, audited.

On the page a doctor sees masked identities; paper that goes to the patient needs the
whole one. Who prints is told by the audit trail.
"""

from uuid import UUID

from aiohttp import hdrs, web

from node import paper
from node.domain.access import Action
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report
from node.http import STORE, RouteGroup, identity
from node.store import audit, reports


def route_group() -> RouteGroup:
    """Return the route under /review that prints a signed report."""
    return RouteGroup(
        prefix="/review",
        routes=[web.get("/review/printed/{report_id}", hand_out)],
    )


async def hand_out(request: web.Request) -> web.Response:
    """Answer the PDF of the newest signed version of a report.

    NOT_FOUND while nobody has signed, or while the PDF is still being made; GONE when
    the report was withdrawn.
    """
    caller = identity(request)
    caller.require(Action.PRINT_REPORT)
    store = request.app[STORE]
    async with store.db.transaction() as tx:
        report = await reports.read(tx, store, _report_id(request))
        number = _signed_version(report)
        printed = await paper.find_paper(tx, store, report, number)
        if printed is None:
            raise NodeError("the report is not printed yet", ErrorKind.NOT_FOUND)
        await audit.record(
            tx,
            AuditEntry(
                at=store.clock(),
                actor=caller.user_id,
                role=",".join(sorted(role.value for role in caller.roles)),
                action="print report",
                entity=f"report/{report.id}/{number}",
            ),
        )
    name = f"report-{report.id}-{number}.pdf"
    return web.Response(
        body=await printed.read(),
        content_type=printed.content_type,
        headers={hdrs.CONTENT_DISPOSITION: f'inline; filename="{name}"'},
    )


def _report_id(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["report_id"])
    except ValueError:
        raise NodeError("there is no such report", ErrorKind.NOT_FOUND) from None


def _signed_version(report: Report) -> int:
    signed = report.last_signed()
    if signed is None:
        raise NodeError("only signed reports are printed", ErrorKind.NOT_FOUND)
    return signed.number
