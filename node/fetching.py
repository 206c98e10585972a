"""Asks another system for a JSON object: within a time, up to a size, no redirects."""

import asyncio
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

_LOCAL = ("127.0.0.1", "localhost", "::1")
_CHUNK = 65_536


class Unfetched(Exception):
    """There is no JSON object there: `kind` says why in a word, `reason` in a few."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def may_call(url: str, hosts: Collection[str]) -> bool:
    """Tell whether the node may call an address: a listed host, by https.

    Hosts are listed as `host` or `host:port`; plain http goes to this machine alone.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.username is not None or parts.password is not None or not host:
        return False
    plain = parts.scheme == "http" and host in _LOCAL
    if parts.scheme != "https" and not plain:
        return False
    return bool({host, f"{host}:{port}"} & set(hosts))


async def fetch_json(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    limit_bytes: int,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """Return the JSON object that another system answers with 200; else Unfetched."""
    body, _ = await fetch_dated(
        session,
        method,
        url,
        limit_bytes=limit_bytes,
        timeout_s=timeout_s,
        headers=headers,
        data=data,
    )
    return body


async def fetch_dated(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    limit_bytes: int,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
) -> tuple[Mapping[str, Any], datetime | None]:
    """Return, as `fetch_json` does, an object, and what time it is over there."""
    told = {"Accept": "application/json", **(headers or {})}
    raw = b""
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.request(
                method, url, allow_redirects=False, headers=told, data=data
            ) as answer,
        ):
            if answer.status != 200:
                raise Unfetched("status", f"it answers {answer.status}")
            date = answer.headers.get("Date", "")
            async for part in answer.content.iter_chunked(_CHUNK):
                raw += part
                if len(raw) > limit_bytes:
                    raise Unfetched("size", "its answer is too long")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        raise Unfetched("away", "it does not answer") from None
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Unfetched("json", "it does not answer in JSON") from None
    if not isinstance(body, dict):
        raise Unfetched("json", "it does not answer in JSON")
    return body, _time_of(date)


def _time_of(date: str) -> datetime | None:
    """Return the time of a Date header (RFC 9110 6.6.1); None where it tells none."""
    try:
        told = parsedate_to_datetime(date)
    except ValueError:
        return None
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)
