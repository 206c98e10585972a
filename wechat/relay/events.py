"""WeChat's message push: what it tells us about subscriptions, signed or sealed.

`List` is an object for one template and an array for several, and `CreateTime`
a number or text. Events come twice and out of order, so each only states what
is true: a message arrived, or the patient switched messages off.
"""

import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from node.domain.errors import ErrorKind, NodeError
from wechat.relay.settings import RelaySettings

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class SubscriptionEvent:
    """One template of one event. `status` is `success`, `reject`, `accept`, …."""

    kind: str
    openid: str
    template_id: str
    status: str
    at: datetime


def verify_signature(settings: RelaySettings, query: Mapping[str, str]) -> None:
    """Raise NodeError UNAUTHENTICATED unless WeChat signed this call."""
    expected = _sign(
        settings.event_token, query.get("timestamp", ""), query.get("nonce", "")
    )
    given = query.get("signature", "")
    if not settings.event_token or not _same(expected, given):
        raise NodeError("not signed by WeChat", ErrorKind.UNAUTHENTICATED)


def read_events(
    settings: RelaySettings, query: Mapping[str, str], body: bytes
) -> list[SubscriptionEvent]:
    """Return the subscription events of one call; other messages give none."""
    message = _json(body)
    if settings.event_aes_key:
        cipher = str(message.get("Encrypt", ""))
        expected = _sign(
            settings.event_token,
            query.get("timestamp", ""),
            query.get("nonce", ""),
            cipher,
        )
        if not _same(expected, query.get("msg_signature", "")):
            raise NodeError("not signed by WeChat", ErrorKind.UNAUTHENTICATED)
        message = _json(_decrypt(settings, cipher))
    kind, openid = str(message.get("Event", "")), str(message.get("FromUserName", ""))
    if message.get("MsgType") != "event" or not kind.startswith("subscribe_msg_"):
        return []
    listed = message.get("List")
    entries = listed if isinstance(listed, list) else [listed]
    return [
        SubscriptionEvent(
            kind,
            openid,
            str(entry.get("TemplateId", "")),
            str(entry.get("ErrorStatus") or entry.get("SubscribeStatusString") or ""),
            _instant(message.get("CreateTime")),
        )
        for entry in entries
        if isinstance(entry, dict)
    ]


def _sign(*parts: str) -> str:
    joined = "".join(sorted(parts)).encode()
    return hashlib.sha1(joined, usedforsecurity=False).hexdigest()  # WeChat's choice


def _same(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode())


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise NodeError("the event is not a JSON object", ErrorKind.INVALID)
    return value


def _decrypt(settings: RelaySettings, cipher: str) -> bytes:
    """Open WeChat's envelope: 16 random bytes, length, message, appid (AES-256-CBC)."""
    try:
        key = base64.b64decode(settings.event_aes_key + "=")
        decryptor = Cipher(algorithms.AES(key), modes.CBC(key[:16])).decryptor()
        padded = decryptor.update(base64.b64decode(cipher)) + decryptor.finalize()
        text = padded[: -padded[-1]] if 0 < padded[-1] <= _BLOCK else b""
        (length,) = struct.unpack(">I", text[16:20])
    except (ValueError, IndexError, struct.error):
        raise NodeError("the event does not open", ErrorKind.INVALID) from None
    if text[20 + length :] != settings.app_id.encode():
        raise NodeError("the event is for another app", ErrorKind.INVALID)
    return text[20 : 20 + length]


def _instant(value: object) -> datetime:
    try:
        return datetime.fromtimestamp(int(str(value)), UTC)
    except (ValueError, OverflowError, OSError):
        raise NodeError("the event has no time", ErrorKind.INVALID) from None
