"""Who is told of signed reports, and how: Subscriptions R5 Backport on R4, rest-hook.

The event and its number are written in the transaction that signs the report;
a job delivers them one by one, in order and at least once, with no database
transaction open while the other side is called.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import structlog

from fhir.content import concepts
from fhir.content.masked import to_masked_report
from fhir.content.publish import put
from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused
from fhir.encoding.wire import Json, as_list, extension, instant, parse, to_bytes
from fhir.security.access import require_scope
from fhir.settings import FhirSettings
from fhir.subscriptions.notification import (
    BACKPORT,
    SIGNATURE_HEADER,
    notification,
    sign,
)
from node.domain.access import Action, Identity
from node.domain.disclosure import mask_name, patient_report
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report
from node.store import people, reports, resources, studies, subscriptions
from node.store.subscriptions import Event, Subscription

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

log = structlog.get_logger(__name__)

# The relay has one subscription, made by the node itself.
RELAY = UUID("7c0c4d52-2f0b-5f0a-8a53-64c0a6f0d3b1")
_DEFAULT_TIMEOUT_S = 10
_TIMEOUTS_S = range(1, 61)
_HEARTBEATS_S = range(10, 86401)
_HANDSHAKES = 3
_LONGEST_PAUSE_S = 300.0
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*)")
_OUR_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection"}
    | {SIGNATURE_HEADER.lower(), "upgrade", "te", "trailer"}
)


@dataclass(frozen=True)
class Topic:
    """A SubscriptionTopic; `masked` ones carry the patient's masked report."""

    url: str
    title: str
    masked: bool


RELEASED = Topic(
    f"{concepts.BASE}/SubscriptionTopic/report-released",
    "A signed report changed what the patient may see",
    masked=True,
)
SIGNED = Topic(
    f"{concepts.BASE}/SubscriptionTopic/report-signed",
    "A report was signed, changed after sign-off or withdrawn",
    masked=False,
)
TOPICS: Mapping[str, Topic] = {topic.url: topic for topic in (RELEASED, SIGNED)}


# --- events -----------------------------------------------------------------------


async def report_changed(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    report: Report,
    *,
    revised: bool = True,
    for_patients: bool = True,
) -> None:
    """Write the events that a change of a signed report causes, in the caller's `tx`.

    `revised` is False when only a disclosure was recorded: the patient's view
    may have changed, the report has not. `for_patients` is False when she would read
    nothing new: the paper came, which no phone gets.
    """
    waiting = await subscriptions.of_topic(tx, store, RELEASED.url)
    if waiting and for_patients:
        masked = await _masked(tx, store, settings, report)
        focus = f"DiagnosticReport/{masked['id']}"
        await _add(tx, store, waiting, report, focus, to_bytes(masked))
    if revised:
        await hospital_told(tx, store, report)


async def hospital_told(tx: "Transaction", store: "Store", report: Report) -> None:
    """Write the events for hospital systems alone: for the patient nothing changed."""
    waiting = await subscriptions.of_topic(tx, store, SIGNED.url)
    if waiting:
        stored = await resources.read(tx, store, "DiagnosticReport", str(report.id))
        focus = f"DiagnosticReport/{report.id}"
        await _add(tx, store, waiting, report, focus, stored.body)


