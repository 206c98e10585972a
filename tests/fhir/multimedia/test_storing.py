"""Signed reports in the hospital's repositories: IHE RAD-141, the node as Sender."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fhir.multimedia import storing
from fhir.multimedia.owed import STORE_REPORT
from fhir.multimedia.storing import store_report
from fhir.subscriptions.notification import SIGNATURE_HEADER
from node.domain.access import Role
from node.domain.errors import ErrorKind, NodeError
from node.repositories import repository_workers
from node.store import audit
from node.store.erasure import shred_patient
from node.store.store import Store
from tests.fhir.content.test_life_cycle import because
from tests.fhir.multimedia.repository import (
    JSON_TYPE,
    XML_TYPE,
    Repository,
    require_imr,
    running_repository,
)
from tests.fhir.printing import draft_with_image, encode, tell_of_papers
from tests.fhir.rest.test_bundles import PATIENT, entry, make_order
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig, running_fhir

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass
class Case:
    """A node with a signed report, and a repository that it is owed to."""

    rig: Rig
    repository: Repository
    known: dict[str, storing.Repository]

    async def print_it(self) -> None:
        assert self.rig.report is not None
        self.rig.report = await encode(self.rig, self.rig.report)
        await tell_of_papers(self.rig)

    async def change(self, status: str) -> None:
        rig = self.rig
        changed = await rig.edited(rig.report_path, status=status, conclusion="另见")
        assert (await rig.transact(changed, because(rig))).status == 200

    async def work(self, *, lane: str = "hospital") -> list[dict[str, Any]]:
        """Do what is owed, as the worker would; a failure stays to be tried again."""
        jobs, done = self.rig.store.jobs, []
        while job := await jobs.claim([STORE_REPORT], "test", lane=lane):
            done.append(dict(job.payload))
            await self.send(job.payload)
            await jobs.done(job)
        return done

    async def send(self, payload: Any) -> None:
        rig = self.rig
        await store_report(rig.store, rig.settings, self.known, rig.session, payload)

    def set(self, **changes: Any) -> None:
        self.known["hospital"] = replace(self.known["hospital"], **changes)


@pytest.fixture
async def case(store: Store) -> AsyncIterator[Case]:
    roles = (Role.RADIOLOGIST, Role.EHR)
    async with (
        running_repository() as repository,
        running_fhir(
            store,
            roles=roles,
            repositories=("hospital", "clinic"),
            hook_secret=b"shared",
        ) as rig,
    ):
        order = make_order(PATIENT)
        order["identifier"][0]["value"] = "ACC0001"
        patient = make_ehr_patient("BUS-0001")
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [
                entry("POST", "Patient", patient, fullUrl=PATIENT),
                entry("POST", "ServiceRequest", order),
            ],
        }
        assert (await rig.ask("POST", "", bundle, role=Role.EHR)).status == 200
        rig.report = await draft_with_image(rig)
        assert (await rig.sign(conclusion="左乳 <肿块> & 结节\n第二行")).status == 200
        known = {
            name: storing.Repository(name, repository.url)
            for name in ("hospital", "clinic")
        }
        yield Case(rig, repository, known)


@pytest.mark.parametrize("media", [JSON_TYPE, XML_TYPE])
async def test_a_signed_report_is_stored_as_rad_141_says(
    case: Case, media: str
) -> None:
    """And every word and number of it arrives, in either format."""
    rig, repository = case.rig, case.repository
    case.set(xml=media == XML_TYPE, authorize=lambda: "Bearer of-the-node")
    assert await case.work() == []  # it has no page yet
    await case.print_it()
    payload = {"report_id": str(rig.report_id), "version": 2, "repository": "hospital"}
    assert await case.work() == [payload]
    (bundle,) = repository.bundles
    found = require_imr(bundle, rig.settings.base_url)
    assert {kind: len(found[kind]) for kind in found} == {
        "DiagnosticReport": 1,
        "ImagingStudy": 1,
        "ServiceRequest": 1,
    }
    (headers,) = repository.headers
    assert headers["Content-Type"] == media
    assert headers["Authorization"] == "Bearer of-the-node"
    assert headers[SIGNATURE_HEADER].startswith("t=")
    (sent,) = found["DiagnosticReport"]
    here = await rig.read(rig.report_path)
    for element in ("status", "code", "conclusion", "issued", "category"):
        assert sent[element] == here[element]
    numbers = {i["value"] for i in sent["identifier"]}
    assert {"ACC0001", str(rig.report_id), f"{rig.report_id}-v2"} <= numbers
    wanted = f"Patient?identifier={'urn%3Aoid%3A2.25.41%7CBUS-0001'}"
    assert sent["subject"]["reference"] == wanted
    assert sent["basedOn"][0]["type"] == "ServiceRequest"
    pages = [base64.b64decode(f["data"]).decode() for f in sent["presentedForm"][:1]]
    assert "左乳 &lt;肿块&gt; &amp; 结节" in pages[0]
    for words in ("BI-RADS 4C", "左乳 &lt;肿块&gt; &amp; 结节<br/>第二行", "11.8 mm"):
        assert words in sent["text"]["div"]
    # The doctor's words for the patient, and what is ours alone, stay here.
    assert "extension" not in sent
    assert "result" not in sent


async def test_every_repository_gets_it_once_though_an_answer_is_lost(
    case: Case,
) -> None:
    await case.print_it()
    (payload,) = await case.work()
    await case.send(payload)  # the answer was lost: the very same again
    first, second = case.repository.bundles
    assert first == second
    assert len(case.repository.reports()) == 1
    case.known["clinic"] = replace(case.known["clinic"], search_patient=False)
    case.repository.came.clear()
    hospital, clinic = repository_workers(
        case.rig.store, case.rig.settings, case.known, case.rig.session
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as workers:
        for worker in (hospital, clinic):
            workers.create_task(worker.run())
        await case.repository.came.wait()
        for worker in (hospital, clinic):
            worker.stop()
    assert len(case.repository.bundles) == 3
    (report,) = require_imr(case.repository.bundles[2], case.rig.settings.base_url)[
        "DiagnosticReport"
    ]
    here = await case.rig.read(case.rig.report_path)
    address = f"{case.rig.settings.base_url}/{here['subject']['reference']}"
    assert report["subject"]["reference"] == address
    async with case.rig.store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=f"report/{case.rig.report_id}/2")
    told = [e.detail for e in entries if e.action == "store report"]
    assert {d["repository"] for d in told} == {"hospital", "clinic"}
    assert all(d["patient"] in address for d in told)


async def test_an_amendment_follows_and_a_withdrawal_takes_both_back(
    case: Case,
) -> None:
    await case.print_it()
    await case.change("amended")
    await case.print_it()
    # The first version had not been sent when the second came: that one alone is.
    assert [p["version"] for p in await case.work()] == [2, 3]
    (bundle,) = case.repository.bundles
    (report,) = require_imr(bundle, case.rig.settings.base_url)["DiagnosticReport"]
    assert report["status"] == "amended"
    replaced = report["extension"][0]["valueReference"]["identifier"]["value"]
    assert replaced == f"{case.rig.report_id}-v2"
    await case.change("entered-in-error")
    assert [p["version"] for p in await case.work()] == [4]
    reports = case.repository.reports()
    assert {r["status"] for r in reports} == {"entered-in-error"}
    assert {r["identifier"][1]["value"][-2:] for r in reports} == {"v2", "v3"}
    assert "另见" not in str(reports)
    assert not any("presentedForm" in r or "conclusion" in r for r in reports)
    assert "profile" not in case.repository.bundles[1].get("meta", {})


REFUSALS = {
    400: ErrorKind.INVALID,
    401: ErrorKind.FORBIDDEN,
    404: ErrorKind.NOT_FOUND,
    412: ErrorKind.INVALID,
    418: ErrorKind.INVALID,
    422: ErrorKind.INVALID,
    429: ErrorKind.UNAVAILABLE,
    503: ErrorKind.UNAVAILABLE,
}


async def test_what_a_repository_answers_is_told_without_its_words(case: Case) -> None:
    await case.print_it()
    job = await case.rig.store.jobs.claim([STORE_REPORT], "test", lane="hospital")
    assert job is not None
    for status, kind in REFUSALS.items():
        case.repository.answers = [status]
        with pytest.raises(NodeError) as caught:
            await case.send(job.payload)
        assert caught.value.kind is kind, status
        assert str(caught.value).startswith("repository hospital at http")
        assert "Wang" not in str(caught.value)
    case.repository.refused_entry = "422 Unprocessable Entity"
    with pytest.raises(NodeError, match="refuses the report"):
        await case.send(job.payload)
    case.repository.refused_entry = ""
    # It is followed to where it sends us on its own host, and nowhere else.
    case.repository.redirect = case.repository.url.replace("/fhir", "/moved")
    await case.send(job.payload)
    case.repository.redirect = "http://elsewhere.example/fhir"
    with pytest.raises(NodeError, match="another place"):
        await case.send(job.payload)
    case.set(url="http://127.0.0.1:9/fhir")
    with pytest.raises(NodeError) as caught:
        await case.send(job.payload)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    with pytest.raises(NodeError, match="no longer"):
        await case.send({**job.payload, "repository": "gone"})


async def test_nothing_is_sent_of_an_erased_patient_or_of_a_draft(case: Case) -> None:
    await case.print_it()
    job = await case.rig.store.jobs.claim([STORE_REPORT], "test", lane="hospital")
    assert job is not None
    store = case.rig.store
    assert case.rig.report is not None
    await shred_patient(store.db, store.ring, case.rig.report.patient_id)
    with pytest.raises(NodeError) as caught:
        await case.send(job.payload)
    assert caught.value.kind is ErrorKind.GONE
    assert case.repository.bundles == []
