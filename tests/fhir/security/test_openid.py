"""Who a person is, for programs, and how long they may go on.

OpenID Connect Core 1.0 (2, 3.1.3), SMART App Launch 2.2 (fhirUser, offline_access),
RFC 6749 6, RFC 9700 4.14 (refresh token rotation).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest

from fhir.security.assertions import TYPE
from fhir.security.openid import new_key
from node.domain.access import Role
from node.store import clients, people, refreshes, signing
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.rig import drafted, publish_draft, receive_study
from tests.fhir.security.test_smart_people import BACK, App, as_person
from tests.fhir.smart_rig import SmartRig, running_smart

WHO = "openid fhirUser user/DiagnosticReport.rs user/Practitioner.rs"
DAY = 86_400
KEEPS = f"{WHO} offline_access"
REGISTERED = "user/*.rs patient/*.rs offline_access online_access"


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with a drafted report, a doctor and an administrator."""
    roles = (Role.RADIOLOGIST, Role.ADMINISTRATOR)
    async with running_smart(store, roles=roles) as rig:
        await drafted(rig)
        yield rig


@pytest.fixture
async def app(smart: SmartRig) -> App:
    """A public program that may go on when its person has left."""
    client = await smart.register(REGISTERED, keys="", roles=[], redirect_uris=[BACK])
    return App(smart, client)


async def redeemed(app: App, scope: str, **changes: str) -> dict[str, Any]:
    _, told = await app.agree(scope=scope, **changes)
    status, body = await app.redeem(told["code"])
    assert status == 200, (told, body)
    return dict(body)


async def refresh(app: App, token: str, **more: str) -> tuple[int, Any]:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": token,
        "client_id": str(app.client.client_id),
    }
    return await app.rig.post("/auth/token", form | more)


async def status_with(app: App, body: dict[str, Any]) -> int:
    token = body["access_token"]
    answer = await app.rig.with_token(token, "GET", app.rig.report_path)
    return answer.status


async def fetched(app: App, url: str) -> Any:
    async with app.rig.session.get(url) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_an_id_token_names_the_doctor_and_proves_itself_by_what_is_published(
    smart: SmartRig, app: App, clock: FrozenClock
) -> None:
    body = await redeemed(app, WHO, nonce="n-1")
    found = await fetched(app, f"{smart.root}/.well-known/openid-configuration")
    assert found["issuer"] == smart.root
    keys = jwt.PyJWKSet.from_dict(await fetched(app, found["jwks_uri"]))
    kid = jwt.get_unverified_header(body["id_token"])["kid"]
    claims = jwt.decode(
        body["id_token"],
        keys[kid],
        algorithms=found["id_token_signing_alg_values_supported"],
        audience=str(app.client.client_id),
        issuer=found["issuer"],
        options={"verify_exp": False, "verify_iat": False},
    )
    now = int(clock().timestamp())
    assert (claims["nonce"], claims["auth_time"]) == ("n-1", now)
    assert now < claims["exp"] <= now + 3600
    # The doctor has signed nothing yet; what her address names is there.
    place = claims["fhirUser"].removeprefix(f"{smart.root}/fhir")
    assert place.startswith("/Practitioner/")
    shown = await smart.with_token(body["access_token"], "GET", place)
    assert shown.status == 200
    assert not {"name", "login", "preferred_username"} & claims.keys()
    for key in keys.keys:
        assert not hasattr(key.key, "private_numbers")


async def test_who_is_told_only_to_programs_that_ask_for_it(app: App) -> None:
    for scope in ("user/DiagnosticReport.rs", "fhirUser user/DiagnosticReport.rs"):
        body = await redeemed(app, scope)
        assert "id_token" not in body
        assert "fhirUser" not in body["scope"]
    body = await redeemed(app, "openid")
    claims = jwt.decode(body["id_token"], options={"verify_signature": False})
    assert "fhirUser" not in claims
    assert body["scope"].split() == ["openid"]
    assert await status_with(app, body) == 403
    _, told = await app.agree(prompt="none")
    page = await app.page(prompt="none")
    assert "error=login_required" in page[2]
    assert told["code"]


