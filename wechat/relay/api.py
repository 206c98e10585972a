"""What the Mini Program may ask: log in, bind, read her own reports, unbind.

A report of somebody else and a report that never was get the same bytes. Every
failed binding gets the same answer after the same time, whatever was wrong.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from aiohttp import web

from node.domain.disclosure import ReleaseState
from node.domain.errors import ErrorKind, NodeError
from wechat.relay import events
from wechat.relay.masked import HANDLE, MaskedReport
from wechat.relay.records import Records, StoredReport
from wechat.relay.settings import RelaySettings
from wechat.relay.wechat_api import WeChatApi

log = structlog.get_logger(__name__)

MAX_TEMPLATES = 3


class PatientApi:
    """Routes under `/api`, and WeChat's own door `/wechat/events`."""

    def __init__(
        self,
        records: Records,
        api: WeChatApi,
        settings: RelaySettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._records = records
        self._api = api
        self._settings = settings
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/api/session", self.open_session),
            web.post("/api/bind", self.bind),
            web.delete("/api/binding", self.unbind),
            web.get("/api/reports", self.list_reports),
            web.get("/api/reports/{handle}", self.read_report),
            web.post("/api/quota", self.add_quota),
            web.get("/wechat/events", self.greet_wechat),
            web.post("/wechat/events", self.receive_events),
        ]

    # ---- log-in ---------------------------------------------------------------

    async def open_session(self, request: web.Request) -> web.Response:
        """Exchange a `wx.login` code for an opaque token; no openid goes out."""
        asked = await _json_object(request)
        code = asked.get("js_code")
        if not isinstance(code, str) or not 0 < len(code) <= 256:
            raise NodeError("js_code: a text", ErrorKind.INVALID)
        openid = await self._api.openid_of_code(code)
        async with self._records.db.transaction() as tx:
            token = await self._records.open_session(tx, openid, self._clock())
        return web.json_response(
            {
                "token": token,
                "idle_s": int(self._settings.session_idle_s),
                "template_ids": [self._settings.template_id][:MAX_TEMPLATES],
                "department_phone": self._settings.department_phone,
            }
        )

    async def _account(self, tx: Any, request: web.Request) -> UUID:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        account = None
        if scheme == "Bearer" and token:
            idle = timedelta(seconds=self._settings.session_idle_s)
            account = await self._records.account_of_session(
                tx, token, self._clock(), idle
            )
        if account is None:
            raise NodeError("log in first", ErrorKind.UNAUTHENTICATED)
        return account

    # ---- binding ----------------------------------------------------------------

    async def bind(self, request: web.Request) -> web.Response:
        """Bind with the desk's code; success and every failure take equally long."""
        loop = asyncio.get_running_loop()
        answer_at = loop.time() + self._settings.bind_answer_s
        asked = await _json_object(request)
        token, last4 = asked.get("token"), asked.get("last4", "")
        if not isinstance(token, str) or not isinstance(last4, str):
            raise NodeError("token and last4: texts", ErrorKind.INVALID)
        async with self._records.db.transaction() as tx:
            account = await self._account(tx, request)
            bound = await self._records.bind(
                tx, account, token[:64].strip(), last4[:8].strip(), self._clock()
            )
        log.info("bind.tried", bound=bound)
        await asyncio.sleep(max(0.0, answer_at - loop.time()))
        if not bound:
            return web.json_response({"error": "not-bound"}, status=403)
        return web.json_response({"bound": True})

    async def unbind(self, request: web.Request) -> web.Response:
        """Forget this phone at once: bindings, ledger, session and openid."""
        async with self._records.db.transaction() as tx:
            account = await self._account(tx, request)
            await self._records.unbind(tx, account)
        log.info("bind.ended")
        return web.json_response({"bound": False})

    # ---- reports ------------------------------------------------------------------

    async def list_reports(self, request: web.Request) -> web.Response:
        async with self._records.db.transaction() as tx:
            account = await self._account(tx, request)
            names = await self._records.bound_names(tx, account)
            stored = await self._records.find_reports(tx, account)
        return web.json_response(
            {
                "names": names,
                "reports": [_summary(entry) for entry in stored],
                "template_ids": [self._settings.template_id][:MAX_TEMPLATES],
                "department_phone": self._settings.department_phone,
            }
        )

    async def read_report(self, request: web.Request) -> web.Response:
        handle = request.match_info["handle"]
        async with self._records.db.transaction() as tx:
            account = await self._account(tx, request)
            asked = handle if HANDLE.fullmatch(handle) else "-"
            found = await self._records.find_report(tx, account, asked)
            if found is None:
                raise NodeError("no such report", ErrorKind.NOT_FOUND)
            history = await self._records.find_reports(tx, account)
            await self._records.mark_read(tx, account, found.report, self._clock())
        detail = _detail(found) | {
            "department_phone": found.report.department_phone
            or self._settings.department_phone
        }
        if found.report.state is ReleaseState.RELEASED:
            detail["trend"] = _trend(found.report, [entry.report for entry in history])
        return web.json_response(detail)

    # ---- subscriptions --------------------------------------------------------------

    async def add_quota(self, request: web.Request) -> web.Response:
        """Count the templates that the patient just accepted, one message each."""
        asked = await _json_object(request)
        templates = asked.get("template_ids")
        if (
            not isinstance(templates, list)
            or len(templates) > MAX_TEMPLATES
            or not all(entry == self._settings.template_id for entry in templates)
        ):
            raise NodeError("template_ids: unknown template", ErrorKind.INVALID)
        async with self._records.db.transaction() as tx:
            account = await self._account(tx, request)
            await self._records.add_quota(tx, account, set(templates), self._clock())
        return web.json_response({"counted": len(set(templates))})

    async def greet_wechat(self, request: web.Request) -> web.Response:
        """Answer WeChat's check of this address."""
        events.verify_signature(self._settings, request.query)
        return web.Response(text=request.query.get("echostr", ""))

    async def receive_events(self, request: web.Request) -> web.Response:
        """Reconcile ledger and unanswered pushes with what WeChat says happened."""
        events.verify_signature(self._settings, request.query)
        body = await request.read()
        for event in events.read_events(self._settings, request.query, body):
            if event.template_id != self._settings.template_id:
                continue
            async with self._records.db.transaction() as tx:
                account = await self._records.account_of_openid(tx, event.openid)
                if account is not None:
                    await self._apply(tx, account, event)
        return web.Response(text="success")

    async def _apply(
        self, tx: Any, account: UUID, event: events.SubscriptionEvent
    ) -> None:
        if event.kind == "subscribe_msg_sent_event":
            await self._records.settle_by_event(
                tx, account, delivered=event.status == "success", now=self._clock()
            )
        elif event.status == "reject":
            # WeChat's times are whole seconds: the second itself belongs to it.
            until = event.at + timedelta(seconds=1)
            await self._records.empty_quota(tx, account, event.template_id, until)


