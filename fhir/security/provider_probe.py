"""What of the hospital's sign-on would keep people out, told before they stand there.

`node doctor` asks the provider what a sign-in asks it, but for the person: each fault
is one line that names the setting and what to do.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
from aiohttp import hdrs

from fhir.security.assertions import MAX_JWKS, fit_for, read_jwks
from fhir.security.provider import (
    ALGORITHMS,
    ENDPOINTS,
    MAX_BODY,
    SKEW,
    TIMEOUT_S,
    SignOnSettings,
    configuration_of,
)
from fhir.security.sign_on import CALLBACK, SIGNED_OUT, own_key
from node.domain.errors import NodeError
from node.fetching import Unfetched, fetch_dated, fetch_json, may_call

# What a provider says to `prompt=none` of somebody whom it does not know yet.
_NOT_SIGNED_IN = frozenset(
    {
        "login_required",
        "interaction_required",
        "consent_required",
        "account_selection_required",
    }
)
_WORD = re.compile(r"[a-z_]{1,40}")
_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class Looked:
    """What is wrong, a line each; where nothing is, what is well."""

    faults: tuple[str, ...]
    told: str


async def look_at_provider(
    session: aiohttp.ClientSession,
    settings: SignOnSettings,
    root_url: str,
    *,
    now: datetime,
) -> Looked:
    """Return what a sign-in at the site's provider would meet, at the time `now`.

    SETTING when our own key is unfit.
    """
    if settings.private_key is not None:
        own_key(settings.private_key)
    url = configuration_of(settings.issuer)
    try:
        found, date = await fetch_dated(
            session, "GET", url, limit_bytes=MAX_BODY, timeout_s=TIMEOUT_S
        )
    except Unfetched as error:
        fault = (
            f"auth.oidc.issuer: {url}: {error.reason}; is that its address, and does"
            " the network let this machine there?"
        )
        return Looked((fault,), "")
    faults = [
        *_clock(date, now),
        *_issuer(found, settings),
        *_endpoints(found, settings),
        *_abilities(found),
        *await _keys(session, found, settings),
        *await _redirect(session, found, settings, root_url),
    ]
    told = f"{settings.issuer}: people can sign in"
    if found.get("backchannel_logout_supported") is True:
        told += f"; enter {root_url}{SIGNED_OUT} there as back-channel logout address"
    else:
        told += "; it does not tell us when they sign out there"
    return Looked(tuple(faults), told)


def _clock(date: datetime | None, now: datetime) -> list[str]:
    if date is None or abs(date - now) <= SKEW:
        return []
    seconds = round((date - now) / timedelta(seconds=1))
    way = "ahead of" if seconds > 0 else "behind"
    return [
        f"clock: the provider's is {abs(seconds)} s {way} this machine's; beyond"
        f" {SKEW.seconds} s nobody is let in: let both follow NTP"
    ]


def _issuer(found: Mapping[str, Any], settings: SignOnSettings) -> list[str]:
    told = found.get("issuer")
    if told == settings.issuer:
        return []
    return [
        f"auth.oidc.issuer: is {settings.issuer}, but it calls itself {_shown(told)}:"
        " enter that, sign by sign"
    ]


def _endpoints(found: Mapping[str, Any], settings: SignOnSettings) -> list[str]:
    faults = []
    for name in ENDPOINTS:
        place = found.get(name)
        if not isinstance(place, str):
            faults.append(f"auth.oidc.issuer: its configuration has no {name}")
        elif not may_call(place, settings.all_hosts):
            faults.append(
                f"auth.oidc.hosts: its {name} is at {_shown(place)}: the host has to"
                " be listed, and the address to be https"
            )
    return faults


def _abilities(found: Mapping[str, Any]) -> list[str]:
    """Compare lists that a provider may give with what a sign-in needs."""
    needed = (
        ("response_types_supported", ("code",), "let it offer the code flow"),
        ("code_challenge_methods_supported", ("S256",), "let it offer PKCE S256"),
        (
            "id_token_signing_alg_values_supported",
            ALGORITHMS,
            f"let it sign id_tokens with one of {', '.join(ALGORITHMS)}",
        ),
    )
    faults = []
    for name, wanted, mend in needed:
        told = found.get(name)
        if isinstance(told, list) and not any(one in told for one in wanted):
            faults.append(f"auth.oidc.issuer: its {name} is {_shown(told)}: {mend}")
    return faults


async def _keys(
    session: aiohttp.ClientSession, found: Mapping[str, Any], settings: SignOnSettings
) -> list[str]:
    uri = str(found.get("jwks_uri", ""))
    if not may_call(uri, settings.all_hosts):
        return []
    try:
        document = await fetch_json(
            session, "GET", uri, limit_bytes=MAX_JWKS, timeout_s=TIMEOUT_S
        )
        keys = read_jwks(json.dumps(document)).keys
    except Unfetched as error:
        return [f"auth.oidc.issuer: its keys at {_shown(uri)}: {error.reason}"]
    except NodeError as error:
        return [
            f"auth.oidc.issuer: its keys at {_shown(uri)} cannot be used:"
            f" {error.message}"
        ]
    if any(fit_for(key, algorithm) for key in keys for algorithm in ALGORITHMS):
        return []
    return [
        f"auth.oidc.issuer: none of the {len(keys)} keys at {_shown(uri)} can sign: RSA"
        " of 2048 bits or more, P-256 or P-384, for signatures, are taken"
    ]


async def _redirect(
    session: aiohttp.ClientSession,
    found: Mapping[str, Any],
    settings: SignOnSettings,
    root_url: str,
) -> list[str]:
    """Begin a sign-in that shows nobody a page; a strict provider refuses it at once.

    OpenID Connect Core 3.1.2.1, prompt=none: the answer goes to the redirect address
    only where that and the client are known. What is neither is no finding.
    """
    endpoint = str(found.get("authorization_endpoint", ""))
    if not may_call(endpoint, settings.all_hosts):
        return []
    back = f"{root_url.rstrip('/')}{CALLBACK}"
    asked = {
        "response_type": "code",
        "client_id": settings.client_id,
        "redirect_uri": back,
        "scope": settings.scope,
        "state": "doctor",
        "nonce": "doctor",
        # RFC 7636, appendix B: nobody will redeem the code.
        "code_challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        "code_challenge_method": "S256",
        "prompt": "none",
    }
    glue = "&" if "?" in endpoint else "?"
    try:
        async with session.get(
            f"{endpoint}{glue}{urlencode(asked)}",
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(TIMEOUT_S),
        ) as answer:
            status, place = answer.status, answer.headers.get(hdrs.LOCATION, "")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return [f"auth.oidc.issuer: {_shown(endpoint)} does not answer"]
    if 400 <= status < 500:
        return [
            f"auth.oidc.client_id: it refuses {settings.client_id} with the redirect"
            f" address {back}: enter that there, or mend client_id or http.public_url"
        ]
    if not place.startswith(back):
        return []
    error = parse_qs(urlsplit(place).query).get("error", [""])[0]
    if not error or error in _NOT_SIGNED_IN:
        return []
    word = error if _WORD.fullmatch(error) else "an error"
    return [
        f"auth.oidc.scope: it answers {word} to {settings.client_id} and the scope"
        f" {settings.scope!r}: compare both with what it knows"
    ]


def _shown(value: object) -> str:
    """Return what the provider said, of a length for one line and without controls."""
    text = "".join(sign if sign.isprintable() else "?" for sign in str(value))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
