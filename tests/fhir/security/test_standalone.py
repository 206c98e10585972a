"""Programs that are opened by themselves: the person picks the patient.

SMART App Launch 2.2, Standalone Launch and the scope launch/patient.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from html import unescape
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
import requests
from fhirclient.client import FHIRClient
from fhirclient.models.diagnosticreport import DiagnosticReport

from node.domain.access import Role
from node.store import people
from node.store.store import Store
from tests.factories import make_patient
from tests.fhir.rig import ACCESSION, drafted, publish_draft, receive_study
from tests.fhir.security.test_smart_people import BACK, PERSON, App
from tests.fhir.smart_rig import SmartRig, running_smart

HIDDEN = r'<input type="hidden" name="([^"]*)" value="([^"]*)">'
SCOPE = "launch/patient patient/*.rs"


class Person:
    """A browser in which a person sees the pages and presses what is on them."""

    def __init__(self, app: App, session: aiohttp.ClientSession) -> None:
        self.app = app
        self.session = session
        self.page = ""
        self.status = 0
        self.told: dict[str, str] = {}

    @property
    def fields(self) -> dict[str, str]:
        return dict(re.findall(HIDDEN, self.page))

    @property
    def offered(self) -> list[str]:
        return re.findall(r'name="patient" value="([^"]*)"', self.page)

    async def open(self, **changes: str) -> None:
        url = f"{self.app.rig.root}/auth/authorize"
        asked = self.app.asked | {"scope": SCOPE} | changes
        async with self.session.get(url, params=asked) as answer:
            self.status, self.page = answer.status, await answer.text()

    async def press(self, **pressed: str) -> None:
        async with self.session.post(
            f"{self.app.rig.root}/auth/authorize",
            data=self.fields | pressed,
            allow_redirects=False,
        ) as answer:
            place = urlsplit(answer.headers.get("Location", ""))
            self.told = dict(parse_qsl(place.query))
            self.status, self.page = answer.status, await answer.text()


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with two examined women, a doctor and an administrator."""
    roles = (Role.RADIOLOGIST, Role.ADMINISTRATOR)
    async with running_smart(store, roles=roles) as rig:
        await drafted(rig)
        await receive_study(
            store,
            make_patient(patient_id="MRN-2"),
            study_uid="2.25.3002",
            accession="A-2",
        )
        await publish_draft(store, rig.settings, study_uid="2.25.3002")
        yield rig


@pytest.fixture
async def person(smart: SmartRig) -> AsyncIterator[Person]:
    """A doctor who opens a public program."""
    client = await smart.register(
        "patient/*.rs user/*.rs", keys="", roles=[], redirect_uris=[BACK]
    )
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        yield Person(App(smart, client), session)


async def test_a_doctor_picks_a_patient_and_the_program_sees_no_other(
    person: Person,
) -> None:
    await person.open()
    await person.press(**PERSON)
    assert (person.status, len(person.offered)) == (200, 2)
    assert "张三" not in person.page
    assert "张*" in person.page
    assert ACCESSION not in person.page
    assert f"…{ACCESSION[-4:]}" in person.page
    assert PERSON["password"] not in person.page
    # Whom she was shown stands in the audit trail under her own id.
    async with person.app.rig.store.db.connection() as tx:
        entry = await tx.fetchrow(
            "select actor, detail from audit_entries"
            " where entity = 'auth/authorize' order by sequence desc limit 1"
        )
        doctor = await people.find_login(tx, "radiologist")
    assert doctor is not None
    assert entry["actor"] == str(doctor.user_id)
    assert all(patient in entry["detail"] for patient in person.offered)
    await person.press(accession="A-2", decision="allow")
    (wanted,) = person.offered
    await person.press(accession="A-3", decision="allow")
    assert person.offered == []
    await person.press(accession="", decision="allow")
    assert len(person.offered) == 2
    fields = person.fields
    await person.press(patient=wanted)
    assert person.status == 303
    status, body = await person.app.redeem(person.told["code"])
    assert (status, body["patient"]) == (200, wanted)
    assert "launch/patient" in body["scope"].split()
    assert "user/" not in body["scope"]
    rig = person.app.rig
    for kind, only in (("Patient", wanted), ("DiagnosticReport", None)):
        found = await rig.with_token(body["access_token"], "GET", f"/{kind}")
        (entry,) = found.body["entry"]
        assert only in (None, entry["resource"]["id"])
    other = await rig.with_token(body["access_token"], "GET", rig.report_path)
    assert other.status == 404
    # What she proved on this page was for this program and this request alone.
    await person.press(**fields | {"patient": wanted})
    assert (person.status, person.told) == (401, {})


