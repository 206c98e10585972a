"""In which form a caller sends and wants resources (FHIR R4 3.1.0.1.5): JSON, XML.

The handlers know JSON only. What comes as XML is made JSON before they see it,
what they answer becomes XML or gets its line breaks afterwards: no interaction
can forget a format, and JSON as it is stored passes untouched.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from fhir.encoding.outcome import CONTENT_TYPE, Issue, Refused
from fhir.encoding.wire import parse, to_bytes
from fhir.encoding.xml import from_xml, to_xml

if TYPE_CHECKING:
    from multidict import MultiMapping

XML_CONTENT_TYPE = "application/fhir+xml"
JSON_PATCH = "application/json-patch+json"
FORM = "application/x-www-form-urlencoded"
# In the order in which we choose among what a caller likes equally.
_JSON = (CONTENT_TYPE, "application/json", "text/json")
_XML = (XML_CONTENT_TYPE, "application/xml", "text/xml")
_SHORT = {"json": CONTENT_TYPE, "xml": XML_CONTENT_TYPE}
PATCH_TYPES = (JSON_PATCH, *_JSON, *_XML)
# What a CapabilityStatement says of them.
FORMATS = ("json", "xml", CONTENT_TYPE, XML_CONTENT_TYPE)
PATCH_FORMATS = (JSON_PATCH, CONTENT_TYPE, XML_CONTENT_TYPE)
# A longer body is written anew aside: others need not wait for its XML.
LONG_BYTES = 64 * 1024
_VERSIONS = frozenset({"4.0", "4.0.1"})
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


@dataclass(frozen=True)
class Wanted:
    """How a response is to be written; `version` is a fhirVersion asked for."""

    media_type: str = CONTENT_TYPE
    pretty: bool = False
    version: str | None = None

    @property
    def xml(self) -> bool:
        return self.media_type in _XML

    @property
    def rewrites(self) -> bool:
        """Tell whether a body as it is stored is not what was asked for."""
        return self.xml or self.pretty

    @property
    def content_type(self) -> str:
        """Return the Content-Type of the response."""
        version = f"; fhirVersion={self.version}" if self.version else ""
        charset = "; charset=utf-8" if self.xml else ""
        return f"{self.media_type}{version}{charset}"


@dataclass(frozen=True)
class _Range:
    """One media range of an Accept header (RFC 9110 12.5.1)."""

    media: str
    quality: float
    version: str | None

    def rank(self, media_type: str) -> int:
        """Return how closely the range names a type: 3 exactly, 0 not at all."""
        if self.media == media_type:
            return 3
        if self.media == f"{media_type.partition('/')[0]}/*":
            return 2
        return 1 if self.media == "*/*" else 0


def negotiated(request: web.Request, form: Mapping[str, str] | None = None) -> Wanted:
    """Return the form of the answer: `_format` before Accept; Refused with 406.

    `form` is what a search by POST has in its body instead of its address.
    """
    asked = form or {}
    pretty = asked.get("_pretty", request.query.get("_pretty")) == "true"
    told = asked.get("_format", request.query.get("_format"))
    if told is not None:
        # A bare `+` in a query string is a space.
        ranges = _ranges([_SHORT.get(told.strip(), told).replace(" ", "+")])
    else:
        ranges = _ranges(request.headers.getall(hdrs.ACCEPT, []))
    chosen = _choose(ranges) if ranges else Wanted()
    if chosen is None:
        words = f"answers are {CONTENT_TYPE} or {XML_CONTENT_TYPE}, fhirVersion=4.0"
        raise Refused([Issue("not-supported", words)], 406)
    return Wanted(chosen.media_type, pretty, chosen.version)


def wants_native(request: web.Request, media_type: str) -> bool:
    """Tell whether content is wanted as it is, not inside a Binary (FHIR R4 2.39).

    Only who names FHIR's own types, or JSON, wants the resource: a browser that
    also takes XML wants to show what it opens. Refused (406) when neither will do.
    """
    if "_format" in request.query:
        return request.query["_format"] == media_type
    ranges = _ranges(request.headers.getall(hdrs.ACCEPT, []))
    if not ranges:
        return True
    named = [
        one.quality
        for one in ranges
        if one.media in (CONTENT_TYPE, "application/json", XML_CONTENT_TYPE)
    ]
    fitting = [one for one in ranges if one.rank(media_type)]
    closest = max(fitting, key=lambda one: one.rank(media_type), default=None)
    if closest is None or closest.quality <= 0:
        if not any(named):
            words = f"this is {media_type}, also as {CONTENT_TYPE}"
            raise Refused([Issue("not-supported", words)], 406)
        return False
    exact = closest.media == media_type
    return not named or (exact and closest.quality >= max(named))


def readable(request: web.Request) -> Wanted:
    """Return the form in which a caller can read a failure, whatever it asked for."""
    try:
        return negotiated(request)
    except Refused:
        sent = request.content_type
        return Wanted(XML_CONTENT_TYPE if sent in _XML else CONTENT_TYPE)


def _ranges(headers: Iterable[str]) -> list[_Range]:
    found = []
    for text in ",".join(headers).split(","):
        media, *parameters = (part.strip() for part in text.split(";"))
        if not media:
            continue
        told = dict(_parameter(text) for text in parameters)
        quality = told.get("q", "1")
        found.append(
            _Range(
                media.lower(),
                float(quality) if _QUALITY.fullmatch(quality) else 0.0,
                told.get("fhirversion"),
            )
        )
    return found


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip().strip('"')


def _choose(ranges: list[_Range]) -> Wanted | None:
    """Return the type that the caller likes best, None when there is none.

    For each type the range that names it most closely counts. Among equals what
    is named beats what a wildcard lets in, then the caller's order, then ours.
    """
    best: tuple[float, int, int] = (0.0, 0, 0)
    chosen: Wanted | None = None
    for media_type in (*_JSON, *_XML):
        fitting = [
            (one.rank(media_type), -index, one)
            for index, one in enumerate(ranges)
            if one.rank(media_type) and (one.version or "4.0") in _VERSIONS
        ]
        if not fitting:
            continue
        rank, order, one = max(fitting, key=lambda row: row[:2])
        named = (one.quality, rank, order)
        if one.quality > 0 and named > best:
            best, chosen = named, Wanted(media_type, version=one.version)
    return chosen


async def asked_in_form(request: web.Request) -> dict[str, str]:
    """Return the parameters that a search by POST has in its body, none otherwise."""
    if request.method != hdrs.METH_POST or request.content_type != FORM:
        return {}
    return dict(form(await request.read()))


def form(raw: bytes) -> list[tuple[str, str]]:
    """Return the parameters of a form; Refused (400) when it cannot be read."""
    try:
        return parse_qsl(raw.decode("utf-8"), keep_blank_values=True)
    except ValueError:
        raise Refused([Issue("structure", "the form cannot be read")], 400) from None


def shaped(response: web.Response, form: Wanted) -> web.Response:
    """Return a response with its resource in the form that was asked for."""
    response.headers[hdrs.VARY] = hdrs.ACCEPT
    body = response.body
    if not isinstance(body, bytes) or not body:
        return response
    if form.xml:
        response.body = to_xml(parse(body), pretty=form.pretty)
    elif form.pretty:
        response.body = to_bytes(parse(body), pretty=True)
    response.headers[hdrs.CONTENT_TYPE] = form.content_type
    return response


async def read_body(request: web.Request) -> bytes:
    """Return the resource that was sent, as JSON; Refused with 415 or 400."""
    check_content_type(request, (*_JSON, *_XML))
    raw = await request.read()
    if request.content_type not in _XML:
        return raw
    if len(raw) > LONG_BYTES:
        return to_bytes(await asyncio.to_thread(from_xml, raw))
    return to_bytes(from_xml(raw))


def check_content_type(request: web.Request, taken: Sequence[str]) -> None:
    """Refuse (415) what is of another type, another FHIR or not UTF-8."""
    told = _ranges([request.headers.get(hdrs.CONTENT_TYPE, "")])
    if request.content_type not in taken:
        issue = Issue("not-supported", f"send {', '.join(taken)}")
        patch = {"Accept-Patch": ", ".join(taken)} if JSON_PATCH in taken else None
        raise Refused([issue], 415, headers=patch)
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise Refused([Issue("not-supported", "send UTF-8")], 415)
    if told and (told[0].version or "4.0") not in _VERSIONS:
        raise Refused([Issue("not-supported", "this is FHIR R4, 4.0")], 415)


class _Sent(Protocol):
    @property
    def headers(self) -> "MultiMapping[str]": ...


def prefers(request: _Sent, what: str) -> str | None:
    """Return the value of a preference (RFC 7240) such as return or handling."""
    for header in request.headers.getall("Prefer", []):
        for part in header.replace(";", ",").split(","):
            name, value = _parameter(part)
            if name == what:
                return value
    return None
