"""Orders as JSON over HTTP, for sites whose information system speaks no FHIR.

    POST /orders                 place an order, or change it: accession number and step
                                 name it, so that the same request twice is one order
    GET  /orders?date=&status=   what is scheduled
    GET  /orders/{id}            one order
    POST /orders/{id}/cancel     off the worklist

Names are those of the DICOM attributes. Who may place orders may read them: they name
patients in full.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, Final
from uuid import UUID

from aiohttp import hdrs, web

from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import (
    OPEN,
    Code,
    Order,
    OrderSource,
    OrderStatus,
    Step,
    check_identity,
)
from node.domain.study import PatientIdentity
from node.http import STORE, RouteGroup, identity, read_json_object
from node.store import audit, orders
from node.store.orders import ListedOrder, OrderQuery
from node.store.store import Store
from node.workflow.orders import (
    By,
    Placed,
    Placement,
    cancel_order,
    patient_of_order,
    place_order,
)

PREFIX: Final = "/orders"
MOST: Final = 500
_ID: Final = "{order_id:[0-9a-f-]{36}}"
_PATIENT: Final = ("patient_id", "issuer", "name", "birth_date", "sex")
_CODE: Final = ("value", "scheme", "meaning")
# Fields of the step as they are called outside, where that differs.
_TOLD_AS: Final = {
    "step_id": "scheduled_procedure_step_id",
    "step_description": "scheduled_procedure_step_description",
    "step_location": "scheduled_procedure_step_location",
    "station_titles": "scheduled_station_ae_titles",
    "performing_physician": "scheduled_performing_physician",
    "reason": "reason_for_requested_procedure",
    "priority": "requested_procedure_priority",
}
_BUILT: Final = frozenset(
    {
        "scheduled_on",
        "scheduled_time",
        "requested_procedure_code",
        "station_titles",
    }
)
_TEXTS: Final = tuple(f.name for f in fields(Step) if f.name not in _BUILT)
_KNOWN: Final = frozenset(
    {_TOLD_AS.get(name, name) for name in _TEXTS}
    | {"patient", "scheduled_start", "requested_procedure_code"}
    | {"scheduled_station_ae_titles"}
)
_START: Final = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d.*)?")


def route_group(offset: timedelta) -> RouteGroup:
    """Return the routes below /orders; `offset` is the site's from UTC."""
    routes = _Orders(timezone(offset))
    return RouteGroup(
        prefix=PREFIX,
        routes=[
            web.post(PREFIX, routes.place),
            web.get(PREFIX, routes.list),
            web.get(f"{PREFIX}/{_ID}", routes.read),
            web.post(f"{PREFIX}/{_ID}/cancel", routes.cancel),
        ],
    )


class _Orders:
    """The handlers."""

    def __init__(self, site: timezone) -> None:
        self._site = site

    async def place(self, request: web.Request) -> web.Response:
        """Place an order: 201 when it is new, 200 when it was known or changed."""
        caller, store = _allowed(request), request.app[STORE]
        body = await read_json_object(request)
        shown, placed = await place_json(store, body, self._site, by=_by(caller))
        return web.json_response(
            shown,
            status=201 if placed is Placed.NEW else 200,
            headers={hdrs.LOCATION: f"{PREFIX}/{shown['id']}"},
        )

    async def list(self, request: web.Request) -> web.Response:
        """Answer the orders of `date` (default: today on), open ones unless asked."""
        caller, store = _allowed(request), request.app[STORE]
        query = self._query(request, store.clock())
        async with store.db.transaction() as tx:
            found = await orders.search(tx, store, query, limit=MOST + 1)
            await audit.record(tx, _entry(store.clock(), caller, "orders"))
        number = query.accession_number
        rows = [
            _shown(one)
            for one in found[:MOST]
            if number in ("", one.order.step.accession_number)
        ]
        return web.json_response({"orders": rows, "more": len(found) > MOST})

    async def read(self, request: web.Request) -> web.Response:
        """Answer one order."""
        caller, store = _allowed(request), request.app[STORE]
        order_id = UUID(request.match_info["order_id"])
        async with store.db.transaction() as tx:
            listed = await orders.find(tx, store, order_id)
            entity = f"order/{order_id}"
            await audit.record(tx, _entry(store.clock(), caller, entity))
        return web.json_response(_shown(listed))

    async def cancel(self, request: web.Request) -> web.Response:
        """Take an order off the worklist; again without harm."""
        caller, store = _allowed(request), request.app[STORE]
        order_id = UUID(request.match_info["order_id"])
        return web.json_response(await cancel_json(store, order_id, by=_by(caller)))

    def _query(self, request: web.Request, now: datetime) -> OrderQuery:
        asked = dict(request.query)
        unknown = sorted(asked.keys() - {"date", "status", "accession_number"})
        if unknown:
            raise _fault("query", "takes date, status and accession_number")
        statuses, number = OPEN, asked.get("accession_number", "").strip()
        if number:
            statuses = frozenset(OrderStatus)
        if "status" in asked:
            statuses = frozenset({_one_of(OrderStatus, asked["status"], "status")})
        first = last = None
        if "date" in asked:
            first = last = _date(asked["date"], "date")
        elif not number:
            first = now.astimezone(self._site).date()
        return OrderQuery(
            statuses=statuses, first_day=first, last_day=last, accession_number=number
        )


