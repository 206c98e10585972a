"""SMART App Launch 2.2, programs that people use; introspection and revocation.

RFC 7636 (PKCE), RFC 7662, RFC 7009, and what a foreign client makes of it all.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import joserfc.jwt
import pytest
import requests
from fhirclient.client import FHIRClient
from fhirclient.models.diagnosticreport import DiagnosticReport
from joserfc.jwk import ECKey

from fhir.security.assertions import ALGORITHMS, TYPE
from node.domain.access import Role
from node.store import people
from node.store.clients import Client
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.rig import drafted, publish_draft, receive_study
from tests.fhir.smart_rig import SmartRig, jwks, pkce, private_key, running_smart

READ = "system/DiagnosticReport.rs"
BACK = "https://app.test/back"
PERSON = {
    "login": "radiologist",
    "password": "correct horse battery",
    "decision": "allow",
}


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with a drafted report, that gives tokens to programs."""
    roles = (Role.RADIOLOGIST, Role.ADMINISTRATOR, Role.EHR)
    async with running_smart(store, roles=roles) as rig:
        await drafted(rig)
        yield rig


class App:
    """A program at a browser: sends the person here and redeems what comes back."""

    def __init__(self, rig: SmartRig, client: Client) -> None:
        self.rig = rig
        self.client = client
        self.verifier, challenge = pkce()
        self.asked = {
            "response_type": "code",
            "client_id": str(client.client_id),
            "redirect_uri": BACK,
            "scope": "user/DiagnosticReport.rs",
            "state": "s" * 16,
            "aud": f"{rig.root}/fhir",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }

    async def page(self, **changes: str) -> tuple[int, str, str]:
        """Return status, text and Location of the page for a person."""
        async with self.rig.session.get(
            f"{self.rig.root}/auth/authorize",
            params=self.asked | changes,
            allow_redirects=False,
        ) as answer:
            place = answer.headers.get("Location", "")
            return answer.status, await answer.text(), place

    async def agree(self, **changes: str) -> tuple[int, dict[str, str]]:
        """Return status and what the program is told when the person agrees."""
        async with self.rig.session.post(
            f"{self.rig.root}/auth/authorize",
            data=self.asked | PERSON | changes,
            allow_redirects=False,
        ) as answer:
            place = urlsplit(answer.headers.get("Location", ""))
            return answer.status, dict(parse_qsl(place.query))

    async def redeem(self, code: str, **changes: str) -> tuple[int, Any]:
        form = {
            "grant_type": "authorization_code",
            "client_id": str(self.client.client_id),
            "code": code,
            "redirect_uri": BACK,
            "code_verifier": self.verifier,
        }
        return await self.rig.post("/auth/token", form | changes)


@pytest.fixture
async def app(smart: SmartRig) -> App:
    """A public program that doctors use."""
    scopes = "user/*.cruds patient/*.rs"
    client = await smart.register(scopes, keys="", roles=[], redirect_uris=[BACK])
    return App(smart, client)