async def test_a_new_key_signs_and_the_old_one_is_shown_for_a_day(
    smart: SmartRig, app: App, clock: FrozenClock
) -> None:
    async def kids() -> list[str]:
        return [k["kid"] for k in (await fetched(app, url))["keys"]]

    url = f"{smart.root}/auth/keys"
    made = await asyncio.gather(kids(), kids(), kids())
    (first,) = {kid for told in made for kid in told}
    clock.advance(seconds=91 * DAY)
    second, also = await kids()
    assert also == first != second
    body = await redeemed(app, WHO)
    assert jwt.get_unverified_header(body["id_token"])["kid"] == second
    clock.advance(seconds=2 * DAY)
    assert await kids() == [second]
    async with smart.store.db.transaction() as tx:
        third = await signing.renew(tx, smart.store, new_key())
        await signing.forget_earlier(tx)
    assert await kids() == [third.kid]


async def test_a_refresh_token_works_once_and_a_copy_of_it_ends_the_family(
    app: App,
) -> None:
    body = await redeemed(app, KEEPS)
    assert "offline_access" in body["scope"]
    status, second = await refresh(app, body["refresh_token"])
    assert status == 200, second
    assert second["refresh_token"] != body["refresh_token"]
    assert jwt.get_unverified_header(second["id_token"])["alg"] == "RS256"
    assert await status_with(app, second) == 200
    status, third = await refresh(app, second["refresh_token"])
    assert status == 200
    # Whoever copied the first one, or the program itself, comes with it once more.
    assert await refresh(app, body["refresh_token"]) == (
        400,
        {"error": "invalid_grant"},
    )
    assert (await refresh(app, third["refresh_token"]))[0] == 400
    for told in (body, second, third):
        assert await status_with(app, told) == 401


async def test_a_public_program_need_not_say_its_name_and_one_with_keys_must_prove_it(
    smart: SmartRig, app: App
) -> None:
    body = await redeemed(app, KEEPS)
    form = {"grant_type": "refresh_token", "refresh_token": body["refresh_token"]}
    status, second = await smart.post("/auth/token", form)
    assert status == 200
    assert (await smart.post("/auth/token", form))[0] == 400
    # The copy has ended the family.
    assert (await refresh(app, second["refresh_token"]))[0] == 400
    client = await smart.register(REGISTERED, roles=[], redirect_uris=[BACK])
    keyed = App(smart, client)
    proof = {"client_assertion_type": TYPE, "client_assertion": smart.assertion(client)}
    code = (await keyed.agree(scope=KEEPS))[1]["code"]
    _, body = await keyed.redeem(code, **proof)
    form["refresh_token"] = body["refresh_token"]
    for unproven in (form, form | {"client_id": str(client.client_id)}):
        assert (await smart.post("/auth/token", unproven))[0] == 401
    proven = form | proof | {"client_assertion": smart.assertion(client)}
    assert (await smart.post("/auth/token", proven))[0] == 200


async def test_of_many_at_once_with_one_refresh_token_one_wins_at_most(
    app: App,
) -> None:
    body = await redeemed(app, KEEPS)
    answers = await asyncio.gather(
        *(refresh(app, body["refresh_token"]) for _ in range(5))
    )
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400]
    (won,) = (told for status, told in answers if status == 200)
    assert (await refresh(app, won["refresh_token"]))[0] == 400


async def test_a_refresh_narrows_and_never_widens(smart: SmartRig, app: App) -> None:
    body = await redeemed(app, f"{KEEPS} user/Patient.r")
    status, less = await refresh(
        app, body["refresh_token"], scope="user/Patient.rs user/Observation.rs"
    )
    assert status == 200
    assert set(less["scope"].split()) == {
        "openid",
        "fhirUser",
        "offline_access",
        "user/Patient.r",
    }
    assert await status_with(app, less) == 403
    # A faulty request spends nothing: the next one has the whole grant again.
    token = less["refresh_token"]
    assert await refresh(app, token, scope="user/Task.rs") == (
        400,
        {"error": "invalid_scope"},
    )
    status, whole = await refresh(app, token)
    assert (status, await status_with(app, whole)) == (200, 200)


async def test_a_refresh_keeps_to_the_patient_of_its_launch(
    smart: SmartRig, app: App
) -> None:
    report = {"report": str(smart.report_id)}
    _, made = await as_person(smart, Role.RADIOLOGIST, "POST", "/auth/launches", report)
    scope = "launch patient/*.rs offline_access"
    body = await redeemed(app, scope, launch=made["launch"])
    await receive_study(
        smart.store, make_patient(patient_id="MRN-2"), study_uid="2.25.3002"
    )
    await publish_draft(smart.store, smart.settings, study_uid="2.25.3002")
    status, again = await refresh(app, body["refresh_token"])
    assert (status, again["patient"]) == (200, body["patient"])
    assert again["fhirContext"] == body["fhirContext"]
    found = await smart.with_token(again["access_token"], "GET", "/DiagnosticReport")
    assert len(found.body["entry"]) == 1