async def _masked(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> Json:
    identity = await studies.patient(tx, store, report.patient_id)
    study = await studies.study(tx, report.study_instance_uid)
    handle, patient_handle = await reports.handles(tx, report.id)
    masked = patient_report(
        report,
        identity,
        examined_on=study.study_date if study is not None else None,
        handle=handle,
        patient_handle=patient_handle,
        department_phone=settings.department_phone,
        texts=dict(settings.texts),
    )
    return to_masked_report(masked)


async def _add(
    tx: "Transaction",
    store: "Store",
    waiting: Sequence[Subscription],
    report: Report,
    focus: str,
    body: bytes,
) -> None:
    for subscription in waiting:
        if subscription.status == "off":
            continue
        await subscriptions.add_event(
            tx,
            store,
            subscription.subscription_id,
            at=store.clock(),
            patient_id=report.patient_id,
            focus=focus,
            body=body,
        )
        await _defer(tx, store, subscription.subscription_id)


async def _defer(
    tx: "Transaction",
    store: "Store",
    subscription_id: UUID,
    *,
    not_before: datetime | None = None,
    heartbeat: bool = False,
) -> None:
    """Ask for a delivery. One job for each event, so that none is overlooked.

    Jobs of one subscription run one after the other; heartbeats have a row of
    their own, because they wait for their time and would hold up the others.
    """
    payload: dict[str, Any] = {"subscription_id": str(subscription_id)}
    if heartbeat:
        payload["heartbeat"] = True
    await store.jobs.defer(
        tx,
        "deliver_notifications",
        payload,
        order_key=f"{'heartbeat' if heartbeat else 'subscription'}/{subscription_id}",
        not_before=not_before,
    )


# --- subscribing --------------------------------------------------------------------


async def subscribe(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    resource: Json,
    subscription_id: UUID,
) -> Json:
    """Store what a Subscription asks and start its handshake; return the resource.

    The relay's own subscription is the node's: only it may call a host that the
    site has not listed, so no client ever gets to write under that id.
    Refused with 422 for a topic, channel or content that we do not have and for
    an endpoint that is not on the site's list.
    """
    subscription = _read_subscription(resource, subscription_id, settings)
    beat = subscription.heartbeat_period_s
    await subscriptions.create(tx, store, subscription)
    if subscription.status == "requested":
        await _defer(tx, store, subscription_id)
    if beat is not None and subscription.next_heartbeat_at is None:
        first = store.clock() + timedelta(seconds=beat)
        await subscriptions.set_heartbeat(tx, subscription_id, first)
        await _defer(tx, store, subscription_id, not_before=first, heartbeat=True)
    return {**resource, "status": subscription.status}


def read_id(text: str) -> UUID:
    """Return the id of a subscription; NOT_FOUND when it cannot be one."""
    try:
        return UUID(text)
    except ValueError:
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND) from None


def require_topic(identity: Identity, resource: Json) -> None:
    """Raise FORBIDDEN when a topic would tell the caller more than she may read."""
    topic = TOPICS.get(str(resource.get("criteria")))
    # Notifications bring reports of every patient, whatever else a token opens.
    require_scope(identity, "DiagnosticReport", "r", whole=True)
    if topic is not None and not topic.masked:
        identity.require(Action.READ_REPORT)
        if not identity.sees_identity:
            raise NodeError(
                "this topic carries patients' identities", ErrorKind.FORBIDDEN
            )


def _read_subscription(
    resource: Json, subscription_id: UUID, settings: FhirSettings
) -> Subscription:
    channel = resource["channel"]
    content_of = extension(
        channel.get("_payload", {}), f"{BACKPORT}/backport-payload-content"
    )
    content = str((content_of or {}).get("valueCode", "empty"))
    payload = channel.get("payload", CONTENT_TYPE).partition(";")[0]
    period = _integer(channel, "backport-heartbeat-period", _HEARTBEATS_S)
    headers = tuple(str(line) for line in as_list(channel.get("header")))
    faults = [
        (resource["criteria"] not in TOPICS, "criteria", "no such topic here"),
        ("_criteria" in resource, "criteria", "filters are not supported"),
        ("end" in resource, "end", "an end is not supported"),
        (resource["status"] not in ("requested", "off"), "status", "must be requested"),
        (channel["type"] != "rest-hook", "channel.type", "only rest-hook"),
        (payload != CONTENT_TYPE, "channel.payload", f"only {CONTENT_TYPE}"),
        (
            content not in ("empty", "id-only", "full-resource"),
            "channel.payload",
            "no such payload content",
        ),
        (
            subscription_id != RELAY
            and not endpoint_allowed(str(channel.get("endpoint", "")), settings),
            "channel.endpoint",
            "the host is not on this site's list of hooks",
        ),
        (not all(map(_header_allowed, headers)), "channel.header", "malformed header"),
    ]
    issues = [
        Issue("not-supported", text, f"Subscription.{element}")
        for wrong, element, text in faults
        if wrong
    ]
    if issues:
        raise Refused(issues, 422, ErrorKind.RULE)
    return Subscription(
        subscription_id=subscription_id,
        topic=resource["criteria"],
        status=resource["status"],
        endpoint=channel["endpoint"],
        headers=headers,
        content=content,
        timeout_s=_integer(channel, "backport-timeout", _TIMEOUTS_S)
        or _DEFAULT_TIMEOUT_S,
        heartbeat_period_s=period,
    )


def _integer(channel: Json, name: str, allowed: range) -> int | None:
    found = extension(channel, f"{BACKPORT}/{name}")
    if found is None:
        return None
    value = next((v for k, v in found.items() if k.startswith("value")), None)
    if not isinstance(value, int) or value not in allowed:
        message = f"{name} is {allowed.start} to {allowed.stop - 1} seconds"
        issue = Issue("value", message, "Subscription.channel.extension")
        raise Refused([issue], 422, ErrorKind.RULE)
    return value


