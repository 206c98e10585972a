"""The life cycle of a report, walked whole: every step, asked for by every caller.

DESIGN §6 and FHIR R4 DiagnosticReport.status, on the server and for every client.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fhir.content.mapping import category_element
from fhir.encoding.wire import as_list
from node.domain.access import Role
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.store import reports
from node.store.store import Store
from node.workflow.reporting import draft_report
from tests.factories import ALGORITHM, make_findings, make_patient
from tests.fhir.content.test_life_cycle import AFTER, ALL, ALLOWED, because, reach
from tests.fhir.rig import Answer, Rig, publish_draft, receive_study
from tests.fhir.smart_rig import SmartRig, running_smart

DOCTORS = (Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST)
OTHERS = tuple(role for role in Role if role not in DOCTORS)


@pytest.fixture
async def hospital(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with an account of every role and programs of its own."""
    async with running_smart(store, roles=tuple(Role)) as rig:
        yield rig


async def new_report(rig: SmartRig, status: str = "partial") -> None:
    """Let the rig stand before another report, brought to `status`."""
    number = len(rig.answers)
    uid, mrn = f"2.25.88{number:05}", f"MRN-{number}"
    patient = make_patient(patient_id=mrn, id_number=None)
    await receive_study(rig.store, patient, study_uid=uid, accession=mrn)
    rig.report = await publish_draft(rig.store, rig.settings, study_uid=uid)
    await reach(rig, status)


async def version_of(rig: Rig) -> int:
    async with rig.store.db.transaction() as tx:
        report = await reports.read(tx, rig.store, rig.report_id)
    return report.current.number


async def ask_for(rig: Rig, status: str, **how: Any) -> Answer:
    entry = await rig.edited(rig.report_path, status=status)
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [entry, because(rig)],
    }
    return await rig.ask("POST", "", bundle, **how)


async def test_doctors_take_every_step_of_the_table_and_no_other(
    hospital: SmartRig,
) -> None:
    for before in ALL:
        await new_report(hospital, before)
        for number, after in enumerate(ALL):
            doctor = DOCTORS[number % 2]
            answer = await ask_for(hospital, after, role=doctor)
            case = (before, after, doctor.value, answer.raw)
            if after not in ALLOWED[before]:
                assert answer.status == 422, case
                continue
            assert answer.status == 200, case
            await require_provenance(hospital, after)
            await new_report(hospital, before)


async def require_provenance(rig: Rig, after: str) -> None:
    """Raise unless the newest version of the report says who made it, and why."""
    target = rig.report_path.strip("/")
    version = (await rig.read(rig.report_path))["meta"]["versionId"]
    found = await rig.read(f"/Provenance?target={target}&_sort=-recorded&_count=50")
    versioned = f"{target}/_history/{version}"
    (made,) = [
        e["resource"]
        for e in found["entry"]
        if versioned in {t["reference"] for t in e["resource"]["target"]}
    ]
    assert all("/_history/" in t["reference"] for t in made["target"])
    people = [a for a in made["agent"] if a["who"]["reference"].startswith("Prac")]
    assert people
    assert made["entity"][0]["what"]["reference"].startswith(f"{target}/_history/")
    assert bool(as_list(made.get("reason"))) is True
    if after in AFTER:
        assert made["reason"] == [{"text": "Second look"}]


async def test_nobody_else_takes_any_step(hospital: SmartRig) -> None:
    client = await hospital.register(roles=[Role.EHR, Role.RADIOLOGIST])
    program = await hospital.token(client, "system/*.cruds")
    for before in ALL:
        await new_report(hospital, before)
        known = await version_of(hospital)
        for after in ALL:
            for role in OTHERS:
                answer = await ask_for(hospital, after, role=role)
                assert answer.status == 403, (before, after, role)
            token = {"Authorization": f"Bearer {program}"}
            answer = await ask_for(hospital, after, role=None, headers=token)
            assert answer.status == 403, (before, after, "a program without a person")
        assert await version_of(hospital) == known


async def test_the_algorithm_writes_until_a_doctor_has_and_never_signs(
    hospital: SmartRig,
) -> None:
    for before in ALL:
        await new_report(hospital, before)
        assert hospital.report is not None
        for status in ReportStatus:
            async with hospital.store.db.transaction() as tx:
                drafting = draft_report(
                    hospital.store,
                    tx,
                    hospital.report.study_instance_uid,
                    make_findings("2"),
                    author=ALGORITHM,
                    status=status,
                )
                unsigned = status in (ReportStatus.PARTIAL, ReportStatus.PRELIMINARY)
                if before == "partial" and unsigned:
                    await drafting
                    continue
                with pytest.raises(NodeError) as refused:
                    await drafting
            assert refused.value.kind is ErrorKind.RULE, (before, status)


