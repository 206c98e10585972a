"""A WeChat server that behaves like WeChat, for the tests and for `make demo`.

It answers the four calls that a hospital's server makes, plus the legacy token
call that must not disturb them, and it sends the events of subscription
messages. Everything it received is kept in `received`, byte for byte, so that
a test can look for a name in it. Time comes from the caller; every fault is
switched on by the caller.

WeChat answers HTTP 200 for every error and ends `errmsg` with ` rid: …`; so
does this server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Clock = Callable[[], datetime]

BEIJING = timezone(timedelta(hours=8))
TOKEN_LIFE = timedelta(seconds=7200)
TOKEN_OVERLAP = timedelta(seconds=300)
CODE_LIFE = timedelta(minutes=5)
FORCE_REFRESH_GAP = timedelta(seconds=30)
FORCE_REFRESH_PER_DAY = 20

JSCODE = "/sns/jscode2session"
STABLE_TOKEN = "/cgi-bin/stable_token"
LEGACY_TOKEN = "/cgi-bin/token"
SEND = "/cgi-bin/message/subscribe/send"
PHONE = "/wxa/business/getuserphonenumber"

DEMO_APP_ID = "wx5f0a90de0e000001"
DEMO_APP_SECRET = "demo-secret-of-the-fake-server"
DEMO_TEMPLATE = "tmpl-report-updated-000000000000000000000001"
DEMO_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    DEMO_TEMPLATE: ("thing1", "date2", "thing3")
}
DEMO_PAGES = ("pages/bind/index", "pages/list/index", "pages/report/index")

_HAN = r"[\u3400-\u9fff\U00020000-\U0003ffff]"
_DATE = r"\d{4}年\d{1,2}月\d{1,2}日"
_CLOCK = r"\d{1,2}:\d{2}(:\d{2})?"
FIELD_RULES: Mapping[str, re.Pattern[str]] = {
    "thing": re.compile(r".{1,20}", re.DOTALL),
    "number": re.compile(r"\d{1,32}(\.\d+)?"),
    "letter": re.compile(r"[A-Za-z]{1,32}"),
    "symbol": re.compile(r"[^\w\s]{1,5}"),
    "character_string": re.compile(r"[\x21-\x7e]{1,32}"),
    "time": re.compile(rf"({_DATE} ?)?{_CLOCK}"),
    "date": re.compile(rf"{_DATE}( ?{_CLOCK})?"),
    "amount": re.compile(r"[^\d\s]?\d{1,10}(\.\d+)?元?"),
    "phone_number": re.compile(r"[\d+\- ]{1,17}"),
    "car_number": re.compile(r".{1,8}"),
    "name": re.compile(rf"{_HAN}{{1,10}}|[A-Za-z\W]{{1,20}}"),
    "phrase": re.compile(rf"{_HAN}{{1,5}}"),
}


class WeChatError(Exception):
    """One errcode, as the caller sees it."""

    def __init__(self, errcode: int, errmsg: str) -> None:
        super().__init__(errmsg)
        self.errcode = errcode
        self.errmsg = errmsg


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next `times` calls of one path.

    `kind`: `errcode` answers it; `http` answers that HTTP status; `hang` never
    answers; `slow` answers after `delay_s`; `reset` cuts the connection.
    `counted` says whether WeChat did the work before the connection failed:
    the caller cannot tell, the patient can.
    """

    kind: str
    times: int = 1
    code: int = -1
    delay_s: float = 0.0
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in."""

    method: str
    path: str
    target: str
    headers: bytes
    body: bytes

    @property
    def octets(self) -> bytes:
        return b"\n".join(
            (self.method.encode(), self.target.encode(), self.headers, self.body)
        )


@dataclass(frozen=True, slots=True)
class SentMessage:
    """One subscription message that reached a phone."""

    openid: str
    template_id: str
    page: str
    data: Mapping[str, str]
    at: datetime


@dataclass(slots=True)
class _Token:
    value: str
    expires: datetime


@dataclass(slots=True)
class _Code:
    subject: str
    expires: datetime


@dataclass(slots=True)
class _Ledger:
    """One-time subscriptions of one (openid, template)."""

    quota: int = 0
    refused: bool = False


@dataclass(slots=True)
class _Limits:
    """Calls allowed per path; None means WeChat's real, very large number."""

    per_minute: dict[str, int] = field(default_factory=dict)
    per_day: dict[str, int] = field(default_factory=dict)


