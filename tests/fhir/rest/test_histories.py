"""Histories of one resource and of a type (FHIR R4 3.1.0.5)."""

from typing import Any
from uuid import UUID

from node.domain.access import Role
from node.store.erasure import shred
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.rig import Rig, publish_draft, receive_study


async def versions(rig: Rig, path: str, **options: Any) -> list[str]:
    """Return `id/version` of every entry of a history, over all of its pages."""
    url, found = path, []
    while url:
        bundle = await rig.read(url, **options)
        assert bundle["type"] == "history"
        for entry in bundle.get("entry", []):
            resource = entry["resource"]
            found.append(f"{resource['id']}/{resource['meta']['versionId']}")
            assert entry["response"]["etag"] == f'W/"{resource["meta"]["versionId"]}"'
        links = {link["relation"]: link["url"] for link in bundle["link"]}
        url = links.get("next", "")
    return found


async def three_reports(rig: Rig, clock: FrozenClock) -> list[str]:
    """Draft two more reports, an hour apart each; return the ids, oldest first."""
    ids = [str(rig.report_id)]
    for number in (2, 3):
        clock.advance(seconds=3600)
        uid = f"2.25.300{number}"
        patient = make_patient(patient_id=f"MRN-{number}")
        await receive_study(rig.store, patient, study_uid=uid, accession=f"A-{number}")
        report = await publish_draft(
            rig.store, rig.settings, study_uid=uid, findings=make_findings("2")
        )
        ids.append(str(report.id))
    return ids


async def test_a_type_tells_what_was_written_newest_first_in_pages(
    rig: Rig, clock: FrozenClock
) -> None:
    one, two, three = await three_reports(rig, clock)
    clock.advance(seconds=3600)
    await rig.renew_sessions()
    assert (await rig.sign()).status == 200
    expected = [f"{one}/2", f"{three}/1", f"{two}/1", f"{one}/1"]
    for count in (1, 2, 3, 4, 50):
        path = f"/DiagnosticReport/_history?_count={count}"
        assert await versions(rig, path) == expected, count
    assert "model-1/1" in await versions(rig, "/Device/_history")
    assert await versions(rig, "/ServiceRequest/_history") == []
    # Doctors see nobody's name in it either.
    raw = (await rig.get("/Patient/_history")).raw.decode()
    assert "MRN-" not in raw
    assert "REDACTED" in raw


async def test_a_history_is_asked_for_by_time(rig: Rig, clock: FrozenClock) -> None:
    one, two, three = await three_reports(rig, clock)
    clock.advance(seconds=3600)
    await rig.renew_sessions()
    assert (await rig.sign()).status == 200
    # Written at 08, 09 and 10 o'clock, and the first again at 11.
    times: list[tuple[str, list[str]]] = [
        ("_since=2026-11-21T10:00:00Z", [f"{one}/2", f"{three}/1"]),
        ("_since=2026-11-21T18:30:00%2B08:00", [f"{one}/2"]),
        ("_since=2026-11-22", []),
        ("_at=2026-11-21T09:30:00Z", [f"{two}/1", f"{one}/1"]),
        ("_at=2026-11-21T11:30:00Z", [f"{one}/2", f"{three}/1", f"{two}/1"]),
        ("_at=2026-11-20", []),
        ("_at=2026-11-21T11:30:00Z&_since=2026-11-21T10:30:00Z", [f"{one}/2"]),
    ]
    for asked, expected in times:
        for count in (1, 50):
            path = f"/DiagnosticReport/_history?{asked}&_count={count}"
            assert await versions(rig, path) == expected, path
            own = [v for v in expected if v.startswith(one)]
            path = f"{rig.report_path}/_history?{asked}&_count={count}"
            assert await versions(rig, path) == own, path


async def test_what_a_history_is_not_asked_by_is_refused(rig: Rig) -> None:
    for path in ("/DiagnosticReport/_history", f"{rig.report_path}/_history"):
        for asked in ("_since=then", "_at=2026-13", "_count=x", "_page=x"):
            answer = await rig.get(f"{path}?{asked}")
            assert answer.status == 400, (path, asked)
        strict = {"Prefer": "handling=strict"}
        answer = await rig.get(f"{path}?status=final", headers=strict)
        assert answer.status == 400
        told = await rig.read(f"{path}?status=final&_count=7")
        assert told["link"][0]["url"] == f"{rig.settings.base_url}{path}?_count=7"
    assert (await rig.get("/Task/_history")).status == 405
    assert (await rig.get("/_history")).status == 404
    # A page of one thing is no page of another.
    page = await rig.read("/Observation/_history?_count=1")
    cursor = page["link"][1]["url"].partition("?")[2]
    answer = await rig.get(f"/DiagnosticReport/_history?{cursor}")
    assert answer.status == 400


async def test_what_is_erased_is_in_no_history(rig: Rig) -> None:
    patient = (await rig.read(rig.report_path, role=Role.EHR))["subject"]["reference"]
    async with rig.store.db.transaction() as tx:
        await shred(tx, rig.store.ring, UUID(patient.rpartition("/")[2]))
    for kind in ("DiagnosticReport", "Patient", "Observation"):
        assert await versions(rig, f"/{kind}/_history") == []
    assert (await rig.get(f"{rig.report_path}/_history")).status == 410
