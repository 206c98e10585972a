"""The node's side of the relay: masked reports and binding offers come in here.

The node signs every call: `X-Sononode-Signature: t=<unix>,v1=<hex HMAC-SHA256
of t + "." + body>`. 200 means committed. Nothing else of the hospital can be
reached through this door, and nothing unmasked is accepted.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from aiohttp import web

from node.domain.disclosure import mask_name
from node.domain.errors import ErrorKind, NodeError
from wechat.relay.masked import Notification, RefusedNotification, read_notification
from wechat.relay.records import BindingOffer, Records

log = structlog.get_logger(__name__)

REPLAY_WINDOW_S = 300
SIGNATURE_HEADER = "X-Sononode-Signature"
_SIGNATURE = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")
_HANDLE = re.compile(r"[A-Za-z0-9_-]{16,64}")
_OFFER_KEYS = frozenset(
    {"binding_id", "token_hash", "check", "patient_handle", "display", "expires"}
)


def verify_hook(secret: bytes, body: bytes, header: str, now: datetime) -> None:
    """Raise NodeError UNAUTHENTICATED for a wrong, missing or old signature."""
    match = _SIGNATURE.fullmatch(header)
    if match is None:
        raise NodeError("the call is not signed", ErrorKind.UNAUTHENTICATED)
    digest = hmac.new(secret, f"{match[1]}.".encode() + body, hashlib.sha256)
    if not hmac.compare_digest(digest.hexdigest(), match[2]):
        raise NodeError("the signature is wrong", ErrorKind.UNAUTHENTICATED)
    if abs(now.timestamp() - int(match[1])) > REPLAY_WINDOW_S:
        raise NodeError(
            "the signature is too old; compare the clocks of node and relay",
            ErrorKind.UNAUTHENTICATED,
        )


class Hook:
    """Routes under `/hook`. `wake` is called after new pushes were committed."""

    def __init__(
        self,
        records: Records,
        secret: bytes,
        clock: Callable[[], datetime],
        wake: Callable[[], None],
    ) -> None:
        self._records = records
        self._secret = secret
        self._clock = clock
        self._wake = wake

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/hook", self.receive_notification),
            web.post("/hook/binding", self.receive_binding),
            web.get("/hook/deliveries", self.read_deliveries),
        ]

    async def _verified_body(self, request: web.Request) -> bytes:
        body = await request.read()
        header = request.headers.get(SIGNATURE_HEADER, "")
        verify_hook(self._secret, body, header, self._clock())
        return body

    async def receive_notification(self, request: web.Request) -> web.Response:
        """Store the reports of one delivery; answer 200 after the commit."""
        body = await self._verified_body(request)
        try:
            notification = read_notification(body)
        except RefusedNotification as error:
            log.error("hook.refused", reason=error.message, alarm=True)
            raise
        changed, pushes = 0, 0
        async with self._records.db.transaction() as tx:
            for number, report in notification.events:
                applied = await self._records.apply_event(
                    tx, notification.subscription, number, report, self._clock()
                )
                changed += applied.changed
                pushes += applied.pushes
        if pushes:
            self._wake()
        self._log(notification, changed, pushes)
        return web.json_response({"received": len(notification.events)})

    def _log(self, notification: Notification, changed: int, pushes: int) -> None:
        log.info(
            "hook.received",
            kind=notification.kind,
            subscription=notification.subscription,
            numbers=[number for number, _ in notification.events],
            changed=changed,
            pushes=pushes,
        )

    async def receive_binding(self, request: web.Request) -> web.Response:
        """Keep what a desk's QR code will prove; the same offer twice is fine."""
        offer = read_offer(await self._verified_body(request))
        async with self._records.db.transaction() as tx:
            await self._records.offer_binding(tx, offer)
        log.info("hook.binding_offered", binding_id=offer.binding_id)
        return web.json_response({"binding_id": offer.binding_id})

    async def read_deliveries(self, request: web.Request) -> web.Response:
        """Tell the node what became of the messages after sequence `after`."""
        await self._verified_body(request)
        after = request.query.get("after", "0")
        if not after.isdecimal() or len(after) > 18:
            raise NodeError("after: a number", ErrorKind.INVALID)
        async with self._records.db.connection() as connection:
            found = await self._records.deliveries(connection, int(after))
            counts = await self._records.push_counts(connection)
        return web.json_response({"deliveries": found, "counts": counts})


def read_offer(body: bytes) -> BindingOffer:
    """Return the offer, or raise for anything that is not exactly one."""
    try:
        offer = json.loads(body)
    except ValueError:
        raise NodeError("the offer is not JSON", ErrorKind.INVALID) from None
    if not isinstance(offer, dict):
        raise NodeError("the offer is not an object", ErrorKind.INVALID)
    for key in offer:
        if key not in _OFFER_KEYS:
            raise RefusedNotification(str(key), "not on the masked allow-list")
    check = offer.get("check")
    texts = {key: offer.get(key) for key in _OFFER_KEYS - {"check"}}
    if not all(isinstance(value, str) for value in texts.values()):
        raise NodeError("the offer is incomplete", ErrorKind.INVALID)
    if mask_name(offer["display"]) != offer["display"]:
        raise RefusedNotification("display", "the value does not look masked")
    if (
        not _HEX.fullmatch(offer["token_hash"])
        or not (check is None or (isinstance(check, str) and _HEX.fullmatch(check)))
        or not _HANDLE.fullmatch(offer["patient_handle"])
        or not 0 < len(offer["binding_id"]) <= 64
    ):
        raise NodeError("a value of the offer is malformed", ErrorKind.INVALID)
    return BindingOffer(
        binding_id=offer["binding_id"],
        token_hash=bytes.fromhex(offer["token_hash"]),
        check_mac=None if check is None else bytes.fromhex(check),
        patient_handle=offer["patient_handle"],
        display=offer["display"],
        expires=_instant(offer["expires"]),
    )


def _instant(text: str) -> datetime:
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise NodeError("expires: an instant", ErrorKind.INVALID) from None
    if value.tzinfo is None:
        raise NodeError("expires: an instant with a time zone", ErrorKind.INVALID)
    return value.astimezone(UTC)