async def place_json(
    store: Store, body: Mapping[str, Any], site: timezone, *, by: By
) -> tuple[dict[str, Any], Placed]:
    """Place an order or its change; return it as it is shown, and what became of it."""
    patient, step, key = read_order(body, site)
    async with store.db.transaction() as tx:
        patient_id = await patient_of_order(store, tx, patient)
        placement = Placement(key, patient_id, OrderSource.REST, step)
        try:
            order, placed = await place_order(store, tx, placement, by=by)
        except NodeError as error:
            raise _outside(error) from None
        return _shown(await orders.find(tx, store, order.order_id)), placed


async def cancel_json(store: Store, order_id: UUID, *, by: By) -> dict[str, Any]:
    """Take an order that was placed here off the worklist; return it."""
    async with store.db.transaction() as tx:
        _require_own(await orders.find(tx, store, order_id))
        await cancel_order(store, tx, order_id, by=by)
        return _shown(await orders.find(tx, store, order_id))


def _allowed(request: web.Request) -> Identity:
    caller = identity(request)
    caller.require(Action.WRITE_ORDER)
    return caller


def _by(caller: Identity) -> By:
    return By(caller.user_id, ",".join(sorted(role.value for role in caller.roles)))


def _entry(at: datetime, caller: Identity, entity: str) -> AuditEntry:
    by = _by(caller)
    return AuditEntry(at, by.actor, by.role, "read", entity)


def _require_own(listed: ListedOrder | None) -> None:
    if listed is not None and listed.order.source is OrderSource.FHIR:
        raise NodeError(
            "this order is a ServiceRequest: revoke it there", ErrorKind.CONFLICT
        )


# -- reading ---------------------------------------------------------------------------


def read_order(
    body: Mapping[str, Any], site: timezone
) -> tuple[PatientIdentity, Step, str]:
    """Return patient, step and key of an order; INVALID, naming the field."""
    for name in body.keys() - _KNOWN:
        raise _fault(name if name.isidentifier() else "a field", "is not known here")
    patient = _patient(body.get("patient"))
    try:
        step = _step(body, site)
    except NodeError as error:
        raise _outside(error) from None
    if not step.accession_number:
        raise _fault("accession_number", "is missing")
    return patient, step, f"{step.accession_number}/{step.step_id}"


def _patient(told: Any) -> PatientIdentity:
    if not isinstance(told, dict):
        raise _fault("patient", "is missing")
    for name in told.keys() - set(_PATIENT):
        raise _fault(
            f"patient.{name}" if name.isidentifier() else "patient", "is not known here"
        )
    texts = {name: _text(told, name, f"patient.{name}") for name in _PATIENT}
    birth = texts["birth_date"]
    identity_ = PatientIdentity(
        patient_id=texts["patient_id"],
        issuer=texts["issuer"],
        name=texts["name"],
        birth_date=_date(birth, "patient.birth_date") if birth else None,
        sex=texts["sex"] or None,
    )
    check_identity(identity_)
    return identity_


