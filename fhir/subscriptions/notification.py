"""The wire format of a notification (Subscriptions R5 Backport IG, R4) and its seal."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import orjson

from fhir.encoding.wire import Json, instant
from fhir.settings import FhirSettings
from node.store.subscriptions import Event, Subscription

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
SIGNATURE_HEADER = "X-Sononode-Signature"


def sign(secret: bytes, body: bytes, at: datetime) -> str:
    """Return the signature header of a call to the relay."""
    unix = str(int(at.timestamp()))
    digest = hmac.new(secret, f"{unix}.".encode() + body, hashlib.sha256)
    return f"t={unix},v1={digest.hexdigest()}"


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
    if content == "full-resource":
        entries += [
            {
                "fullUrl": f"{settings.base_url}/{event.focus}",
                "resource": orjson.Fragment(event.body),
                "request": {"method": "PUT", "url": event.focus},
                "response": {"status": "200"},
            }
            for event in events
            if event.body
        ]
    return {
        "resourceType": "Bundle",
        "id": str(uuid4()),
        "meta": {"profile": [f"{BACKPORT}/backport-subscription-notification-r4"]},
        "type": "history",
        "timestamp": instant(datetime.now(UTC)),
        "entry": entries,
    }


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
    content: str = "empty",
) -> Json:
    """Return the Parameters that stand for R5's SubscriptionStatus."""
    reference = f"{settings.base_url}/Subscription/{subscription.subscription_id}"
    parameters: list[Json] = [
        {"name": "subscription", "valueReference": {"reference": reference}},
        {"name": "topic", "valueCanonical": subscription.topic},
        {"name": "status", "valueCode": subscription.status},
        {"name": "type", "valueCode": kind},
        {
            "name": "events-since-subscription-start",
            "valueString": str(subscription.events_count),
        },
    ]
    for event in events:
        parts: list[Json] = [
            {"name": "event-number", "valueString": str(event.number)},
            {"name": "timestamp", "valueInstant": instant(event.at)},
        ]
        if content != "empty":
            focus = {"reference": f"{settings.base_url}/{event.focus}"}
            parts.append({"name": "focus", "valueReference": focus})
        parameters.append({"name": "notification-event", "part": parts})
    if subscription.error is not None:
        code = {
            "system": "http://terminology.hl7.org/CodeSystem/subscription-error",
            "code": subscription.error,
        }
        parameters.append({"name": "error", "valueCodeableConcept": {"coding": [code]}})
    return {
        "resourceType": "Parameters",
        "id": str(uuid4()),
        "meta": {"profile": [f"{BACKPORT}/backport-subscription-status-r4"]},
        "parameter": parameters,
    }
