"""What an earlier release had no resource for is published after an update.

Quietly: an update of the node changes nothing that somebody has signed and tells
nobody. Lesions get their BodyStructures, papers their DocumentReferences, patients
their Consents; a DiagnosticReport, its Observations and its ImagingStudy refer to them
from their next version on.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from fhir.content.publish import write_places
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.domain.uids import pdf_uid
from node.store import left_out, reports, resources, studies
from node.workflow.consent import publish_consent_later
from node.workflow.reporting import publish_document_later

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


async def publish_left_out(store: "Store", count: int = 50) -> None:
    """Publish all that is left out, `count` reports or patients at a time."""
    while True:
        async with store.db.transaction() as tx:
            left = await left_out.take(tx, "report", count)
            for report_id in left:
                await _publish(tx, store, report_id)
            agreed = await left_out.take(tx, "consent", count)
            for patient_id in agreed:
                await publish_consent_later(tx, store, patient_id)
        if not left and not agreed:
            return


async def _publish(tx: "Transaction", store: "Store", report_id: UUID) -> None:
    try:
        report = await reports.read_for_update(tx, store, report_id)
        known = await resources.find(tx, store, "DiagnosticReport", str(report_id))
    except NodeError as error:
        if error.kind is ErrorKind.GONE:  # her key was shredded: nothing is left of it
            return
        raise
    if known is None:
        return  # its own publication is still to come
    await write_places(tx, store, report)
    if report.current.status is ReportStatus.ENTERED_IN_ERROR:
        return
    for version in report.versions:
        uid = pdf_uid(report.id, version.number)
        if version.signed and await studies.instance(tx, store, uid) is not None:
            await publish_document_later(
                tx, store, report, version.number, quietly=True
            )
