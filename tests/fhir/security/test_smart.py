"""SMART App Launch 2.2, Backend Services: what proves a program, and what does not."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fhir.security import access
from fhir.security.access import PERMITS, Interaction
from fhir.security.assertions import (
    TYPE,
    Keys,
    Unproven,
    claimed_client,
    verify,
)
from node.domain.access import PERMISSIONS, Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import LETTERS
from node.fetching import may_call
from node.store import audit, clients
from node.store.clients import Client
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import drafted
from tests.fhir.security.test_access import request_of
from tests.fhir.smart_rig import SmartRig, jwks, private_key, public_jwk, running_smart
from tests.fhir.subscriptions.rig import RELEASED, make_subscription

READ = "system/DiagnosticReport.rs"


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with a drafted report, that gives tokens to programs."""
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        await drafted(rig)
        yield rig


async def test_a_program_gets_a_token_that_opens_what_it_asked_for(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    for kind in ("RSA", "EC"):
        status, body = await smart.ask_token(
            client, READ, smart.assertion(client, kind)
        )
        assert status == 200
        assert body["expires_in"] <= 300
        assert body["scope"] == READ
        token = body["access_token"]
        assert (await smart.with_token(token, "GET", smart.report_path)).status == 200
        refused = await smart.with_token(token, "GET", "/Patient")
        assert refused.status == 403
        assert "insufficient_scope" in refused.headers["WWW-Authenticate"]


# --- what does not prove anything -----------------------------------------------


def by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes = b"") -> str:
    """Sign with a shared secret, or not at all, what no library would."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in (header, claims)
    ]
    signed = b".".join(parts)
    mac = hmac.new(secret, signed, hashlib.sha384).digest() if secret else b""
    return b".".join([signed, base64.urlsafe_b64encode(mac).rstrip(b"=")]).decode()


def _public_pem() -> bytes:
    return (
        private_key("RSA")
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def _now(rig: SmartRig) -> int:
    return int(rig.store.clock().timestamp())


def _macced(rig: SmartRig, client: Client, algorithm: str) -> str:
    """Take the public key for the shared secret of an HMAC (RFC 8725 2.1)."""
    header = {"alg": algorithm, "kid": "RSA"}
    return by_hand(header, rig.claims(client), _public_pem())


# What is sent, and what the audit trail says of it.
BAD: dict[str, tuple[Callable[[SmartRig, Client], str], str]] = {
    "alg none": (
        lambda r, c: by_hand({"alg": "none", "kid": "RSA"}, r.claims(c)),
        "alg",
    ),
    "RS key as HS secret": (
        lambda r, c: by_hand(
            {"alg": "HS384", "kid": "RSA"}, r.claims(c), _public_pem()
        ),
        "alg",
    ),
    "RS384 told, HMAC made": (
        lambda r, c: by_hand(
            {"alg": "RS384", "kid": "RSA"}, r.claims(c), _public_pem()
        ),
        "signature",
    ),
    "RS256 is not allowed": (lambda r, c: r.assertion(c, algorithm="RS256"), "alg"),
    "PS384 is not allowed": (lambda r, c: r.assertion(c, algorithm="PS384"), "alg"),
    "wrong audience": (lambda r, c: r.assertion(c, aud=f"{r.root}/fhir"), "aud"),
    "no audience": (lambda r, c: r.assertion(c, aud=None), "aud"),
    "longer than five minutes": (
        lambda r, c: r.assertion(c, exp=_now(r) + 600),
        "exp-too-far",
    ),
    "expired": (lambda r, c: r.assertion(c, exp=_now(r) - 1), "expired"),
    "no exp": (lambda r, c: r.assertion(c, exp=None), "exp-missing"),
    "exp is infinite": (
        lambda r, c: r.assertion(c, exp=float("inf")),
        "exp",
    ),
    "not yet valid": (lambda r, c: r.assertion(c, nbf=_now(r) + 60), "nbf-future"),
    "from the future": (lambda r, c: r.assertion(c, iat=_now(r) + 60), "iat-future"),
    "no jti": (lambda r, c: r.assertion(c, jti=None), "jti"),
    "jti of a kilobyte": (lambda r, c: r.assertion(c, jti="j" * 1024), "jti"),
    "no iss": (lambda r, c: r.assertion(c, iss=None), "iss"),
    "sub is another": (lambda r, c: r.assertion(c, sub=str(uuid4())), "iss-sub"),
    "an unknown client": (
        lambda r, c: r.assertion(c, iss=str(uuid4())),
        "unknown-client",
    ),
    "a client that is no id": (
        lambda r, c: r.assertion(c, iss="' or 1=1"),
        "unknown-client",
    ),
    "no kid": (lambda r, c: r.assertion(c, headers={"kid": ""}), "kid"),
    "unknown kid": (lambda r, c: r.assertion(c, headers={"kid": "x"}), "unknown-kid"),
    "another key under a known kid": (
        lambda r, c: r.assertion(c, "RSA other", headers={"kid": "RSA"}),
        "signature",
    ),
    "a key of the other kind": (
        lambda r, c: r.assertion(c, "EC", headers={"kid": "RSA"}),
        "key",
    ),
    "RSA of 1024 bits": (lambda r, c: r.assertion(c, "RSA 1024"), "key"),
    "a curve too small": (
        lambda r, c: by_hand({"alg": "ES384", "kid": "EC 256"}, r.claims(c), b"x"),
        "key",
    ),
    "a key for encryption": (
        lambda r, c: r.assertion(c, "RSA", headers={"kid": "enc"}),
        "key",
    ),
    "crit": (
        lambda r, c: r.assertion(c, headers={"crit": ["exp"], "exp": 1}),
        "crit",
    ),
    "its own jwk in the header": (
        lambda r, c: r.assertion(
            c, "RSA other", headers={"jwk": public_jwk("RSA other")}
        ),
        "unknown-kid",
    ),
    "oversized": (lambda r, c: r.assertion(c, more="x" * 9000), "too-long"),
    "not a token": (lambda r, c: "a.b.c", "malformed"),
    "two parts": (lambda r, c: "e30.e30", "malformed"),
    "nested for ever": (
        lambda r, c: "e30." + base64.urlsafe_b64encode(b"[" * 5000).decode() + ".",
        "malformed",
    ),
}


ODD = [None, True, -1, 10**30, float("nan"), "", "x" * 300, [], {}, ["T"], "\ud800"]


async def test_an_assertion_of_any_shape_is_refused_by_name_or_proves_the_client() -> (
    None
):
    """Whatever else is raised would be told as a fault of the node (500)."""
    random, now = Random(7), datetime(2026, 11, 21, tzinfo=UTC)
    client = Client(uuid4(), "x", frozenset({Role.EHR}), READ, jwks("EC"))
    keys = Keys(None, lambda: now, frozenset())
    name, expires = str(client.client_id), int(now.timestamp()) + 200
    claims = {"iss": name, "sub": name, "aud": "T", "exp": expires, "jti": "j"}
    header = {"alg": "ES384", "kid": "EC"}
    proven = 0
    for _ in range(500):
        said, told = dict(header), dict(claims)
        said[random.choice(["alg", "kid", "typ", "jwk", "x5u"])] = random.choice(ODD)
        told[random.choice([*claims, "nbf", "iat"])] = random.choice(ODD)
        made = [
            by_hand(said, claims, b"x"),
            by_hand(header, told, b"x"),
            jwt.encode(claims, private_key("EC"), "ES384", {"kid": "EC"}),
        ][random.randrange(3)]
        cut = made[: random.randrange(len(made))] if random.random() < 0.2 else made
        try:
            claimed_client(cut)
            await verify(cut, client, keys, audience="T", now=now)
        except Unproven:
            continue
        assert cut == made
        proven += 1
    assert proven > 50


async def _reasons(store: Store) -> list[str]:
    async with store.db.transaction() as tx:
        rows = await tx.fetch(
            "select detail from audit_entries where action = 'token'"
            " and outcome = '4' order by sequence"
        )
        await audit.verify(tx)
    return [json.loads(row["detail"])["reason"] for row in rows]


async def test_what_does_not_prove_a_program_is_refused_in_one_and_the_same_word(
    smart: SmartRig, clock: FrozenClock
) -> None:
    keys = json.loads(jwks("RSA", "EC", "RSA 1024", "EC 256"))
    keys["keys"].append(public_jwk("RSA", kid="enc", use="enc"))
    client = await smart.register(keys=json.dumps(keys))
    assert len(BAD) >= 20
    for name, (make, reason) in BAD.items():
        clock.advance(seconds=60)  # nobody is slowed down here
        status, body = await smart.ask_token(client, READ, make(smart, client))
        assert (status, body) == (401, {"error": "invalid_client"}), name
        assert (await _reasons(smart.store))[-1] == reason, name


async def test_an_assertion_works_once_in_every_process_and_after_a_restart(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    assertion = smart.assertion(client)
    assert (await smart.ask_token(client, READ, assertion))[0] == 200
    assert (await smart.ask_token(client, READ, assertion))[0] == 401
    async with running_smart(smart.store) as other:
        # Another process: it knows nothing but what is in the database.
        form = {"client_assertion": assertion, "grant_type": "client_credentials"}
        form |= {"client_assertion_type": TYPE, "scope": READ}
        same = smart.assertion(client, aud=f"{other.root}/auth/token", jti="j")
        assert (await other.post("/auth/token", form | {"client_assertion": same}))[
            0
        ] == 200
        assert (await other.post("/auth/token", form | {"client_assertion": same}))[
            0
        ] == 401
    again = smart.assertion(client, jti="j")
    assert (await smart.ask_token(client, READ, again))[0] == 401
    assert (await _reasons(smart.store)) == ["jti-replay"] * 3


async def test_a_shut_or_public_program_gets_nothing(smart: SmartRig) -> None:
    client = await smart.register()
    token = await smart.token(client, READ)
    async with smart.store.db.transaction() as tx:
        await clients.disable(tx, str(client.client_id), now=smart.store.clock())
    assert (await smart.ask_token(client, READ))[0] == 401
    assert (await smart.with_token(token, "GET", smart.report_path)).status == 401
    public = await smart.register(
        "user/*.rs", keys="", roles=[], redirect_uris=["https://app.test/back"]
    )
    form = {"grant_type": "client_credentials", "client_id": str(public.client_id)}
    assert await smart.post("/auth/token", form | {"scope": READ}) == (
        401,
        {"error": "invalid_client"},
    )
    assert (await smart.ask_token(public, READ, smart.assertion(public)))[0] == 401


async def test_faulty_forms_and_scopes_are_told_in_the_words_of_rfc_6749(
    smart: SmartRig,
) -> None:
    client = await smart.register("system/DiagnosticReport.rs")
    for scope in (
        "",
        "system/Patient.rs",
        "user/DiagnosticReport.rs",
        "openid",
        "x" * 9,
    ):
        assert await smart.ask_token(client, scope) == (400, {"error": "invalid_scope"})
    assert await smart.ask_token(client, READ, client_assertion_type="x") == (
        401,
        {"error": "invalid_client"},
    )
    other = {"client_id": str(uuid4())}
    assert (await smart.ask_token(client, READ, **other))[0] == 401
    assert await smart.post("/auth/token", {"grant_type": "implicit"}) == (
        400,
        {"error": "unsupported_grant_type"},
    )
    body = f"grant_type=client_credentials&scope={READ}&scope={READ}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with smart.session.post(
        f"{smart.root}/auth/token", data=body, headers=headers
    ) as answer:
        assert (answer.status, await answer.json()) == (
            400,
            {"error": "invalid_request"},
        )
        assert answer.headers["Cache-Control"] == "no-store"


async def test_whoever_guesses_is_slowed_down(smart: SmartRig) -> None:
    client = await smart.register()
    bad = smart.assertion(client, aud="x")
    answers = [(await smart.ask_token(client, READ, bad))[0] for _ in range(22)]
    assert answers[:20] == [401] * 20
    assert answers[20:] == [429] * 2


# --- keys that are fetched ------------------------------------------------------


async def test_fetched_keys_follow_a_rotation_and_nobody_makes_us_fetch_often(
    smart: SmartRig, clock: FrozenClock
) -> None:
    served = {"body": jwks("RSA"), "status": "200", "count": "0"}

    async def answer(_: web.Request) -> web.Response:
        served["count"] = str(int(served["count"]) + 1)
        status = int(served["status"])
        headers = {"Location": "http://127.0.0.1:1/"} if status == 302 else {}
        return web.Response(text=served["body"], status=status, headers=headers)

    app = web.Application()
    app.router.add_get("/jwks", answer)
    async with TestServer(app) as host:
        uri = f"http://127.0.0.1:{host.port}/jwks"
        client = await smart.register(jwks_uri=uri)

        async def status(kind: str) -> int:
            return (await smart.ask_token(client, READ, smart.assertion(client, kind)))[
                0
            ]

        assert [await status("RSA"), await status("RSA")] == [200, 200]
        assert served["count"] == "1"
        served["body"] = jwks("EC")
        assert await status("EC") == 401
        clock.advance(seconds=61)
        assert [await status("EC"), await status("RSA")] == [200, 401]
        assert served["count"] == "2"
        for fault in ({"status": "302"}, {"body": "{"}, {"body": "x" * 70_000}):
            served.update({"status": "200", "body": jwks("EC")} | fault)
            clock.advance(seconds=601)
            assert await status("EC") == 401
    clock.advance(seconds=601)
    assert await status("EC") == 401
    assert (await _reasons(smart.store))[2:] == [
        "jwks-status",
        "jwks",
        "jwks-size",
        "jwks-away",
    ]


@pytest.mark.parametrize(
    "uri",
    [
        "http://10.0.0.1/jwks",
        "https://elsewhere.test/jwks",
        "https://ehr.test@elsewhere.test/",
        "http://ehr.test/jwks",
        "file:///etc/passwd",
        "https://ehr.test:8443/jwks",
    ],
)
def test_keys_are_fetched_from_listed_hosts_only(uri: str) -> None:
    assert not may_call(uri, frozenset({"ehr.test:443"}))


def test_keys_are_fetched_by_https_from_a_listed_host() -> None:
    assert may_call("https://ehr.test/jwks", frozenset({"ehr.test"}))


async def test_registration_refuses_what_could_not_be_held(smart: SmartRig) -> None:
    private = json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]})
    for scopes, more in (
        ("system/Patient.rs?name=x", {}),
        ("system/Patient.rs?birthdate=x", {}),
        ("system/Provenance.rs?status:not=x", {}),
        ("patient/Device.rs", {"redirect_uris": ["https://a.test/"]}),
        ("user/*.rs", {}),
        ("user/*.rs", {"redirect_uris": ["http://a.test/"]}),
        ("user/*.rs", {"redirect_uris": ["https://a.test/#x"]}),
        ("launch", {}),
        ("system/*.rs", {"roles": []}),
        ("system/*.rs", {"keys": private}),
        ("system/*.rs", {"keys": '{"keys": []}'}),
    ):
        with pytest.raises(NodeError) as refused:
            await smart.register(scopes, **more)
        assert refused.value.kind is ErrorKind.INVALID, scopes


# --- what a token opens ---------------------------------------------------------


class Opened:
    """What one token gets, in status codes and found types."""

    def __init__(self, rig: SmartRig, token: str) -> None:
        self.rig = rig
        self.token = token

    async def status(self, method: str, path: str, body: Any = None) -> int:
        return (await self.rig.with_token(self.token, method, path, body)).status

    async def found(self, path: str) -> list[str]:
        answer = await self.rig.with_token(self.token, "GET", path)
        assert answer.status == 200, answer.raw
        entries = answer.body.get("entry", [])
        return sorted(
            entry["resource"]["resourceType"]
            for entry in entries
            if entry["resource"]["resourceType"] != "OperationOutcome"
        )


async def opened(rig: SmartRig, scope: str, **more: Any) -> Opened:
    client = await rig.register(**more)
    return Opened(rig, await rig.token(client, scope))


async def test_scopes_open_each_resource_and_interaction_by_itself(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    for kind, permitted in PERMITS.items():
        for letter in LETTERS:
            scope = f"system/{kind}.{letter}"
            may = any(
                access.LETTERS.get(i.value) == letter and a in PERMISSIONS[Role.EHR]
                for i, a in permitted.items()
            )
            status, body = await smart.ask_token(client, scope)
            assert (status == 200) is may, scope
            if not may:
                continue
            assert body["scope"] == scope
            here = Opened(smart, body["access_token"])
            for other in PERMITS:
                for interaction in Interaction:
                    method, path, sent = request_of(other, interaction)
                    got = await here.status(method, path, sent)
                    # A patch tries what is there: it takes both letters.
                    told = access.LETTERS[interaction.value]
                    meant = told == letter and interaction.value != "patch"
                    if other == kind and meant and interaction in permitted:
                        assert got not in (401, 403, 405), (scope, other, interaction)
                    else:
                        assert got in (403, 405), (scope, other, interaction)


async def test_nothing_leaks_around_a_scope(smart: SmartRig) -> None:
    here = await opened(smart, READ)
    report = smart.report_path
    assert await here.status("GET", report) == 200
    assert await here.status("GET", f"{report}/_history") == 200
    assert await here.status("GET", f"{report}/_history/1") == 200
    assert await here.found("/DiagnosticReport") == ["DiagnosticReport"]
    # By what is brought along,
    for asked in (
        "_include=DiagnosticReport:subject",
        "_include=DiagnosticReport:result&_include:iterate=Observation:subject",
        "_revinclude=Provenance:target",
    ):
        assert await here.found(f"/DiagnosticReport?{asked}") == ["DiagnosticReport"]
    # by asking through another resource,
    for asked in (
        "subject:Patient.gender=female",
        "patient.gender=female",
        "patient:identifier=MRN-1",
        "imaging-study.status=available",
        "result.code=x",
    ):
        assert await here.status("GET", f"/DiagnosticReport?{asked}") == 403, asked
    # by what a transaction or a creation answers,
    for asked in ("GET Patient", "POST Patient", "PUT Patient?identifier=MRN-1"):
        method, url = asked.split(" ")
        entry: dict[str, Any] = {"request": {"method": method, "url": url}}
        if method != "GET":
            entry["resource"] = {"resourceType": "Patient"}
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
        assert await here.status("POST", "", bundle) == 403, asked
    assert await here.status("POST", "/Patient", {"resourceType": "Patient"}) == 403
    # by other ways into the node.
    for path in ("/auth/me", "/auth/clients", "/dicom-web/studies", "/review/similar"):
        async with smart.session.get(
            smart.root + path, headers={"Authorization": f"Bearer {here.token}"}
        ) as answer:
            assert answer.status in (403, 404), path
    with_patient = await opened(smart, f"{READ} system/Patient.rs")
    include = "/DiagnosticReport?_include=DiagnosticReport:subject"
    assert await with_patient.found(include) == ["DiagnosticReport", "Patient"]
    chained = "/DiagnosticReport?subject:Patient.gender=female"
    assert await with_patient.found(chained) == ["DiagnosticReport"]


async def test_a_narrowed_scope_opens_what_meets_it_and_no_earlier_version(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    scope = f"{READ}?status=final"
    here = Opened(smart, await smart.token(client, scope))
    report = smart.report_path
    assert await here.found("/DiagnosticReport") == []
    for path in (report, f"{report}/_history", f"{report}/_history/1"):
        assert await here.status("GET", path) == 404
    total = await smart.with_token(
        here.token, "GET", "/DiagnosticReport?_summary=count"
    )
    assert total.body["total"] == 0
    etag = {"If-None-Match": 'W/"1"', "Authorization": f"Bearer {here.token}"}
    assert (await smart.ask("GET", report, role=None, headers=etag)).status == 404
    assert (await smart.sign()).status == 200
    assert await here.found("/DiagnosticReport") == ["DiagnosticReport"]
    assert await here.found(f"{report}/_history") == ["DiagnosticReport"]
    assert await here.status("GET", report) == 200
    assert await here.status("GET", f"{report}/_history/1") == 404
    # What is brought along is held against its own narrowing.
    both = f"{scope} system/Observation.rs?status=preliminary"
    there = Opened(smart, await smart.token(client, both))
    include = "/DiagnosticReport?_include=DiagnosticReport:result"
    assert await there.found(include) == ["DiagnosticReport"]
    # Several scopes of one kind open what meets any of them.
    either = f"{scope} {READ}?status=partial"
    wide = Opened(smart, await smart.token(client, either))
    assert await wide.status("GET", f"{report}/_history/1") == 200


async def test_narrowed_by_registration_and_by_request_both_hold(
    smart: SmartRig,
) -> None:
    client = await smart.register("system/DiagnosticReport.rs?status=final")
    for asked in (READ, f"{READ}?status=partial", "system/*.cruds", "system/*.read"):
        status, body = await smart.ask_token(client, asked)
        assert status == 200
        assert "status=final" in body["scope"]
        here = Opened(smart, body["access_token"])
        assert await here.status("GET", smart.report_path) == 404
        assert await here.found("/DiagnosticReport") == []


async def test_writing_answers_nothing_that_may_not_be_read(smart: SmartRig) -> None:
    here = await opened(smart, "system/Patient.c")
    patient = make_ehr_patient()
    made = await smart.with_token(here.token, "POST", "/Patient", patient)
    assert (made.status, made.raw) == (201, b"")
    headers = {
        "Authorization": f"Bearer {here.token}",
        "If-None-Exist": "gender=female",
    }
    again = await smart.ask("POST", "/Patient", patient, role=None, headers=headers)
    assert again.status == 403


async def test_notifications_need_the_scope_to_read_what_they_bring(
    smart: SmartRig,
) -> None:
    subscription = make_subscription("http://127.0.0.1:1/")
    here = await opened(smart, "system/Subscription.cruds")
    assert await here.status("POST", "/Subscription", subscription) == 403
    narrowed = await opened(smart, f"system/Subscription.cruds {READ}?status=final")
    masked = make_subscription("http://127.0.0.1:1/", criteria=RELEASED)
    assert await narrowed.status("POST", "/Subscription", masked) == 403
    # What it may read of signed reports is all that it will be told of them.
    assert await narrowed.status("POST", "/Subscription", subscription) == 201


async def test_v1_scopes_are_read_as_what_they_mean_today(smart: SmartRig) -> None:
    client = await smart.register("system/*.read system/Patient.write")
    status, body = await smart.ask_token(
        client, "system/DiagnosticReport.read system/Patient.* system/Device.write"
    )
    assert status == 200
    assert set(body["scope"].split()) == {READ, "system/Patient.crus"}
