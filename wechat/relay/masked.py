"""The allow-list of what may enter the relay, and the masked report it yields.

A notification is a history Bundle of the Subscriptions R5 Backport IG (R4):
first the status Parameters, then one masked DiagnosticReport per event. Every
path of its JSON must be named in the tables below and every value must look as
stated; otherwise the whole notification is refused, so that a defect of the
node cannot leak through this channel.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from node.domain.disclosure import ReleaseState, mask_name
from node.domain.errors import ErrorKind, NodeError

EXTENSION_BASE = "https://fhir.sononode.org/StructureDefinition/"
PATIENT_HANDLE_SYSTEM = "https://fhir.sononode.org/patient-handle"
SIGNED = frozenset({"final", "amended", "corrected", "appended", "entered-in-error"})
HANDLE = re.compile(r"[A-Za-z0-9_-]{22}")

_URI = re.compile(r"(urn:uuid:|urn:oid:|https?://)[\w.:/#$|-]{1,200}", re.ASCII)
_CODE = re.compile(r"[\w.-]{1,64}", re.ASCII)
_INSTANT = re.compile(r"[\d:.TZ+-]{10,40}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_LABEL = re.compile(r"[^\d\x00-\x1f]{1,80}")
_SITE_TEXT = re.compile(r"(?!.*\d{15})[^\x00-\x08]{1,600}", re.DOTALL)
_PATIENT_TEXT = re.compile(r"(?!.*\d{6})[^\x00-\x08]{1,4000}", re.DOTALL)
_PHONE = re.compile(r"[\d+() 转\-]{3,24}")
_AGE = re.compile(r"\d{1,3}\+?", re.ASCII)
_REPORT_URL = re.compile(
    rf"([\w.:/-]+/)?DiagnosticReport(/{HANDLE.pattern})?", re.ASCII
)
_STATUS_URL = re.compile(r"([\w.:/-]+/)?Subscription/[\w-]{1,64}(/\$status)?", re.ASCII)
_FULL_URL = re.compile(
    rf"urn:uuid:[0-9a-fA-F-]{{36}}|{_REPORT_URL.pattern}|{_STATUS_URL.pattern}",
    re.ASCII,
)
_SUBSCRIPTION = re.compile(r"([\w.:/-]+/)?Subscription/[\w-]{1,64}", re.ASCII)

_BUNDLE_PATHS: Mapping[str, re.Pattern[str]] = {
    "resourceType": re.compile("Bundle"),
    "type": re.compile("history"),
    "id": _CODE,
    "timestamp": _INSTANT,
    "meta.profile": _URI,
    "meta.lastUpdated": _INSTANT,
    "entry.fullUrl": _FULL_URL,
    "entry.request.method": re.compile("GET|PUT|POST"),
    "entry.request.url": _FULL_URL,
    "entry.response.status": re.compile(r"\d{3}( [\w ]{1,20})?", re.ASCII),
    "entry.response.etag": re.compile(r'W/"[\w.-]{1,32}"', re.ASCII),
    "entry.response.lastModified": _INSTANT,
    "entry.response.location": _FULL_URL,
}

_STATUS_PATHS: Mapping[str, re.Pattern[str]] = {
    "resourceType": re.compile("Parameters"),
    "id": _CODE,
    "meta.profile": _URI,
    "meta.lastUpdated": _INSTANT,
    "parameter(subscription).valueReference.reference": _SUBSCRIPTION,
    "parameter(subscription).valueReference.type": _CODE,
    "parameter(topic).valueCanonical": _URI,
    "parameter(status).valueCode": _CODE,
    "parameter(type).valueCode": _CODE,
    "parameter(events-since-subscription-start).value": _NUMBER,
    "parameter(error).valueCodeableConcept.coding.system": _URI,
    "parameter(error).valueCodeableConcept.coding.code": _CODE,
    "parameter(notification-event).part(event-number).value": _NUMBER,
    "parameter(notification-event).part(timestamp).valueInstant": _INSTANT,
    "parameter(notification-event).part(focus).valueReference.reference": _REPORT_URL,
    "parameter(notification-event).part(focus).valueReference.type": _CODE,
}

_REPORT_PATHS: Mapping[str, re.Pattern[str]] = {
    "resourceType": re.compile("DiagnosticReport"),
    "id": HANDLE,
    "status": _CODE,
    "effectiveDateTime": _DATE,
    "meta.profile": _URI,
    "meta.versionId": _CODE,
    "meta.lastUpdated": _INSTANT,
    "meta.security.system": _URI,
    "meta.security.code": _CODE,
    "meta.security.display": _LABEL,
    "code.text": _LABEL,
    "code.coding.system": _URI,
    "code.coding.code": _CODE,
    "code.coding.display": _LABEL,
    "subject.type": _CODE,
    "subject.display": re.compile(r".{1,16}", re.DOTALL),
    "subject.identifier.system": re.compile(re.escape(PATIENT_HANDLE_SYSTEM)),
    "subject.identifier.value": re.compile(r"[A-Za-z0-9_-]{16,64}"),
    "extension(release-state).valueCode": re.compile("ready|released|withdrawn"),
    "extension(report-version).value": _NUMBER,
    "extension(patient-age).valueString": _AGE,
    "extension(department-phone).valueString": _PHONE,
    "extension(exam-kind).value": re.compile(r"[^\d\x00-\x1f]{1,40}"),
}

# Only of a released report. Anywhere else they would say how serious it is.
_CONTENT_PATHS: Mapping[str, re.Pattern[str]] = {
    "extension(category).valueCode": re.compile("[0-6]|4[ABC]"),
    "extension(patient-text-zh).valueString": _SITE_TEXT,
    "extension(patient-text-en).valueString": _SITE_TEXT,
    "extension(advice-zh).valueString": _SITE_TEXT,
    "extension(advice-en).valueString": _SITE_TEXT,
    "extension(patient-summary).valueString": _PATIENT_TEXT,
    "extension(trend-point).extension(side).value": re.compile("[LRB]|left|right"),
    "extension(trend-point).extension(clock).value": re.compile("1[0-2]|[1-9]"),
    "extension(trend-point).extension(size_mm).value": re.compile(
        r"\d{1,3}(\.\d{1,6})?", re.ASCII
    ),
}

# Parts whose FHIR type the sender may choose: valueString, valueInteger, ….
_ANY_VALUE = re.compile(
    r"\.value(String|Code|Integer|PositiveInt|UnsignedInt|Decimal)$"
)


class RefusedNotification(NodeError):
    """A notification that must not be stored. `path` says where, never what."""

    def __init__(self, path: str, reason: str) -> None:
        shown = re.sub(r"[^\w.()-]", "?", path, flags=re.ASCII)[:120]
        super().__init__(f"{reason}: {shown}", ErrorKind.RULE, expression=shown)


@dataclass(frozen=True, slots=True)
class MaskedReport:
    """One masked report as the relay keeps it. Sizes are millimetres or None."""

    handle: str
    patient_handle: str
    display: str
    state: ReleaseState
    version: int
    examined_on: str | None
    age: str | None
    exam_kind: str
    department_phone: str
    amended: bool = False
    category: str | None = None
    text_zh: str = ""
    text_en: str = ""
    advice_zh: str = ""
    advice_en: str = ""
    summary: str = ""
    trend: tuple[tuple[str | None, int | None, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Notification:
    """What one delivery says: its kind, and the reports in order of event number."""

    subscription: str
    kind: str
    events_since_start: int | None
    events: tuple[tuple[int, MaskedReport], ...]


def read_notification(body: bytes) -> Notification:
    """Return what the node sent, or raise RefusedNotification / NodeError INVALID."""
    try:
        bundle = json.loads(body, parse_float=Decimal)
    except ValueError:
        raise NodeError("the notification is not JSON", ErrorKind.INVALID) from None
    if not isinstance(bundle, dict) or not isinstance(bundle.get("entry"), list):
        raise NodeError("the notification is not a Bundle", ErrorKind.INVALID)
    entries = [entry for entry in bundle["entry"] if isinstance(entry, dict)]
    resources = [entry.get("resource") for entry in entries]
    if not resources or len(entries) != len(bundle["entry"]):
        raise NodeError("the Bundle has no status entry", ErrorKind.INVALID)
    frame = dict(bundle, entry=[_without_resource(entry) for entry in entries])
    _check(frame, _BUNDLE_PATHS)
    status = _resource(resources[0])
    _check(status, _STATUS_PATHS)
    try:
        reports = [_read_report(_resource(resource)) for resource in resources[1:]]
        return _pair(status, reports)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Every leaf is allowed, but a list stands where an object belongs.
        raise NodeError("the notification is not FHIR", ErrorKind.INVALID) from None


def _without_resource(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "resource"}


def _resource(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RefusedNotification("entry.resource", "a resource is missing")
    return value


def _check(resource: object, allowed: Mapping[str, re.Pattern[str]]) -> None:
    """Raise RefusedNotification for the first leaf that is not allowed."""
    for path, value in _leaves(resource, ""):
        rule = allowed.get(path) or allowed.get(_ANY_VALUE.sub(".value", path))
        if rule is None:
            raise RefusedNotification(path, "not on the masked allow-list")
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
            raise RefusedNotification(path, "a value of this kind is not expected")
        if not rule.fullmatch(_plain(value)):
            raise RefusedNotification(path, "the value does not look masked")


def _plain(value: object) -> str:
    """Return a value as text; a decimal never as 1E+1."""
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield every leaf with its path; lists are flat, named parts stand in brackets."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in {"url", "name"} and isinstance(inner, str) and path.endswith(")"):
                continue
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for item in value:
            name = _part_name(item)
            yield from _leaves(item, path if name is None else f"{path}({name})")
    else:
        yield path, value


def _part_name(item: object) -> str | None:
    """Return the name of an extension or a parameter, without our own URL base."""
    if not isinstance(item, dict):
        return None
    name = item.get("url", item.get("name"))
    return name.removeprefix(EXTENSION_BASE) if isinstance(name, str) else None


def _read_report(resource: dict[str, Any]) -> MaskedReport:
    _check(resource, {**_REPORT_PATHS, **_CONTENT_PATHS})
    content = _extensions(resource)
    released = content.get("release-state") == ReleaseState.RELEASED
    if not released:
        _check(resource, _REPORT_PATHS)
    _check_promises(resource, content, released)
    subject = resource["subject"]
    return MaskedReport(
        handle=resource["id"],
        patient_handle=subject["identifier"]["value"],
        display=subject["display"],
        state=ReleaseState(content["release-state"]),
        version=int(content["report-version"]),
        examined_on=_real_date(resource.get("effectiveDateTime")),
        age=content.get("patient-age"),
        exam_kind=str(content.get("exam-kind", "")),
        department_phone=content.get("department-phone", ""),
        amended=resource["status"] in {"amended", "corrected", "appended"},
        category=content.get("category"),
        text_zh=content.get("patient-text-zh", ""),
        text_en=content.get("patient-text-en", ""),
        advice_zh=content.get("advice-zh", ""),
        advice_en=content.get("advice-en", ""),
        summary=content.get("patient-summary", ""),
        trend=tuple(_trend(resource)),
    )


def _check_promises(
    resource: Mapping[str, Any], content: Mapping[str, Any], released: bool
) -> None:
    """Raise when the report breaks a rule that no single value shows."""
    status = resource.get("status")
    if status not in SIGNED:
        raise RefusedNotification("status", "nobody signed this report")
    for name in ("release-state", "report-version"):
        if name not in content:
            raise RefusedNotification(f"extension({name})", "missing")
    if status == "entered-in-error" and content["release-state"] != "withdrawn":
        raise RefusedNotification("status", "a withdrawn report shows nothing")
    if released and "category" not in content:
        raise RefusedNotification("extension(category)", "missing")
    if "id" not in resource:
        raise RefusedNotification("id", "missing")
    subject = resource.get("subject", {})
    if not isinstance(subject, dict) or "value" not in subject.get("identifier", {}):
        raise RefusedNotification("subject.identifier.value", "missing")
    display = subject.get("display", "")
    if not display or mask_name(display) != display:
        raise RefusedNotification("subject.display", "the value does not look masked")
    labels = resource.get("meta", {}).get("security", [])
    if not any(label.get("code") == "REDACTED" for label in labels):
        raise RefusedNotification("meta.security", "not labelled REDACTED")


def _extensions(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Return the simple extensions by name; `_check` judges the rest."""
    found: dict[str, Any] = {}
    listed = resource.get("extension", [])
    for extension in listed if isinstance(listed, list) else []:
        name = _part_name(extension)
        value = _value(extension) if isinstance(extension, dict) else None
        if name is not None and value is not None:
            if name in found:
                raise RefusedNotification(f"extension({name})", "stated twice")
            found[name] = value
    return found


