"""A ServiceRequest of the EHR as a scheduled step of the worklist (PS3.3 C.4.10).

What the worklist has no place for is refused where dropping it would change what is
done, and noted otherwise. The ServiceRequest itself stays as the EHR has sent it: its
status is the placer's to change.
"""

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fhir.content import concepts
from fhir.content.reading import person_name
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, parse, reference_parts
from fhir.settings import FhirSettings
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import Code, OrderSource, OrderStatus, Step
from node.store import merges, orders, resources
from node.store.orders import ListedOrder
from node.workflow.orders import (
    Placement,
    move_order,
    place_order,
    require_her_order,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_ORDERS = frozenset({"order", "original-order", "reflex-order", "filler-order"})
_ORDERS |= {"instance-order"}
_STATUS = {
    "active": OrderStatus.SCHEDULED,
    "revoked": OrderStatus.CANCELLED,
    "entered-in-error": OrderStatus.CANCELLED,
    "completed": OrderStatus.COMPLETED,
    # Not yet, or not for now: off the worklist until the EHR says active.
    "draft": OrderStatus.CANCELLED,
    "on-hold": OrderStatus.CANCELLED,
    "unknown": OrderStatus.CANCELLED,
}
_PRIORITY = {"routine": "ROUTINE", "urgent": "HIGH", "asap": "HIGH", "stat": "STAT"}
_SCHEMES = {system: scheme for scheme, system in lexicon.FHIR_SYSTEM.items()}
_FIELDS = {
    "accession_number": "ServiceRequest.identifier",
    "placer_order_number": "ServiceRequest.identifier",
    "filler_order_number": "ServiceRequest.identifier",
    "study_instance_uid": "ServiceRequest.identifier",
    "requested_procedure_code": "ServiceRequest.code",
    "step_location": "ServiceRequest.locationCode",
    "station_titles": "ServiceRequest.locationCode",
    "patient": "ServiceRequest.subject",
}
_TEXT_LENGTH, _SHORT = 64, 16


@dataclass(frozen=True)
class _Written:
    """What a ServiceRequest itself says, and what of it has no place."""

    step: Step
    notes: tuple[str, ...]


async def place_service_request(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    resource: Json,
    resource_id: str,
    patient_id: UUID,
) -> list[str]:
    """Put an order of the EHR on the worklist, change it there or take it off.

    Returns what the EHR should know. Refused with 422, or with 409 where another
    patient's order stands in the way, naming the element. What changes after the
    examination has begun no longer reaches the machine.
    """
    key, status = f"ServiceRequest/{resource_id}", _status(resource)
    known = await orders.find_by_key(tx, store, key)
    hers = await merges.rows_of(tx, patient_id)
    if known is not None:
        try:
            require_her_order(known.order, hers)
        except NodeError as error:
            raise _refused(error) from None
    if known is not None and known.order.begun:
        if status is OrderStatus.COMPLETED:
            await move_order(store, tx, known.order, status)
        return ["the examination has begun: the worklist keeps the order as it was"]
    if status is not OrderStatus.SCHEDULED:
        if known is not None:
            order_id = known.order.order_id
            await orders.set_status(tx, order_id, status, at=store.clock())
        return [_off(resource)]
    try:
        written = _read(resource, settings, store.clock(), known)
        step = await _with_people(tx, store, written.step, resource)
        placement = Placement(key, patient_id, OrderSource.FHIR, step, resource_id)
        await _take_off_replaced(tx, store, resource, hers)
        await place_order(store, tx, placement, by=None)
    except NodeError as error:
        if isinstance(error, Refused):
            raise
        raise _refused(error) from None
    return list(written.notes)


async def _take_off_replaced(
    tx: "Transaction", store: "Store", resource: Json, hers: frozenset[UUID]
) -> None:
    """Take the orders that this one replaces off the worklist, unless they have begun.

    Its own number may then be theirs. The placer says of them what he wants said.
    """
    for reference in as_list(resource.get("replaces")):
        parts = reference_parts(reference)
        if parts is None or parts[0] != "ServiceRequest":
            continue
        known = await orders.find_by_key(tx, store, "/".join(parts))
        if known is None or known.order.begun or known.order.patient_id not in hers:
            continue
        order_id = known.order.order_id
        await orders.set_status(tx, order_id, OrderStatus.CANCELLED, at=store.clock())


def _refused(error: NodeError) -> Refused:
    field = error.expression or ""
    conflict = error.kind is ErrorKind.CONFLICT
    issue = Issue(
        "conflict" if conflict else "business-rule",
        error.message,
        _FIELDS.get(field, "ServiceRequest"),
    )
    kind = ErrorKind.CONFLICT if conflict else ErrorKind.RULE
    return Refused([issue], 409 if conflict else 422, kind)


def _unreadable(told: str, element: str) -> Refused:
    issue = Issue("business-rule", told, f"ServiceRequest.{element}")
    return Refused([issue], 422, ErrorKind.RULE)


def _status(resource: Json) -> OrderStatus:
    if resource.get("intent") not in _ORDERS or resource.get("doNotPerform") is True:
        return OrderStatus.CANCELLED
    return _STATUS[str(resource["status"])]


def _off(resource: Json) -> str:
    if resource.get("doNotPerform") is True:
        return "not on the worklist: doNotPerform"
    if resource.get("intent") not in _ORDERS:
        return f"not on the worklist: the intent is {resource.get('intent')}"
    return f"not on the worklist: the status is {resource['status']}"


def _read(
    resource: Json, settings: FhirSettings, now: datetime, known: ListedOrder | None
) -> _Written:
    notes: list[str] = []
    day, at = _scheduled(resource, settings.offset, now, known, notes)
    code = resource.get("code") or {}
    text = _words(code)
    place = ", ".join(filter(None, map(_words, as_list(resource.get("bodySite")))))
    station, room = _location(resource, settings, notes)
    step = Step(
        scheduled_on=day,
        scheduled_time=at,
        accession_number=_identifier(resource, "ACSN"),
        placer_order_number=_identifier(resource, "PLAC"),
        filler_order_number=_identifier(resource, "FILL"),
        study_instance_uid=_study_uid(resource),
        requested_procedure_description=_cut(text, _TEXT_LENGTH, "code", notes),
        requested_procedure_code=_code(code, notes),
        step_description=_cut(
            ", ".join(filter(None, (text, place))), _TEXT_LENGTH, "bodySite", notes
        ),
        step_location=room,
        station_titles=station,
        reason=_cut(
            "; ".join(filter(None, map(_words, as_list(resource.get("reasonCode"))))),
            _TEXT_LENGTH,
            "reasonCode",
            notes,
        ),
        priority=_PRIORITY.get(str(resource.get("priority", "")), ""),
    )
    return _Written(step, tuple(notes))


def _scheduled(
    resource: Json,
    offset: timedelta,
    now: datetime,
    known: ListedOrder | None,
    notes: list[str],
) -> tuple[date, time | None]:
    """Return day and hour on the site's clock; an hour that nobody gave is None."""
    site = timezone(offset)
    if "occurrenceTiming" in resource:
        raise _unreadable(
            "a repeated examination is one order each", "occurrenceTiming"
        )
    period = resource.get("occurrencePeriod") or {}
    told = str(resource.get("occurrenceDateTime") or period.get("start") or "")
    if not told:
        notes.append("no occurrence: it is due on the day on which it came")
        if known is not None:
            return known.order.step.scheduled_on, None
        return now.astimezone(site).date(), None
    try:
        if len(told) == 10:
            return date.fromisoformat(told), None
        moment = datetime.fromisoformat(told)
    except ValueError:
        raise _unreadable("names no day", "occurrence") from None
    if moment.tzinfo is not None:
        moment = moment.astimezone(site)
    return moment.date(), moment.time().replace(microsecond=0, tzinfo=None)


def _identifier(resource: Json, code: str) -> str:
    for identifier in as_list(resource.get("identifier")):
        for item in as_list((identifier.get("type") or {}).get("coding")):
            if (item.get("system"), item.get("code")) == (
                concepts.IDENTIFIER_TYPE,
                code,
            ):
                return str(identifier.get("value", "")).strip()
    return ""


def _study_uid(resource: Json) -> str:
    """Return the Study Instance UID that the EHR has chosen, if it has."""
    for identifier in as_list(resource.get("identifier")):
        value = str(identifier.get("value", ""))
        if identifier.get("system") == concepts.DICOM_UID:
            return value.removeprefix("urn:oid:")
    return ""


def _code(concept: Json, notes: list[str]) -> Code | None:
    for item in as_list(concept.get("coding")):
        scheme = _SCHEMES.get(str(item.get("system", "")))
        value, text = str(item.get("code", "")), item.get("display") or _words(concept)
        if scheme and text and 0 < len(value) <= _SHORT:
            return Code(value, scheme, str(text)[:_TEXT_LENGTH])
    if concept.get("coding"):
        notes.append("code: none of its systems has a place in DICOM; its words have")
    return None


def _location(
    resource: Json, settings: FhirSettings, notes: list[str]
) -> tuple[tuple[str, ...], str]:
    """Return (AE titles, room): codes of our AE title system name the machine."""
    titles, rooms = [], []
    for concept in as_list(resource.get("locationCode")):
        codings = as_list(concept.get("coding"))
        own = [c for c in codings if c.get("system") == settings.systems.ae_title]
        titles += [str(c.get("code", "")) for c in own]
        if not own:
            rooms.append(_words(concept))
    for reference in as_list(resource.get("locationReference")):
        rooms.append(str(reference.get("display", "")))
    room = next(filter(None, rooms), "")
    return tuple(titles), _cut(room, _SHORT, "location", notes)


def _words(concept: Any) -> str:
    if not isinstance(concept, dict):
        return ""
    displays = [c.get("display") for c in as_list(concept.get("coding"))]
    return str(concept.get("text") or next(filter(None, displays), "")).strip()


def _cut(text: str, length: int, element: str, notes: list[str]) -> str:
    """Return text as DICOM has room for it; what is cut is noted."""
    plain = " ".join(text.replace("\\", "/").split())
    if len(plain) > length:
        notes.append(f"{element}: the worklist shows its first {length} characters")
    return plain[:length].strip()


async def _with_people(
    tx: "Transaction", store: "Store", step: Step, resource: Json
) -> Step:
    asks = await _name(tx, store, resource.get("requester"))
    does = [await _name(tx, store, p) for p in as_list(resource.get("performer"))]
    return replace(
        step,
        requesting_physician=asks,
        referring_physician=asks,
        performing_physician=next(filter(None, does), ""),
    )


async def _name(tx: "Transaction", store: "Store", reference: Any) -> str:
    """Return a Practitioner's name as a DICOM PN; empty where it is nobody's."""
    parts = reference_parts(reference)
    if parts is None or parts[0] != "Practitioner":
        return ""
    stored = await resources.find(tx, store, *parts)
    if stored is not None:
        name = person_name(as_list(parse(stored.body).get("name")))
    else:
        name = str(reference.get("display", ""))
    if not name.isascii() and "=" not in name:
        name = f"={name}"
    fits = len(name) <= _TEXT_LENGTH and name.isprintable()
    return name if fits and "\\" not in name else ""
