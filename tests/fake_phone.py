"""The patient's phone, as far as a browser can be one.

It serves the Mini Program that `npm run build:web` made and carries its calls to
the relay, in place of WeChat's network. It hangs on the fake WeChat server, whose
controls issue log-in codes and count subscriptions.
"""

from pathlib import Path

import aiohttp
from aiohttp import web

from tests.fake_wechat import FakeWeChat

_CARRIED = ("Authorization", "Content-Type")


def add_phone(
    app: web.Application, wechat: FakeWeChat, *, build: str | Path, relay_url: str
) -> None:
    """Add `/phone/` (the built Mini Program) and `/relay/` (its way out) to `app`."""
    folder = Path(build)
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder}: build it with npm run build:web")

    async def index(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(folder / "index.html")

    async def carry(request: web.Request) -> web.StreamResponse:
        url = f"{relay_url.rstrip('/')}/{request.match_info['path']}"
        headers = {k: request.headers[k] for k in _CARRIED if k in request.headers}
        body = await request.read()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(
                    request.method,
                    url,
                    params=request.query,
                    data=body or None,
                    headers=headers,
                ) as answer,
            ):
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )
        except aiohttp.ClientError:
            # What a phone without network sees is no answer at all.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    app.router.add_get("/phone/", index)
    app.router.add_static("/phone/", folder)
    app.router.add_route("*", "/relay/{path:.*}", carry)
