"""The relay, our own subscriber: it gets the masked reports for patients' phones."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aiohttp

from fhir.content.publish import put
from fhir.encoding.outcome import CONTENT_TYPE
from fhir.encoding.wire import Json, instant, to_bytes
from fhir.settings import FhirSettings
from fhir.subscriptions.endpoints import post
from fhir.subscriptions.notification import BACKPORT, SIGNATURE_HEADER, sign
from fhir.subscriptions.requests import RELAY, subscribe
from node.domain.disclosure import mask_name
from node.domain.errors import ErrorKind, NodeError
from node.store import identities, people, reports, resources, subscriptions

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_TIMEOUT_S = 10


async def ensure_relay_subscription(store: "Store", settings: FhirSettings) -> None:
    """Make sure that the relay is told of released reports; called at every start.

    Its channel is tried again from the first event that it has missed, also
    after it had been given up.
    """
    if not settings.relay_url:
        return
    async with store.db.transaction() as tx:
        known = await resources.find(tx, store, "Subscription", str(RELAY))
        if known is not None:
            current = await subscriptions.read(tx, store, RELAY)
            works = current.status in ("requested", "active")
            if works and current.endpoint == settings.relay_endpoint:
                await subscriptions.set_status(tx, RELAY, current.status)
                return
        await _subscribe(tx, store, settings)


async def _subscribe(tx: "Transaction", store: "Store", settings: FhirSettings) -> None:
    masked = [topic.url for topic in settings.topics.values() if topic.masked]
    if not masked:
        raise NodeError(
            "config/topics: no topic for patients is left, the relay needs one;"
            " put report-released.json back or set relay.enabled = false",
            ErrorKind.SETTING,
        )
    asked = _resource(settings, masked[0])
    asked = await subscribe(tx, store, settings, asked, RELAY, None, trusted=True)
    await put(tx, store, {**asked, "id": str(RELAY)})


def _resource(settings: FhirSettings, topic: str) -> Json:
    content = {
        "url": f"{BACKPORT}/backport-payload-content",
        "valueCode": "full-resource",
    }
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "Masked reports for the patients' phones",
        "criteria": topic,
        "channel": {
            "type": "rest-hook",
            "endpoint": settings.relay_endpoint,
            "payload": CONTENT_TYPE,
            "_payload": {"extension": [content]},
        },
    }


def relay_signature(settings: FhirSettings, body: bytes) -> dict[str, str]:
    """Return the header by which the relay knows us."""
    now = datetime.now(UTC)  # judged by another machine: never a test's clock
    return {SIGNATURE_HEADER: sign([settings.relay_secret], body, now)}


async def offer_binding(
    store: "Store",
    settings: FhirSettings,
    session: aiohttp.ClientSession,
    payload: Mapping[str, Any],
) -> None:
    """Tell the relay what a desk's QR code will prove; job {binding_id}."""
    binding_id = UUID(str(payload["binding_id"]))
    async with store.db.transaction() as tx:
        binding = await people.read_binding(tx, binding_id)
        identity = await identities.patient(tx, store, binding.patient_id)
        handle = await reports.patient_handle(tx, binding.patient_id)
    check = binding.check_code
    body = to_bytes(
        {
            "binding_id": str(binding_id),
            "token_hash": binding.token_hash.hex(),
            "check": None if check is None else check.hex(),
            "patient_handle": handle,
            "display": mask_name(identity.name),
            "expires": instant(binding.expires_at),
        }
    )
    url = f"{settings.relay_url.rstrip('/')}/hook/binding"
    headers = {**relay_signature(settings, body), "Content-Type": CONTENT_TYPE}
    status = await post(session, url, body, headers, _TIMEOUT_S)
    if status is None or not 200 <= status < 300:
        raise NodeError(
            f"the relay did not take the QR code (status {status})",
            ErrorKind.UNAVAILABLE,
        )
    async with store.db.transaction() as tx:
        await people.mark_binding_offered(tx, binding_id, now=store.clock())
