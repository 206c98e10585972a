"""The relay's side of WeChat's server API: log-in code, token, message.

Every answer of WeChat is sorted into one `Outcome`; what follows from it is
decided by `push`. Secrets and tokens stand in URLs and bodies that WeChat
prescribes, so no URL and no foreign error text is ever logged from here.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import aiohttp
import structlog

from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database
from wechat.relay.sealing import RelaySealer
from wechat.relay.settings import RelaySettings

log = structlog.get_logger(__name__)

_TOKEN_LOCK = 0x736F6E6F_00000010
_TOKEN_MARGIN = timedelta(seconds=60)
_LOGIN_TRIES = 2

TOKEN_FAULTS = frozenset({40001, 40014, 42001})
BUSY = frozenset({-1, 45011, 43108})
DAILY_LIMIT = 45009
NOT_SUBSCRIBED = 43101
CODE_REFUSED = frozenset({40029, 40226, 40163})


class Outcome(Enum):
    """What a send came to."""

    SENT = "sent"
    BUSY = "busy"  # nothing was sent; try again a little later
    DAILY_LIMIT = "daily-limit"  # nothing was sent; try again tomorrow (UTC+8)
    NOT_SUBSCRIBED = "not-subscribed"  # the patient did not subscribe, or it is used up
    REFUSED = "refused"  # our message is wrong: no retry mends it
    TOKEN_REFUSED = "token-refused"  # noqa: S105  a fresh token was refused too
    AMBIGUOUS = "ambiguous"  # no answer: it may have been delivered


@dataclass(frozen=True, slots=True)
class SendResult:
    outcome: Outcome
    errcode: int | None = None


class _NotSent(Exception):
    """The connection was never made, or WeChat's gateway refused: nothing happened."""


class _NoAnswer(Exception):
    """The request went out and no readable answer came back."""


