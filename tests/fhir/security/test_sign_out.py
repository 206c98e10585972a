"""Who signs out at the hospital's sign-on is signed out here, and nobody else is.

OpenID Connect Back-Channel Logout 1.0: 2.4 (the token), 2.6 (its validation), 2.7 (what
ends), 2.8 (the answer).
"""

from typing import Any
from uuid import uuid4

import jwt

from fhir.security import sign_out
from fhir.security.sign_on import SIGNED_OUT
from node.domain.access import Role
from node.store import audit, people
from node.store.people import SessionKind
from tests.conftest import FrozenClock
from tests.fhir.security.test_sign_on import (
    CLIENT,
    Hospital,
    _forged,
    _of_public_key,
    _signed,
    hospital,
)
from tests.fhir.smart_rig import private_key, public_jwk

__all__ = ["hospital"]
EVENTS = {sign_out.EVENT: {}}


def claims_of(hospital: Hospital, **changes: Any) -> dict[str, Any]:
    now = int(hospital.idp.clock().timestamp())
    told: dict[str, Any] = {
        "iss": hospital.idp.root,
        "aud": CLIENT,
        "sub": "u-1",
        "sid": "session-1",
        "iat": now,
        "exp": now + 120,
        "jti": str(uuid4()),
        "events": EVENTS,
    }
    return {k: v for k, v in (told | changes).items() if v is not None}


def token_of(hospital: Hospital, **changes: Any) -> str:
    header = {"kid": "RSA", "typ": sign_out.TYPE}
    claims = claims_of(hospital, **changes)
    return jwt.encode(claims, private_key("RSA"), "RS256", headers=header)


async def sign_out_by(hospital: Hospital, token: str) -> int:
    """Send a logout token as the provider does, without any cookie."""
    url, data = hospital.rig.root + SIGNED_OUT, {"logout_token": token}
    async with hospital.rig.session.post(url, data=data) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status


async def signed_in(hospital: Hospital, sid: str | None = "session-1") -> None:
    hospital.idp.claims = {"sid": sid}
    assert await hospital.signed_in()
    assert await hospital.me() is not None


async def reasons(hospital: Hospital) -> list[str]:
    async with hospital.rig.store.db.connection() as tx:
        rows = await audit.following(tx, 0, 1000)
    told = [one.entry for one in rows if one.entry.action == "logout sign-on"]
    return [entry.detail.get("reason", "") for entry in told]


NAMED: dict[str, tuple[dict[str, Any], bool]] = {
    "another browser of hers": ({"sid": "of-another-browser"}, False),
    "somebody else": ({"sub": "u-3", "sid": None}, False),
    "nobody's session": ({"sub": None, "sid": "of-nobody"}, False),
    "her and her session": ({}, True),
    "her": ({"sid": None}, True),
    "her session": ({"sub": None}, True),
}


async def test_her_session_ends_at_once_if_it_is_meant(hospital: Hospital) -> None:
    assert await sign_out_by(hospital, token_of(hospital)) == 200  # as good as ended
    await signed_in(hospital)
    for name, (changes, ends) in NAMED.items():
        assert await sign_out_by(hospital, token_of(hospital, **changes)) == 200, name
        assert (await hospital.me() is None) is ends, name
        if ends:
            await signed_in(hospital)
    # A session to which the provider gave no name ends with any of hers.
    await sign_out_by(hospital, token_of(hospital))
    await signed_in(hospital, sid=None)
    assert await sign_out_by(hospital, token_of(hospital)) == 200
    assert await hospital.me() is None


async def test_what_she_opened_by_a_password_here_goes_on(hospital: Hospital) -> None:
    await signed_in(hospital)
    store = hospital.rig.store
    kind, now = SessionKind.COOKIE, store.clock()
    async with store.db.transaction() as tx:
        user = await people.find_login(tx, "li.ming")
        assert user is not None
        own = await people.open_session(tx, user, kind, now=now)
    assert await sign_out_by(hospital, token_of(hospital, sid=None)) == 200
    async with store.db.transaction() as tx:
        assert await people.read_session(tx, own, kind, now=now)


