"""Serves the page on which studies are compared with orders: /review/reconciliation.

Whoever may reconcile sees names and numbers in full, as nobody can compare what is
masked; every look is audited. An act carries its reason and what was seen (`seen`).
"""

from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from node.domain.access import Action
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.http import STORE, RouteGroup, identity, read_json_object
from node.workflow.moving import find_patients, move_study, seen_patient
from node.workflow.reconciliation import (
    Candidate,
    Comparison,
    LikePatients,
    UnmatchedStudy,
    compare,
    find_studies,
    link_order,
    read_unreconciled,
    settle_study,
    unlink_order,
)
from review_ui import merging
from review_ui.merging import patient_words

PREFIX: Final = "/review/reconciliation"
_STUDY: Final = PREFIX + "/studies/{uid}"


def route_group() -> RouteGroup:
    """Return the routes of the reconciliation page."""
    return RouteGroup(
        prefix=PREFIX,
        routes=[
            web.get(PREFIX, read_list),
            web.get(_STUDY, read_study),
            web.post(f"{_STUDY}/link", link),
            web.post(f"{_STUDY}/unlink", unlink),
            web.post(f"{_STUDY}/settle", settle),
            web.post(f"{_STUDY}/move", move),
            web.get(f"{PREFIX}/patients", read_patients),
            *merging.routes(PREFIX),
        ],
    )


async def read_list(request: web.Request) -> web.Response:
    """Answer a page of what does not fit; `after` is the `more` of the page before.

    With `find`, an accession number or a Study Instance UID, answer those studies.
    """
    if "find" in request.query:
        lines = await find_studies(
            request.app[STORE], identity(request), request.query["find"]
        )
        return web.json_response({"studies": [_line(one) for one in lines]})
    found = await read_unreconciled(
        request.app[STORE], identity(request), after=request.query.get("after", "")
    )
    return web.json_response(
        {
            "orders_known": found.orders_known,
            "studies": [_line(one) for one in found.studies],
            "more": found.more,
            "patients": [_pair(one) for one in found.patients],
        }
    )


async def read_study(request: web.Request) -> web.Response:
    """Answer a study beside its orders."""
    return web.json_response(await _shown(request))


async def link(request: web.Request) -> web.Response:
    """Say that the study answers an order; answers both sides as they are then."""
    return await _of_order(request, link_order)


async def unlink(request: web.Request) -> web.Response:
    """Say that the study does not answer an order."""
    return await _of_order(request, unlink_order)


async def _of_order(
    request: web.Request, act: Callable[..., Awaitable[None]]
) -> web.Response:
    told = await _told(request)
    await act(
        request.app[STORE],
        request.match_info["uid"],
        _id(told, "order_id"),
        identity=identity(request),
        reason=_text(told, "reason"),
        seen=_text(told, "seen"),
    )
    return web.json_response(await _shown(request))


async def settle(request: web.Request) -> web.Response:
    """Say that no order was placed for the study; `expected` takes it back."""
    told = await _told(request)
    await settle_study(
        request.app[STORE],
        request.match_info["uid"],
        identity=identity(request),
        reason=_text(told, "reason"),
        seen=_text(told, "seen"),
        expected=told.get("expected") is True,
    )
    return web.json_response(await _shown(request))


async def read_patients(request: web.Request) -> web.Response:
    """Answer the patients with the Patient ID `number`, of whichever issuer."""
    found = await find_patients(
        request.app[STORE], identity(request), request.query.get("number", "")
    )
    return web.json_response({"patients": [_target(*one) for one in found]})


async def move(request: web.Request) -> web.Response:
    """File the study anew under another patient; answers which study it is then."""
    told = await _told(request)
    order_id = None if told.get("order_id") is None else _id(told, "order_id")
    done = await move_study(
        request.app[STORE],
        request.match_info["uid"],
        _id(told, "patient"),
        identity=identity(request),
        reason=_text(told, "reason"),
        seen=_text(told, "seen"),
        seen_target=_text(told, "seen_target"),
        order_id=order_id,
    )
    return web.json_response({"filed_as": done.filed_as})


async def _shown(request: web.Request) -> dict[str, Any]:
    caller, store = identity(request), request.app[STORE]
    caller.require(Action.RECONCILE)
    async with store.db.transaction() as tx:
        shown = await compare(store, tx, request.match_info["uid"])
    return _comparison(shown)


async def _told(request: web.Request) -> dict[str, Any]:
    # Before the body is read: who may not learns nothing from its faults.
    identity(request).require(Action.RECONCILE)
    return await read_json_object(request)


def _text(told: dict[str, Any], name: str) -> str:
    value = told.get(name, "")
    if not isinstance(value, str):
        raise NodeError(f"{name} is no text", ErrorKind.INVALID, expression=name)
    return value


def _id(told: dict[str, Any], name: str) -> UUID:
    try:
        return UUID(_text(told, name))
    except ValueError:
        raise NodeError(
            f"{name} is no id of ours", ErrorKind.INVALID, expression=name
        ) from None


def _line(one: UnmatchedStudy) -> dict[str, Any]:
    return {
        "study_instance_uid": one.study_instance_uid,
        "study_date": _day(one.study_date),
        "opened_at": one.opened_at.isoformat(),
        "why": None if one.why is None else one.why.value,
        "unknown_to_ehr": one.unknown_to_ehr,
        "accession_number": one.accession_number,
        "patient": patient_words(one.patient),
    }


def _pair(one: LikePatients) -> dict[str, Any]:
    return {
        "ids": [str(one.one), str(one.other)],
        "shared": list(one.shared),
        "differs": list(one.differs),
        "patients": [patient_words(identity) for identity in one.identities],
    }


def _comparison(shown: Comparison) -> dict[str, Any]:
    study = shown.study
    return {
        "seen": shown.seen,
        "study": {
            "study_instance_uid": study.study_instance_uid,
            "study_date": _day(study.study_date),
            "description": shown.description,
            "accession_number": shown.accession_number,
            "report_status": shown.report_status,
            "patient": patient_words(shown.patient),
        },
        "why": None if shown.why is None else shown.why.value,
        "settled": shown.settled,
        "filed_as": shown.filed_as,
        "orders": [_candidate(one) for one in shown.candidates],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    order, step = one.listed.order, one.listed.order.step
    return {
        "order_id": str(order.order_id),
        "status": order.status.value,
        "accession_number": step.accession_number,
        "placer_order_number": step.placer_order_number,
        "scheduled_on": _day(step.scheduled_on),
        "procedure": step.requested_procedure_description,
        "patient": patient_words(one.listed.identity),
        "target": _target(order.patient_id, one.listed.identity),
        "named_by": None if one.named_by is None else one.named_by.value,
        "linked": one.linked,
        "verdict": None if one.verdict is None else one.verdict.value,
        "differs": list(one.differs),
        "refused": one.refused,
    }


def _target(patient_id: UUID, told: PatientIdentity) -> dict[str, Any]:
    """Return whom a study can be filed under, as an act has to name her."""
    return {
        "id": str(patient_id),
        "seen": seen_patient(patient_id, told),
        "patient": patient_words(told),
    }


def _day(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
