"""Serves what the auditor's page asks beside AuditEvents: /review/audit.

Entries are read through /fhir/AuditEvent. A number of the hospital comes in a body,
never in an address, and goes no further than the blind index that finds it.
"""

from typing import Any, Final

from aiohttp import web

from node.domain.errors import ErrorKind, NodeError
from node.http import STORE, RouteGroup, identity, read_json_object
from node.store.audit_checks import Check
from node.workflow.auditing import (
    Chain,
    find_women,
    note_export,
    read_actors,
    read_chain,
    start_check,
)

PREFIX: Final = "/review/audit"
_FORMS = ("csv", "ndjson")


def route_group() -> RouteGroup:
    """Return the routes of the auditor's page."""
    return RouteGroup(
        prefix=PREFIX,
        routes=[
            web.get(f"{PREFIX}/actors", read_everybody),
            web.post(f"{PREFIX}/patients", find),
            web.post(f"{PREFIX}/exports", export),
            web.get(f"{PREFIX}/chain", read_state),
            web.post(f"{PREFIX}/chain", verify),
        ],
    )


async def read_everybody(request: web.Request) -> web.Response:
    """Answer whom the trail names, with their names."""
    found = await read_actors(request.app[STORE], identity(request))
    told = [{"id": one.id, "name": one.name, "kind": one.kind} for one in found]
    return web.json_response({"actors": told})


async def find(request: web.Request) -> web.Response:
    """Answer whom a Patient ID or an accession number names."""
    body = await read_json_object(request)
    number = body.get("number")
    if not isinstance(number, str) or not number.strip():
        raise NodeError("number is missing", ErrorKind.INVALID, expression="number")
    women = await find_women(request.app[STORE], identity(request), number)
    told = [
        {"patients": [str(one) for one in woman.patients], "name": woman.masked}
        for woman in women
    ]
    return web.json_response({"women": told})


async def export(request: web.Request) -> web.Response:
    """Note that what was read becomes a file at the auditor's."""
    body = await read_json_object(request)
    form = body.get("form")
    if form not in _FORMS:
        raise NodeError("form is csv or ndjson", ErrorKind.INVALID, expression="form")
    first, last, count = (_number(body, n) for n in ("first", "last", "events"))
    caller = identity(request)
    await note_export(request.app[STORE], caller, form, first, last, count)
    return web.Response(status=204)


def _number(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise NodeError(f"{name} is a number", ErrorKind.INVALID, expression=name)
    return value


async def read_state(request: web.Request) -> web.Response:
    """Answer how the chain stands."""
    return await _state(request)


async def verify(request: web.Request) -> web.Response:
    """Let the chain be verified, all of it or what is new; answer how it stands."""
    body = await read_json_object(request)
    whole = body.get("whole") is True
    await start_check(request.app[STORE], identity(request), whole=whole)
    return await _state(request)


async def _state(request: web.Request) -> web.Response:
    chain = await read_chain(request.app[STORE], identity(request))
    return web.json_response(_told(chain))


def _told(chain: Chain) -> dict[str, Any]:
    return {
        "entries": chain.entries,
        "running": _check(chain.running),
        "newest": _check(chain.newest),
    }


def _check(check: Check | None) -> dict[str, Any] | None:
    if check is None:
        return None
    return {
        "first": check.first,
        "last": check.last,
        "held": check.reached.sequence,
        "ended_at": check.ended_at.isoformat() if check.ended_at else None,
        "fault": check.fault,
    }