async def as_person(
    rig: SmartRig, role: Role, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {rig.tokens[role]}"}
    async with rig.session.request(
        method, rig.root + path, json=body, headers=headers
    ) as answer:
        return answer.status, await answer.json() if answer.status != 204 else None


async def test_a_program_opened_from_a_report_gets_that_patient_and_no_other(
    smart: SmartRig, app: App
) -> None:
    report = {"report": str(smart.report_id)}
    status, made = await as_person(
        smart, Role.RADIOLOGIST, "POST", "/auth/launches", report
    )
    assert (status, made["iss"]) == (201, f"{smart.root}/fhir")
    app.asked |= {"launch": made["launch"], "scope": "launch patient/*.rs openid"}
    status, page, _ = await app.page()
    assert status == 200
    assert "EHR" in page
    assert "app.test" in page
    assert "<script" not in page
    status, told = await app.agree()
    assert status == 303
    assert told["state"] == app.asked["state"]
    assert told["iss"] == smart.root
    status, body = await app.redeem(told["code"])
    assert status == 200, body
    assert body["fhirContext"][0] == {"reference": smart.report_path.strip("/")}
    assert body["fhirContext"][1]["reference"].startswith("ImagingStudy/")
    granted = set(body["scope"].split())
    assert {"launch", "openid"} < granted
    assert not {"patient/Device.rs", "patient/Task.rs"} & granted

    async def found(path: str) -> list[str]:
        answer = await smart.with_token(body["access_token"], "GET", path)
        assert answer.status == 200, answer.raw
        return [e["resource"]["id"] for e in answer.body.get("entry", [])]

    async def status_of(method: str, path: str, sent: Any = None) -> int:
        answer = await smart.with_token(body["access_token"], method, path, sent)
        return answer.status

    # A doctor's program sees the patient as the doctor does.
    shown = await smart.with_token(
        body["access_token"], "GET", f"/Patient/{body['patient']}"
    )
    assert shown.body["name"][0]["text"] != "张三"
    other = await receive_study(
        smart.store,
        make_patient(patient_id="MRN-2"),
        study_uid="2.25.3002",
        accession="A-2",
    )
    second = await publish_draft(smart.store, smart.settings, study_uid="2.25.3002")
    assert await found("/DiagnosticReport") == [str(smart.report_id)]
    assert len(await found("/ImagingStudy")) == 1
    assert await found("/Patient") == [body["patient"]]
    assert await status_of("GET", f"/Patient/{other}") == 404
    assert await status_of("GET", f"/DiagnosticReport/{second.id}") == 404
    assert await status_of("GET", f"/DiagnosticReport/{second.id}/_history") == 404
    assert await found(f"/DiagnosticReport?patient={other}") == []
    assert await status_of("GET", "/Device") == 403
    assert await status_of("PUT", smart.report_path, {}) == 403
    # A launch and a code work once; a code that comes twice takes its token along.
    assert (await app.agree())[1]["error"] == "invalid_request"
    assert await app.redeem(told["code"]) == (400, {"error": "invalid_grant"})
    assert await status_of("GET", smart.report_path) == 401


async def test_a_person_refuses_or_mistypes_and_nothing_is_granted(app: App) -> None:
    assert (await app.agree(decision="deny"))[1]["error"] == "access_denied"
    answers = [await app.agree(password="wrong password") for _ in range(6)]
    assert answers[0] == (401, {})
    assert answers[-1][0] == 429
    status, page, _ = await app.page(state="<b>", scope='user/Patient.rs "><script>')
    assert (status, "<b>" in page, "<script" in page) == (200, False, False)


async def test_the_program_hears_what_it_asked_wrongly(app: App) -> None:
    for changes in (
        {"code_challenge_method": "plain"},
        {"code_challenge": ""},
        {"aud": "https://elsewhere.test/fhir"},
        {"state": ""},
        {"response_type": "token"},
    ):
        status, _, place = await app.page(**changes)
        assert status == 303
        assert place.startswith(f"{BACK}?error="), changes
    assert (await app.agree(scope="system/*.rs"))[1]["error"] == "invalid_scope"
    # Without a patient of a launch there is none to narrow to.
    assert (await app.agree(scope="patient/*.rs"))[1]["error"] == "invalid_scope"


async def test_nobody_is_sent_to_an_address_that_is_not_registered(app: App) -> None:
    for changes in (
        {"redirect_uri": f"{BACK}/more"},
        {"redirect_uri": "https://evil.test/"},
        {"client_id": str(uuid4())},
        {"client_id": "x"},
    ):
        status, _, place = await app.page(**changes)
        assert (status, place) == (400, "")


async def test_a_code_needs_its_verifier_address_program_and_minute(
    smart: SmartRig, app: App, clock: FrozenClock
) -> None:
    stranger = await smart.register(
        "user/*.rs", keys="", roles=[], redirect_uris=[BACK]
    )
    for changes in (
        {"code_verifier": "v" * 43},
        {"code_verifier": ""},
        {"redirect_uri": "https://app.test/"},
        {"client_id": str(stranger.client_id)},
    ):
        code = (await app.agree())[1]["code"]
        assert (await app.redeem(code, **changes))[1] == {"error": "invalid_grant"}
    code = (await app.agree())[1]["code"]
    clock.advance(seconds=61)
    assert (await app.redeem(code))[0] == 400
    code = (await app.agree())[1]["code"]
    status, body = await app.redeem(code)
    assert (status, body["scope"]) == (200, "user/DiagnosticReport.rs")
    token = body["access_token"]
    assert (await smart.with_token(token, "GET", smart.report_path)).status == 200
    async with smart.store.db.transaction() as tx:
        await people.disable_user(tx, "radiologist", now=clock())
    assert (await smart.with_token(token, "GET", smart.report_path)).status == 401


async def test_a_program_looks_into_its_own_tokens_and_takes_them_back(
    smart: SmartRig, clock: FrozenClock
) -> None:
    client, other = await smart.register(), await smart.register()
    token = await smart.token(client, READ)

    async def asked(path: str, who: Client) -> tuple[int, Any]:
        form = {
            "token": token,
            "client_assertion_type": TYPE,
            "client_assertion": smart.assertion(who),
        }
        return await smart.post(path, form)

    status, body = await asked("/auth/introspect", client)
    assert (status, body["active"], body["scope"]) == (200, True, READ)
    assert body["exp"] - body["iat"] <= 300
    assert await asked("/auth/introspect", other) == (200, {"active": False})
    assert (await smart.post("/auth/introspect", {"token": token}))[0] == 401
    assert (await asked("/auth/revoke", other))[0] == 200
    assert (await smart.with_token(token, "GET", smart.report_path)).status == 200
    assert (await asked("/auth/revoke", client))[0] == 200
    assert await asked("/auth/introspect", client) == (200, {"active": False})
    assert (await smart.with_token(token, "GET", smart.report_path)).status == 401
    token = await smart.token(client, READ)
    clock.advance(seconds=301)
    refused = await smart.with_token(token, "GET", smart.report_path)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


async def test_administrators_register_programs_and_nobody_else(
    smart: SmartRig,
) -> None:
    told = {
        "name": "HIS",
        "roles": ["ehr"],
        "scopes": READ,
        "jwks": json.loads(jwks("RSA")),
    }

    async def ask(role: Role, method: str, path: str, body: Any = None) -> Any:
        return await as_person(smart, role, method, path, body)

    admin = Role.ADMINISTRATOR
    assert (await ask(Role.EHR, "POST", "/auth/clients", told))[0] == 403
    assert (await ask(Role.EHR, "GET", "/auth/clients"))[0] == 403
    status, made = await ask(admin, "POST", "/auth/clients", told)
    assert (status, made["keys"]) == (201, "registered")
    client = Client(UUID(made["client_id"]), "HIS", frozenset(), READ)
    assert (await smart.ask_token(client, READ))[0] == 200
    path = f"/auth/clients/{made['client_id']}"
    keys = {"jwks": json.loads(jwks("EC"))}
    assert (await ask(admin, "POST", f"{path}/keys", keys))[0] == 204
    assert (await smart.ask_token(client, READ))[0] == 401
    proof = smart.assertion(client, "EC")
    assert (await smart.ask_token(client, READ, proof))[0] == 200
    assert (await ask(admin, "POST", f"{path}/disable", {}))[0] == 204
    assert (await ask(admin, "GET", "/auth/clients"))[1][0]["disabled"] is True
    for faulty in ({}, {"roles": "ehr"}, {"roles": ["king"]}, {"jwks_uri": 1}):
        assert (await ask(admin, "POST", "/auth/clients", faulty))[0] == 400


async def test_discovery_and_capabilities_name_what_is_there(smart: SmartRig) -> None:
    path = "/.well-known/smart-configuration"
    bodies = []
    for prefix in ("", "/fhir"):
        async with smart.session.get(smart.root + prefix + path) as answer:
            assert answer.status == 200
            bodies.append(await answer.json())
    assert bodies[0] == bodies[1]
    told = bodies[0]
    algorithms = told["token_endpoint_auth_signing_alg_values_supported"]
    assert set(algorithms) == set(ALGORITHMS)
    for name in ("token", "introspection", "revocation", "authorization"):
        async with smart.session.post(told[f"{name}_endpoint"], data={}) as answer:
            assert answer.status in (400, 401), name
    statement = await smart.read("/metadata", role=None)
    security = statement["rest"][0]["security"]
    assert security["service"][0]["coding"][0]["code"] == "SMART-on-FHIR"
    uris = {e["url"]: e["valueUri"] for e in security["extension"][0]["extension"]}
    assert uris["token"] == told["token_endpoint"]


async def test_a_foreign_client_works_with_nothing_but_what_is_discovered(
    smart: SmartRig,
) -> None:
    """fhirclient as it is, with an assertion that joserfc has signed."""
    client = await smart.register()

    def work() -> str:
        base, name = f"{smart.root}/fhir", str(client.client_id)
        found = requests.get(f"{base}/.well-known/smart-configuration", timeout=60)
        now = int(smart.store.clock().timestamp())
        claims = {"iss": name, "sub": name, "aud": found.json()["token_endpoint"]}
        claims |= {"exp": now + 300, "jti": "one"}
        header = {"alg": "ES384", "kid": "EC", "jku": "http://127.0.0.1:1/jwks"}
        key = ECKey.import_key(private_key("EC"))
        settings = {
            "app_id": name,
            "api_base": base,
            "scope": "system/DiagnosticReport.read",
            "jwt_token": joserfc.jwt.encode(header, claims, key, algorithms=["ES384"]),
        }
        program = FHIRClient(settings=settings)
        program.prepare()
        program.authorize()
        reports = DiagnosticReport.where({"status": "partial"})
        return str(reports.perform_resources(program.server)[0].id)

    assert await asyncio.to_thread(work) == str(smart.report_id)


async def test_a_program_signs_for_a_doctor_only_what_each_scope_lets_it_write(
    smart: SmartRig, app: App
) -> None:
    async def opened(scope: str) -> str:
        code = (await app.agree(scope=scope))[1]["code"]
        return str((await app.redeem(code))[1]["access_token"])

    observation = (await smart.read(smart.report_path))["result"][0]["reference"]
    report = await smart.edited(smart.report_path, status="final")
    finding = await smart.edited(f"/{observation}")
    both = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [report, finding],
    }
    narrow = await opened("user/DiagnosticReport.cruds")
    assert (await smart.with_token(narrow, "POST", "", both)).status == 403
    assert (await smart.read(smart.report_path))["status"] == "partial"
    reader = await opened("user/*.rs")
    alone = both | {"entry": [report]}
    assert (await smart.with_token(reader, "POST", "", alone)).status == 403
    assert (await smart.with_token(narrow, "POST", "", alone)).status == 200
    assert (await smart.read(smart.report_path))["status"] == "final"


async def test_a_program_with_keys_redeems_its_code_with_them_only(
    smart: SmartRig,
) -> None:
    client = await smart.register("user/*.rs", roles=[], redirect_uris=[BACK])
    app = App(smart, client)
    code = (await app.agree())[1]["code"]
    assert await app.redeem(code) == (401, {"error": "invalid_client"})
    proof = {"client_assertion_type": TYPE, "client_assertion": smart.assertion(client)}
    status, body = await app.redeem(code, **proof)
    assert (status, body["scope"]) == (200, "user/DiagnosticReport.rs")
    replayed = (await app.agree())[1]["code"]
    assert (await app.redeem(replayed, **proof))[0] == 401
