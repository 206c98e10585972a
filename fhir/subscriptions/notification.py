"""The wire format of a notification (Subscriptions R5 Backport IG, R4) and its seal."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import orjson

from fhir.encoding.wire import Json, instant, parse, to_bytes
from fhir.encoding.xml import to_xml
from fhir.settings import FhirSettings
from node.store.subscriptions import Subscription
from node.store.topic_events import Event, Related

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
SIGNATURE_HEADER = "X-Sononode-Signature"


def sign(secrets: Sequence[bytes], body: bytes, at: datetime) -> str:
    """Return the signature of a call: its time, and the HMAC of that and the body.

    One `v1` for each secret: whoever knows any of them can judge the call.
    """
    unix = str(int(at.timestamp()))
    signed = f"{unix}.".encode() + body
    digests = (hmac.new(one, signed, hashlib.sha256).hexdigest() for one in secrets)
    return ",".join([f"t={unix}", *(f"v1={digest}" for digest in digests)])


def notification(
    settings: FhirSettings,
    subscription: Subscription,
    kind: str,
    events: Sequence[Event] = (),
    *,
    content: str | None = None,
) -> Json:
    """Return a notification (Backport IG, R4): status Parameters, then the focuses.

    `kind` is handshake, heartbeat, event-notification or query-event.
    """
    content = subscription.content if content is None else content
    entries = [_status_entry(settings, subscription, kind, events, content)]
    if content != "empty":
        whole = content == "full-resource"
        entries += [_focus(settings, one, whole=whole) for one in events if one.body]
        entries += _along(settings, events, whole=whole)
    return {
        "resourceType": "Bundle",
        "id": str(uuid4()),
        "meta": {"profile": [f"{BACKPORT}/backport-subscription-notification-r4"]},
        "type": "history",
        "timestamp": instant(datetime.now(UTC)),
        "entry": entries,
    }


def written(bundle: Json, media_type: str) -> bytes:
    """Return a notification as its subscriber wants it written."""
    body = to_bytes(bundle)
    return to_xml(parse(body)) if "xml" in media_type else body


def _focus(settings: FhirSettings, event: Event, *, whole: bool) -> Json:
    """Return the entry of what an event is about, with the request that caused it."""
    kind = event.focus.partition("/")[0]
    entry: Json = {"fullUrl": f"{settings.base_url}/{event.focus}"}
    if whole:
        entry["resource"] = orjson.Fragment(event.body)
    if event.created:
        entry["request"] = {"method": "POST", "url": kind}
        entry["response"] = {"status": "201"}
    else:
        entry["request"] = {"method": "PUT", "url": event.focus}
        entry["response"] = {"status": "200"}
    return entry


def _along(
    settings: FhirSettings, events: Sequence[Event], *, whole: bool
) -> list[Json]:
    """Return the entries of what goes along, each version of a resource once."""
    entries: dict[tuple[str, int], Json] = {}
    for event in events:
        for one in event.context:
            stored, name = one.stored, _name(one)
            entry: Json = {"fullUrl": f"{settings.base_url}/{name}"}
            if whole:
                entry["resource"] = orjson.Fragment(stored.body)
            entry["request"] = {"method": "GET", "url": name}
            entry["response"] = {"status": "200"}
            entries[name, stored.version] = entry
    return list(entries.values())


def _name(one: Related) -> str:
    return f"{one.stored.resource_type}/{one.stored.resource_id}"


def _status_entry(
    settings: FhirSettings,
    subscription: Subscription,
    kind: str,
    events: Sequence[Event],
    content: str,
) -> Json:
    url = f"{settings.base_url}/Subscription/{subscription.subscription_id}/$status"
    return {
        "fullUrl": f"urn:uuid:{uuid4()}",
        "resource": status_parameters(settings, subscription, kind, events, content),
        "request": {"method": "GET", "url": url},
        "response": {"status": "200"},
    }


def status_parameters(
    settings: FhirSettings,
    subscription: Subscription,
    kind: str,
    events: Sequence[Event] = (),
    content: str = "id-only",
) -> Json:
    """Return the Parameters that stand for R5's SubscriptionStatus.

    Where the content is `empty` not even the topic is told.
    """
    reference = f"{settings.base_url}/Subscription/{subscription.subscription_id}"
    told: list[Json] = [
        {"name": "subscription", "valueReference": {"reference": reference}}
    ]
    if content != "empty":
        told.append({"name": "topic", "valueCanonical": subscription.topic})
    told += [
        {"name": "status", "valueCode": subscription.status},
        {"name": "type", "valueCode": kind},
        {
            "name": "events-since-subscription-start",
            "valueString": str(subscription.events_count),
        },
    ]
    told += [_event(settings, event, content) for event in events]
    if subscription.error is not None:
        code = {
            "system": "http://terminology.hl7.org/CodeSystem/subscription-error",
            "code": subscription.error,
        }
        told.append({"name": "error", "valueCodeableConcept": {"coding": [code]}})
    return {
        "resourceType": "Parameters",
        "id": str(uuid4()),
        "meta": {"profile": [f"{BACKPORT}/backport-subscription-status-r4"]},
        "parameter": told,
    }


def _event(settings: FhirSettings, event: Event, content: str) -> Json:
    parts: list[Json] = [
        {"name": "event-number", "valueString": str(event.number)},
        {"name": "timestamp", "valueInstant": instant(event.at)},
    ]
    if content != "empty":
        focus = {"reference": f"{settings.base_url}/{event.focus}"}
        parts.append({"name": "focus", "valueReference": focus})
        parts += [
            {
                "name": "additional-context",
                "valueReference": {"reference": f"{settings.base_url}/{name}"},
            }
            for name in dict.fromkeys(map(_name, event.context))
        ]
    return {"name": "notification-event", "part": parts}