async def test_a_patient_who_is_not_there_cannot_be_picked(person: Person) -> None:
    await person.open()
    await person.press(**PERSON)
    for patient in ("unknown", "../Patient", "x" * 5000, "' or 1=1 --"):
        await person.press(patient=patient)
        assert (person.status, person.told) == (200, {})
    await person.press(decision="deny")
    assert person.told["error"] == "access_denied"


async def test_nobody_agrees_in_her_name_with_her_cookie_alone(
    smart: SmartRig, person: Person
) -> None:
    await person.open()
    await person.press(**PERSON)
    patient, seen = person.offered[0], person.fields["seen"]
    form = {k: v for k, v in person.fields.items() if k != "seen"}
    url = f"{smart.root}/auth/authorize"
    for changes in (
        {},
        {"seen": "x"},
        {"seen": seen, "state": "t" * 16},
        {"seen": seen, "code_challenge": "A" * 43},
    ):
        sent = form | {"patient": patient} | changes
        async with person.session.post(url, data=sent, allow_redirects=False) as answer:
            assert answer.status == 401, changes
    # And what stood in the page opens nothing in another browser.
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.post(
            url, data=form | {"patient": patient, "seen": seen}, allow_redirects=False
        ) as answer,
    ):
        assert answer.status == 401


async def test_who_sees_no_patients_picks_none(person: Person) -> None:
    await person.open()
    await person.press(**PERSON | {"login": "administrator"})
    assert (person.status, person.told["error"]) == (303, "access_denied")


async def test_she_may_turn_out_to_be_somebody_else(person: Person) -> None:
    await person.open()
    await person.press(**PERSON)
    await person.open()
    assert 'name="password"' not in person.page
    await person.press(decision="other")
    assert 'name="password"' in person.page
    await person.press(decision="allow")
    assert person.status == 401


async def test_a_foreign_program_signs_a_doctor_in_and_goes_on_by_itself(
    smart: SmartRig,
) -> None:
    """fhirclient as it is: discovery, PKCE, consent, patient, refresh token."""
    client = await smart.register(
        "patient/*.rs offline_access", keys="", roles=[], redirect_uris=[BACK]
    )

    def agree(url: str) -> str:
        browser = requests.Session()
        page = browser.get(url, timeout=60).text
        place = f"{smart.root}/auth/authorize"
        found = dict(re.findall(HIDDEN, page))
        told = {name: unescape(value) for name, value in found.items()}
        page = browser.post(place, data=told | PERSON, timeout=60).text
        told = {n: unescape(v) for n, v in re.findall(HIDDEN, page)}
        told["patient"] = re.findall(r'name="patient" value="([^"]*)"', page)[0]
        answer = browser.post(place, data=told, timeout=60, allow_redirects=False)
        return answer.headers["Location"]

    def work() -> tuple[str, int]:
        settings = {
            "app_id": str(client.client_id),
            "api_base": f"{smart.root}/fhir",
            "redirect_uri": BACK,
            "scope": f"{SCOPE} offline_access openid fhirUser",
        }
        program = FHIRClient(settings=settings)
        program.handle_callback(agree(program.authorize_url))
        name = str(program.patient.name[0].text)
        token = program.server.auth.access_token
        assert program.reauthorize()
        assert program.server.auth.access_token != token
        reports = DiagnosticReport.where({}).perform_resources(program.server)
        return name, len(reports)

    name, reports = await asyncio.to_thread(work)
    assert "*" in name
    assert reports == 1
