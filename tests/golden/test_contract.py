"""What the node, the review page, the relay and the phone say to each other.

One report lives its whole life: drafted by the algorithm, corrected and signed,
told to the patient, amended, withdrawn. What each side gets to see is kept as
golden files, which the tests of the review page and of the Mini Program read too.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import fhirkit
import pytest

from fhir.content.mapping import category_element, field_value
from fhir.subscriptions import notification
from fhir.subscriptions.delivery import Dispatcher
from fhir.subscriptions.relay import ensure_relay_subscription
from node.domain import lexicon
from node.domain.access import Role
from node.domain.lexicon import Concept, FieldKey
from node.parts import patient_texts
from node.store import reports
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.content.test_life_cycle import because, told_by
from tests.fhir.rig import STUDY_UID, Rig, drafted, running_fhir
from tests.fhir.subscriptions.rig import Hook, running_hook
from tests.golden.files import Settled, check, elements, pretty, read
from tests.wechat.rig import running_rig
from wechat.relay.masked import read_notification

INCLUDES = (
    "_include=DiagnosticReport:subject&_include=DiagnosticReport:result"
    "&_include:iterate=Observation:has-member"
)
REPORTS = ("report-drafted", "report-signed", "report-amended")
TOLD = (
    "notification-ready",
    "notification-released",
    "notification-amended",
    "notification-withdrawn",
)
NODE = "https://node.example.org/fhir"
PATIENT_HANDLE = "patient-handle-0000001"
REPORT_HANDLE = "report-handle-00000001"


@dataclass
class Life:
    """A report on a live node, a relay that listens, and what was said so far."""

    rig: Rig
    hook: Hook
    clock: FrozenClock
    dispatcher: Dispatcher
    settled: Settled
    said: dict[str, str] = field(default_factory=dict)

    async def look(self, name: str) -> None:
        """Keep the report as the review page reads it."""
        path = f"/DiagnosticReport?_id={self.rig.report_id}&{INCLUDES}"
        answer = await self.rig.get(path)
        self.said[name] = self.settled(answer.raw)

    async def deliver(self, name: str) -> None:
        """Keep what the relay is told."""
        before = len(self.hook.got)
        await self.dispatcher.deliver_due()
        (_, body) = self.hook.got[before]
        self.said[name] = self.settled(body)

    async def transact(self, *entries: Any) -> None:
        self.clock.advance(seconds=60)
        answer = await self.rig.transact(*entries)
        assert answer.status == 200, answer.raw

    async def change(self, suffix: str, **value: Any) -> dict[str, Any]:
        """Return the entry with which a doctor changes one Observation."""
        gone = {"dataAbsentReason": None} | value
        return await self.rig.edited(
            f"/Observation/{self.rig.report_id}-{suffix}", **gone
        )

    async def report_with(self, **changes: Any) -> dict[str, Any]:
        return await self.rig.edited(self.rig.report_path, **changes)


async def live(life: Life) -> None:
    """Take the report through everything that the other sides can see of it."""
    await life.look("report-drafted")
    await life.deliver("notification-handshake")
    summary = {
        "url": "https://fhir.sononode.org/StructureDefinition/patient-summary",
        "valueString": "左乳有一处需要进一步明确，请来院面谈。",
    }
    await life.transact(
        await life.change("l1-shape", **field_value(FieldKey.SHAPE, ("oval",))),
        await life.change("l1-margin", **field_value(FieldKey.MARGIN, ("indistinct",))),
        await life.change(
            "l1-boundary", **field_value(FieldKey.LESION_BOUNDARY, ("echogenic_halo",))
        ),
        await life.change("l1-category", **category_element("4B")),
        await life.change("category", **category_element("4B")),
        await life.report_with(
            status="final", conclusion="左乳 2 点低回声结节。", extension=[summary]
        ),
    )
    await life.look("report-signed")
    await life.deliver("notification-ready")
    life.clock.advance(seconds=60)
    told = told_by("phone", life.rig)["resource"]
    assert (await life.rig.ask("POST", "/Communication", told)).status == 201
    await life.deliver("notification-released")
    await life.transact(
        await life.change("l1-category", **category_element("3")),
        await life.change("category", **category_element("3")),
        await life.report_with(status="amended", conclusion="复阅后降为 3 类。"),
        because(life.rig, "会诊后修改"),
    )
    await life.look("report-amended")
    await life.deliver("notification-amended")
    await life.transact(
        await life.report_with(status="entered-in-error"),
        because(life.rig, "张冠李戴"),
    )
    await life.deliver("notification-withdrawn")


async def test_a_report_is_shown_and_told_as_agreed(
    store: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return clock()

    monkeypatch.setattr(notification, "datetime", Now)
    async with (
        running_hook() as hook,
        running_fhir(
            store,
            roles=(Role.RADIOLOGIST,),
            relay_url=hook.url,
            texts=patient_texts(),
        ) as rig,
        aiohttp.ClientSession() as session,
    ):
        await ensure_relay_subscription(store, rig.settings)
        await drafted(rig)
        async with store.db.transaction() as tx:
            handle, patient_handle = await reports.handles(tx, rig.report_id)
        settled = Settled(
            {
                rig.settings.base_url: NODE,
                handle: REPORT_HANDLE,
                patient_handle: PATIENT_HANDLE,
            }
        )
        dispatcher = Dispatcher(store, rig.settings, session, session)
        life = Life(rig, hook, clock, dispatcher, settled)
        await live(life)
    for name, text in life.said.items():
        check(name, text)


async def test_failed_work_is_shown_as_agreed(rig: Rig) -> None:
    jobs = rig.store.jobs
    async with rig.store.db.transaction() as tx:
        payload = {"study_instance_uid": STUDY_UID, "generation": 1}
        await jobs.defer(tx, "assess_study", payload)
    job = await jobs.claim(["assess_study"], "golden")
    assert job is not None
    await jobs.failed(job, "its process died 3 times; see the log", retry=False)
    answer = await rig.get("/Task?status=failed")
    settled = Settled({rig.settings.base_url: NODE})
    check("work-failed", settled(answer.raw))


async def test_the_phone_gets_what_was_agreed_in_every_state(
    relay_dsn: str, tmp_path: Path
) -> None:
    async with running_rig(relay_dsn, tmp_path) as rig:
        phone = await rig.bound_phone("openid-of-zhang", PATIENT_HANDLE)
        check("phone-list-empty", _text(await phone.call("GET", "/api/reports")))
        for name in TOLD:
            rig.clock.advance(60)
            status, answer = await rig.post("/hook", read(name))
            assert (status, answer) == (200, answer), answer
            state = name.removeprefix("notification-")
            listed = await phone.call("GET", "/api/reports")
            check(f"phone-list-{state}", _text(listed))
            path = f"/api/reports/{REPORT_HANDLE}"
            check(f"phone-report-{state}", _text(await phone.call("GET", path)))


def _text(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    return pretty(json.dumps(body))


@pytest.mark.parametrize(
    "name", [*REPORTS, *TOLD, "notification-handshake", "work-failed"]
)
def test_what_is_agreed_on_is_valid_fhir(name: str) -> None:
    assert [str(issue) for issue in fhirkit.validate(read(name))] == []


@pytest.mark.parametrize("name", TOLD)
def test_the_relay_accepts_what_is_agreed_on(name: str) -> None:
    ((number, report),) = read_notification(read(name)).events
    assert number == 1 + TOLD.index(name)
    assert report.handle == REPORT_HANDLE
    shown = {"released": "released", "amended": "released"}
    state = name.removeprefix("notification-")
    assert report.state.value == shown.get(state, state)


def test_nothing_of_the_patient_is_in_what_the_relay_and_the_phone_get() -> None:
    patient = make_patient()
    secrets = [patient.patient_id, patient.id_number, patient.phone, "Zhang", "三"]
    states = [name.removeprefix("notification-") for name in TOLD]
    phone = [f"phone-{kind}-{s}" for kind in ("list", "report") for s in states]
    for name in [*TOLD, *phone]:
        text = read(name).decode()
        assert [s for s in secrets if s and s in text] == [], name


@pytest.mark.parametrize("kind", ["notification", "phone-report"])
def test_a_report_that_waits_says_neither_grade_nor_text(kind: str) -> None:
    for state in ("ready", "withdrawn"):
        said = set(map(str, elements(json.loads(read(f"{kind}-{state}")))))
        assert not said & {"4B", "3", *_texts("4B"), *_texts("3")}, state


def _texts(category: str) -> list[str]:
    text = patient_texts()[category]
    return [text.text_zh, text.text_en, text.advice_zh, text.advice_en]


def test_the_lexicon_is_as_agreed() -> None:
    """Codes as DICOM and FHIR have them, and the words in both languages."""
    built = {
        "fields": {
            field.key.value: {
                "multiple": field.multiple,
                **_concept(field.concept),
                "terms": {term.key: _concept(term.concept) for term in field.terms},
            }
            for field in lexicon.FIELDS.values()
        },
        "categories": {
            key: {"gated": category.gated, **_concept(category.concept)}
            for key, category in lexicon.CATEGORIES.items()
        },
        "followups": {k: _concept(concept) for k, concept in lexicon.FOLLOWUP.items()},
    }
    check("lexicon", pretty(json.dumps(built), ordered=True))


def _concept(concept: Concept) -> dict[str, str | None]:
    return {
        "scheme": concept.scheme,
        "system": lexicon.FHIR_SYSTEM.get(concept.scheme),
        "code": concept.value,
        "meaning": concept.meaning,
        "zh": concept.zh,
        "en": concept.en,
    }