def _header_allowed(line: str) -> bool:
    match = _HEADER.fullmatch(line)
    return match is not None and match[1].lower() not in _OUR_HEADERS


def endpoint_allowed(endpoint: str, settings: FhirSettings) -> bool:
    """Tell whether we may call `endpoint`: only hosts that the site has listed.

    The list is by name, so that nobody can point us at another machine of the
    hospital (SSRF); plain http is for hosts on the list as well, because the
    site knows its own network.
    """
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.username is not None:
        return False
    return bool({host, f"{host}:{port}"} & settings.hook_hosts)


async def ensure_relay_subscription(store: "Store", settings: FhirSettings) -> None:
    """Make sure that the relay is told of released reports; called at every start.

    Its channel is tried again from the first event that it has missed, also
    after it had been given up. Every other channel that works goes on as well.
    """
    async with store.db.transaction() as tx:
        for topic in TOPICS:
            for subscription in await subscriptions.of_topic(tx, store, topic):
                if subscription.status in ("requested", "active"):
                    await _defer(tx, store, subscription.subscription_id)
        if settings.relay_url:
            await _subscribe_relay(tx, store, settings)


async def _subscribe_relay(
    tx: "Transaction", store: "Store", settings: FhirSettings
) -> None:
    known = await resources.find(tx, store, "Subscription", str(RELAY))
    if known is not None:
        current = await subscriptions.read(tx, store, RELAY)
        works = current.status in ("requested", "active")
        if works and current.endpoint == settings.relay_endpoint:
            await subscriptions.set_status(tx, RELAY, current.status)
            return
    asked = await subscribe(tx, store, settings, _relay_resource(settings), RELAY)
    await put(tx, store, {**asked, "id": str(RELAY)})


def _relay_resource(settings: FhirSettings) -> Json:
    content = {
        "url": f"{BACKPORT}/backport-payload-content",
        "valueCode": "full-resource",
    }
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "Masked reports for the patients' phones",
        "criteria": RELEASED.url,
        "channel": {
            "type": "rest-hook",
            "endpoint": settings.relay_endpoint,
            "payload": CONTENT_TYPE,
            "_payload": {"extension": [content]},
        },
    }


# --- delivery -------------------------------------------------------------------------


