"""The relay as a process: routes, answers to failures, start and ordered stop."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from aiohttp import web

from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database
from node.store.migrate import migrate
from wechat.relay.api import PatientApi
from wechat.relay.hook import Hook
from wechat.relay.push import PushWorker
from wechat.relay.records import MIGRATIONS, Records
from wechat.relay.sealing import RelaySealer
from wechat.relay.settings import RelaySettings
from wechat.relay.wechat_api import WeChatApi

log = structlog.get_logger(__name__)

MAX_BODY = 512 * 1024
STOP_GRACE_S = 15.0

HTTP_STATUS = {
    ErrorKind.INVALID: 400,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.RULE: 422,
    ErrorKind.EXHAUSTED: 429,
    ErrorKind.UNAVAILABLE: 503,
}
_ERROR_NAME = {400: "invalid", 401: "log-in", 403: "forbidden", 404: "not-found"}
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Relay:
    """One running relay. `start` leaves nothing half-started when it raises."""

    def __init__(self, settings: RelaySettings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._db: Database | None = None
        self._api: WeChatApi | None = None
        self._runner: web.AppRunner | None = None
        self._worker: asyncio.Task[None] | None = None
        self.base_url = ""

    async def start(self) -> None:
        """Open key, database and port. Raises NodeError naming what is wrong."""
        sealer = RelaySealer.from_file(self._settings.key_file)
        try:
            self._db = await Database.connect(self._settings.dsn)
            await migrate(self._db, directory=MIGRATIONS)
            records = Records(self._db, sealer)
            self._api = WeChatApi(self._settings, self._db, sealer, self._clock)
            await self._api.open()
            worker = PushWorker(records, self._api, self._settings, self._clock)
            await self._listen(self._build_app(records, self._api, worker))
            self._worker = asyncio.create_task(worker.run(), name="relay-push")
        except BaseException:
            await self.stop()
            raise
        log.info("relay.started", url=self.base_url)

    async def stop(self) -> None:
        """Answer open requests, let the running push settle, give everything back."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
            self._worker = None
        if self._api is not None:
            await self._api.close()
            self._api = None
        if self._db is not None:
            await self._db.close()
            self._db = None

    def _build_app(
        self, records: Records, api: WeChatApi, worker: PushWorker
    ) -> web.Application:
        app = web.Application(middlewares=[_answers], client_max_size=MAX_BODY)
        hook = Hook(records, self._settings.hook_secret, self._clock, worker.wake)
        app.add_routes(hook.routes())
        app.add_routes(PatientApi(records, api, self._settings, self._clock).routes())

        async def ready(request: web.Request) -> web.Response:
            async with records.db.connection() as connection:
                counts = await records.push_counts(connection)
            alive = self._worker is not None and not self._worker.done()
            status = "ready" if alive else "push worker stopped"
            return web.json_response(
                {"status": status, "pushes": counts}, status=200 if alive else 503
            )

        app.add_routes([web.get("/healthz", _healthy), web.get("/readyz", ready)])
        return app

    async def _listen(self, app: web.Application) -> None:
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=STOP_GRACE_S
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.host, self._settings.port)
        try:
            await site.start()
        except OSError as error:
            raise NodeError(
                f"relay.port: {self._settings.port} cannot be used ({error.strerror})",
                ErrorKind.SETTING,
            ) from None
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}"


async def run(
    settings: RelaySettings, clock: Callable[[], datetime] | None = None
) -> None:
    """Serve until SIGTERM, SIGINT or cancellation, then stop in order."""
    relay = Relay(settings, clock or (lambda: datetime.now(UTC)))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await relay.start()
    try:
        await stopped.wait()
    finally:
        await relay.stop()
        log.info("relay.stopped")


async def _healthy(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


@web.middleware
async def _answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn failures into short answers that say nothing about anybody."""
    try:
        response = await handler(request)
    except NodeError as error:
        response = _failure(request, error)
    except web.HTTPException as error:
        name = _ERROR_NAME.get(error.status, "refused")
        response = web.json_response({"error": name}, status=error.status)
    except Exception as error:
        # The text of an unforeseen error may hold a value: only its kind is told.
        log.error("relay.failed", kind=type(error).__name__, path=_route(request))
        response = web.json_response({"error": "internal"}, status=500)
    response.headers.update(_HEADERS)
    return response


def _failure(request: web.Request, error: NodeError) -> web.Response:
    status = HTTP_STATUS.get(error.kind, 500)
    if status >= 500:
        log.error("relay.failed", reason=error.message, path=_route(request))
    body = {"error": _ERROR_NAME.get(status, error.kind.value)}
    if request.path.startswith("/hook"):
        body["reason"] = error.message  # the node's engineer reads this
    return web.json_response(body, status=status)


def _route(request: web.Request) -> str:
    """Return the route's pattern; the path itself holds a handle."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
