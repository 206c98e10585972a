"""The entries of a Bundle: what each asks, and how they refer to each other.

In a transaction resources refer to what has no id yet by the fullUrl of its entry,
and to what the sender has no id of by a search (FHIR R4 3.1.0.11.2).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from multidict import CIMultiDict

from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json
from fhir.rest.creation import Clerk
from fhir.search.parameters import PARAMETERS
from node.domain.errors import ErrorKind

_ADDRESS = re.compile(
    r"(?P<kind>[A-Z][A-Za-z]{1,63})"
    r"(?:/(?P<id>[A-Za-z0-9.-]{1,64}))?"
    r"(?:/(?P<tail>_history(?:/(?P<version>[^/]+))?|\$everything))?"
)
_CONDITIONAL = re.compile(r"([A-Z][A-Za-z]{1,63})\?(.+)")
_RESTFUL = re.compile(r"(https?://.+)/[A-Z][A-Za-z]{1,63}/[A-Za-z0-9.-]{1,64}")
# Elements that hold the address of another entry; narratives have no links here.
_LINKS = frozenset({"reference", "url", "instantiatesUri", "valueUri", "valueUrl"})
_CONDITIONS = {
    "ifMatch": hdrs.IF_MATCH,
    "ifNoneMatch": hdrs.IF_NONE_MATCH,
    "ifModifiedSince": hdrs.IF_MODIFIED_SINCE,
    "ifNoneExist": "If-None-Exist",
}
_RANK = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2}


@dataclass(frozen=True)
class Entry:
    """One entry of a Bundle: where it stands, what it asks and what it brings."""

    index: int
    method: str
    kind: str
    resource_id: str
    version: str
    tail: str
    query: tuple[tuple[str, str], ...]
    headers: "CIMultiDict[str]"
    full_url: str
    resource: Json | None

    @property
    def where(self) -> str:
        """Return the FHIRPath of the entry."""
        return f"Bundle.entry[{self.index}]"

    @property
    def looks(self) -> bool:
        """Tell whether it changes nothing."""
        return self.method in ("GET", "HEAD")

    @property
    def searches(self) -> bool:
        """Tell whether it may find many resources."""
        return self.looks and (not self.resource_id or bool(self.tail))

    @property
    def names_new(self) -> bool:
        """Tell whether its resource has no id before it is carried out."""
        return self.method == "POST" or (self.method == "PUT" and not self.resource_id)


def read_entry(item: Json, index: int, base_url: str) -> Entry:
    """Return an entry as it was sent; Refused where it asks for nothing."""
    where, asked = f"Bundle.entry[{index}]", item.get("request")
    if not isinstance(asked, dict) or "url" not in asked:
        raise Refused([Issue("required", "a request is needed", where)], 400)
    url = str(asked["url"]).removeprefix(f"{base_url}/").removeprefix("/fhir/")
    path, _, query = url.partition("?")
    match = _ADDRESS.fullmatch(path.strip("/"))
    if match is None:
        message = "not an address that a Bundle can name here"
        raise Refused([Issue("not-found", message, f"{where}.request.url")], 404)
    headers: CIMultiDict[str] = CIMultiDict()
    for name, header in _CONDITIONS.items():
        if name in asked:
            headers[header] = str(asked[name])
    return Entry(
        index,
        str(asked.get("method")),
        match["kind"],
        match["id"] or "",
        match["version"] or "",
        (match["tail"] or "").partition("/")[0],
        tuple(parse_qsl(query, keep_blank_values=True)),
        headers,
        str(item.get("fullUrl", "")),
        item.get("resource"),
    )


def require_apart(entries: Sequence[Entry]) -> None:
    """Refuse a transaction that changes one resource twice."""
    changed = set()
    for entry in entries:
        address = f"{entry.kind}/{entry.resource_id}"
        if entry.resource_id and not entry.looks:
            if address in changed:
                raise _refused("the same resource twice", f"{entry.where}.request.url")
            changed.add(address)


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that change something: DELETE, POST, then PUT and PATCH.

    What another refers to by a fullUrl comes before it, whatever its method: its id
    has to be known. Refused where they refer to each other in a circle.
    """
    new = {e.full_url: e for e in entries if e.names_new and e.full_url}
    ordered: list[Entry] = []
    done: set[int] = set()

    def place(entry: Entry, waiting: frozenset[int]) -> None:
        if entry.index in done:
            return
        if entry.index in waiting:
            raise _refused("entries refer to each other in a circle", entry.where)
        for link in _links(entry):
            if link in new and new[link] is not entry:
                place(new[link], waiting | {entry.index})
        done.add(entry.index)
        ordered.append(entry)

    changing = [entry for entry in entries if not entry.looks]
    for entry in sorted(
        changing, key=lambda e: (_RANK.get(e.method, 3), e.kind, e.resource_id)
    ):
        place(entry, frozenset())
    return ordered


