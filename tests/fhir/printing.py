"""A report with real images behind it, so that its SR and its paper can be made."""

from typing import Any

from pydicom.dataset import Dataset

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import Equipment, to_part10
from fhir.content.documents import publish_document
from fhir.content.publish import publish_report
from node.domain.finding import ImageReference
from node.domain.report import Report
from node.store import models, reports
from node.workflow.reporting import PUBLISH_DOCUMENT, draft_report
from tests.dicom_scp.ultrasound import STUDY, make_header
from tests.factories import ALGORITHM, make_findings, make_lesion
from tests.fhir.rig import MODEL, Rig
from tests.intake import receive_object

RESULTS = ResultSettings(
    Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    ),
    key_images=False,
    dicomweb_url="http://127.0.0.1/dicom-web",
)


def make_image(study_uid: str = STUDY) -> Dataset:
    """Return a black image of one frame, the only one of its study."""
    image = make_header("2.25.2001")
    if study_uid != STUDY:
        image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, f"{study_uid}.1"
        image.SOPInstanceUID = f"{study_uid}.1.1"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.PixelData = bytes(600 * 800)
    image["PixelData"].VR = "OB"
    return image


async def draft_with_image(
    rig: Rig, study_uid: str = STUDY, *, patient: str = "BUS-0001"
) -> Report:
    """Receive a study with an image and publish the algorithm's draft of it."""
    image = make_image(study_uid)
    image.PatientID = patient
    await receive_object(rig.store, image, to_part10(image))
    shown = ImageReference(str(image.SOPClassUID), str(image.SOPInstanceUID))
    lesion = make_lesion(image=shown)
    async with rig.store.db.transaction() as tx:
        await models.register(tx, MODEL)
        report = await draft_report(
            rig.store,
            tx,
            study_uid,
            make_findings(lesions=(lesion,)),
            author=ALGORITHM,
            followup="strong_biopsy",
        )
    payload = {"report_id": str(report.id), "version": report.current.number}
    await publish_report(rig.store, rig.settings, payload)
    return report


async def encode(rig: Rig, report: Report) -> Report:
    """Make SR and paper of the newest version of a report; return the report."""
    async with rig.store.db.transaction() as tx:
        report = await reports.read(tx, rig.store, report.id)
    payload = {"report_id": str(report.id), "version": report.current.number}
    await encode_report(rig.store, payload, RESULTS)
    return report


async def tell_of_papers(rig: Rig) -> list[dict[str, Any]]:
    """Do the jobs that the papers have left; return what was asked of them."""
    jobs, done = rig.store.jobs, []
    while job := await jobs.claim([PUBLISH_DOCUMENT], "test"):
        await publish_document(rig.store, rig.settings, job.payload)
        await jobs.done(job)
        done.append(dict(job.payload))
    return done
