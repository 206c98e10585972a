"""What an earlier release had no resource for is published after an update.

Quietly: nobody has changed a report, so nobody is told. Lesions get their
BodyStructures, papers their DocumentReferences, patients their Consents. A report gets
its paper, and the department where a Device stood as its performer (R4 has none there:
a client that sent it back would be refused), in a version with the same status. Its
Observations and its ImagingStudy refer to what is new from their next version on.
"""

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from fhir.content import mapping, site
from fhir.content.publish import put, versioned, write_places
from fhir.encoding.wire import as_list, parse
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.domain.uids import pdf_uid
from node.store import left_out, reports, resources, studies
from node.store.resources import Stored
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
    await _name_performer(tx, store, known)
    if report.current.status is ReportStatus.ENTERED_IN_ERROR:
        return
    for version in report.versions:
        uid = pdf_uid(report.id, version.number)
        if version.signed and await studies.instance(tx, store, uid) is not None:
            await publish_document_later(
                tx, store, report, version.number, quietly=True
            )


async def _name_performer(tx: "Transaction", store: "Store", known: Stored) -> None:
    resource = parse(known.body)
    performers = as_list(resource.get("performer"))
    if performers and performers != [site.DEPARTMENT]:
        newer = resource | {"performer": [site.DEPARTMENT]}
        written = await put(tx, store, newer, known.patient_id)
        provenance = mapping.by_the_node(
            [versioned(written)],
            recorded=written.last_updated,
            source=versioned(known),
        )
        provenance["id"] = str(uuid4())
        await put(tx, store, provenance, known.patient_id)
