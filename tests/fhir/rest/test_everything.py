"""All that the node knows of one patient (FHIR R4 Patient/$everything)."""

from collections import Counter
from typing import Any

from fhir.encoding.wire import Json
from node.domain.access import Role
from node.store.store import Store
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.rig import Rig, drafted, publish_draft, receive_study
from tests.fhir.smart_rig import running_smart


async def entries(rig: Rig, path: str, **options: Any) -> list[Json]:
    """Return every entry over all pages."""
    url, found = path, []
    while url:
        bundle = await rig.read(url, **options)
        assert bundle["type"] == "searchset"
        found += bundle.get("entry", [])
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next", "")
    return found


def kinds(found: list[Json], mode: str) -> Counter[str]:
    return Counter(
        e["resource"]["resourceType"] for e in found if e["search"]["mode"] == mode
    )


async def patient_path(rig: Rig) -> str:
    report = await rig.read(rig.report_path)
    return f"/{report['subject']['reference']}"


async def test_everything_of_a_patient_and_nothing_of_others_comes_in_pages(
    rig: Rig,
) -> None:
    other = make_patient(patient_id="MRN-2")
    await receive_study(rig.store, other, study_uid="2.25.3002", accession="A-2")
    await publish_draft(
        rig.store, rig.settings, study_uid="2.25.3002", findings=make_findings("2")
    )
    path = await patient_path(rig)
    whole = await entries(rig, f"{path}/$everything", role=Role.EHR)
    assert whole[0]["resource"]["resourceType"] == "Patient"
    expected = {"Patient": 1, "ImagingStudy": 1, "DiagnosticReport": 1}
    expected |= {"Observation": 13, "Provenance": 1, "BodyStructure": 1}
    assert kinds(whole, "match") == expected
    assert kinds(whole, "include") >= Counter(Device=1, Organization=1)
    for entry in whole:
        kind = entry["resource"]["resourceType"]
        subject = entry["resource"].get("subject", {}).get("reference")
        assert subject in (None, path.strip("/")), kind
    for count in (1, 4, 17):
        paged = await entries(rig, f"{path}/$everything?_count={count}", role=Role.EHR)
        assert kinds(paged, "match") == expected, count
        names = [e["fullUrl"] for e in paged if e["search"]["mode"] == "match"]
        assert names == [e["fullUrl"] for e in whole if e["search"]["mode"] == "match"]


async def test_everything_is_narrowed_by_type_and_by_time(
    rig: Rig, clock: FrozenClock
) -> None:
    path = await patient_path(rig)
    clock.advance(seconds=7200)
    await rig.renew_sessions()
    assert (await rig.sign()).status == 200
    asked: list[tuple[str, set[str], set[str]]] = [
        ("_type=Observation,Device", {"Observation"}, {"Device"}),
        ("_type=DiagnosticReport", {"DiagnosticReport"}, set()),
        ("_type=Patient&_type=ImagingStudy", {"Patient", "ImagingStudy"}, set()),
        (
            "_since=2026-11-21T09:00:00Z",
            {"DiagnosticReport", "Observation", "Provenance"},
            {"Device", "Practitioner"},
        ),
        ("_since=2026-11-22T00:00:00Z", set(), set()),
        ("start=2026-11-22", {"Patient", "BodyStructure"}, set()),
        ("end=2026-11-19", {"Patient", "BodyStructure"}, set()),
        ("start=2026-11-20&end=2026-11-20&_type=ImagingStudy", {"ImagingStudy"}, set()),
    ]
    for query, matches, includes in asked:
        found = await entries(rig, f"{path}/$everything?{query}", role=Role.EHR)
        assert set(kinds(found, "match")) == matches, query
        brought = set(kinds(found, "include"))
        assert brought == includes if "_type" in query else brought >= includes, query
        pairs = [pair.split("=") for pair in query.split("&")]
        told = {
            "resourceType": "Parameters",
            "parameter": [{"name": n, _typed(n): v} for n, v in pairs],
        }
        posted = await rig.ask("POST", f"{path}/$everything", told, role=Role.EHR)
        assert posted.status == 200, posted.raw
        assert set(kinds(posted.body.get("entry", []), "match")) == matches, query


def _typed(name: str) -> str:
    return {"_since": "valueInstant", "_type": "valueCode"}.get(name, "valueDate")


async def test_everything_is_masked_for_who_sees_masked_patients(rig: Rig) -> None:
    path = await patient_path(rig)
    seen = await rig.get(f"{path}/$everything")
    assert seen.status == 200
    for told in ("MRN-0042", "张三", "Zhang"):
        assert told not in seen.raw.decode()
    whole = await rig.get(f"{path}/$everything", role=Role.EHR)
    assert "MRN-0042" in whole.raw.decode()


async def test_what_everything_does_not_take_is_told_or_refused(rig: Rig) -> None:
    path = f"{await patient_path(rig)}/$everything"
    told = await rig.read(f"{path}?colour=red&_count=20")
    own = f"{rig.settings.base_url}{path}?_count=20"
    assert told["link"][0] == {"relation": "self", "url": own}
    assert [e["search"]["mode"] for e in told["entry"]][-1] == "outcome"
    strict = {"Prefer": "handling=strict"}
    assert (await rig.get(f"{path}?colour=red", headers=strict)).status == 400
    for asked in ("start=then", "_type=Medication", "_count=x", "_page=x"):
        assert (await rig.get(f"{path}?{asked}")).status == 400, asked
    for method, where, status in (
        ("GET", "/Patient/none/$everything", 404),
        ("GET", "/Patient/$everything", 404),
        ("GET", f"{rig.report_path}/$everything", 404),
        ("PUT", path, 405),
    ):
        answer = await rig.ask(method, where, {} if method == "PUT" else None)
        assert answer.status == status, (method, where, answer.raw)


async def test_a_token_opens_of_everything_what_its_scopes_open(store: Store) -> None:
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as smart:
        await drafted(smart)
        path = await patient_path(smart)
        client = await smart.register("system/*.rs")
        for scope, expected in (
            ("system/Patient.rs", {"Patient"}),
            ("system/Patient.r system/ImagingStudy.r", {"Patient", "ImagingStudy"}),
            (
                "system/Patient.r system/DiagnosticReport.rs?status=final",
                {"Patient"},
            ),
            (
                "system/Patient.r system/DiagnosticReport.rs?status=partial",
                {"Patient", "DiagnosticReport"},
            ),
        ):
            token = await smart.token(client, scope)
            told = await smart.with_token(token, "GET", f"{path}/$everything")
            assert told.status == 200, told.raw
            shown = {e["resource"]["resourceType"] for e in told.body["entry"]}
            assert shown == expected, scope
        token = await smart.token(client, "system/DiagnosticReport.rs")
        told = await smart.with_token(token, "GET", f"{path}/$everything")
        assert told.status == 403