def _step(body: Mapping[str, Any], site: timezone) -> Step:
    texts = {
        name: _text(body, _TOLD_AS.get(name, name), _TOLD_AS.get(name, name))
        for name in _TEXTS
    }
    texts["modality"] = texts["modality"] or "US"
    titles = body.get("scheduled_station_ae_titles") or []
    if not isinstance(titles, list) or not all(isinstance(t, str) for t in titles):
        raise _fault("scheduled_station_ae_titles", "is a list of AE titles")
    day, at = _start(_text(body, "scheduled_start", "scheduled_start"), site)
    return Step(
        scheduled_on=day,
        scheduled_time=at,
        requested_procedure_code=_code(body.get("requested_procedure_code")),
        station_titles=tuple(title.strip() for title in titles),
        **texts,
    )


def _start(told: str, site: timezone) -> tuple[date, time | None]:
    """Return day and hour on the site's clock; a time without a zone is the site's."""
    try:
        if not _START.fullmatch(told):
            raise ValueError
        if len(told) == 10:
            return date.fromisoformat(told), None
        moment = datetime.fromisoformat(told)
    except ValueError:
        raise _fault(
            "scheduled_start", "is a day or a time such as 2026-11-21T09:30"
        ) from None
    if moment.tzinfo is not None:
        moment = moment.astimezone(site)
    return moment.date(), moment.time().replace(microsecond=0)


def _code(told: Any) -> Code | None:
    if told is None:
        return None
    name = "requested_procedure_code"
    if not isinstance(told, dict) or set(told) != set(_CODE):
        raise _fault(name, "has value, scheme and meaning")
    return Code(*(_text(told, part, name) for part in _CODE))


def _text(told: Mapping[str, Any], key: str, name: str) -> str:
    value = told.get(key)
    if value is not None and not isinstance(value, str):
        raise _fault(name, "is a text")
    return (value or "").strip()


def _date(told: str, name: str) -> date:
    try:
        if len(told) != 10:
            raise ValueError
        return date.fromisoformat(told)
    except ValueError:
        raise _fault(name, "is a date such as 2026-11-21") from None


def _one_of(kind: Any, told: str, name: str) -> Any:
    try:
        return kind(told)
    except ValueError:
        words = ", ".join(member.value for member in kind)
        raise _fault(name, f"is one of {words}") from None


def _fault(name: str, told: str) -> NodeError:
    return NodeError(f"{name} {told}", ErrorKind.INVALID, expression=name)


def _outside(error: NodeError) -> NodeError:
    """Return the error with the field as it is called outside."""
    field = error.expression or ""
    if field not in _TOLD_AS:
        return error
    told = error.message.replace(field, _TOLD_AS[field], 1)
    return NodeError(told, error.kind, expression=_TOLD_AS[field])


# -- showing ---------------------------------------------------------------------------


def _shown(listed: ListedOrder | None) -> dict[str, Any]:
    if listed is None:
        raise NodeError("there is no such order", ErrorKind.NOT_FOUND)
    order, patient = listed.order, listed.identity
    birth = patient.birth_date
    return {
        "id": str(order.order_id),
        "status": order.status.value,
        "source": order.source.value,
        "service_request": order.source_id or None,
        "patient": {
            "patient_id": patient.patient_id,
            "issuer": patient.issuer,
            "name": patient.name,
            "birth_date": None if birth is None else birth.isoformat(),
            "sex": patient.sex,
        },
        **_shown_step(order),
    }


def _shown_step(order: Order) -> dict[str, Any]:
    step = order.step
    start = step.scheduled_on.isoformat()
    if step.scheduled_time is not None:
        start += f"T{step.scheduled_time:%H:%M:%S}"
    code = step.requested_procedure_code
    return {
        "scheduled_start": start,
        "requested_procedure_code": (
            None if code is None else {p: getattr(code, p) for p in _CODE}
        ),
        "scheduled_station_ae_titles": list(step.station_titles),
        **{_TOLD_AS.get(name, name): getattr(step, name) for name in _TEXTS},
    }