class Links:
    """Puts addresses of this node where entries name each other."""

    def __init__(self, clerk: Clerk, base_url: str, entries: Sequence[Entry]) -> None:
        self._clerk = clerk
        self._base_url = base_url
        self._entries = entries
        self._known = {
            e.full_url: f"{e.kind}/{e.resource_id}"
            for e in entries
            if e.full_url and e.resource_id
        }
        self._found: dict[str, str] = {}

    def conditions(self) -> Iterable[tuple[str, str | Sequence[tuple[str, str]]]]:
        """Yield every search on which something depends."""
        for entry in self._entries:
            if "If-None-Exist" in entry.headers:
                yield entry.kind, entry.headers["If-None-Exist"]
            if entry.method in ("PUT", "PATCH") and not entry.resource_id:
                yield entry.kind, entry.query

    def learn(self, entry: Entry, response: web.Response) -> None:
        """Remember the address that a new resource has got."""
        location = response.headers.get(hdrs.LOCATION, "")
        address = location.removeprefix(f"{self._base_url}/").partition("/_history")[0]
        self._known[entry.full_url] = address

    async def put_in(self, entry: Entry) -> Entry:
        """Return an entry whose resource refers to addresses of this node only."""
        if entry.resource is None:
            return entry
        for link in set(_links(entry)):
            match = _CONDITIONAL.fullmatch(link)
            if match is not None and link not in self._found:
                self._found[link] = await self._look_up(entry, *match.groups())

        def address(link: str) -> str:
            absolute = _absolute(link, entry)
            known = self._known.get(link) or self._known.get(absolute)
            known = known or self._found.get(link)
            if known is None and link.startswith("urn:uuid:"):
                raise _refused("no entry has this fullUrl", f"{entry.where}.resource")
            return known or link

        return replace(entry, resource=_relinked(entry.resource, address))

    async def _look_up(self, entry: Entry, kind: str, query: str) -> str:
        if kind not in PARAMETERS:
            raise _refused(f"{kind} is not searched here", f"{entry.where}.resource")
        found = await self._clerk.find_existing(kind, query, "a conditional reference")
        if found is None:
            issue = Issue(
                "not-found",
                "a conditional reference finds nothing",
                f"{entry.where}.resource",
            )
            raise Refused([issue], 412, ErrorKind.CONFLICT)
        return f"{kind}/{found.resource_id}"


def _absolute(link: str, entry: Entry) -> str:
    """Return a relative reference from where its entry stands (FHIR R4 2.36.4.1)."""
    match = _RESTFUL.fullmatch(entry.full_url)
    return f"{match[1]}/{link}" if match and ":" not in link else link


def _links(entry: Entry) -> Iterator[str]:
    """Yield what the resource of an entry refers to."""
    found: list[str] = []

    def seen(link: str) -> str:
        found.append(link)
        return link

    _relinked(entry.resource, seen)
    for link in found:
        yield link
        yield _absolute(link, entry)


def _relinked(value: Any, address: Callable[[str], str], key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _relinked(v, address, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_relinked(item, address, key) for item in value]
    if isinstance(value, str) and key in _LINKS:
        return address(value)
    return value


def _refused(message: str, expression: str) -> Refused:
    return Refused([Issue("business-rule", message, expression)], 422, ErrorKind.RULE)
