"""A relay, its database and a fake WeChat, put together for one test."""

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from fhir.subscriptions.notification import SIGNATURE_HEADER, sign
from node.store.database import Database
from node.store.migrate import migrate
from tests.fake_wechat import DEMO_TEMPLATE, FakeWeChat
from wechat.relay.masked import EXTENSION_BASE, read_notification
from wechat.relay.push import PushWorker
from wechat.relay.records import MIGRATIONS, BindingOffer, Records
from wechat.relay.sealing import RelaySealer, create_key_file
from wechat.relay.server import Relay
from wechat.relay.settings import RelaySettings
from wechat.relay.wechat_api import WeChatApi

SECRET = b"a secret of node and relay, 32 B"
TEMPLATE = DEMO_TEMPLATE
SUBSCRIPTION = "3f1d7a52-2f0e-4e7c-9d7e-7d2f2a6f3c11"


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or datetime(2026, 3, 2, 9, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def handle() -> str:
    """Return a new 128-bit handle, base64url."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True)
class Masked:
    """One masked report as the node sends it; change it with `dataclasses.replace`."""

    handle: str
    patient: str
    state: str = "released"
    version: int = 1
    status: str = "final"
    category: str = "2"
    examined_on: str = "2026-03-01"
    display: str = "张*"
    summary: str = "左乳一枚小囊肿，属于良性，按常规复查即可。"
    trend: tuple[tuple[str | None, int | None, float | None], ...] = (("L", 2, 8.5),)

    def resource(self) -> dict[str, Any]:
        """Return the masked DiagnosticReport."""
        extensions = [
            _extension("release-state", valueCode=self.state),
            _extension("report-version", valuePositiveInt=self.version),
            _extension("patient-age", valueString="45"),
            _extension("department-phone", valueString="010-55550100"),
            _extension("exam-kind", valueString="breast-ultrasound"),
        ]
        if self.state == "released":
            extensions += self._content()
        return {
            "resourceType": "DiagnosticReport",
            "id": self.handle,
            "meta": {
                "security": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
                        "code": "REDACTED",
                    }
                ]
            },
            "extension": extensions,
            "status": self.status,
            "code": {"coding": [{"system": "http://loinc.org", "code": "24601-7"}]},
            "subject": {
                "identifier": {
                    "system": "https://fhir.sononode.org/patient-handle",
                    "value": self.patient,
                },
                "display": self.display,
            },
            "effectiveDateTime": self.examined_on,
        }

    def _content(self) -> list[dict[str, Any]]:
        zh, en, advice_zh, advice_en = TEXTS[self.category]
        content = [
            _extension("category", valueCode=self.category),
            _extension("patient-text-zh", valueString=zh),
            _extension("patient-text-en", valueString=en),
            _extension("advice-zh", valueString=advice_zh),
            _extension("advice-en", valueString=advice_en),
        ]
        if self.summary:
            content.append(_extension("patient-summary", valueString=self.summary))
        for side, clock, size in self.trend:
            parts: list[dict[str, Any]] = []
            if side is not None:
                parts.append({"url": "side", "valueCode": side})
            if clock is not None:
                parts.append({"url": "clock", "valueInteger": clock})
            if size is not None:
                parts.append({"url": "size_mm", "valueDecimal": size})
            content.append({"url": f"{EXTENSION_BASE}trend-point", "extension": parts})
        return content


TEXTS: Mapping[str, tuple[str, str, str, str]] = {
    "2": (
        "未见恶性征象，为良性改变",
        "No sign of malignancy; a benign finding",
        "每年常规复查一次",
        "Have a routine check once a year",
    ),
    "3": (
        "良性可能性大，建议短期复查",
        "Probably benign; a short-interval check is advised",
        "6、12、24 个月后复查",
        "Come back after 6, 12 and 24 months",
    ),
    "4A": (
        "有需要进一步明确的发现，多数为良性，请就诊",
        "A finding needs clarifying; most are benign",
        "请到乳腺外科就诊，医生可能建议穿刺活检",
        "See a breast surgeon; a biopsy may be advised",
    ),
}


def _extension(name: str, **value: Any) -> dict[str, Any]:
    return {"url": f"{EXTENSION_BASE}{name}", **value}


def notification(
    *events: tuple[int, Masked], subscription: str = SUBSCRIPTION, kind: str = ""
) -> dict[str, Any]:
    """Return a delivery in the R4 backport form, one numbered event per report."""
    last = max((number for number, _ in events), default=0)
    parameters: list[dict[str, Any]] = [
        {
            "name": "subscription",
            "valueReference": {"reference": f"Subscription/{subscription}"},
        },
        {
            "name": "topic",
            "valueCanonical": "https://fhir.sononode.org/SubscriptionTopic/report-released",
        },
        {"name": "status", "valueCode": "active"},
        {"name": "type", "valueCode": kind or "event-notification"},
        {"name": "events-since-subscription-start", "valueString": str(last)},
    ]
    for number, report in events:
        parameters.append(
            {
                "name": "notification-event",
                "part": [
                    {"name": "event-number", "valueString": str(number)},
                    {"name": "timestamp", "valueInstant": "2026-03-02T09:30:00.000Z"},
                    {
                        "name": "focus",
                        "valueReference": {
                            "reference": f"DiagnosticReport/{report.handle}"
                        },
                    },
                ],
            }
        )
    status = {
        "fullUrl": "urn:uuid:0b6d6f5e-4a5e-4f5f-9a53-6f0f7c0f9a01",
        "resource": {"resourceType": "Parameters", "parameter": parameters},
        "request": {"method": "GET", "url": f"Subscription/{subscription}/$status"},
        "response": {"status": "200"},
    }
    entries = [
        {
            "fullUrl": f"https://node.example.org/fhir/DiagnosticReport/{report.handle}",
            "resource": report.resource(),
            "request": {"method": "PUT", "url": f"DiagnosticReport/{report.handle}"},
            "response": {"status": "200"},
        }
        for _, report in events
    ]
    return {
        "resourceType": "Bundle",
        "type": "history",
        "timestamp": "2026-03-02T09:30:00.000Z",
        "entry": [status, *entries],
    }


def encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@dataclass
class Phone:
    """One patient's phone: an openid at WeChat and a session at the relay."""

    rig: "Rig"
    openid: str
    token: str = ""

    async def log_in(self) -> None:
        code = self.rig.wechat.issue_js_code(self.openid)
        status, answer = await self.call("POST", "/api/session", {"js_code": code})
        assert status == 200, answer
        self.token = answer["token"]

    async def call(
        self, method: str, path: str, body: object | None = None
    ) -> tuple[int, Any]:
        """Return HTTP status and JSON."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        async with self.rig.http.request(
            method, self.rig.relay.base_url + path, json=body, headers=headers
        ) as response:
            return response.status, await response.json()

    async def allow_message(self) -> None:
        """Tap "allow" once: WeChat counts it, and the app tells the relay."""
        self.rig.wechat.grant(self.openid, TEMPLATE)
        status, _ = await self.call("POST", "/api/quota", {"template_ids": [TEMPLATE]})
        assert status == 200


@dataclass
class Rig:
    """A running relay with the fake WeChat behind it."""

    relay: Relay
    wechat: FakeWeChat
    http: aiohttp.ClientSession
    clock: Clock
    settings: RelaySettings
    next_event: int = 1

    async def post(
        self,
        path: str,
        body: bytes,
        *,
        signature: str | None = None,
    ) -> tuple[int, dict[str, Any]]:
        header = signature or sign([SECRET], body, self.clock())
        async with self.http.post(
            self.relay.base_url + path,
            data=body,
            headers={SIGNATURE_HEADER: header, "Content-Type": "application/fhir+json"},
        ) as response:
            return response.status, await response.json()

    async def deliver(self, report: Masked) -> None:
        """Send one report as the next numbered event."""
        number, self.next_event = self.next_event, self.next_event + 1
        status, answer = await self.post(
            "/hook", encode(notification((number, report)))
        )
        assert status == 200, answer

    async def offer(
        self, patient: str, *, last4: str | None = "123X", hours: float = 24
    ) -> str:
        """Let the desk print a code for `patient` and return what the QR holds."""
        token = handle()
        status, answer = await self.post(
            "/hook/binding",
            encode(offer_body(token, patient, last4, self.clock(), hours)),
        )
        assert status == 200, answer
        return token

    async def phone(self, openid: str) -> Phone:
        phone = Phone(self, openid)
        await phone.log_in()
        return phone

    async def bound_phone(self, openid: str, patient: str) -> Phone:
        """Return a phone that is bound to `patient` with the desk's code."""
        phone = await self.phone(openid)
        token = await self.offer(patient)
        answer = await phone.call(
            "POST", "/api/bind", {"token": token, "last4": "123X"}
        )
        assert answer == (200, {"bound": True})
        return phone


def offer_body(
    token: str, patient: str, last4: str | None, now: datetime, hours: float
) -> dict[str, Any]:
    check = None
    if last4 is not None:
        check = hmac.new(token.encode(), last4.encode(), hashlib.sha256).hexdigest()
    return {
        "binding_id": handle(),
        "token_hash": hashlib.sha256(token.encode()).hexdigest(),
        "check": check,
        "patient_handle": patient,
        "display": "张*",
        "expires": (now + timedelta(hours=hours)).isoformat(),
    }


def relay_settings(dsn: str, folder: Path, wechat: FakeWeChat) -> RelaySettings:
    key_file = folder / "relay.key"
    if not key_file.exists():
        create_key_file(key_file)
    return RelaySettings(
        dsn=dsn,
        hook_secret=SECRET,
        key_file=key_file,
        app_id=wechat.app_id,
        app_secret=wechat.app_secret,
        template_id=TEMPLATE,
        department_phone="010-55550100",
        port=0,
        wechat_base_url=wechat.base_url,
        event_token=wechat.push_token,
        event_aes_key=wechat.push_aes_key,
        wechat_timeout_s=5.0,
        bind_answer_s=0.0,
    )


@asynccontextmanager
async def running_rig(
    dsn: str,
    folder: Path,
    *,
    push_token: str = "",
    push_aes_key: str = "",
    **settings_changed: Any,
) -> AsyncIterator[Rig]:
    """Yield a relay that listens on a free port, worker included."""
    clock = Clock()
    wechat = FakeWeChat(clock=clock, push_token=push_token, push_aes_key=push_aes_key)
    await wechat.start()
    settings = replace(relay_settings(dsn, folder, wechat), **settings_changed)
    relay = Relay(settings, clock)
    try:
        await relay.start()
        async with aiohttp.ClientSession() as http:
            yield Rig(relay, wechat, http, clock, settings)
    finally:
        await relay.stop()
        await wechat.stop()


@dataclass
class Bench:
    """The push worker by hand: nothing runs unless the test says so."""

    records: Records
    api: WeChatApi
    worker: PushWorker
    wechat: FakeWeChat
    clock: Clock
    settings: RelaySettings
    patient: str
    openid: str
    next_event: int = 1

    async def bind(self) -> None:
        """Bind the openid to the patient."""
        token = handle()
        now = self.clock()
        offer = BindingOffer(
            handle(),
            hashlib.sha256(token.encode()).digest(),
            None,
            self.patient,
            "张*",
            now + timedelta(hours=1),
        )
        async with self.records.db.transaction() as tx:
            await self.records.open_session(tx, self.openid, now)
            account = await self.records.account_of_openid(tx, self.openid)
            assert account is not None
            await self.records.offer_binding(tx, offer)
            assert await self.records.bind(tx, account, token, "", now)

    async def allow(self, times: int = 1) -> None:
        self.wechat.grant(self.openid, TEMPLATE, times)
        async with self.records.db.transaction() as tx:
            account = await self.records.account_of_openid(tx, self.openid)
            assert account is not None
            for _ in range(times):
                await self.records.add_quota(tx, account, [TEMPLATE], self.clock())

    async def receive(self, report: Masked) -> None:
        number, self.next_event = self.next_event, self.next_event + 1
        found = read_notification(encode(notification((number, report))))
        async with self.records.db.transaction() as tx:
            for event_number, masked in found.events:
                await self.records.apply_event(
                    tx, found.subscription, event_number, masked, self.clock()
                )

    async def work(self) -> None:
        """Let the worker do everything that is due now."""
        while await self.worker.deliver_next():
            pass

    async def states(self) -> list[str]:
        """Return the pushes' states in the order they were made."""
        async with self.records.db.connection() as connection:
            rows = await connection.fetch(
                "select state from pushes order by created_at, version"
            )
        return [row["state"] for row in rows]

    async def remaining(self) -> int:
        async with self.records.db.connection() as connection:
            value: int | None = await connection.fetchval(
                "select remaining from quotas"
            )
        return value or 0


@asynccontextmanager
async def push_bench(
    dsn: str, folder: Path, *, timeout_s: float = 5.0, clock: Clock | None = None
) -> AsyncIterator[Bench]:
    clock = clock or Clock()
    wechat = FakeWeChat(clock=clock)
    await wechat.start()
    settings = replace(relay_settings(dsn, folder, wechat), wechat_timeout_s=timeout_s)
    db = await Database.connect(dsn)
    try:
        await migrate(db, directory=MIGRATIONS)
        sealer = RelaySealer.from_file(settings.key_file)
        records = Records(db, sealer)
        api = WeChatApi(settings, db, sealer, clock)
        await api.open()
        worker = PushWorker(records, api, settings, clock, jitter=lambda: 1.0)
        bench = Bench(
            records, api, worker, wechat, clock, settings, handle(), "openid-of-zhang"
        )
        await bench.bind()
        yield bench
        await api.close()
    finally:
        await wechat.stop()
        await asyncio.shield(db.close())