class WeChatApi:
    """Three calls of WeChat. One per process; the token is shared by the database."""

    def __init__(
        self,
        settings: RelaySettings,
        db: Database,
        sealer: RelaySealer,
        clock: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._db = db
        self._sealer = sealer
        self._clock = clock
        self._token_turn = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        # A reused connection that WeChat just closed would look like a lost
        # message; a new one each time keeps "never sent" apart from "no answer".
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(
                total=self._settings.wechat_timeout_s,
                sock_connect=self._settings.wechat_timeout_s / 2,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    # ---- the calls ------------------------------------------------------------

    async def openid_of_code(self, js_code: str) -> str:
        """Return the openid behind a `wx.login` code; the session key is dropped.

        Raises NodeError UNAUTHENTICATED for a bad, used or old code, EXHAUSTED
        when WeChat limits us and UNAVAILABLE when it does not answer.
        """
        query = {
            "appid": self._settings.app_id,
            "secret": self._settings.app_secret,
            "js_code": js_code,
            "grant_type": "authorization_code",
        }
        errcode = -1
        for _ in range(_LOGIN_TRIES):
            try:
                answer = await self._call("GET", "/sns/jscode2session", query=query)
            except (_NotSent, _NoAnswer):
                log.warning("wechat.login_unanswered")
                raise _away() from None
            openid = answer.get("openid")
            if isinstance(openid, str) and openid:
                return openid
            errcode = _errcode(answer)
            if errcode != -1:
                break
        raise _login_error(errcode)

    async def send(
        self, openid: str, template_id: str, page: str, fields: Mapping[str, str]
    ) -> SendResult:
        """Send one subscription message and say what came of it.

        A refused token is renewed once (all workers together) and the message
        sent once more. Only one message per openid may be under way.
        """
        message = {
            "touser": openid,
            "template_id": template_id,
            "page": page,
            "data": {name: {"value": value} for name, value in fields.items()},
        }
        stale: str | None = None
        errcode = 0
        for _ in range(2):
            try:
                token = await self.token(stale=stale)
            except NodeError as error:
                log.warning("wechat.no_token", reason=error.message)
                return SendResult(_token_outcome(error))
            try:
                answer = await self._call(
                    "POST",
                    "/cgi-bin/message/subscribe/send",
                    query={"access_token": token},
                    body=message,
                )
            except _NotSent:
                return SendResult(Outcome.BUSY)
            except _NoAnswer:
                return SendResult(Outcome.AMBIGUOUS)
            errcode = _errcode(answer)
            if errcode not in TOKEN_FAULTS:
                return SendResult(_outcome(errcode), errcode)
            stale = token
        log.error("wechat.token_refused_twice", errcode=errcode, alarm=True)
        return SendResult(Outcome.TOKEN_REFUSED, errcode)

    # ---- the token --------------------------------------------------------------

    async def token(self, *, stale: str | None = None) -> str:
        """Return a valid access token; fetch one only when nobody else did.

        `stale` is a token that WeChat refused. Workers of this process queue on
        a lock of theirs, processes on an advisory lock of the database; whoever
        comes second finds the new token in the row.
        """
        async with self._token_turn:
            async with self._db.connection() as connection:
                kept = await self._kept_token(connection)
            if kept is not None and kept != stale:
                return kept
            async with self._db.transaction() as tx:
                await tx.execute("select pg_advisory_xact_lock($1)", _TOKEN_LOCK)
                kept = await self._kept_token(tx)
                if kept is not None and kept != stale:
                    return kept
                return await self._fetch_token(tx)

    async def _kept_token(self, connection: Any) -> str | None:
        row = await connection.fetchrow(
            "select token, expires from access_tokens where app_id = $1",
            self._settings.app_id,
        )
        if row is None or row["expires"] - _TOKEN_MARGIN <= self._clock():
            return None
        return self._sealer.open(
            row["token"],
            table="access_tokens",
            row=self._settings.app_id,
            column="token",
        ).decode()

    async def _fetch_token(self, tx: Any) -> str:
        """Ask for the stable token, never by force: force kills the one in use."""
        body = {
            "grant_type": "client_credential",
            "appid": self._settings.app_id,
            "secret": self._settings.app_secret,
            "force_refresh": False,
        }
        try:
            answer = await self._call("POST", "/cgi-bin/stable_token", body=body)
        except (_NotSent, _NoAnswer):
            raise _away() from None
        token, life = answer.get("access_token"), answer.get("expires_in")
        if not isinstance(token, str) or not isinstance(life, int):
            raise _token_error(_errcode(answer))
        await tx.execute(
            "insert into access_tokens (app_id, token, expires) values ($1, $2, $3)"
            " on conflict (app_id) do update set token = $2, expires = $3",
            self._settings.app_id,
            self._sealer.seal(
                token.encode(),
                table="access_tokens",
                row=self._settings.app_id,
                column="token",
            ),
            self._clock() + timedelta(seconds=life),
        )
        log.info("wechat.token_renewed", life_s=life)
        return token

    # ---- the wire -----------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return WeChat's JSON. Raises _NotSent or _NoAnswer.

        Both are raised without a cause: aiohttp's own words may hold the URL,
        and the URL holds the secret.
        """
        if self._session is None:
            raise _NotSent
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json"} if data is not None else None
        url = self._settings.wechat_base_url.rstrip("/") + path
        try:
            async with self._session.request(
                method, url, params=query, data=data, headers=headers
            ) as response:
                status, raw = response.status, await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise _NotSent from None
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise _NoAnswer from None
        if status != 200:
            log.warning("wechat.http_status", status=status)
            raise _NotSent
        try:
            answer = json.loads(raw)
        except ValueError:
            raise _NoAnswer from None
        if not isinstance(answer, dict):
            raise _NoAnswer
        return answer


def _errcode(answer: Mapping[str, Any]) -> int:
    code = answer.get("errcode", 0)
    return code if isinstance(code, int) else -1


def _outcome(errcode: int) -> Outcome:
    if errcode == 0:
        return Outcome.SENT
    if errcode in BUSY:
        return Outcome.BUSY
    if errcode == DAILY_LIMIT:
        return Outcome.DAILY_LIMIT
    if errcode == NOT_SUBSCRIBED:
        return Outcome.NOT_SUBSCRIBED
    return Outcome.REFUSED


def _away() -> NodeError:
    return NodeError("WeChat does not answer", ErrorKind.UNAVAILABLE)


def _login_error(errcode: int) -> NodeError:
    log.warning("wechat.login_refused", errcode=errcode)
    if errcode in CODE_REFUSED:
        return NodeError("WeChat refuses this log-in", ErrorKind.UNAUTHENTICATED)
    if errcode == 45011:
        return NodeError("WeChat limits log-ins just now", ErrorKind.EXHAUSTED)
    return NodeError(f"WeChat answers {errcode} to a log-in", ErrorKind.UNAVAILABLE)


def _token_error(errcode: int) -> NodeError:
    """Name the setting when the account itself is wrong: a retry would not help."""
    if errcode in {40013, 40125, 41002, 41004}:
        log.error("wechat.account_refused", errcode=errcode, alarm=True)
        return NodeError(
            f"wechat.app_id / app_secret: WeChat answers {errcode}", ErrorKind.SETTING
        )
    if errcode == DAILY_LIMIT:
        return NodeError("WeChat's daily token limit is reached", ErrorKind.EXHAUSTED)
    return NodeError(f"WeChat answers {errcode} to a token", ErrorKind.UNAVAILABLE)


def _token_outcome(error: NodeError) -> Outcome:
    if error.kind is ErrorKind.SETTING:
        return Outcome.TOKEN_REFUSED
    if error.kind is ErrorKind.EXHAUSTED:
        return Outcome.DAILY_LIMIT
    return Outcome.BUSY
