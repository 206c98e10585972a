"""The signed report on paper: presentedForm, DocumentReference, Binary (FHIR R4 2.39).

IHE RAD IMR: presentedForm tells content type, size and hash, of a page in HTML too;
both are fetched as RAD-144 says.
"""

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fhir.content.documents import publish_document
from fhir.content.older import publish_left_out
from fhir.content.publish import put
from node.domain.access import Role
from node.store import audit, pages, studies
from node.store.erasure import shred_patient
from node.store.store import Store
from node.workflow.reporting import PUBLISH_DOCUMENT
from tests.dicom_scp.ultrasound import STUDY
from tests.fhir.content.test_life_cycle import because
from tests.fhir.printing import draft_with_image, encode, tell_of_papers
from tests.fhir.rig import Rig, running_fhir
from tests.fhir.security.test_smart_people import BACK, App, as_person
from tests.fhir.smart_rig import running_smart
from tests.fhir.subscriptions.rig import make_subscription

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
async def signed(store: Store) -> AsyncIterator[Rig]:
    """A live /fhir with a signed report whose paper is not made yet."""
    roles = (Role.RADIOLOGIST, Role.EHR, Role.TECHNOLOGIST, Role.PACS)
    async with running_fhir(store, roles=roles) as rig:
        rig.report = await draft_with_image(rig)
        assert (await rig.sign()).status == 200
        yield rig


async def print_it(rig: Rig) -> None:
    assert rig.report is not None
    rig.report = await encode(rig, rig.report)
    await tell_of_papers(rig)


async def amend(rig: Rig, status: str) -> None:
    entry = await rig.edited(rig.report_path, status=status, conclusion=status)
    assert (await rig.transact(entry, because(rig))).status == 200


