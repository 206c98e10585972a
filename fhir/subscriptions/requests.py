"""What a client asks by a Subscription (Subscriptions R5 Backport on R4).

What the node cannot do for it is refused with 422 and the element, at once: a
subscriber that waits for what never comes is worse than one that knows.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from fhir.encoding.formats import XML_CONTENT_TYPE
from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused
from fhir.encoding.wire import Json, as_list, date_range, extension
from fhir.settings import FhirSettings
from fhir.subscriptions.entitlement import owner_of, require_own, require_topic
from fhir.subscriptions.notification import BACKPORT, SIGNATURE_HEADER
from fhir.subscriptions.topics import Topic, filtered_type, read_filters
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.store import subscriptions
from node.store.subscriptions import REST_HOOK, WEBSOCKET, Owner, Subscription

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

# The node's own subscription, the relay's: no client ever gets to write under it.
RELAY = UUID("7c0c4d52-2f0b-5f0a-8a53-64c0a6f0d3b1")
CONTENTS = ("empty", "id-only", "full-resource")
_DEFAULT_TIMEOUT_S = 10
_TIMEOUTS_S = range(1, 61)
_HEARTBEATS_S = range(10, 86401)
_COUNTS = range(1, 101)
_MOST_FILTERS = 20
_FILTER = f"{BACKPORT}/backport-filter-criteria"
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e]*)")
_OUR_HEADERS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection"}
    | {SIGNATURE_HEADER.lower(), "upgrade", "te", "trailer"}
)
# Written, never read back, and sent to nobody: what calls are signed with.
SECRET_HEADER = "X-Sononode-Secret"  # noqa: S105 - the name of it
_SECRET_LENGTHS = range(32, 257)
_HIDDEN = "***"
_MEDIA_TYPE = re.compile(
    rf"({re.escape(CONTENT_TYPE)}|{re.escape(XML_CONTENT_TYPE)})"
    r"(\s*;\s*(charset=utf-8|fhirversion=4\.0(\.1)?))*",
    re.IGNORECASE,
)


async def accept(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    caller: Identity,
    resource: Json,
    subscription_id: UUID,
    *,
    known: bool = False,
) -> Json:
    """Store what a client asks by a new Subscription, or a `known` one; return it.

    To switch one off needs no right to what it tells. Whoever else changes it, it
    stays its owner's: nobody is told by it what she may not read. The values of its
    headers are credentials of the hook: who reads it sees their names, and sends the
    stars back to leave them as they are. A secret by `SECRET_HEADER` signs the calls
    from now on; one that is not sent stays.
    """
    topic = topic_of(settings, resource["criteria"])
    if resource["status"] == "off":
        caller.require(Action.MANAGE_SUBSCRIPTION)
    else:
        require_topic(caller, topic)
    owner, signed = owner_of(caller), False
    if known:
        if subscription_id == RELAY:
            raise NodeError(
                "this subscription is the node's own; it follows relay.url",
                ErrorKind.FORBIDDEN,
            )
        current = await subscriptions.read(tx, store, subscription_id)
        require_own(caller, current.owner)
        if current.owner is not None and current.owner.user_id != owner.user_id:
            owner = current.owner
        resource = _with_headers(resource, _restored(resource, current))
        signed = bool(current.secrets)
    made = await subscribe(tx, store, settings, resource, subscription_id, owner)
    return _with_headers(made, _shown(made, signed=signed))


async def subscribe(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    resource: Json,
    subscription_id: UUID,
    owner: Owner | None,
    *,
    trusted: bool = False,
) -> Json:
    """Store what a Subscription asks and start its handshake; return the resource.

    Refused with 422 for what we do not have and for an endpoint that is not on the
    site's list, unless the node itself asks (`trusted`). A socket has nothing to
    shake hands with yet: its subscription is active at once.
    """
    asked = _Asked(resource, settings, store.clock())
    asked.refuse_faults(trusted=trusted)
    beat = asked.integer("backport-heartbeat-period", _HEARTBEATS_S)
    first = None if beat is None else store.clock() + timedelta(seconds=beat)
    subscription = replace(
        asked.subscription(subscription_id), owner=owner, next_heartbeat_at=first
    )
    await subscriptions.create(tx, store, subscription)
    secret = asked.secret()
    if secret is not None:
        overlap = settings.hook_secret_overlap
        await subscriptions.set_secret(
            tx, store, subscription_id, secret, overlap=overlap
        )
    return {**resource, "status": subscription.status}


def topic_of(settings: FhirSettings, url: object) -> Topic:
    """Return a topic by its address; refused with 422 when there is none here."""
    topic = settings.topics.get(str(url))
    if topic is None:
        words = f"no such topic here; there are {', '.join(sorted(settings.topics))}"
        issue = Issue("not-supported", words, "Subscription.criteria")
        raise Refused([issue], 422, ErrorKind.RULE)
    return topic


def read_id(text: str) -> UUID:
    """Return the id of a subscription; NOT_FOUND when it cannot be one."""
    try:
        return UUID(text)
    except ValueError:
        raise NodeError("there is no such subscription", ErrorKind.NOT_FOUND) from None


class _Asked:
    """Reads one Subscription."""

    def __init__(self, resource: Json, settings: FhirSettings, now: datetime) -> None:
        self._resource = resource
        self._settings = settings
        self._now = now
        self._channel: Json = resource["channel"]

    def subscription(self, subscription_id: UUID) -> Subscription:
        """Return what is asked; only after `refuse_faults`."""
        kind = self._channel["type"]
        status = self._resource["status"]
        socket = kind == WEBSOCKET
        return Subscription(
            subscription_id=subscription_id,
            topic=self._resource["criteria"],
            status="active" if socket and status == "requested" else status,
            endpoint="" if socket else self._channel["endpoint"],
            headers=self._headers(),
            content=self._content(),
            timeout_s=self.integer("backport-timeout", _TIMEOUTS_S)
            or _DEFAULT_TIMEOUT_S,
            heartbeat_period_s=self.integer("backport-heartbeat-period", _HEARTBEATS_S),
            channel=kind,
            media_type=self._media_type(),
            max_count=self.integer("backport-max-count", _COUNTS) or 1,
            filters=tuple(text for _, text in self._filters()),
            ends_at=self._end(),
        )

    def refuse_faults(self, *, trusted: bool) -> None:
        """Raise Refused with everything that the node cannot do."""
        issues = [*self._faults(trusted=trusted), *self._filter_faults()]
        if issues:
            raise Refused(issues, 422, ErrorKind.RULE)

    def _faults(self, *, trusted: bool) -> Iterator[Issue]:
        resource, channel = self._resource, self._channel
        if resource["status"] not in ("requested", "off"):
            yield _issue("status", "must be requested or off")
        if channel["type"] not in (REST_HOOK, WEBSOCKET):
            yield _issue("channel.type", f"only {REST_HOOK} and {WEBSOCKET}")
        if not _MEDIA_TYPE.fullmatch(self._media_type()):
            words = f"only {CONTENT_TYPE} and {XML_CONTENT_TYPE}, fhirVersion=4.0"
            yield _issue("channel.payload", words)
        if self._content() not in CONTENTS:
            yield _issue("channel.payload", f"the content is {', '.join(CONTENTS)}")
        if "end" in resource and not self._ends_later():
            yield _issue("end", "must be later than now")
        yield from self._endpoint_faults(trusted=trusted)
        if not all(map(_header_allowed, _header_lines(resource))):
            yield _issue("channel.header", "malformed, or a header that is ours")
        yield from self._secret_faults()

    def _secret_faults(self) -> Iterator[Issue]:
        told = self._secrets()
        if len(told) > 1 or any(len(one) not in _SECRET_LENGTHS for one in told):
            words = f"{SECRET_HEADER} stands once, with 32 to 256 characters"
            yield _issue("channel.header", words)

    def _endpoint_faults(self, *, trusted: bool) -> Iterator[Issue]:
        endpoint = str(self._channel.get("endpoint", ""))
        if self._channel["type"] == WEBSOCKET:
            if endpoint or _header_lines(self._resource):
                yield _issue("channel.endpoint", "a socket is opened by the client")
        elif not trusted and not self._settings.endpoints.allow(endpoint):
            words = "not on this site's list of hooks, or http where that says https"
            yield _issue("channel.endpoint", words)

    def _filter_faults(self) -> Iterator[Issue]:
        topic = topic_of(self._settings, self._resource["criteria"])
        extensions = as_list(self._resource.get("_criteria", {}).get("extension"))
        if "_criteria" in self._resource and not all(
            isinstance(one, dict) and one.get("url") == _FILTER for one in extensions
        ):
            yield _issue("criteria", f"the only extension here is {_FILTER}")
            return
        if len(extensions) > _MOST_FILTERS:
            yield _issue("criteria", f"no more than {_MOST_FILTERS} filters")
            return
        for number, one in enumerate(extensions):
            named = filtered_type(str(one.get("valueString", "")))
            if named not in (None, topic.kind):
                words = f"this topic is about {topic.kind}"
                yield _issue(f"criteria.extension[{number}].value", words)
        for number, text in self._filters():
            try:
                topic.filter(text)
            except NodeError as error:
                yield _issue(f"criteria.extension[{number}].value", error.message)

    def _filters(self) -> Iterator[tuple[int, str]]:
        extensions = as_list(self._resource.get("_criteria", {}).get("extension"))
        for number, one in enumerate(extensions):
            for text in read_filters(str(one.get("valueString", ""))):
                yield number, text

    def _content(self) -> str:
        found = extension(
            self._channel.get("_payload", {}), f"{BACKPORT}/backport-payload-content"
        )
        return str((found or {}).get("valueCode", "empty"))

    def _media_type(self) -> str:
        return str(self._channel.get("payload", CONTENT_TYPE)).strip()

    def _headers(self) -> tuple[str, ...]:
        lines = _header_lines(self._resource)
        return tuple(line for line in lines if not _is_secret(line))

    def secret(self) -> bytes | None:
        """Return the new secret that is told; only after `refuse_faults`."""
        return next((one.encode() for one in self._secrets()), None)

    def _secrets(self) -> list[str]:
        lines = filter(_is_secret, _header_lines(self._resource))
        return [line.partition(":")[2].strip() for line in lines]

    def _end(self) -> datetime | None:
        end = self._resource.get("end")
        return None if end is None else date_range(str(end))[0]

    def _ends_later(self) -> bool:
        end = self._end()
        return end is not None and end > self._now

    def integer(self, name: str, allowed: range) -> int | None:
        """Return the number in an extension of the channel; Refused out of range."""
        found = extension(self._channel, f"{BACKPORT}/{name}")
        if found is None:
            return None
        value = next((v for k, v in found.items() if k.startswith("value")), None)
        if not isinstance(value, int) or value not in allowed:
            words = f"{name} is {allowed.start} to {allowed.stop - 1}"
            issue = Issue("value", words, "Subscription.channel.extension")
            raise Refused([issue], 422, ErrorKind.RULE)
        return value


def _issue(element: str, words: str) -> Issue:
    return Issue("not-supported", words, f"Subscription.{element}")


def _header_lines(resource: Json) -> list[str]:
    return [str(line) for line in as_list(resource["channel"].get("header"))]


def _with_headers(resource: Json, lines: list[str]) -> Json:
    channel = {k: v for k, v in resource["channel"].items() if k != "header"}
    return {**resource, "channel": channel | ({"header": lines} if lines else {})}


def _hidden(line: str) -> str:
    return f"{line.partition(':')[0]}: {_HIDDEN}"


_HIDDEN_SECRET = f"{SECRET_HEADER}: {_HIDDEN}"


def _shown(resource: Json, *, signed: bool) -> list[str]:
    """Return the headers as they are read: names, and whether there is a secret."""
    lines = _header_lines(resource)
    others = [_hidden(line) for line in lines if not _is_secret(line)]
    return [*others, _HIDDEN_SECRET] if signed or len(others) < len(lines) else others


def _restored(resource: Json, known: Subscription) -> list[str]:
    """Return the headers of a resource, hidden ones as they are known, in order."""
    left = [*known.headers, *([_HIDDEN_SECRET] if known.secrets else [])]
    lines = []
    for line in _header_lines(resource):
        same = [one for one in left if _hidden(one).lower() == line.lower()]
        if same:
            left.remove(same[0])
        lines.append(same[0] if same else line)
    return [line for line in lines if line != _HIDDEN_SECRET]


def _is_secret(line: str) -> bool:
    return line.partition(":")[0].strip().lower() == SECRET_HEADER.lower()


def _header_allowed(line: str) -> bool:
    match = _HEADER.fullmatch(line)
    return match is not None and match[1].lower() not in _OUR_HEADERS
