"""What a program gets by $export (Bulk Data Access 2.0), and what nobody does."""

import asyncio
import gzip
import json
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import fhirkit
import pytest

from fhir.export.writing import Size, export_resources
from fhir.search.parameters import index_of
from node.domain.access import PERMISSIONS, Action, Role
from node.domain.audit import Outcome
from node.store import audit, clients, exports, merges, resources
from node.store.erasure import shred_patient
from node.store.jobs import Postponed
from node.store.search import pages
from node.store.search.criteria import Query
from node.store.store import Store
from node.workflow.intake import settle_abandoned
from tests.conftest import FrozenClock
from tests.factories import make_patient
from tests.fhir.export.bulk import BulkClient, names, work
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import drafted, publish_draft, receive_study
from tests.fhir.smart_rig import SmartRig, running_smart

ROOT = Path(__file__).parents[3]
EVERYTHING = "system/*.rs"
KEEP = timedelta(hours=24)


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with two patients and their drafted reports."""
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        await drafted(rig)
        other = make_patient(patient_id="MRN-2")
        await receive_study(store, other, study_uid="2.25.77", accession="A-77")
        await publish_draft(store, rig.settings, study_uid="2.25.77")
        yield rig


async def program(smart: SmartRig, scopes: str = EVERYTHING) -> BulkClient:
    client = await smart.register(scopes)
    token = await smart.token(client, scopes)
    return BulkClient(smart.session, smart.settings.base_url, token)


async def exported(
    smart: SmartRig, bulk: BulkClient, query: str = "", **options: Any
) -> str:
    status, place, told = await bulk.kick_off(query, **options)
    assert status == 202, told
    await work(smart.store, smart.settings)
    return place


async def all_names(store: Store) -> list[str]:
    async with store.db.connection() as tx:
        rows = await tx.fetch("select resource_type, resource_id from resources")
    return sorted(f"{kind}/{name}" for kind, name in rows)


async def test_a_program_takes_everything_out_by_the_specification_alone(
    smart: SmartRig, clock: FrozenClock
) -> None:
    bulk = await program(smart)
    status, place, told = await bulk.kick_off("?_outputFormat=ndjson")
    assert (status, told["resourceType"]) == (202, "OperationOutcome")
    status, headers, _ = await bulk.ask("GET", place)
    assert status == 202
    assert len(headers["X-Progress"]) < 100
    assert int(headers["Retry-After"]) >= 1
    await work(smart.store, smart.settings)
    manifest = await bulk.manifest(place)
    assert manifest["request"].endswith("/fhir/$export?_outputFormat=ndjson")
    assert manifest["requiresAccessToken"] is True
    assert manifest["deleted"] == manifest["error"] == []
    assert manifest["transactionTime"].startswith("2026-11-21T08:00:00")
    lines = await bulk.all_lines(place)
    assert names(lines) == await all_names(smart.store)
    assert not [issue for line in lines for issue in fhirkit.validate(line)]
    # The same bytes as a read, whoever reads.
    (file,) = [f for f in manifest["output"] if f["type"] == "DiagnosticReport"]
    _, _, raw = await bulk.ask("GET", file["url"])
    _, _, read = await bulk.ask("GET", smart.report_path)
    assert read in raw.splitlines()
    # Who was given away by the file stands in the audit trail.
    async with smart.store.db.transaction() as tx:
        entity = f"Export/{file['url'].split('/exports/')[1].removesuffix('.ndjson')}"
        *_, entry = await audit.entries(tx, entity=entity)
        assert entry.detail["step"] == "file"
        assert len(entry.detail["patients"].split()) == 2
        assert await audit.verify(tx) > 0


async def test_files_go_out_as_gzip_to_who_takes_it_and_end_in_time(
    smart: SmartRig, clock: FrozenClock
) -> None:
    bulk = await program(smart)
    place = await exported(smart, bulk, "?_type=Observation")
    _, headers, raw = await bulk.ask("GET", place)
    (file,) = json.loads(raw)["output"]
    assert parsedate_to_datetime(headers["Expires"]) == clock.now + KEEP
    plain = {"Accept-Encoding": "identity"}
    _, told, unpacked = await bulk.ask("GET", file["url"], headers=plain)
    assert "Content-Encoding" not in told
    assert int(told["Content-Length"]) == len(unpacked)
    async with smart.session.get(
        file["url"],
        headers={"Authorization": f"Bearer {bulk.token}", "Accept-Encoding": "gzip"},
    ) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert int(answer.headers["Content-Length"]) < len(unpacked)
        assert await answer.read() == unpacked
    objects = [p for p in _objects(smart.store) if p.is_file()]
    assert objects
    for path in objects:  # at rest nothing can be read, packed or not
        stored = path.read_bytes()
        assert b"resourceType" not in stored
        assert gzip.compress(b"")[:4] not in stored[:64]


def _objects(store: Store) -> list[Path]:
    return [p for p in store.blobs._root.rglob("*") if p.is_file()]


async def test_what_the_node_cannot_do_is_refused_by_name(smart: SmartRig) -> None:
    bulk = await program(smart)
    for query, expected in (
        ("?_outputFormat=text/csv", "not-supported"),
        ("?_since=yesterday", "value"),
        ("?_since=2026-11-20T00:00:00", "value"),
        ("?_type=Flag", "not-supported"),
        ("?_type=Task", "not-supported"),
        ("?_elements=id", "not-supported"),
        ("?includeAssociatedData=LatestProvenanceResources", "not-supported"),
        ("?patient=Patient/1", "not-supported"),
        ("?_typeFilter=Observation?_sort=date", "not-supported"),
        ("?_typeFilter=Observation?unknown=1", "not-supported"),
        (
            "?_typeFilter=DiagnosticReport?patient.identifier=x",
            "not-supported",
        ),
        ("?_type=Patient&_typeFilter=Observation?status=final", "not-supported"),
        ("?_since=2026-01-01T00:00:00Z&_since=2026-01-01T00:00:00Z", "value"),
    ):
        status, _, told = await bulk.kick_off(query)
        assert (status, told["issue"][0]["code"]) == (400, expected), query
        assert told["issue"][0]["expression"]
    assert (await bulk.kick_off(prefer="return=minimal"))[0] == 400
    assert (await bulk.kick_off(Accept="text/html"))[0] == 406


async def test_a_lenient_caller_gets_the_rest_and_is_told_what_was_left_out(
    smart: SmartRig,
) -> None:
    bulk = await program(smart)
    place = await exported(
        smart,
        bulk,
        "?_type=Flag,Device&_elements=id",
        prefer="respond-async, handling=lenient",
    )
    manifest = await bulk.manifest(place)
    assert [one["type"] for one in manifest["output"]] == ["Device"]
    (notes,) = manifest["error"]
    told = " ".join(one["issue"][0]["diagnostics"] for one in await bulk.lines(notes))
    assert "Flag" in told
    assert "_elements" in told


async def test_posted_parameters_choose_patients_and_what_is_around_them(
    smart: SmartRig,
) -> None:
    bulk = await program(smart)
    async with smart.store.db.connection() as tx:
        rows = await tx.fetch(
            "select resource_type, resource_id, patient_id from resources"
        )
    hers = next(row["patient_id"] for row in rows if row["patient_id"])
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "patient", "valueReference": {"reference": f"Patient/{hers}"}},
            {"name": "_since", "valueInstant": "2020-01-01T00:00:00Z"},
        ],
    }
    place = await exported(smart, bulk, level="/Patient", body=body)
    expected = sorted(f"{k}/{i}" for k, i, owner in rows if owner == hers)
    assert names(await bulk.all_lines(place)) == expected
    everybody = await exported(smart, bulk, level="/Patient")
    told = {line["resourceType"] for line in await bulk.all_lines(everybody)}
    assert "Patient" in told
    assert "Device" not in told
    assert (await bulk.kick_off("?_type=Device", level="/Patient"))[0] == 400


async def test_a_patient_is_chosen_with_every_row_that_is_she(smart: SmartRig) -> None:
    bulk = await program(smart)
    async with smart.store.db.transaction() as tx:
        rows = await tx.fetch("select patient_id from patients")
        lost, kept = (row["patient_id"] for row in rows)
        await merges.link(tx, lost, kept)
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "patient", "valueReference": {"reference": f"Patient/{kept}"}},
            {"name": "_type", "valueString": "Patient,ImagingStudy"},
        ],
    }
    query = f"?_type=ImagingStudy&_typeFilter=ImagingStudy?patient={lost}"
    for place in (
        await exported(smart, bulk, level="/Patient", body=body),
        await exported(smart, bulk, query),
    ):
        told = [line["resourceType"] for line in await bulk.all_lines(place)]
        assert told.count("ImagingStudy") == 2


async def test_filters_of_one_type_are_alternatives_and_leave_others_alone(
    smart: SmartRig, clock: FrozenClock
) -> None:
    await smart.sign()
    bulk = await program(smart)
    query = (
        "?_type=DiagnosticReport,Patient&_typeFilter=DiagnosticReport?status=final,"
        "DiagnosticReport?status=amended%26date=gt2020"
    )
    place = await exported(smart, bulk, query)
    lines = await bulk.all_lines(place)
    reports = [one for one in lines if one["resourceType"] == "DiagnosticReport"]
    assert [one["id"] for one in reports] == [str(smart.report_id)]
    assert sum(one["resourceType"] == "Patient" for one in lines) == 2


async def test_since_leaves_out_what_was_not_touched(
    smart: SmartRig, clock: FrozenClock
) -> None:
    since = clock.now
    clock.advance(seconds=60)
    await smart.renew_sessions()
    assert (await smart.sign()).status == 200
    bulk = await program(smart)
    place = await exported(
        smart, bulk, f"?_since={since.strftime('%Y-%m-%dT%H:%M:%SZ')}"
    )
    lines = await bulk.all_lines(place)
    assert f"DiagnosticReport/{smart.report_id}" in names(lines)
    assert not [one for one in lines if one["resourceType"] == "ImagingStudy"]


async def test_what_changes_meanwhile_is_shown_as_it_was_and_never_missing(
    smart: SmartRig, clock: FrozenClock
) -> None:
    before = await all_names(smart.store)
    bulk = await program(smart)
    filtered = "?_typeFilter=DiagnosticReport?status=partial"
    _, first, _ = await bulk.kick_off()
    _, second, _ = await bulk.kick_off(filtered)
    clock.advance(seconds=5)
    await smart.renew_sessions()
    assert (await smart.sign()).status == 200  # neither of both is to see this
    await smart.ask("POST", "/Patient", make_ehr_patient(), role=Role.EHR)
    await work(smart.store, smart.settings, Size(2, page=1))
    for place in (first, second):
        lines = await bulk.all_lines(place)
        assert names(lines) == before
        (report,) = [o for o in lines if o["id"] == str(smart.report_id)]
        assert (report["status"], report["meta"]["versionId"]) == ("partial", "1")


async def test_an_export_waits_for_writers_who_began_before_it(
    smart: SmartRig,
) -> None:
    bulk = await program(smart)
    device = {"resourceType": "Device", "id": "late", "meta": {"versionId": "1"}}
    async with smart.store.db.transaction() as tx:
        await resources.write(
            tx,
            smart.store,
            "Device",
            "late",
            lambda *_: json.dumps(device).encode(),
            index_of(device),
        )
        _, place, _ = await bulk.kick_off("?_type=Device")
        job = await smart.store.jobs.claim(
            [exports.EXPORT_RESOURCES], "test", lane=exports.LANE
        )
        assert job is not None
        async with smart.store.db.connection() as other:
            assert not await exports.settled(other, UUID(place.rpartition("/")[2]))
        await smart.store.jobs.release(job)
    await work(smart.store, smart.settings)
    assert "Device/late" in names(await bulk.all_lines(place))


# --- who may ---------------------------------------------------------------------


def test_only_hospital_systems_may_export() -> None:
    allowed = {r for r in Role if Action.EXPORT_RESOURCES in PERMISSIONS[r]}
    assert allowed == {Role.EHR}


async def test_people_and_accounts_with_a_password_export_nothing(
    smart: SmartRig,
) -> None:
    for role in (Role.RADIOLOGIST, Role.EHR):
        token = smart.tokens[role]
        bulk = BulkClient(smart.session, smart.settings.base_url, token)
        status, _, told = await bulk.kick_off()
        assert (status, told["issue"][0]["code"]) == (403, "forbidden")
    async with smart.store.db.connection() as tx:
        entries = await audit.entries(tx, entity="-")
    denied = [one for one in entries if one.action == "fhir operation $export"]
    assert [one.outcome for one in denied] == [Outcome.REFUSED] * 2


async def test_a_token_exports_what_its_scopes_open_and_no_more(
    smart: SmartRig,
) -> None:
    await smart.sign()
    scopes = "system/DiagnosticReport.rs?status=final system/Patient.r"
    bulk = await program(smart, scopes)
    place = await exported(smart, bulk)
    lines = await bulk.all_lines(place)
    assert names(lines) == [f"DiagnosticReport/{smart.report_id}"]
    # Not asked for by name either: Patient.r lets one read, not search for all.
    status, _, told = await bulk.kick_off("?_type=Patient")
    assert (status, told["issue"][0]["code"]) == (403, "forbidden")
    assert (await bulk.kick_off("?_type=DiagnosticReport"))[0] == 202


async def test_a_file_opens_to_a_token_as_wide_as_the_one_that_asked(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    base_url, wide = smart.settings.base_url, await smart.token(client, EVERYTHING)
    bulk = BulkClient(smart.session, base_url, wide)
    place = await exported(smart, bulk, "?_type=DiagnosticReport")
    (file,) = (await bulk.manifest(place))["output"]
    narrow = "system/DiagnosticReport.rs?status=final"
    for scope, status in (
        (narrow, 403),
        ("system/Patient.rs", 403),
        ("system/DiagnosticReport.rs", 200),
    ):
        other = BulkClient(smart.session, base_url, await smart.token(client, scope))
        assert (await other.ask("GET", file["url"]))[0] == status, scope


async def test_nobody_else_learns_that_an_export_exists(smart: SmartRig) -> None:
    bulk, stranger = await program(smart), await program(smart)
    place = await exported(smart, bulk, "?_type=Patient")
    (file,) = (await bulk.manifest(place))["output"]
    for method, url in (("GET", place), ("GET", file["url"]), ("DELETE", place)):
        assert (await stranger.ask(method, url))[0] == 404
        status, _, raw = await stranger.ask(method, f"{url[:-5]}00000")
        assert (status, json.loads(raw)["resourceType"]) == (404, "OperationOutcome")
    async with smart.session.get(file["url"]) as answer:
        assert answer.status == 401


async def test_a_client_has_few_exports_under_way_and_asks_now_and_then(
    smart: SmartRig, clock: FrozenClock
) -> None:
    bulk = await program(smart)
    places = [(await bulk.kick_off())[1] for _ in range(2)]
    status, headers, _ = await bulk.ask(
        "GET", "/$export", headers={"Prefer": "respond-async"}
    )
    assert status == 429
    assert int(headers["Retry-After"]) > 0
    assert (await (await program(smart)).kick_off())[0] == 202  # others have their own
    statuses = [(await bulk.ask("GET", places[0]))[0] for _ in range(2)]
    assert statuses == [202, 429]
    clock.advance(seconds=2)
    assert (await bulk.ask("GET", places[0]))[0] == 202


# --- how it ends -----------------------------------------------------------------


async def test_a_removed_export_is_gone_with_its_files_even_under_way(
    smart: SmartRig, clock: FrozenClock
) -> None:
    bulk = await program(smart)
    _, place, _ = await bulk.kick_off()
    await work(smart.store, smart.settings, Size(2, page=1), most=2)
    assert _objects(smart.store)
    assert (await bulk.ask("DELETE", place))[0] == 202
    for method in ("GET", "DELETE"):
        assert (await bulk.ask(method, place))[0] == 404
    await work(smart.store, smart.settings)
    assert await exports.sweep(smart.store, KEEP) == 1
    assert _objects(smart.store) == []
    async with smart.store.db.connection() as tx:
        assert await tx.fetchval("select count(*) from exports") == 0
        entity = f"Export/{place.rpartition('/')[2]}"
        told = [one.detail["step"] for one in await audit.entries(tx, entity=entity)]
    assert told[:2] == ["kick-off", "cancel"]


async def test_files_end_when_their_time_is_over(
    smart: SmartRig, clock: FrozenClock
) -> None:
    bulk = await program(smart)
    place = await exported(smart, bulk, "?_type=Patient")
    clock.advance(seconds=24 * 3600)
    client = await smart.register()
    bulk.token = await smart.token(client, EVERYTHING)
    assert (await bulk.ask("GET", place))[0] == 404
    clock.advance(seconds=1)
    assert await exports.sweep(smart.store, KEEP) == 1
    assert _objects(smart.store) == []


async def test_erasing_a_patient_takes_every_export_with_her_in_it(
    smart: SmartRig,
) -> None:
    bulk = await program(smart)
    with_her = await exported(smart, bulk, "?_type=Patient")
    without = await exported(smart, bulk, "?_type=Device")
    _, under_way, _ = await bulk.kick_off("?_type=Patient,Observation")
    await work(smart.store, smart.settings, Size(2, page=1), most=1)
    async with smart.store.db.connection() as tx:
        patient_id = await tx.fetchval("select patient_id from studies limit 1")
        found = await exports.find(tx, smart.store, UUID(with_her.rpartition("/")[2]))
        assert found is not None
        (file,) = await exports.files(tx, found.id)
    await shred_patient(smart.store.db, smart.store.ring, patient_id)
    assert (await bulk.ask("GET", with_her))[0] == 404
    assert (await bulk.ask("GET", under_way))[0] == 404
    assert (await bulk.ask("GET", without))[0] == 200
    async with smart.store.db.connection() as tx:
        with pytest.raises(Exception, match="erased"):
            await exports.key(tx, smart.store, found.id)
    assert smart.store.blobs.exists(
        file.blob_name
    )  # until it is swept: no key opens it
    await work(smart.store, smart.settings)
    assert await exports.sweep(smart.store, KEEP) == 2
    assert not smart.store.blobs.exists(file.blob_name)
    place = await exported(smart, bulk, "?_type=Patient")
    assert [one["id"] for one in await bulk.all_lines(place)] != [str(patient_id)]
    assert len(await bulk.all_lines(place)) == 1


async def test_who_was_erased_since_is_told_to_who_may_know_all_of_a_type(
    smart: SmartRig,
) -> None:
    bulk = await program(smart)
    async with smart.store.db.connection() as tx:
        patient_id = await tx.fetchval("select patient_id from studies limit 1")
        rows = await tx.fetch(
            "select resource_type, resource_id from resources where patient_id = $1",
            patient_id,
        )
    await shred_patient(smart.store.db, smart.store.ring, patient_id)
    # The time of an erasure is the database's own.
    place = await exported(smart, bulk, "?_since=2026-11-21T08:00:01Z")
    manifest = await bulk.manifest(place)
    assert manifest["output"] == []
    bundles = [one for file in manifest["deleted"] for one in await bulk.lines(file)]
    told = {one["entry"][0]["request"]["url"] for one in bundles}
    assert told == {f"{kind}/{name}" for kind, name in rows}
    assert not [issue for one in bundles for issue in fhirkit.validate(one)]
    narrow = await program(smart, "system/DiagnosticReport.rs?status=partial")
    place = await exported(smart, narrow, "?_since=2026-11-21T08:00:01Z")
    assert (await narrow.manifest(place))["deleted"] == []


async def test_who_is_erased_while_a_file_is_written_is_not_in_it(
    smart: SmartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bulk = await program(smart)
    _, place, _ = await bulk.kick_off("?_type=Patient")
    async with smart.store.db.connection() as tx:
        patient_id = await tx.fetchval("select patient_id from studies limit 1")
    note = exports.note

    async def shred_first(*arguments: Any) -> bool:
        monkeypatch.setattr(exports, "note", note)
        await shred_patient(smart.store.db, smart.store.ring, patient_id)
        return await note(*arguments)

    monkeypatch.setattr(exports, "note", shred_first)
    job = await smart.store.jobs.claim(
        [exports.EXPORT_RESOURCES], "test", lane=exports.LANE
    )
    assert job is not None
    with pytest.raises(Postponed):
        await export_resources(smart.store, smart.settings, job.payload)
    await smart.store.jobs.release(job)
    await work(smart.store, smart.settings)
    assert str(patient_id) not in str(await bulk.all_lines(place))


async def test_a_shut_program_gets_no_further_file(smart: SmartRig) -> None:
    client = await smart.register()
    token = await smart.token(client, EVERYTHING)
    bulk = BulkClient(smart.session, smart.settings.base_url, token)
    await bulk.kick_off()
    async with smart.store.db.transaction() as tx:
        await clients.disable(tx, str(client.client_id), now=smart.store.clock())
    await work(smart.store, smart.settings)
    async with smart.store.db.connection() as tx:
        assert await tx.fetchval("select state from exports") == "failed"
    assert _objects(smart.store) == []


async def test_an_export_that_cannot_go_on_says_so(smart: SmartRig) -> None:
    bulk = await program(smart)
    _, place, _ = await bulk.kick_off()
    async with smart.store.db.transaction() as tx:
        await tx.execute("update jobs set state = 'dead', finished_at = now()")
    await exports.sweep(smart.store, KEEP)
    status, _, raw = await bulk.ask("GET", place)
    assert (status, json.loads(raw)["resourceType"]) == (500, "OperationOutcome")
    assert (await bulk.ask("DELETE", place))[0] == 202


async def test_a_killed_exporter_leaves_nothing_out_and_writes_nothing_twice(
    smart: SmartRig, clock: FrozenClock, root_key: Path
) -> None:
    bulk = await program(smart)
    expected = await all_names(smart.store)
    _, place, _ = await bulk.kick_off()
    start = clock.now
    for wanted in (2, 4):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.fhir.export.exporter",
            smart.store.db._dsn,
            str(root_key),
            start.isoformat(),
            cwd=ROOT,
        )
        async with asyncio.timeout(60), smart.store.db.connection() as tx:
            while await tx.fetchval("select files from exports") < wanted:
                await asyncio.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        start += timedelta(seconds=60)  # the lease of the killed one is over
    clock.now = start
    await settle_abandoned(smart.store)
    await work(smart.store, smart.settings, Size(2, page=1))
    client = await smart.register()
    async with smart.store.db.transaction() as tx:  # five minutes are over
        await tx.execute(
            "update exports set client_id = $1 where true", client.client_id
        )
    bulk.token = await smart.token(client, EVERYTHING)
    assert names(await bulk.all_lines(place)) == expected


async def test_the_index_and_a_resource_alone_agree_on_what_matches(
    smart: SmartRig,
) -> None:
    await smart.sign()
    bulk = await program(smart)
    for query in (
        "DiagnosticReport?status=final",
        "DiagnosticReport?status:not=final",
        "DiagnosticReport?date=ge2026-11-20",
        "DiagnosticReport?date=lt2026-11-20",
        "DiagnosticReport?issued:missing=true",
        "Observation?_lastUpdated=ge2026-11-21",
        "Patient?identifier=MRN-2",
        f"Observation?subject=Patient/{await _patient_of(smart)}",
    ):
        kind = query.partition("?")[0]
        by_index = await bulk.ask("GET", f"/{query}&_count=100")
        found = [e["resource"] for e in json.loads(by_index[2]).get("entry", [])]
        place = await exported(smart, bulk, f"?_type={kind}&_typeFilter={query}")
        assert names(await bulk.all_lines(place)) == names(found), query
        # And once more with every one of them changed since.
        _, place, told = await bulk.kick_off(f"?_type={kind}&_typeFilter={query}")
        assert place, told
        async with smart.store.db.transaction() as tx:
            await tx.execute(
                "update resources set version = version + 1,"
                " last_updated = last_updated + interval '1 day'"
            )
        await work(smart.store, smart.settings)
        assert names(await bulk.all_lines(place)) == names(found), query
        async with smart.store.db.transaction() as tx:
            await tx.execute(
                "update resources set version = version - 1,"
                " last_updated = last_updated - interval '1 day'"
            )


async def _patient_of(smart: SmartRig) -> str:
    async with smart.store.db.connection() as tx:
        page = await pages.search(tx, smart.store, Query("Patient"))
    return page.matches[0].resource_id
