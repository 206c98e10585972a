"""`doctor` names, in a line each, what of the sign-on would keep people out."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp

from fhir.security.provider_probe import look_at_provider
from tests.fhir.security.test_sign_on import Hospital, hospital

__all__ = ["hospital"]
# What is changed at the provider, and how the line begins and what it says.
FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "away": ({"away": True}, ["auth.oidc.issuer:", "it answers 502"]),
    "another name": (
        {"discovery": {"issuer": "https://idp.test/realms/main"}},
        ["auth.oidc.issuer:", "calls itself https://idp.test/realms/main"],
    ),
    "fast": ({"clock_ahead": timedelta(seconds=130)}, ["clock:", "130 s ahead of"]),
    "slow": ({"clock_ahead": timedelta(seconds=-61)}, ["clock:", "61 s behind"]),
    "no key": ({"kinds": []}, ["auth.oidc.issuer:", "cannot be used", "1 to"]),
    "weak key": ({"kinds": ["RSA1024"]}, ["auth.oidc.issuer:", "none of the 1 keys"]),
    "another host": (
        {"discovery": {"token_endpoint": "https://elsewhere.test/token"}},
        ["auth.oidc.hosts:", "token_endpoint", "https://elsewhere.test/token"],
    ),
    "no address": (
        {"discovery": {"jwks_uri": None}},
        ["auth.oidc.issuer:", "has no jwks_uri"],
    ),
    "keys away": (
        {"discovery": {"jwks_uri": "{root}/nothing"}},
        ["auth.oidc.issuer:", "/nothing", "it answers 404"],
    ),
    "signs otherwise": (
        {"discovery": {"id_token_signing_alg_values_supported": ["HS256"]}},
        ["auth.oidc.issuer:", "HS256", "RS256"],
    ),
    "no PKCE": (
        {"discovery": {"code_challenge_methods_supported": ["plain"]}},
        ["auth.oidc.issuer:", "PKCE S256"],
    ),
    "redirect": (
        {"silently": ""},
        ["auth.oidc.client_id:", "/auth/oidc/callback", "http.public_url"],
    ),
    "scope": ({"silently": "invalid_scope"}, ["auth.oidc.scope:", "invalid_scope"]),
}


async def faults(hospital: Hospital, **changes: Any) -> tuple[str, ...]:
    settings = replace(hospital.settings, **changes)
    async with aiohttp.ClientSession() as session:
        found = await look_at_provider(
            session, settings, hospital.rig.root, now=hospital.idp.clock()
        )
    assert found.faults or "people can sign in" in found.told
    return found.faults


async def test_each_fault_is_one_line_with_its_setting(hospital: Hospital) -> None:
    assert await faults(hospital) == ()
    idp = hospital.idp
    for name, (changes, words) in FAULTS.items():
        kept = {key: getattr(idp, key) for key in changes}
        for key, value in changes.items():
            setattr(idp, key, value)
        for key, value in list(idp.discovery.items()):
            if isinstance(value, str):
                idp.discovery[key] = value.replace("{root}", idp.root)
        found = await faults(hospital)
        for key, value in kept.items():
            setattr(idp, key, value)
        idp.discovery = {}
        assert len(found) == 1, (name, found)
        assert found[0].startswith(words[0]), (name, found)
        assert all(word in found[0] for word in words), (name, found)
        assert "\n" not in found[0]
    assert await faults(hospital) == ()


async def test_a_provider_that_is_not_there_is_one_line(hospital: Hospital) -> None:
    (fault,) = await faults(hospital, issuer="http://127.0.0.1:9")
    assert fault.startswith("auth.oidc.issuer: http://127.0.0.1:9/.well-known/")
    assert "does not answer" in fault


async def test_whether_it_tells_of_sign_outs_is_said(hospital: Hospital) -> None:
    now = hospital.idp.clock()
    for told in (True, False):
        hospital.idp.discovery = {"backchannel_logout_supported": told}
        async with aiohttp.ClientSession() as session:
            found = await look_at_provider(
                session, hospital.settings, hospital.rig.root, now=now
            )
        assert found.faults == ()
        assert ("/auth/oidc/logout there" in found.told) is told