async def test_only_a_program_that_is_registered_for_it_goes_on_alone(
    smart: SmartRig,
) -> None:
    client = await smart.register("user/*.rs", keys="", roles=[], redirect_uris=[BACK])
    body = await redeemed(App(smart, client), f"{KEEPS} online_access")
    assert "refresh_token" not in body
    assert not {"offline_access", "online_access"} & set(body["scope"].split())


@pytest.mark.parametrize(
    "end",
    ["program shut", "keys changed", "person shut", "password", "ended", "revoked"],
)
async def test_what_ends_a_person_a_program_or_a_grant_ends_its_tokens(
    smart: SmartRig, app: App, clock: FrozenClock, end: str
) -> None:
    body = await redeemed(app, KEEPS)
    assert await status_with(app, body) == 200
    admin, name = Role.ADMINISTRATOR, str(app.client.client_id)
    now = clock()
    async with smart.store.db.transaction() as tx:
        assert len(await refreshes.list_families(tx, now=now)) == 1
        match end:
            case "program shut":
                await clients.disable(tx, name, now=now)
            case "keys changed":
                await clients.rotate(tx, name, jwks='{"keys": []}', jwks_uri=None)
            case "person shut":
                await people.disable_user(tx, "radiologist", now=now)
            case "password":
                await people.set_password(tx, "radiologist", "another horse battery")
    if end == "ended":
        status, (listed,) = await as_person(smart, admin, "GET", "/auth/grants")
        assert (status, listed["program"]) == (200, "EHR")
        place = f"/auth/grants/{listed['grant_id']}"
        assert (await as_person(smart, Role.RADIOLOGIST, "DELETE", place))[0] == 403
        assert (await as_person(smart, admin, "DELETE", place))[0] == 204
        assert (await as_person(smart, admin, "DELETE", place))[0] == 404
    if end == "revoked":
        form = {"token": body["refresh_token"], "client_id": name}
        assert (await smart.post("/auth/revoke", form))[0] == 200
    assert (await refresh(app, body["refresh_token"]))[0] in (400, 401)
    assert await status_with(app, body) == 401


async def test_a_refresh_token_is_bound_to_its_program_and_its_time(
    smart: SmartRig, app: App, clock: FrozenClock
) -> None:
    stranger = await smart.register(REGISTERED, keys="", roles=[], redirect_uris=[BACK])
    body = await redeemed(app, KEEPS)
    token = body["refresh_token"]
    refused = await refresh(app, token, client_id=str(stranger.client_id))
    assert refused == (400, {"error": "invalid_grant"})
    clock.advance(seconds=60 * DAY)
    status, second = await refresh(app, token)
    assert status == 200
    clock.advance(seconds=31 * DAY)
    assert (await refresh(app, second["refresh_token"]))[0] == 400
    online = await redeemed(app, f"{WHO} online_access")
    clock.advance(seconds=13 * 3600)
    assert (await refresh(app, online["refresh_token"]))[0] == 400


async def test_signing_out_ends_what_lives_only_while_she_is_there(
    smart: SmartRig, app: App
) -> None:
    online = await redeemed(app, f"{WHO} online_access")
    offline = await redeemed(app, KEEPS)
    assert (await as_person(smart, Role.RADIOLOGIST, "POST", "/auth/logout"))[0] == 204
    assert (await refresh(app, online["refresh_token"]))[0] == 400
    assert (await refresh(app, offline["refresh_token"]))[0] == 200


async def test_a_code_that_comes_twice_ends_the_refresh_token_too(app: App) -> None:
    _, told = await app.agree(scope=KEEPS)
    _, body = await app.redeem(told["code"])
    assert (await app.redeem(told["code"]))[0] == 400
    assert (await refresh(app, body["refresh_token"]))[0] == 400


async def test_no_refresh_token_lies_readable_in_the_database(
    smart: SmartRig, app: App
) -> None:
    body = await redeemed(app, KEEPS)
    async with smart.store.db.connection() as tx:
        for table in ("client_families", "client_spent_refreshes", "signing_keys"):
            rows = await tx.fetch(f"select t::text as row from {table} t")
            for row in rows:
                assert body["refresh_token"] not in row["row"]
                assert '"d":' not in row["row"]