def _summary(entry: StoredReport) -> dict[str, Any]:
    report = entry.report
    return {
        "handle": report.handle,
        "state": report.state.value,
        "examined_on": report.examined_on,
        "exam_kind": report.exam_kind,
        "changed_at": entry.changed_at.isoformat(),
        "unread": entry.unread,
        "name": report.display,
    }


def _detail(entry: StoredReport) -> dict[str, Any]:
    report = entry.report
    detail = _summary(entry) | {
        "age": report.age,
        "version": report.version,
    }
    if report.state is ReleaseState.RELEASED:
        detail |= {
            "amended": report.amended,
            "category": report.category,
            "text": {"zh": report.text_zh, "en": report.text_en},
            "advice": {"zh": report.advice_zh, "en": report.advice_en},
            "summary": report.summary,
        }
    return detail


def _trend(shown: MaskedReport, history: list[MaskedReport]) -> list[dict[str, Any]]:
    """Return the released visits of the same patient up to this one, oldest first.

    A size that nobody measured is null: it is never drawn as zero.
    """
    visits = [
        report
        for report in history
        if report.state is ReleaseState.RELEASED
        and report.patient_handle == shown.patient_handle
        and (report.examined_on or "") <= (shown.examined_on or "9")
    ]
    return [
        {
            "examined_on": report.examined_on,
            "category": report.category,
            "lesions": [
                {
                    "side": side,
                    "clock": clock,
                    "size_mm": None if size is None else float(size),
                }
                for side, clock, size in report.trend
            ],
        }
        for report in sorted(visits, key=lambda visit: visit.examined_on or "")
    ]


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.read())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise NodeError("a JSON object is expected", ErrorKind.INVALID)
    return value
