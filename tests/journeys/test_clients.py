"""Other people's clients on a running node, unmodified: fhirclient, dicomweb-client."""

import pytest
from dicomweb_client.api import DICOMwebClient
from fhirclient.client import FHIRClient
from fhirclient.models.diagnosticreport import DiagnosticReport
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient

from dicom_scp.simulation.simulator import SimulatedStudy
from tests.journeys.rig import Caller, Installation, invented, make_study, until

PATIENT = invented(40, "Zhou^Meiling=周^美玲")


@pytest.fixture(scope="module")
def study(node: Installation, doctor: Caller) -> SimulatedStudy:
    """A study that was read and signed."""
    sent = make_study(PATIENT, images=2, seed=400)
    node.send([sent])
    report = doctor.report_of(sent.study_instance_uid)
    assert doctor.sign(report["id"], "2", conclusion="Simple cyst.").status_code == 200
    until("both SRs", lambda: len(doctor.documents(sent.study_instance_uid)) == 2)
    return sent


def test_fhirclient_finds_the_report_by_accession_and_reads_it_to_the_end(
    node: Installation, ehr: Caller, study: SimulatedStudy
) -> None:
    smart = FHIRClient(settings={"app_id": "his", "api_base": f"{node.url}/fhir"})
    smart.server.session.headers.update(ehr.session.headers)
    search = DiagnosticReport.where({"identifier": study.accession_number})
    (report,) = search.perform_resources_iter(smart.server)
    assert (report.status, report.conclusion) == ("final", "Simple cyst.")
    assert report.issued is not None
    patient = report.subject.resolved(Patient)
    assert patient.name[0].text == "周美玲"
    assert PATIENT.patient_id in {i.value for i in patient.identifier}
    roots = [reference.resolved(Observation) for reference in report.result]
    category = next(o for o in roots if o.id == f"{report.id}-category")
    assert category.valueCodeableConcept.coding[0].code == "2"


def test_dicomweb_client_retrieves_what_the_scanner_sent_and_what_we_made(
    node: Installation, ehr: Caller, study: SimulatedStudy
) -> None:
    client = DICOMwebClient(f"{node.url}/dicom-web", session=ehr.session)
    held = client.retrieve_study_metadata(study.study_instance_uid)
    by_modality: dict[str, int] = {}
    for header in held:
        modality = header["00080060"]["Value"][0]
        by_modality[modality] = by_modality.get(modality, 0) + 1
    assert by_modality["US"] == len(study.instances)
    assert by_modality["SR"] == 2
    for sent in study.instances:
        got = client.retrieve_instance(
            study.study_instance_uid, sent.SeriesInstanceUID, sent.SOPInstanceUID
        )
        assert got.PixelData == sent.PixelData
        assert got.PatientName == PATIENT.name
