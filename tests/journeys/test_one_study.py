"""One study, all the way: from a scanner's C-STORE to the patient's phone.

DCMTK's storescu is the scanner; dciodvfy, dsrdump and fhirkit judge what came out.
"""

import base64
import re
import shutil
import subprocess
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_scp.results.sr import to_part10
from dicom_scp.simulation.scanner import Patient
from dicom_scp.simulation.simulator import SimulatedStudy
from tests.conformance.judges import dciodvfy, dsrdump
from tests.journeys.repository import Repository
from tests.journeys.rig import (
    HOST,
    Caller,
    Installation,
    Json,
    Phone,
    bound_phone,
    invented,
    make_study,
    until,
)

STORESCU = shutil.which("storescu")


@dataclass(frozen=True)
class Visit:
    """A study that the node has read, and whose it is."""

    study: SimulatedStudy
    patient: Patient
    report: Json

    @property
    def uid(self) -> str:
        return self.study.study_instance_uid

    @property
    def id(self) -> str:
        return str(self.report["id"])


def store_with_dcmtk(node: Installation, study: SimulatedStudy, folder: Path) -> None:
    if STORESCU is None:
        pytest.skip("storescu (DCMTK) is not installed")
    folder.mkdir()
    for number, instance in enumerate(study.instances):
        (folder / f"{number}.dcm").write_bytes(to_part10(instance))
    done = subprocess.run(
        [
            *(STORESCU, "--scan-directories", "--no-halt", "--verbose"),
            *("-aet", "DCMTK", "-aec", "SONONODE"),
            *(HOST, str(node.dicom_port), str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answers = (done.stdout + done.stderr).count("Received Store Response (Success)")
    assert (done.returncode, answers) == (0, len(study.instances)), done.stderr


@pytest.fixture(scope="module")
def visit(
    node: Installation, doctor: Caller, tmp_path_factory: pytest.TempPathFactory
) -> Visit:
    patient = invented(1, "Zhang^Xiuying=张^秀英")
    study = make_study(patient, images=2, seed=100)
    store_with_dcmtk(node, study, tmp_path_factory.mktemp("scanner") / "study")
    return Visit(study, patient, doctor.report_of(study.study_instance_uid))


@pytest.fixture(scope="module")
def phone(node: Installation, doctor: Caller, visit: Visit) -> Phone:
    phone = bound_phone(node, doctor, visit.report, visit.patient)
    phone.allow_messages(3)
    return phone


def stored(ehr: Caller, study_instance_uid: str) -> list[Dataset]:
    files = ehr.retrieve(study_instance_uid)
    return [dcmread(BytesIO(file)) for file in files]


def test_the_algorithm_s_draft_is_labelled_and_names_its_device(
    doctor: Caller, visit: Visit
) -> None:
    report = visit.report
    assert report["status"] == "partial"
    assert "AIAST" in {label["code"] for label in report["meta"]["security"]}
    observations = doctor.observations(report)
    device = doctor.read(observations[f"{visit.id}-category"]["device"]["reference"])
    assert any(len(version["value"]) >= 12 for version in device["version"])
    assert "resultsInterpreter" not in report


def test_a_doctor_sees_the_woman_masked_and_the_hospital_system_sees_her(
    doctor: Caller, ehr: Caller, visit: Visit
) -> None:
    reference = visit.report["subject"]["reference"]
    seen = doctor.read(reference)
    assert seen["name"][0]["text"] == "张*"
    assert "identifier" not in seen
    known = ehr.read(reference)
    assert visit.patient.patient_id in {i["value"] for i in known["identifier"]}


def test_the_ai_sr_and_its_heat_map_are_instances_of_the_study(
    doctor: Caller, ehr: Caller, visit: Visit
) -> None:
    (document,) = until("the AI SR", lambda: doctor.documents(visit.uid))
    held = stored(ehr, visit.uid)
    sr = next(d for d in held if d.SOPInstanceUID == document["00080018"]["Value"][0])
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert sr.PatientName == "Zhang^Xiuying=张^秀英"
    explained = f"{visit.id}-l1" in doctor.observations(visit.report)
    heat_maps = [d for d in held if "Secondary Capture" in d.SOPClassUID.name]
    assert bool(heat_maps) == explained


def test_signing_reaches_archive_ehr_and_phone(
    node: Installation, doctor: Caller, ehr: Caller, visit: Visit, phone: Phone
) -> None:
    assert phone.reports() == []
    answer = doctor.sign(visit.id, "2", conclusion="Simple cyst.")
    assert answer.status_code == 200, answer.text

    signed = ehr.read(f"DiagnosticReport/{visit.id}")
    assert signed["status"] == "final"
    assert signed["conclusion"] == "Simple cyst."
    signer = ehr.read(signed["resultsInterpreter"][0]["reference"])
    assert signer["name"][0]["text"] == "李明"
    provenance = ehr.read(f"Provenance?target=DiagnosticReport/{visit.id}")
    assert provenance["entry"]

    ai, verified = until("the verified SR", lambda: pair(doctor, visit.uid))
    held = {d.SOPInstanceUID: d for d in stored(ehr, visit.uid)}
    sr = held[verified["00080018"]["Value"][0]]
    assert (sr.CompletionFlag, sr.VerificationFlag) == ("COMPLETE", "VERIFIED")
    predecessor = sr.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    named = predecessor.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == ai["00080018"]["Value"][0]

    (listed,) = until("the phone's report", phone.reports)
    assert (listed["state"], listed["name"]) == ("released", "张*")
    detail = phone.report(listed["handle"])
    assert detail["category"] == "2"
    assert detail["advice"]["zh"]
    assert detail["advice"]["en"]
    (message,) = until("the WeChat message", phone.messages)
    told = str(message["data"])
    assert not any(word in told for word in ("张", "乳", "BI-RADS", "Zhang"))


def test_the_hospital_s_repository_gets_the_signed_report_with_its_page(
    doctor: Caller, visit: Visit, repository: Repository
) -> None:
    """IHE RAD-141; where the page leads is ready to be seen (RAD-107)."""
    (sent,) = until("the repository", lambda: repository.versions_of(visit.id))
    assert (sent["status"], sent["conclusion"]) == ("final", "Simple cyst.")
    number = sent["subject"]["identifier"]["value"]
    assert number == visit.patient.patient_id
    page = base64.b64decode(sent["presentedForm"][0]["data"]).decode()
    assert "Simple cyst." in page
    assert "张秀英" in page
    links = re.findall(r'<a href="([^"]+)"', page)
    assert bool(links) == ("<svg" in page)
    for link in links:
        shown = doctor.session.get(link, timeout=60)
        assert shown.status_code == 200
        assert shown.headers["Content-Type"].startswith("image/")
    claims = doctor.read("metadata")["instantiates"]
    assert any(claim.endswith("IHE.IMR.ReportCreator") for claim in claims)


def pair(caller: Caller, study_instance_uid: str) -> list[Json] | None:
    documents = caller.documents(study_instance_uid)
    return documents if len(documents) == 2 else None


def test_an_amendment_needs_a_reason_and_reaches_everybody_again(
    doctor: Caller, ehr: Caller, visit: Visit, phone: Phone, repository: Repository
) -> None:
    until("signed", lambda: pair(doctor, visit.uid))
    place = f"DiagnosticReport/{visit.id}"
    until("its paper", lambda: "presentedForm" in ehr.read(place))
    refused = doctor.sign(visit.id, "3", status="amended")
    assert refused.status_code == 422
    assert ehr.read(place)["status"] == "final"

    answer = doctor.sign(visit.id, "3", status="amended", reason="seen again")
    assert answer.status_code == 200, answer.text
    assert ehr.read(place)["status"] == "amended"
    versions = ehr.read(f"{place}/_history")["entry"]
    statuses = [entry["resource"]["status"] for entry in versions]
    # Twice final: as it was signed, and with its paper, which the amendment gets too.
    assert statuses[-3:] == ["final", "final", "partial"]
    assert set(statuses[:-3]) == {"amended"}

    def three() -> list[Json] | None:
        documents = doctor.documents(visit.uid)
        return documents if len(documents) == 3 else None

    _, before, newest = until("the successor SR", three)
    held = {d.SOPInstanceUID: d for d in stored(ehr, visit.uid)}
    sr = held[newest["00080018"]["Value"][0]]
    predecessor = sr.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    named = predecessor.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == before["00080018"]["Value"][0]

    def changed() -> Json | None:
        (listed,) = phone.reports()
        detail = phone.report(listed["handle"])
        return detail if detail["category"] == "3" else None

    assert until("the amended report on the phone", changed)["amended"] is True
    sent = until("both in the repository", lambda: repository.versions_of(visit.id)[1:])
    assert [one["status"] for one in sent] == ["amended"]


def test_other_people_s_tools_accept_every_object_of_the_study(
    doctor: Caller, ehr: Caller, visit: Visit, tmp_path: Path
) -> None:
    until("three documents", lambda: len(doctor.documents(visit.uid)) == 3)
    complaints: dict[str, list[str]] = {}
    for number, file in enumerate(ehr.retrieve(visit.uid)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(file)
        dataset = dcmread(path)
        told = dciodvfy(path)
        if dataset.Modality == "SR":
            told += dsrdump(path)
        if told:
            complaints[dataset.SOPClassUID.name] = told
    assert complaints == {}


def test_a_suspicious_report_waits_for_the_doctor_s_call(
    node: Installation, doctor: Caller
) -> None:
    patient = invented(2, "Li^Guihua=李^桂华", "19661123")
    study = make_study(patient, seed=200)
    node.send([study])
    report = doctor.report_of(study.study_instance_uid)
    phone = bound_phone(node, doctor, report, patient)
    phone.allow_messages(2)
    assert doctor.sign(report["id"], "4A").status_code == 200

    (listed,) = until("the phone's report", phone.reports)
    assert listed["state"] == "ready"
    waiting = phone.report(listed["handle"])
    assert not {"category", "text", "advice", "summary", "trend"} & waiting.keys()
    # A handle is random and may have these letters.
    assert "4A" not in str(waiting).replace(listed["handle"], "")

    told = doctor.ask("POST", "Communication", doctor.disclosure(report))
    assert told.status_code == 201, told.text

    def released() -> Json | None:
        (listed,) = phone.reports()
        return listed if listed["state"] == "released" else None

    handle = until("the release", released)["handle"]
    assert phone.report(handle)["category"] == "4A"


def test_a_stale_or_missing_if_match_changes_nothing(
    doctor: Caller, visit: Visit
) -> None:
    path = f"DiagnosticReport/{visit.id}"
    before = doctor.read(path)
    body = {**before, "conclusion": "somebody else's"}
    assert doctor.ask("PUT", path, body).status_code == 428
    stale = {"If-Match": 'W/"1"'}
    assert doctor.ask("PUT", path, body, stale).status_code == 412
    assert doctor.read(path) == before


def test_a_hospital_system_can_not_sign(ehr: Caller, visit: Visit) -> None:
    path = f"DiagnosticReport/{visit.id}"
    report = ehr.read(path)
    match = {"If-Match": f'W/"{report["meta"]["versionId"]}"'}
    answer = ehr.ask("PUT", path, {**report, "status": "final"}, match)
    assert answer.status_code == 403
