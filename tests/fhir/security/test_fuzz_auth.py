"""Whatever is sent to /auth by programs, the node refuses it by name: never a 500.

`SONONODE_FUZZ` is how many cases there are; a failure shows the one to look at.
"""

import json
import os
import secrets
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from fhir.security.assertions import TYPE
from node.domain.access import Role
from node.known import KNOWN_FOR_S, KnownCallers
from node.store import clients
from node.store.clients import Client
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.fhir.security.test_smart import READ, by_hand
from tests.fhir.security.test_smart_people import BACK, PERSON, App
from tests.fhir.smart_rig import SmartRig, running_smart

CASES = min(int(os.environ.get("SONONODE_FUZZ", "200")), 5000)
ODD_CLAIMS = [
    *(None, True, -1, 0, 10**30, 1.5, 1e300, -1e300, float("nan"), float("inf")),
    *("", "x" * 300, "\ud800", "\x00", "a\x00b", "é" * 200, "' or 1=1 --"),
    *([], {}, ["x"], [None], {"a": 1}, [[]], "\u202e", "00000000-0000-0000-0000"),
]
ODD_TEXT = [
    *("", "\x00", "a\x00b", "\ud800", "x" * 5000, "..", "%", "%00", "é", "\r\n", "[]"),
    *("a.b.c", "e30.e30.", "e30.e30.e30", ".", "..", "=", "sst_x", "srt_x", "\u202e"),
]
HEADERS = ("alg", "kid", "typ", "jku", "x5u", "x5c", "jwk", "crit", "b64", "zip")


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    async with running_smart(store, roles=(Role.RADIOLOGIST,)) as rig:
        yield rig


def _assertion(rig: SmartRig, client: Client, random: Random) -> str:
    """Return a signed assertion with something odd in it, or one that only looks so."""
    claims = dict(rig.claims(client))
    for name in random.sample([*claims, "nbf", "extra"], random.choice([0, 1, 1, 2])):
        claims[name] = random.choice(ODD_CLAIMS)
    headers: dict[str, Any] = {}
    if random.random() < 0.3:
        headers[random.choice(HEADERS)] = random.choice(ODD_CLAIMS)
    try:
        kind = random.choice(["RSA", "EC"])
        text = rig.assertion(client, kind, headers=headers, **claims)
    except (TypeError, ValueError, KeyError, NotImplementedError):
        told = {"alg": "ES384", "kid": "EC"} | headers
        text = by_hand(told, claims, b"x")
    except Exception:  # PyJWT does not sign what it could not verify
        text = by_hand({"alg": "ES384", "kid": "EC"}, claims, b"x")
    if random.random() < 0.1:
        at = random.randrange(len(text))
        text = text[:at] + random.choice(ODD_TEXT) + text[at + 1 :]
    return text


def _form(rig: SmartRig, client: Client, random: Random) -> dict[str, str]:
    form = {
        "client_assertion_type": TYPE,
        "client_assertion": _assertion(rig, client, random),
        "scope": random.choice([READ, "system/*.cruds", "system/Patient.rs?x=\x00"]),
        "grant_type": random.choice(
            ["client_credentials", "authorization_code", "refresh_token"]
        ),
        "code": secrets.token_hex(8),
        "code_verifier": "v" * 43,
        "refresh_token": "srt_x",
        "token": "sst_x",
        **PERSON,
    }
    if random.random() < 0.1:
        form["client_id"] = random.choice([*ODD_TEXT, str(client.client_id)])
    for name in random.sample(list(form), random.choice([0, 0, 1, 2])):
        if random.random() < 0.5:
            form[name] = random.choice(ODD_TEXT)
        else:
            del form[name]
    return {
        name: value.encode("utf-8", "replace").decode() for name, value in form.items()
    }


async def test_fuzzed_programs_are_refused_by_name_and_never_with_a_500(
    smart: SmartRig, clock: FrozenClock
) -> None:
    client = await smart.register("system/*.cruds")
    public = await smart.register(
        "user/*.rs offline_access", keys="", roles=[], redirect_uris=[BACK]
    )
    app, random = App(smart, public), Random(20261121)
    answered: dict[int, int] = {}
    paths = ("/auth/token",) * 5 + (
        "/auth/introspect",
        "/auth/revoke",
        "/auth/authorize",
    )
    for number in range(CASES):
        if number % 10 == 0:
            clock.advance(seconds=301)  # the rate limit is another test's
        form, path = _form(smart, client, random), random.choice(paths)
        if path == "/auth/authorize":
            form = app.asked | form
        query = path == "/auth/authorize" and random.random() < 0.5
        async with smart.session.request(
            "GET" if query else "POST",
            smart.root + path,
            allow_redirects=False,
            **({"params": form} if query else {"data": form}),  # type: ignore[arg-type]
        ) as answer:
            text = await answer.text()
        assert answer.status < 500, (number, path, form, text)
        if answer.status in (400, 401) and path != "/auth/authorize":
            assert '"error"' in text, (number, path, form, text)
        answered[answer.status] = answered.get(answer.status, 0) + 1
    assert answered.get(200, 0) > CASES / 20, answered
    assert answered.get(401, 0) > CASES / 20, answered


async def test_fuzzed_bodies_of_any_type_are_refused(smart: SmartRig) -> None:
    random = Random(7)
    kinds = (
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=x-nobody",
        "application/x-www-form-urlencoded; charset=utf-16",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "application/json",
        "",
    )
    for _ in range(max(CASES // 5, 20)):
        body = random.randbytes(random.randrange(200)) + b"&grant_type=%ff&a=%"
        path = random.choice(["token", "introspect", "revoke", "authorize"])
        async with smart.session.post(
            f"{smart.root}/auth/{path}",
            data=body,
            headers={"Content-Type": random.choice(kinds)},
            allow_redirects=False,
        ) as answer:
            assert 400 <= answer.status < 500, (path, answer.status, body)


async def test_fuzzed_names_and_passwords_sign_nobody_in(smart: SmartRig) -> None:
    odd = [v for v in [*ODD_CLAIMS, *ODD_TEXT] if not isinstance(v, float)]
    for value in odd:
        told = json.dumps({"login": value, "password": "x" * 12}, allow_nan=False)
        async with smart.session.post(
            f"{smart.root}/auth/login",
            data=told,
            headers={"Content-Type": "application/json"},
        ) as answer:
            assert answer.status in (400, 401, 429), value


async def test_a_shut_program_ends_within_the_second_that_callers_are_known(
    smart: SmartRig, store: Store, clock: FrozenClock
) -> None:
    """A process that did not hear of it asks again after KNOWN_FOR_S."""
    client = await smart.register()
    token = await smart.token(client, READ)
    at = [0.0]
    known = KnownCallers(KNOWN_FOR_S, lambda: at[0])

    async def called() -> bool:
        if known.find(token, "bearer") is None:
            async with store.db.connection() as tx:
                found = await clients.find_token(tx, token, now=clock())
            if found is None:
                return False
            known.keep(token, "bearer", found.identity)
        return True

    assert await called()
    async with store.db.transaction() as tx:
        await clients.disable(tx, str(client.client_id), now=clock())
    assert KNOWN_FOR_S <= 1
    at[0] = KNOWN_FOR_S
    assert not await called()