def _value(part: Mapping[str, Any]) -> Any:
    return next((v for key, v in part.items() if key.startswith("value")), None)


def _trend(
    resource: Mapping[str, Any],
) -> Iterator[tuple[str | None, int | None, str | None]]:
    for extension in resource.get("extension", []):
        if _part_name(extension) != "trend-point":
            continue
        parts = {
            part.get("url"): _value(part) for part in extension.get("extension", [])
        }
        clock, size, side = parts.get("clock"), parts.get("size_mm"), parts.get("side")
        yield (
            None if side is None else str(side)[:1].upper(),
            None if clock is None else int(clock),
            None if size is None else _plain(size),
        )


def _real_date(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise RefusedNotification("effectiveDateTime", "no such day") from None


def _pair(status: Mapping[str, Any], reports: list[MaskedReport]) -> Notification:
    """Match every numbered event with its report by the focus reference."""
    parameters = status.get("parameter", [])
    named = {entry.get("name"): entry for entry in parameters}
    reference = named.get("subscription", {}).get("valueReference", {})
    subscription = str(reference.get("reference", "")).rpartition("Subscription/")[2]
    kind = str(named.get("type", {}).get("valueCode", ""))
    if not subscription or not kind:
        raise NodeError("the status names no subscription or type", ErrorKind.INVALID)
    since = _value(named.get("events-since-subscription-start", {}))
    events: list[tuple[int, MaskedReport]] = []
    remaining = list(reports)
    for entry in parameters:
        if entry.get("name") != "notification-event":
            continue
        parts = {part.get("name"): part for part in entry.get("part", [])}
        number = _value(parts.get("event-number", {}))
        focus = parts.get("focus", {}).get("valueReference", {}).get("reference", "")
        handle = str(focus).rpartition("/")[2]
        report = next((r for r in remaining if r.handle == handle), None)
        if number is None or report is None:
            raise NodeError("an event has no number or no report", ErrorKind.INVALID)
        remaining.remove(report)
        events.append((int(number), report))
    if remaining:
        raise NodeError("a report belongs to no event", ErrorKind.INVALID)
    ordered = tuple(sorted(events, key=lambda event: event[0]))
    return Notification(
        subscription, kind, None if since is None else int(since), ordered
    )
