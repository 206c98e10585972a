"""Whom the node may call: the site's list, and what its names lead to (SSRF).

A host is called when the site has listed it, by https unless the list says http.
A name may lead to an address of the Internet or of a listed network; it is looked up
once for a connection, and what was looked at is what is called: a name that changes
its address in between (DNS rebinding) gains nothing.
"""

import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from socket import AddressFamily
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from node.domain.errors import ErrorKind, NodeError

_DEFAULT_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Endpoints:
    """The list: (scheme, host, port or None for any), and networks that are ours."""

    hosts: frozenset[tuple[str, str, int | None]] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def allow(self, endpoint: str) -> bool:
        """Tell whether `endpoint` is on the list."""
        try:
            parts = urlsplit(endpoint)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        if parts.scheme not in _DEFAULT_PORTS or parts.username is not None:
            return False
        port = port or _DEFAULT_PORTS[parts.scheme]
        return any((parts.scheme, host, known) in self.hosts for known in (port, None))

    def lead_to(self, address: str) -> bool:
        """Tell whether a listed name may lead to an address."""
        found = ip_address(address.partition("%")[0])
        mapped = getattr(found, "ipv4_mapped", None) or found
        if any(mapped in network for network in self.networks):
            return True
        return mapped.is_global and not mapped.is_multicast


def read_endpoints(hosts: Iterable[str], networks: Iterable[str]) -> Endpoints:
    """Return the list from `fhir.hook_hosts` and `fhir.hook_networks`; SETTING."""
    return Endpoints(
        frozenset(_host(text) for text in hosts),
        tuple(_network(text) for text in networks),
    )


def _host(text: str) -> tuple[str, str, int | None]:
    fault = NodeError(
        f'fhir.hook_hosts: "{text}" is no host; write "ehr.hospital", with a port'
        ' "ehr.hospital:8443", without TLS "http://ehr.hospital"',
        ErrorKind.SETTING,
    )
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise fault from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in _DEFAULT_PORTS or not host or extra:
        raise fault
    return parts.scheme, host, port


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise NodeError(f"fhir.hook_networks: {error}", ErrorKind.SETTING) from None


class _Resolver(AbstractResolver):
    """Looks names up and leaves out the addresses that they may not lead to."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._names = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AddressFamily.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        allowed = [one for one in found if self._endpoints.lead_to(one["host"])]
        if not allowed:
            raise OSError("the name leads to an address that the site has not listed")
        return allowed

    async def close(self) -> None:
        await self._names.close()


Tls = Callable[[], ssl.SSLContext | None]


def hook_session(endpoints: Endpoints) -> aiohttp.ClientSession:
    """Return what calls subscribers, as many at once as there are."""
    connector = aiohttp.TCPConnector(limit=0, resolver=_Resolver(endpoints))
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )


def calling_tls(certificate: str, key: str, trusted: str) -> ssl.SSLContext | None:
    """Return the TLS of calls by files (PEM), "" for none; SETTING when one is bad."""
    if bool(certificate) != bool(key):
        raise NodeError(
            "fhir.hook_certificate and fhir.hook_key: set both or none",
            ErrorKind.SETTING,
        )
    if not certificate and not trusted:
        return None
    name = "hook_trusted"
    try:
        context = ssl.create_default_context(cafile=trusted or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        name = "hook_certificate"
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no usable PEM"
        raise NodeError(f"fhir.{name}: {reason}", ErrorKind.SETTING) from None
    return context


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> int | None:
    """POST `body`; return the status, or None when nobody answered in time.

    Never goes where the answer points: a redirect is no success. `tls` says whom we
    trust, and with which certificate we show who we are; a connection that was made
    with another one is not used again.
    """
    try:
        async with session.post(
            url,
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            allow_redirects=False,
            ssl=True if tls is None else tls,
        ) as response:
            return response.status
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
        return None
