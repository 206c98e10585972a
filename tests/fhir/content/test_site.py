"""Who stands around a report in FHIR: the site, its people, its addresses, consents."""

from dataclasses import replace
from uuid import UUID

from fhir.content.consents import publish_consent
from fhir.content.older import publish_left_out
from fhir.content.publish import keep_site_current
from node.domain.access import Role
from node.domain.consent import ConsentScope
from node.store import people
from node.workflow.consent import PUBLISH_CONSENT, give_consent, withdraw_consent
from tests.fhir.rig import STUDY_UID, Rig


async def test_a_draft_brings_the_site_that_answers_for_it(rig: Rig) -> None:
    found = await rig.read(
        f"/DiagnosticReport?_id={rig.report_id}"
        "&_include=DiagnosticReport:performer&_include=DiagnosticReport:imaging-study"
        "&_include:iterate=Organization:partof"
        "&_include:iterate=ImagingStudy:endpoint"
    )
    by_name = {
        f"{r['resourceType']}/{r['id']}": r
        for r in (e["resource"] for e in found["entry"])
    }
    assert by_name["Organization/hospital"]["name"] == "示范医院"
    department = by_name["Organization/department"]
    assert department["partOf"] == {"reference": "Organization/hospital"}
    endpoint = by_name["Endpoint/dicom-web"]
    assert endpoint["connectionType"]["code"] == "dicom-wado-rs"
    assert endpoint["payloadType"][0]["coding"][0]["code"] == "113014"
    assert endpoint["address"].endswith("/dicom-web")
    study = by_name[f"ImagingStudy/{STUDY_UID}"]
    assert study["series"][0]["endpoint"] == study["endpoint"]


async def test_the_site_gets_a_new_version_when_the_settings_say_something_else(
    rig: Rig,
) -> None:
    await keep_site_current(rig.store, rig.settings)
    hospital = await rig.read("/Organization/hospital")
    assert hospital["meta"]["versionId"] == "1"
    named = replace(
        rig.settings.site,
        institution="新医院",
        identifier="12100000400000000X",
        identifier_system="urn:oid:2.25.77",
    )
    await keep_site_current(rig.store, replace(rig.settings, site=named))
    renamed = await rig.read("/Organization?identifier=urn:oid:2.25.77|")
    hospital = renamed["entry"][0]["resource"]
    assert (hospital["name"], hospital["meta"]["versionId"]) == ("新医院", "2")
    department = await rig.read("/Organization/department")
    assert department["meta"]["versionId"] == "1"


async def test_who_signs_is_a_practitioner_with_her_role_at_the_department(
    rig: Rig,
) -> None:
    await keep_site_current(rig.store, rig.settings)
    found = await rig.read(
        "/PractitionerRole?active=true&organization=department"
        "&_include=PractitionerRole:practitioner"
    )
    role, person = [e["resource"] for e in found["entry"]]
    assert role["code"][0]["coding"][1]["code"] == "radiologist"
    assert person["name"] == [{"text": "Dr radiologist"}]
    async with rig.store.db.transaction() as tx:
        login = Role.RADIOLOGIST.value
        await people.disable_user(tx, login, now=rig.store.clock())
    await keep_site_current(rig.store, rig.settings)
    gone = await rig.read("/PractitionerRole?active=false", role=Role.EHR)
    assert [e["resource"]["id"] for e in gone["entry"]] == [role["id"]]


async def test_a_consent_is_told_while_it_holds_and_after(rig: Rig) -> None:
    async def publish() -> None:
        while job := await rig.store.jobs.claim([PUBLISH_CONSENT], "test"):
            await publish_consent(rig.store, job.payload)
            await rig.store.jobs.done(job)

    scope, patient = ConsentScope.RESEARCH, (await rig.read(rig.report_path))["subject"]
    await give_consent(rig.store, STUDY_UID, scope, by="desk")
    while job := await rig.store.jobs.claim([PUBLISH_CONSENT], "the release before"):
        await rig.store.jobs.done(job)
    patient_id = UUID(patient["reference"].partition("/")[2])
    async with rig.store.db.transaction() as tx:
        await tx.execute("insert into left_out values ('consent', $1)", patient_id)
    await publish_left_out(rig.store)
    await publish()
    path = f"/Consent?patient={patient['reference']}&scope=research"
    (entry,) = (await rig.read(path))["entry"]
    assert entry["resource"]["status"] == "active"
    assert "desk" not in str(entry)
    await withdraw_consent(rig.store, STUDY_UID, scope, by="desk")
    await publish()
    assert "entry" not in await rig.read(f"{path}&status=active")
    (entry,) = (await rig.read(f"{path}&status=inactive"))["entry"]
    assert entry["resource"]["provision"]["period"]["end"]