class Deliveries:
    """Handlers of the jobs that call other systems; holds the HTTP session."""

    def __init__(
        self, store: "Store", settings: FhirSettings, session: aiohttp.ClientSession
    ) -> None:
        self._store = store
        self._settings = settings
        self._session = session

    async def deliver_notifications(self, payload: Mapping[str, Any]) -> None:
        """Send a subscriber what it is owed; job {subscription_id}.

        Ends without an error when the other side fails: the next attempt is
        then already deferred, in the transaction that notes the failure.
        """
        subscription_id = UUID(str(payload["subscription_id"]))
        if payload.get("heartbeat"):
            await self._heartbeat(subscription_id)
            return
        while await self._step(subscription_id):
            pass

    async def _step(self, subscription_id: UUID) -> bool:
        """Send one notification; True when there may be more to send now."""
        async with self._store.db.transaction() as tx:
            subscription = await subscriptions.read(tx, self._store, subscription_id)
            due = subscription.next_attempt_at
            if due is not None and due > self._store.clock():
                return False  # the job that waits for this moment goes on
            waiting = await subscriptions.events(
                tx, self._store, subscription_id, undelivered=True, limit=1
            )
        if subscription.status == "requested":
            return await self._handshake(subscription)
        if subscription.status != "active" or not waiting:
            return False
        return await self._notify(subscription, waiting[0])

    async def _handshake(self, subscription: Subscription) -> bool:
        bundle = notification(self._settings, subscription, "handshake")
        if not await self._post(subscription, bundle):
            await self._note_failure(subscription)
            return False
        async with self._store.db.transaction() as tx:
            await self._set_status(tx, subscription, "active")
        return True

    async def _notify(self, subscription: Subscription, event: Event) -> bool:
        if event.body:  # the events of an erased patient are passed over
            bundle = notification(
                self._settings, subscription, "event-notification", [event]
            )
            if not await self._post(subscription, bundle):
                await self._note_failure(subscription)
                return False
        async with self._store.db.transaction() as tx:
            await subscriptions.mark_delivered(
                tx,
                subscription.subscription_id,
                [event.number],
                at=self._store.clock(),
            )
        return True

    async def _note_failure(self, subscription: Subscription) -> None:
        """Plan the next attempt, or give the channel up after long failure."""
        now = self._store.clock()
        since = subscription.failing_since or now
        limit = timedelta(seconds=self._settings.give_up_after_s)
        relay = subscription.subscription_id == RELAY
        shaken = subscription.status == "requested" and not relay
        given_up = now - since >= limit or (
            shaken and subscription.failures + 1 >= _HANDSHAKES
        )
        pause = _pause_s(subscription.failures)
        async with self._store.db.transaction() as tx:
            if given_up:
                await self._set_status(tx, subscription, "error", "no-response")
                return
            next_attempt_at = now + timedelta(seconds=pause)
            await subscriptions.set_failing(
                tx,
                subscription.subscription_id,
                at=now,
                next_attempt_at=next_attempt_at,
            )
            await _defer(
                tx,
                self._store,
                subscription.subscription_id,
                not_before=next_attempt_at,
            )

    async def _set_status(
        self,
        tx: "Transaction",
        subscription: Subscription,
        status: str,
        error: str | None = None,
    ) -> None:
        subscription_id = subscription.subscription_id
        # In the order in which a client's update locks them.
        await resources.lock(tx, "Subscription", str(subscription_id))
        stored = await resources.read(
            tx, self._store, "Subscription", str(subscription_id)
        )
        current = await subscriptions.read(tx, self._store, subscription_id)
        if current.status != subscription.status:
            return  # the client has changed it while we called
        await subscriptions.set_status(tx, subscription_id, status, error=error)
        resource = {**parse(stored.body), "status": status}
        await put(tx, self._store, resource)
        log.info(
            "subscription.status", subscription=str(subscription_id), status=status
        )

    async def _heartbeat(self, subscription_id: UUID) -> None:
        async with self._store.db.transaction() as tx:
            subscription = await subscriptions.read(tx, self._store, subscription_id)
        period = subscription.heartbeat_period_s
        if subscription.status == "off" or period is None:
            return
        due = subscription.next_heartbeat_at
        if due is not None and due > self._store.clock():
            return  # the period was set anew; another job waits for that moment
        if subscription.status == "active":
            await self._post(
                subscription, notification(self._settings, subscription, "heartbeat")
            )
        following = self._store.clock() + timedelta(seconds=period)
        async with self._store.db.transaction() as tx:
            await subscriptions.set_heartbeat(tx, subscription_id, following)
            await _defer(
                tx, self._store, subscription_id, not_before=following, heartbeat=True
            )

    async def _post(self, subscription: Subscription, bundle: Json) -> bool:
        headers = {}
        for line in subscription.headers:
            name, _, value = line.partition(":")
            headers[name] = value.strip()
        body = to_bytes(bundle)
        if subscription.subscription_id == RELAY:
            headers |= self._signature(body)
        elif not endpoint_allowed(subscription.endpoint, self._settings):
            return False  # the site has taken the host off its list since
        status = await self._call(
            subscription.endpoint, body, headers, subscription.timeout_s
        )
        if status is not None and 200 <= status < 300:
            return True
        log.warning(
            "subscription.failing",
            subscription=str(subscription.subscription_id),
            status=status,
        )
        return False

    def _signature(self, body: bytes) -> dict[str, str]:
        now = datetime.now(UTC)  # judged by another machine: never a test's clock
        return {SIGNATURE_HEADER: sign(self._settings.relay_secret, body, now)}

    async def _call(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: int
    ) -> int | None:
        """POST `body`; return the status, or None when nobody answered."""
        try:
            async with self._session.post(
                url,
                data=body,
                headers={**headers, "Content-Type": CONTENT_TYPE},
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                return response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return None

    async def offer_binding(self, payload: Mapping[str, Any]) -> None:
        """Tell the relay what a desk's QR code will prove; job {binding_id}."""
        binding_id = UUID(str(payload["binding_id"]))
        async with self._store.db.transaction() as tx:
            binding = await people.read_binding(tx, binding_id)
            identity = await studies.patient(tx, self._store, binding.patient_id)
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
        url = f"{self._settings.relay_url.rstrip('/')}/hook/binding"
        status = await self._call(url, body, self._signature(body), _DEFAULT_TIMEOUT_S)
        if status is None or not 200 <= status < 300:
            raise NodeError(
                f"the relay did not take the QR code (status {status})",
                ErrorKind.UNAVAILABLE,
            )
        async with self._store.db.transaction() as tx:
            await people.mark_binding_offered(tx, binding_id, now=self._store.clock())


def _pause_s(failures: int) -> float:
    """Return how long to wait after `failures` earlier ones: doubling, with jitter."""
    longest: float = min(_LONGEST_PAUSE_S, 0.5 * 2.0 ** min(failures, 20))
    return longest * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load only