async def test_of_twenty_amendments_at_once_one_is_written(
    hospital: SmartRig,
) -> None:
    await new_report(hospital, "final")
    entry = await hospital.edited(hospital.report_path, status="amended")
    entries = (entry, because(hospital))
    answers = await asyncio.gather(*(hospital.transact(*entries) for _ in range(20)))
    assert sorted(a.status for a in answers) == [200] + [412] * 19
    assert await version_of(hospital) == 3
    del entry["request"]["ifMatch"]
    assert (await hospital.transact(*entries)).status == 428


async def test_a_change_after_signature_gives_a_reason_in_words(
    hospital: SmartRig,
) -> None:
    await new_report(hospital, "final")
    for status in sorted(AFTER):
        for said in (None, " ", "\u3000\t"):
            entry = await hospital.edited(hospital.report_path, status=status)
            entries = [entry] if said is None else [entry, because(hospital, said)]
            answer = await hospital.transact(*entries)
            assert answer.status in (400, 422), (status, said)
    assert await version_of(hospital) == 2


async def test_what_is_appended_leaves_everything_else_as_it_was_signed(
    hospital: SmartRig,
) -> None:
    await new_report(hospital)
    note = [{"text": "seen with the surgeon"}]
    shape = f"/Observation/{hospital.report_id}-l1-shape"
    answer = await hospital.transact(
        await hospital.edited(shape, note=note),
        await hospital.edited(
            hospital.report_path, status="final", conclusion="良性。"
        ),
    )
    assert answer.status == 200, answer.raw

    async def appended(*others: Any, conclusion: str = "良性。补充。") -> Answer:
        report = await hospital.edited(
            hospital.report_path, status="appended", conclusion=conclusion
        )
        return await hospital.transact(*others, report, because(hospital))

    category = f"/Observation/{hospital.report_id}-category"
    for refused, expression in (
        (await appended(conclusion="恶性。良性。"), "DiagnosticReport.status"),
        (await appended(conclusion="良"), "DiagnosticReport.status"),
        (
            await appended(await hospital.edited(shape, note=None)),
            "Observation.note",
        ),
        (
            await appended(await hospital.edited(category, **category_element("2"))),
            "DiagnosticReport.status",
        ),
    ):
        assert refused.status == 422, refused.raw
        assert refused.expressions == [expression]
    more = [*note, {"text": "and with the oncologist"}]
    answer = await appended(await hospital.edited(shape, note=more))
    assert answer.status == 200, answer.raw
    assert (await hospital.read(shape))["note"] == more
    assert (await hospital.read(category))["meta"]["versionId"] == "2"


async def test_the_algorithms_words_and_a_doctors_are_told_apart_by_one_search(
    hospital: SmartRig,
) -> None:
    await new_report(hospital)
    labelled = "/DiagnosticReport?_security=AIAST"
    assert len((await hospital.read(labelled))["entry"]) == 1
    category = f"/Observation/{hospital.report_id}-category"
    answer = await hospital.transact(
        await hospital.edited(category, **category_element("2")),
        await hospital.edited(hospital.report_path, status="final"),
    )
    assert answer.status == 200, answer.raw
    assert "entry" not in await hospital.read(labelled)
    hers = await hospital.read("/Observation?performer:missing=false")
    assert [f"/Observation/{e['resource']['id']}" for e in hers["entry"]] == [category]
    its = await hospital.read("/Observation?_security=AIAST&device=model-1&_count=50")
    assert category.rpartition("/")[2] not in {
        e["resource"]["id"] for e in its["entry"]
    }
    by_it = await hospital.read("/Provenance?agent=Device/model-1")
    assert len(by_it["entry"]) == 2
    doctor = hers["entry"][0]["resource"]["performer"][0]["reference"]
    by_her = await hospital.read(f"/Provenance?agent={doctor}")
    (signature,) = [e["resource"] for e in by_her["entry"]]
    roles = {
        (a["type"]["coding"][0]["code"], a["who"]["reference"].partition("/")[0])
        for a in signature["agent"]
    }
    assert roles == {
        ("verifier", "Practitioner"),
        ("author", "Practitioner"),
        ("author", "Device"),
    }


async def test_nothing_is_deleted_and_the_answer_says_what_is_done_instead(
    hospital: SmartRig,
) -> None:
    await new_report(hospital, "final")
    for kind, resource_id in (
        ("DiagnosticReport", str(hospital.report_id)),
        ("Observation", f"{hospital.report_id}-category"),
        ("BodyStructure", f"{hospital.report_id}-l1"),
    ):
        for role in DOCTORS:
            answer = await hospital.ask("DELETE", f"/{kind}/{resource_id}", role=role)
            assert answer.status == 405
            assert "GET" in answer.headers["Allow"]
            assert b"deleted" in answer.raw
    told = (await hospital.ask("DELETE", hospital.report_path)).body["issue"][0]
    assert "entered-in-error" in told["diagnostics"]
    assert (await hospital.read(hospital.report_path))["status"] == "final"
