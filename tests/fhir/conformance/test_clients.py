"""Other people's client reads us unmodified: fhirclient (SMART Health IT)."""

import asyncio
from typing import Any

from fhirclient import client
from fhirclient.models.diagnosticreport import DiagnosticReport
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient

from node.domain.access import Role
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig


def connect(rig: Rig, role: Role) -> Any:
    settings = {"app_id": "test", "api_base": rig.settings.base_url}
    smart = client.FHIRClient(settings=settings)
    smart.server.session.headers["Authorization"] = f"Bearer {rig.tokens[role]}"
    return smart


async def test_fhirclient_reads_searches_and_pages(rig: Rig) -> None:
    await rig.draft_more(range(2, 9))

    def work() -> None:
        smart = connect(rig, Role.EHR)
        report = DiagnosticReport.read(str(rig.report_id), smart.server)
        assert report.status == "partial"
        patient = report.subject.resolved(Patient)
        assert patient.name[0].text == "张三"
        root = report.result[0].resolved(Observation)
        assert root.hasMember
        found = DiagnosticReport.where({"status": "partial", "_count": "3"})
        ids = [r.id for r in found.perform_resources_iter(smart.server)]
        assert len(ids) == len(set(ids)) == 8
        search = DiagnosticReport.where(
            {"patient": patient.id, "_include": "DiagnosticReport:subject"}
        )
        kinds = {r.resource_type for r in search.perform_resources_iter(smart.server)}
        assert kinds == {"DiagnosticReport", "Patient"}

    await asyncio.to_thread(work)


async def test_fhirclient_signs_a_report(rig: Rig) -> None:
    def work() -> None:
        smart = connect(rig, Role.RADIOLOGIST)
        report = DiagnosticReport.read(str(rig.report_id), smart.server)
        report.status = "final"
        report.conclusion = "BI-RADS 4C"
        smart.server.session.headers["If-Match"] = f'W/"{report.meta.versionId}"'
        answer = report.update(smart.server)
        assert answer["status"] == "final"
        assert answer["conclusion"] == "BI-RADS 4C"

    await asyncio.to_thread(work)


async def test_fhirclient_sends_a_patient(empty_rig: Rig) -> None:
    def work() -> None:
        smart = connect(empty_rig, Role.EHR)
        made = Patient(make_ehr_patient()).create(smart.server)
        assert Patient.read(made["id"], smart.server).gender == "female"

    await asyncio.to_thread(work)
