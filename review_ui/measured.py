"""Answers what the ultrasound machine measured, beside what AI and doctor say."""

from typing import Any
from uuid import UUID

from aiohttp import web

from node.domain.access import Action
from node.domain.errors import ErrorKind, NodeError
from node.domain.measurement import MachineReport, Measurement, chinese_name
from node.http import STORE, RouteGroup, identity
from node.store import measurements, reports


def route_group() -> RouteGroup:
    """Return the route under /review that shows what machines measured."""
    return RouteGroup(
        prefix="/review",
        routes=[web.get("/review/measured/{report_id}", measured)],
    )


async def measured(request: web.Request) -> web.Response:
    """Answer the reports of the machines of the study behind a report, in order."""
    identity(request).require(Action.READ_REPORT)
    store = request.app[STORE]
    async with store.db.connection() as connection:
        report = await reports.read(connection, store, _report_id(request))
        told = await measurements.of_study(
            connection, store, report.patient_id, report.study_instance_uid
        )
    return web.json_response({"reports": [_shown(one) for one in told]})


def _report_id(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["report_id"])
    except ValueError:
        raise NodeError("there is no such report", ErrorKind.NOT_FOUND) from None


def _shown(report: MachineReport) -> dict[str, Any]:
    return {
        "title": report.title,
        "device": report.device,
        "algorithm": report.algorithm or None,
        "verified": report.verified,
        "left_out": report.left_out,
        "measurements": [_row(one) for one in report.measurements],
    }


def _row(one: Measurement) -> dict[str, Any]:
    """Return a row; the value stays the text that the machine sent, never a float."""
    return {
        "group": list(one.group),
        "site": one.site,
        "name": {"zh": chinese_name(one.name), "en": one.name.meaning},
        "value": one.value,
        "unit": one.unit,
        "term": one.term.meaning if one.term else None,
        "qualifier": one.qualifier,
        "derivation": one.derivation,
        "image": one.image,
        "frame": one.frame,
    }