HOSTILE: dict[str, tuple[dict[str, Any], Any, str]] = {
    "another issuer": ({"iss": "https://evil.test"}, None, "iss"),
    "no issuer": ({"iss": None}, None, "iss"),
    "another audience": ({"aud": "other"}, None, "aud"),
    "audience of others": ({"aud": ["other"]}, None, "aud"),
    "no audience": ({"aud": None}, None, "aud"),
    "expired": ({"exp": 1}, None, "expired"),
    "never expires": ({"exp": None}, None, "expired"),
    "expires in words": ({"exp": "later"}, None, "exp"),
    "of tomorrow": ({"iat": 4_102_444_800}, None, "iat"),
    "of no time": ({"iat": None}, None, "iat"),
    "an id_token": ({"events": None, "nonce": "n"}, None, "nonce"),
    "a nonce beside the event": ({"nonce": "n"}, None, "nonce"),
    "an empty nonce": ({"nonce": ""}, None, "nonce"),
    "no event": ({"events": None}, None, "events"),
    "another event": ({"events": {"urn:x": {}}}, None, "events"),
    "an event in a list": ({"events": [sign_out.EVENT]}, None, "events"),
    "an event that is no object": ({"events": {sign_out.EVENT: 1}}, None, "events"),
    "nobody": ({"sub": None, "sid": None}, None, "sub"),
    "a subject of another kind": ({"sub": 1}, None, "sub"),
    "an endless subject": ({"sub": "s" * 256}, None, "sub"),
    "an empty sid": ({"sid": ""}, None, "sid"),
    "another person's session": ({"sub": "u-2"}, None, "sid"),
    "no jti": ({"jti": None}, None, "jti"),
    "a jti of another kind": ({"jti": 7}, None, "jti"),
    "not signed": ({}, _forged({"alg": "none"}), "alg"),
    "a shared secret": ({}, _of_public_key, "alg"),
    "signed by another": ({}, _signed("RSA-other", "RS256", kid="RSA"), "signature"),
    "an unknown key": ({}, _signed("RSA", "RS256", kid="x"), "unknown-kid"),
    "crit": ({}, _signed("RSA", "RS256", crit=["exp"]), "crit"),
    "another kind of token": ({}, _signed("RSA", "RS256", typ="at+jwt"), "typ"),
    "its own key": (
        {},
        _signed("RSA-other", "RS256", kid="RSA", jwk=public_jwk("RSA-other")),
        "signature",
    ),
    "encrypted": ({}, lambda _: "a.b.c.d.e", "malformed"),
    "empty": ({}, lambda _: "", "malformed"),
    "endless": ({}, lambda _: "a." * 40_000, "malformed"),
}


async def test_a_logout_token_that_is_not_right_in_everything_signs_nobody_out(
    hospital: Hospital,
) -> None:
    await signed_in(hospital)
    store = hospital.rig.store
    async with store.db.transaction() as tx:
        await people.create_user(
            tx,
            login="other",
            password="correct horse battery",
            display="Other",
            roles=[Role.RADIOLOGIST],
            now=store.clock(),
        )
        await people.link(tx, "other", hospital.idp.root, "u-2")
    expected = []
    for name, (changes, sign, reason) in HOSTILE.items():
        claims = claims_of(hospital, **changes)
        token = token_of(hospital, **changes) if sign is None else sign(claims)
        assert await sign_out_by(hospital, token) == 400, name
        expected.append(reason)
    assert await reasons(hospital) == expected
    assert await hospital.me() is not None


async def test_a_logout_token_works_once_and_alone_in_its_form(
    hospital: Hospital, clock: FrozenClock
) -> None:
    token = token_of(hospital)
    url = hospital.rig.root + SIGNED_OUT
    assert await sign_out_by(hospital, token) == 200
    await signed_in(hospital)
    assert await sign_out_by(hospital, token) == 400
    assert (await reasons(hospital))[-1] == "replayed"
    two = [("logout_token", token_of(hospital)), ("logout_token", "x")]
    bodies: list[dict[str, Any]] = [
        {"json": {"logout_token": token_of(hospital)}},
        {"data": {"x": "y"}},
        {"data": two},
    ]
    for body in bodies:
        async with hospital.rig.session.post(url, **body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"] == "invalid_request"
    assert await hospital.me() is not None
    # Without the typ, which earlier drafts did not have, it is one all the same.
    plain = _signed("RSA", "RS256")(claims_of(hospital))
    assert await sign_out_by(hospital, plain) == 200
    assert await hospital.me() is None
    clock.advance(seconds=600)
    assert await sign_out_by(hospital, token) == 400
    assert (await reasons(hospital))[-1] == "expired"