async def fetch(
    rig: Rig, path: str, accept: str | None, role: Role = Role.EHR
) -> tuple[int, str, bytes]:
    """Return status, type and bytes as a client gets them that names no FHIR."""
    headers = {"Authorization": f"Bearer {rig.tokens[role]}"}
    headers |= {"Accept": accept} if accept else {}
    skipped = () if accept else ("Accept",)
    url = f"{rig.settings.base_url}{path}"
    async with (
        aiohttp.ClientSession(skip_auto_headers=skipped) as session,
        session.get(url, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.read()


async def form_of(rig: Rig) -> dict[str, Any]:
    pdf, page = (await rig.read(rig.report_path))["presentedForm"]
    assert (pdf["contentType"], page["contentType"]) == FORMS_MADE
    return dict(pdf)


async def test_the_paper_comes_with_a_version_that_says_nothing_else(
    signed: Rig,
) -> None:
    before = await signed.read(signed.report_path)
    assert "presentedForm" not in before
    await print_it(signed)
    after = await signed.read(signed.report_path)
    forms = after.pop("presentedForm")
    assert (after.pop("meta")["versionId"], before.pop("meta")["versionId"]) == (
        "3",
        "2",
    )
    assert after == before
    for form, expected, start in zip(
        forms, FORMS_MADE, (b"%PDF-", b"<!DOC"), strict=True
    ):
        assert form["contentType"] == expected
        assert form["language"] == "zh-CN"
        assert form["creation"].endswith("Z")
        status, kind, content = await fetch(signed, f"/{form['url']}", None)
        assert (status, kind) == (200, expected)
        assert content.startswith(start)
        assert form["size"] == len(content)
        sha1 = hashlib.sha1(content, usedforsecurity=False).digest()
        assert base64.b64decode(form["hash"]) == sha1
    target = f"{signed.report_path.strip('/')}/_history/3"
    found = await signed.read(f"/Provenance?agent=Device/sononode&target={target}")
    (provenance,) = [e["resource"] for e in found["entry"]]
    assert provenance["agent"][0]["type"]["coding"][0]["code"] == "assembler"
    assert {t["reference"] for t in provenance["target"]} == {
        target,
        f"DocumentReference/{signed.report_id}-v2/_history/1",
    }


async def test_the_document_names_who_signed_and_who_keeps_it(signed: Rig) -> None:
    await print_it(signed)
    report = await signed.read(signed.report_path)
    subject = report["subject"]["reference"]
    found = await signed.read(
        f"/DocumentReference?patient={subject}&status=current"
        f"&related=DiagnosticReport/{signed.report_id}"
        "&_include=DocumentReference:custodian&_include=DocumentReference:author"
    )
    document, *others = [e["resource"] for e in found["entry"]]
    assert document["docStatus"] == "final"
    assert document["author"] == report["resultsInterpreter"]
    assert document["content"][0]["attachment"] == await form_of(signed)
    assert len(document["content"]) == 2
    assert {o["resourceType"] for o in others} == {"Organization", "Practitioner"}


FORMS_MADE = ("application/pdf", "text/html")
AS_JSON = {"Accept": "application/fhir+json"}
PUBLIC: dict[str, Any] = {"keys": "", "redirect_uris": [BACK]}
FORMS = {
    "application/pdf": "application/pdf",
    "*/*": "application/pdf",
    "text/html,application/xml;q=0.9,*/*;q=0.8": "application/pdf",
    "application/pdf, application/fhir+json;q=0.5": "application/pdf",
    "application/fhir+json": "application/fhir+json",
    "application/fhir+xml, */*;q=0.1": "application/fhir+xml",
    "application/json": "application/json",
}


async def test_a_paper_comes_in_the_form_that_was_named(signed: Rig) -> None:
    await print_it(signed)
    path = f"/Binary/{signed.report_id}-v2"
    for accept, kind in FORMS.items():
        status, told, body = await fetch(signed, path, accept)
        assert (status, told) == (200, kind), accept
        if kind == "application/pdf":
            assert body.startswith(b"%PDF-")
            continue
        headers = {"Accept": accept}
        binary = (await signed.get(path, role=Role.EHR, headers=headers)).body
        assert base64.b64decode(binary["data"]).startswith(b"%PDF-")
        assert binary["contentType"] == "application/pdf"
        report = {"reference": signed.report_path.strip("/")}
        assert binary["securityContext"] == report
    for other in ("", "-html"):
        answer = await fetch(signed, path + other, "image/png")
        assert answer[:2] == (406, "application/fhir+json")
    for accept in ("text/html", "text/html,application/xml;q=0.9,*/*;q=0.8", "*/*"):
        assert (await fetch(signed, f"{path}-html", accept))[:2] == (200, "text/html")


async def test_a_page_is_shown_where_nothing_runs_and_goes_with_her_key(
    signed: Rig,
) -> None:
    await print_it(signed)
    assert signed.report is not None
    path = f"/Binary/{signed.report_id}-v2-html"
    headers = {"Authorization": f"Bearer {signed.tokens[Role.EHR]}"}
    url = f"{signed.settings.base_url}{path}"
    async with signed.session.get(url, headers=headers) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        html = (await answer.read()).decode()
    assert "乳腺超声检查报告" in html
    assert f"/dicom-web/studies/{STUDY}/series/" in html
    binary = (await signed.get(path, role=Role.EHR, headers=AS_JSON)).body
    assert base64.b64decode(binary["data"]).decode() == html
    assert binary["id"] == path.rpartition("/")[2]
    async with signed.store.db.transaction() as tx:
        page = await pages.find(tx, signed.store, signed.report, 2)
        assert page is not None
        other = await studies.blobs_in_use(tx, [page.blob_name, "pages/none"])
        assert other == {page.blob_name}
        sealed = await tx.fetchval("select blob_key from report_page")
    assert page.key not in sealed
    await shred_patient(signed.store.db, signed.store.ring, signed.report.patient_id)
    assert (await signed.get(path, role=Role.EHR)).status == 410


async def test_only_who_may_have_the_whole_identity_reads_a_paper_and_it_is_audited(
    signed: Rig,
) -> None:
    await print_it(signed)
    path = f"/Binary/{signed.report_id}-v2"
    for role, expected in {
        Role.RADIOLOGIST: 200,
        Role.EHR: 200,
        Role.TECHNOLOGIST: 403,
        Role.PACS: 403,
    }.items():
        assert (await fetch(signed, path, None, role))[0] == expected, role
    async with signed.store.db.transaction() as tx:
        entries = await audit.entries(tx, entity=path.strip("/"))
    read = [(e.role, e.outcome.name) for e in entries if e.action == "fhir read"]
    assert read[:2] == [("radiologist", "SUCCESS"), ("ehr", "SUCCESS")]
    assert entries[0].detail["patients"]
    headers = {"If-None-Match": 'W/"1"'}
    assert (await signed.get(path, role=Role.EHR, headers=headers)).status == 304
    for unknown in ("-v9", "-v9-html", "-v2-pdf", "-v2-html-html", "-html", ""):
        known_by = f"{signed.report_id}{unknown}"
        answer = await signed.get(f"/Binary/{known_by}", role=Role.EHR)
        assert answer.status == 404, known_by
    for unknown in ("x", "0-v1"):
        assert (await signed.get(f"/Binary/{unknown}", role=Role.EHR)).status == 404


async def test_an_amendment_takes_the_old_paper_off_and_the_new_one_replaces_it(
    signed: Rig,
) -> None:
    await print_it(signed)
    await amend(signed, "amended")
    assert "presentedForm" not in await signed.read(signed.report_path)
    old = f"/DocumentReference/{signed.report_id}-v2"
    assert (await signed.read(old))["status"] == "superseded"
    await print_it(signed)
    new = await signed.read(f"/DocumentReference/{signed.report_id}-v3")
    assert (new["status"], new["docStatus"]) == ("current", "amended")
    assert new["relatesTo"][0]["code"] == "replaces"
    assert new["relatesTo"][0]["target"]["reference"] == old.strip("/")
    assert (await form_of(signed))["url"] == f"Binary/{signed.report_id}-v3"
    assert (await signed.read(signed.report_path))["status"] == "amended"
    # Somebody acted on the old one: it stays to be read.
    old_paper = await fetch(signed, f"/Binary/{signed.report_id}-v2", None)
    assert old_paper[0] == 200


async def test_a_paper_that_comes_after_the_next_version_is_superseded_at_once(
    signed: Rig,
) -> None:
    assert signed.report is not None
    await encode(signed, signed.report)
    await amend(signed, "corrected")
    await tell_of_papers(signed)
    assert "presentedForm" not in await signed.read(signed.report_path)
    document = await signed.read(f"/DocumentReference/{signed.report_id}-v2")
    assert document["status"] == "superseded"


async def test_a_withdrawn_report_hands_out_no_paper(signed: Rig) -> None:
    await print_it(signed)
    await amend(signed, "entered-in-error")
    assert "presentedForm" not in await signed.read(signed.report_path)
    document = await signed.read(f"/DocumentReference/{signed.report_id}-v2")
    assert (document["status"], document["docStatus"]) == (
        "entered-in-error",
        "entered-in-error",
    )
    for form in ("", "-html"):
        path = f"/Binary/{signed.report_id}-v2{form}"
        assert (await signed.get(path, role=Role.EHR)).status == 410
    payload = {"report_id": str(signed.report_id), "version": 2}
    await publish_document(signed.store, signed.settings, payload)
    assert "presentedForm" not in await signed.read(signed.report_path)


async def test_telling_of_a_paper_twice_changes_nothing(signed: Rig) -> None:
    await print_it(signed)
    payload = {"report_id": str(signed.report_id), "version": 2}
    await publish_document(signed.store, signed.settings, payload)
    assert (await signed.read(signed.report_path))["meta"]["versionId"] == "3"
    found = await signed.read("/Provenance?agent=Device/sononode")
    assert len(found["entry"]) == 1


async def test_who_waits_for_signed_reports_is_told_of_the_paper_too(
    store: Store,
) -> None:
    async with running_fhir(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        rig.report = await draft_with_image(rig)
        asked = make_subscription("http://127.0.0.1:9/hook")
        made = await rig.ask("POST", "/Subscription", asked, role=Role.EHR)
        assert made.status == 201, made.raw
        assert (await rig.sign()).status == 200
        await print_it(rig)
        told = await rig.read(f"/Subscription/{made.body['id']}/$events", role=Role.EHR)
        first, second = [e["resource"] for e in told["entry"][1:3]]
    assert (first["status"], second["status"]) == ("final", "final")
    assert "presentedForm" not in first
    assert second["presentedForm"][0]["hash"]
    assert second["meta"]["versionId"] == "3"


async def test_after_an_update_older_papers_are_found_and_nobody_is_told(
    signed: Rig,
) -> None:
    """As after the migration of a database whose release knew no DocumentReference.

    It named the algorithm as performer of a report, which R4 has no place for.
    """
    assert signed.report is not None
    await encode(signed, signed.report)
    jobs = signed.store.jobs
    while job := await jobs.claim([PUBLISH_DOCUMENT], "the release before"):
        await jobs.done(job)
    older = await signed.read(signed.report_path)
    older["performer"] = [{"reference": "Device/model-1"}]
    asked = make_subscription("http://127.0.0.1:9/hook")
    made = await signed.ask("POST", "/Subscription", asked, role=Role.EHR)
    async with signed.store.db.transaction() as tx:
        await put(tx, signed.store, older, signed.report.patient_id)
        await tx.execute("insert into left_out values ('report', $1)", signed.report_id)
    await publish_left_out(signed.store)
    assert len(await tell_of_papers(signed)) == 1
    document = await signed.read(f"/DocumentReference/{signed.report_id}-v2")
    assert document["status"] == "current"
    report = await signed.read(signed.report_path)
    assert report["performer"] == [{"reference": "Organization/department"}]
    assert report["presentedForm"] == [c["attachment"] for c in document["content"]]
    events = await signed.read(
        f"/Subscription/{made.body['id']}/$events", role=Role.EHR
    )
    assert len(events["entry"]) == 1  # its status, and no event
    await publish_left_out(signed.store)
    assert await tell_of_papers(signed) == []
    assert await signed.read(signed.report_path) == report
    await amend(signed, "amended")
    await print_it(signed)
    assert (await form_of(signed))["url"] == f"Binary/{signed.report_id}-v3"


async def test_a_token_opens_a_paper_only_with_the_report_that_it_belongs_to(
    store: Store,
) -> None:
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        rig.report = other = await draft_with_image(rig, "2.25.99", patient="BUS-0002")
        assert (await rig.sign()).status == 200
        await print_it(rig)
        rig.report = await draft_with_image(rig)
        assert (await rig.sign()).status == 200
        await print_it(rig)
        path, its = f"/Binary/{rig.report_id}-v2", f"/Binary/{other.id}-v2"
        client = await rig.register()
        for scope, expected in (
            ("system/Binary.r system/DiagnosticReport.r", 200),
            ("system/Binary.r system/DiagnosticReport.r?status=final", 200),
            ("system/Binary.r system/DiagnosticReport.r?status=amended", 404),
            ("system/Binary.r", 404),
            ("system/DiagnosticReport.r", 403),
        ):
            token = await rig.token(client, scope)
            answer = await rig.with_token(token, "GET", path, headers=AS_JSON)
            assert answer.status == expected, scope
        app = App(rig, await rig.register("patient/*.rs", roles=[], **PUBLIC))
        about = {"report": str(rig.report_id)}
        _, made = await as_person(
            rig, Role.RADIOLOGIST, "POST", "/auth/launches", about
        )
        app.asked |= {"launch": made["launch"], "scope": "launch patient/*.rs"}
        _, told = await app.agree()
        _, granted = await app.redeem(told["code"])
        hers = granted["access_token"]
        for kind in ("BodyStructure", "DocumentReference"):
            found = (await rig.with_token(hers, "GET", f"/{kind}")).body["entry"]
            assert [e["resource"]["id"][:36] for e in found] == [str(rig.report_id)]
        assert (await rig.with_token(hers, "GET", path, headers=AS_JSON)).status == 200
        assert (await rig.with_token(hers, "GET", its, headers=AS_JSON)).status == 404