class FakeWeChat:
    """The server and its controls. `start` binds it to 127.0.0.1."""

    def __init__(
        self,
        *,
        clock: Clock,
        app_id: str = DEMO_APP_ID,
        app_secret: str = DEMO_APP_SECRET,
        templates: Mapping[str, tuple[str, ...]] = DEMO_TEMPLATES,
        pages: Iterable[str] = DEMO_PAGES,
        push_token: str = "",
        push_aes_key: str = "",
    ) -> None:
        self.clock = clock
        self.app_id = app_id
        self.app_secret = app_secret
        self.templates = dict(templates)
        self.pages = frozenset(pages)
        self.push_token = push_token
        self.push_aes_key = push_aes_key
        self.push_url: str | None = None
        self.limits = _Limits()
        self.received: list[Received] = []
        self.sent: list[SentMessage] = []
        self.events: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.base_url = ""
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._js_codes: dict[str, _Code] = {}
        self._phone_codes: dict[str, _Code] = {}
        self._openids: set[str] = set()
        self._ledgers: dict[tuple[str, str], _Ledger] = defaultdict(_Ledger)
        self._stable: list[_Token] = []
        self._legacy: _Token | None = None
        self._killed: set[str] = set()
        self._forced: list[datetime] = []
        self._busy_openids: set[str] = set()
        self._minute_counts: Counter[tuple[str, datetime]] = Counter()
        self._day_counts: Counter[tuple[str, str]] = Counter()
        self._hanging: set[asyncio.Event] = set()
        self._arrival = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._pushes: set[asyncio.Task[None]] = set()

    # ---- life -------------------------------------------------------------

    def build_app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get(JSCODE, self._guard(JSCODE, self._jscode2session))
        app.router.add_post(STABLE_TOKEN, self._guard(STABLE_TOKEN, self._stable_token))
        app.router.add_get(LEGACY_TOKEN, self._guard(LEGACY_TOKEN, self._legacy_token))
        app.router.add_post(SEND, self._guard(SEND, self._send))
        app.router.add_post(PHONE, self._guard(PHONE, self._phone_number))
        app.router.add_post("/_control/js-codes", self._control_js_code)
        app.router.add_post("/_control/quota", self._control_quota)
        app.router.add_post("/_control/refusals", self._control_refusal)
        app.router.add_post("/_control/faults", self._control_fault)
        app.router.add_get("/_control/sent", self._control_sent)
        app.router.add_get("/healthz", _healthy)
        return app

    async def start(self, port: int = 0, *, app: web.Application | None = None) -> str:
        """Serve on 127.0.0.1 and return the base URL."""
        self._runner = web.AppRunner(
            app or self.build_app(), access_log=None, shutdown_timeout=1.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{bound}"
        return self.base_url

    async def stop(self) -> None:
        self.release()
        for task in list(self._pushes):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ---- controls ---------------------------------------------------------

    def issue_js_code(self, openid: str) -> str:
        """Return a `wx.login` code for `openid`: good once, for five minutes."""
        code = secrets.token_urlsafe(24)
        self._openids.add(openid)
        self._js_codes[code] = _Code(openid, self.clock() + CODE_LIFE)
        return code

    def issue_phone_code(self, phone: str) -> str:
        code = secrets.token_urlsafe(24)
        self._phone_codes[code] = _Code(phone, self.clock() + CODE_LIFE)
        return code

    def grant(self, openid: str, template_id: str, times: int = 1) -> None:
        """The patient tapped "allow": one message more per tap."""
        self._openids.add(openid)
        ledger = self._ledgers[openid, template_id]
        ledger.refused = False
        ledger.quota += times
        for _ in range(times):
            self._emit(
                "subscribe_msg_popup_event",
                openid,
                template_id,
                SubscribeStatusString="accept",
            )

    def refuse(self, openid: str, template_id: str) -> None:
        """The patient switched the template off in WeChat's settings."""
        self._openids.add(openid)
        ledger = self._ledgers[openid, template_id]
        ledger.refused = True
        ledger.quota = 0
        self._emit(
            "subscribe_msg_change_event",
            openid,
            template_id,
            SubscribeStatusString="reject",
        )

    def quota(self, openid: str, template_id: str) -> int:
        return self._ledgers[openid, template_id].quota

    def fail(self, path: str, fault: Fault) -> None:
        """Let the next `fault.times` calls of `path` go wrong."""
        self._faults[path].append(fault)

    def release(self) -> None:
        """Let every hanging call end (with a cut connection)."""
        for event in list(self._hanging):
            event.set()

    def kill_token(self, value: str) -> None:
        """Make one token invalid at once, as a forced refresh elsewhere would."""
        self._killed.add(value)
        self._stable = [token for token in self._stable if token.value != value]

    def current_token(self) -> str | None:
        return self._stable[-1].value if self._stable else None

    async def wait_until_sent(self, count: int, timeout_s: float = 10.0) -> None:
        """Return when `count` messages reached phones; TimeoutError otherwise."""
        async with asyncio.timeout(timeout_s):
            while len(self.sent) < count:
                self._arrival.clear()
                await self._arrival.wait()

    async def wait_until_called(
        self, path: str, count: int, timeout_s: float = 10.0
    ) -> None:
        """Return when `path` was called `count` times, answered or not."""
        async with asyncio.timeout(timeout_s):
            while self.calls[path] < count:
                self._arrival.clear()
                await self._arrival.wait()

    def received_octets(self) -> bytes:
        """Everything that ever came in from the hospital's side."""
        return b"\n".join(entry.octets for entry in self.received)

    # ---- request frame ----------------------------------------------------

    def _guard(
        self,
        path: str,
        handler: Callable[[web.Request, bytes], Awaitable[dict[str, Any]]],
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            headers = b"\n".join(
                name + b": " + value for name, value in request.raw_headers
            )
            self.received.append(
                Received(request.method, path, request.raw_path, headers, body)
            )
            self.calls[path] += 1
            self._arrival.set()
            fault = self._next_fault(path)
            try:
                answer = await self._answer(request, path, body, handler, fault)
            except WeChatError as error:
                answer = {
                    "errcode": error.errcode,
                    "errmsg": f"{error.errmsg} rid: {_rid()}",
                }
            if fault is not None and fault.kind == "http":
                return web.Response(status=fault.code, text="bad gateway")
            return web.json_response(answer)

        return handle

    async def _answer(
        self,
        request: web.Request,
        path: str,
        body: bytes,
        handler: Callable[[web.Request, bytes], Awaitable[dict[str, Any]]],
        fault: Fault | None,
    ) -> dict[str, Any]:
        if fault is None:
            self._count(path)
            return await handler(request, body)
        if fault.kind == "errcode":
            raise WeChatError(
                fault.code, "system error" if fault.code == -1 else "fault switched on"
            )
        if fault.kind == "http":
            return {}
        if fault.kind == "slow":
            await asyncio.sleep(fault.delay_s)
            self._count(path)
            return await handler(request, body)
        if fault.counted:
            self._count(path)
            await handler(request, body)
        if fault.kind == "hang":
            event = asyncio.Event()
            self._hanging.add(event)
            try:
                await event.wait()
            finally:
                self._hanging.discard(event)
        if request.transport is not None:
            request.transport.abort()
        raise WeChatError(-1, "connection cut")

    def _next_fault(self, path: str) -> Fault | None:
        pending = self._faults[path]
        while pending and pending[0].times <= 0:
            pending.pop(0)
        if not pending:
            return None
        pending[0].times -= 1
        return pending[0]

    def _count(self, path: str) -> None:
        now = self.clock()
        minute = (path, now.replace(second=0, microsecond=0))
        day = (path, now.astimezone(BEIJING).date().isoformat())
        if self._minute_counts[minute] >= self.limits.per_minute.get(path, 10_000):
            raise WeChatError(
                45011, "api minute-quota reach limit, please retry next minute"
            )
        if self._day_counts[day] >= self.limits.per_day.get(path, 10_000_000):
            raise WeChatError(45009, "reach max api daily quota limit")
        self._minute_counts[minute] += 1
        self._day_counts[day] += 1

    # ---- the hospital's calls ---------------------------------------------

    def _check_app(self, app_id: object, secret: object) -> None:
        if app_id != self.app_id:
            raise WeChatError(40013, "invalid appid")
        if secret != self.app_secret:
            raise WeChatError(40125, "invalid appsecret")

    def _take_code(self, codes: dict[str, _Code], value: object) -> str:
        code = codes.pop(value, None) if isinstance(value, str) else None
        if code is None or code.expires <= self.clock():
            raise WeChatError(40029, "invalid code")
        return code.subject

    async def _jscode2session(
        self, request: web.Request, body: bytes
    ) -> dict[str, Any]:
        query = request.query
        self._check_app(query.get("appid"), query.get("secret"))
        if query.get("grant_type") != "authorization_code":
            raise WeChatError(40002, "invalid grant_type")
        openid = self._take_code(self._js_codes, query.get("js_code"))
        session_key = base64.b64encode(secrets.token_bytes(16)).decode()
        return {"openid": openid, "session_key": session_key}

    async def _stable_token(self, request: web.Request, body: bytes) -> dict[str, Any]:
        asked = _json_object(body)
        self._check_app(asked.get("appid"), asked.get("secret"))
        if asked.get("grant_type") != "client_credential":
            raise WeChatError(40002, "invalid grant_type")
        token = (
            self._force_refresh()
            if asked.get("force_refresh") is True
            else self._normal_token()
        )
        left = int((token.expires - self.clock()).total_seconds())
        return {"access_token": token.value, "expires_in": left}

    def _normal_token(self) -> _Token:
        """Return the same token until five minutes before its end, then a second."""
        now = self.clock()
        current = self._stable[-1] if self._stable else None
        if current is not None and current.expires - now > TOKEN_OVERLAP:
            return current
        if current is not None:
            current.expires = min(current.expires, now + TOKEN_OVERLAP)
        return self._new_stable_token()

    def _force_refresh(self) -> _Token:
        now = self.clock()
        today = [
            at
            for at in self._forced
            if at.astimezone(BEIJING).date() == now.astimezone(BEIJING).date()
        ]
        if len(today) >= FORCE_REFRESH_PER_DAY:
            raise WeChatError(45009, "reach max force_refresh daily quota limit")
        if self._forced and now - self._forced[-1] < FORCE_REFRESH_GAP:
            raise WeChatError(45011, "force_refresh too frequent")
        self._forced.append(now)
        for token in self._stable:
            self._killed.add(token.value)
        self._stable.clear()
        return self._new_stable_token()

    def _new_stable_token(self) -> _Token:
        token = _Token(
            f"{len(self._stable)}_{secrets.token_urlsafe(96)}",
            self.clock() + TOKEN_LIFE,
        )
        self._stable.append(token)
        return token

    async def _legacy_token(self, request: web.Request, body: bytes) -> dict[str, Any]:
        """Each call kills the legacy token before it, never a stable one."""
        self._check_app(request.query.get("appid"), request.query.get("secret"))
        if self._legacy is not None:
            self._killed.add(self._legacy.value)
        self._legacy = _Token(secrets.token_urlsafe(96), self.clock() + TOKEN_LIFE)
        return {
            "access_token": self._legacy.value,
            "expires_in": int(TOKEN_LIFE.total_seconds()),
        }

    def _check_token(self, value: str | None) -> None:
        known = [*self._stable, *([self._legacy] if self._legacy else [])]
        match = next((token for token in known if token.value == value), None)
        if match is None or match.value in self._killed:
            raise WeChatError(
                40001, "invalid credential, access_token is invalid or not latest"
            )
        if match.expires <= self.clock():
            raise WeChatError(42001, "access_token expired")

    async def _phone_number(self, request: web.Request, body: bytes) -> dict[str, Any]:
        self._check_token(request.query.get("access_token"))
        phone = self._take_code(self._phone_codes, _json_object(body).get("code"))
        info = {
            "phoneNumber": f"+86{phone}",
            "purePhoneNumber": phone,
            "countryCode": "86",
        }
        return {"errcode": 0, "errmsg": "ok", "phone_info": info}

    async def _send(self, request: web.Request, body: bytes) -> dict[str, Any]:
        self._check_token(request.query.get("access_token"))
        message = _json_object(body)
        openid = str(message.get("touser", ""))
        if openid in self._busy_openids:
            raise WeChatError(43108, "Cannot make concurrent calls to the same OpenID")
        self._busy_openids.add(openid)
        try:
            await asyncio.sleep(0)
            return self._deliver(openid, message)
        finally:
            self._busy_openids.discard(openid)

    def _deliver(self, openid: str, message: Mapping[str, Any]) -> dict[str, Any]:
        template_id = str(message.get("template_id", ""))
        page = str(message.get("page", ""))
        if openid not in self._openids:
            raise WeChatError(40003, "invalid openid")
        if template_id not in self.templates:
            raise WeChatError(40037, "invalid template_id")
        if page and page.partition("?")[0] not in self.pages:
            raise WeChatError(41030, "invalid page")
        data = _checked_fields(self.templates[template_id], message.get("data"))
        ledger = self._ledgers[openid, template_id]
        if ledger.refused or ledger.quota <= 0:
            raise WeChatError(43101, "user refuse to accept the msg")
        ledger.quota -= 1
        self._arrival.set()
        self.sent.append(SentMessage(openid, template_id, page, data, self.clock()))
        self._emit(
            "subscribe_msg_sent_event",
            openid,
            template_id,
            ErrorCode="0",
            ErrorStatus="success",
        )
        return {"errcode": 0, "errmsg": "ok", "msgid": len(self.sent)}

    # ---- events to the hospital -------------------------------------------

    def _emit(self, kind: str, openid: str, template_id: str, **details: str) -> None:
        entry = {"TemplateId": template_id, **details}
        self.events.append(
            {
                "ToUserName": "gh_fake",
                "FromUserName": openid,
                "CreateTime": int(self.clock().timestamp()),
                "MsgType": "event",
                "Event": kind,
                "List": entry,
            }
        )
        if self.push_url is not None:
            task = asyncio.ensure_future(self._push_quietly(self.events[-1]))
            self._pushes.add(task)
            task.add_done_callback(self._pushes.discard)

    async def _push_quietly(self, event: Mapping[str, Any]) -> None:
        try:
            await self.push_event(event)
        except aiohttp.ClientError:
            return

    async def push_event(
        self,
        event: Mapping[str, Any],
        *,
        url: str | None = None,
        as_array: bool = False,
        forged: bool = False,
    ) -> int:
        """POST one event as WeChat does and return the HTTP status.

        WeChat sends `List` as an object for one template and as an array for
        several, and `CreateTime` as a number or as text; `as_array` sends the
        second form of both.
        """
        body: dict[str, Any] = dict(event)
        if as_array:
            body["List"] = [event["List"]]
            body["CreateTime"] = str(event["CreateTime"])
        timestamp, nonce = str(int(self.clock().timestamp())), secrets.token_hex(5)
        token = "forged" if forged else self.push_token
        query = {
            "timestamp": timestamp,
            "nonce": nonce,
            "signature": sign(token, timestamp, nonce),
        }
        if self.push_aes_key:
            cipher = self._encrypt(json.dumps(body, ensure_ascii=False).encode())
            query |= {
                "encrypt_type": "aes",
                "msg_signature": sign(token, timestamp, nonce, cipher),
            }
            body = {"ToUserName": "gh_fake", "Encrypt": cipher}
        target = url or self.push_url
        if target is None:
            raise ValueError("no URL to push events to")
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(target, params=query, json=body) as response,
        ):
            return response.status

    def _encrypt(self, plain: bytes) -> str:
        """Seal as WeChat does: 16 random bytes, length, body, appid; AES-256-CBC."""
        key = base64.b64decode(self.push_aes_key + "=")
        text = (
            os.urandom(16)
            + struct.pack(">I", len(plain))
            + plain
            + self.app_id.encode()
        )
        pad = 32 - len(text) % 32
        encryptor = Cipher(algorithms.AES(key), modes.CBC(key[:16])).encryptor()
        cipher = encryptor.update(text + bytes([pad]) * pad) + encryptor.finalize()
        return base64.b64encode(cipher).decode()

    # ---- controls over HTTP, for the demo ----------------------------------

    async def _control_js_code(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"js_code": self.issue_js_code(asked["openid"])})

    async def _control_quota(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.grant(asked["openid"], asked["template_id"], int(asked.get("times", 1)))
        return web.json_response(
            {"quota": self.quota(asked["openid"], asked["template_id"])}
        )

    async def _control_refusal(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.refuse(asked["openid"], asked["template_id"])
        return web.json_response({"quota": 0})

    async def _control_fault(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.fail(asked.pop("path"), Fault(**asked))
        return web.json_response({"ok": True})

    async def _control_sent(self, request: web.Request) -> web.Response:
        listed = [
            {
                "openid": message.openid,
                "template_id": message.template_id,
                "page": message.page,
                "data": dict(message.data),
                "at": message.at.isoformat(),
            }
            for message in self.sent
        ]
        return web.json_response({"sent": listed})


async def _healthy(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def sign(*parts: str) -> str:
    """Return WeChat's message signature: SHA-1 over the sorted parts."""
    return hashlib.sha1(
        "".join(sorted(parts)).encode(), usedforsecurity=False
    ).hexdigest()


def _rid() -> str:
    return "-".join((secrets.token_hex(4), secrets.token_hex(4), secrets.token_hex(4)))


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        raise WeChatError(47001, "data format error") from None
    if not isinstance(value, dict):
        raise WeChatError(47001, "data format error")
    return value


def _checked_fields(names: tuple[str, ...], data: object) -> dict[str, str]:
    """Return the template's values, or raise 47003 naming the first wrong field."""
    fields = data if isinstance(data, dict) else {}
    values: dict[str, str] = {}
    for name in names:
        entry = fields.get(name)
        value = entry.get("value") if isinstance(entry, dict) else None
        rule = FIELD_RULES[name.rstrip("0123456789")]
        if not isinstance(value, str) or not rule.fullmatch(value):
            raise WeChatError(47003, f"argument invalid! data.{name}.value invalid")
        values[name] = value
    return values


async def _serve(arguments: argparse.Namespace) -> None:
    server = FakeWeChat(
        clock=lambda: datetime.now(UTC), push_token=arguments.push_token
    )
    server.push_url = arguments.push_url
    app = server.build_app()
    if arguments.phone:
        # Started as a script, only this folder is on the path.
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.fake_phone import add_phone

        add_phone(app, server, build=arguments.phone, relay_url=arguments.relay)
    await server.start(arguments.port, app=app)
    print(f"fake WeChat on {server.base_url}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop()


def main() -> None:
    """Serve the fake WeChat until it is interrupted."""
    parser = argparse.ArgumentParser(
        description="A WeChat server for the demo; never for patients."
    )
    parser.add_argument("--port", type=int, default=8091)
    parser.add_argument("--push-url", default=None, help="where subscription events go")
    parser.add_argument("--push-token", default="", help="the token that signs events")
    parser.add_argument(
        "--phone", default=None, help="folder of the mini program built for a browser"
    )
    parser.add_argument(
        "--relay", default="http://127.0.0.1:8090", help="relay behind the phone"
    )
    arguments = parser.parse_args()
    try:
        asyncio.run(_serve(arguments))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
