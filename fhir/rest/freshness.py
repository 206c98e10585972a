"""Does a caller have this version already: conditional reads (FHIR R4 3.1.0.1.4).

If-None-Match is exact. If-Modified-Since knows seconds only: two versions of the same
second look alike by it, and nobody may go on with the older one.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from aiohttp import hdrs

from fhir.encoding.wire import date_range
from node.domain.errors import NodeError

if TYPE_CHECKING:
    from multidict import MultiMapping


def matches(headers: "MultiMapping[str]", etag: str) -> bool | None:
    """Tell whether If-None-Match names a version; None when it was not sent.

    As RFC 9110 13.1.2 compares: weak or strong, one of a list, or `*`.
    """
    told = headers.get(hdrs.IF_NONE_MATCH)
    if told is None:
        return None
    named = {one.strip().removeprefix("W/") for one in told.split(",")}
    return "*" in named or etag.removeprefix("W/") in named


def asked_since(headers: "MultiMapping[str]") -> datetime | None:
    """Return If-Modified-Since, an instant in a Bundle; None without one, or unread.

    If-None-Match goes before it (RFC 9110 13.1.3).
    """
    told = headers.get(hdrs.IF_MODIFIED_SINCE)
    if told is None or hdrs.IF_NONE_MATCH in headers:
        return None
    try:
        if told[:4].isdecimal():
            return date_range(told)[0]
        since = parsedate_to_datetime(told)
    except (NodeError, ValueError):
        return None
    return since if since.tzinfo else since.replace(tzinfo=UTC)
