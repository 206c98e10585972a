"""Which repository is owed which report: promised in the transaction that causes it."""

from typing import TYPE_CHECKING

from fhir.settings import FhirSettings
from node.domain.report import Report, ReportStatus

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

STORE_REPORT = "store_report"


async def owe_report(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> None:
    """Promise the newest version of a signed report to every repository.

    In a queue of each, so that none waits for another, and the versions of one report
    one after the other.
    """
    for name in settings.repositories:
        await store.jobs.defer(
            tx,
            STORE_REPORT,
            {
                "report_id": str(report.id),
                "version": report.current.number,
                "repository": name,
            },
            key=f"{name}/{report.id}/{report.current.number}",
            order_key=f"{STORE_REPORT}/{name}/{report.id}",
            lane=name,
            patient_id=report.patient_id,
        )


async def owe_withdrawal(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> None:
    """Promise every repository that a report, once signed, is withdrawn there too."""
    withdrawn = report.current.status is ReportStatus.ENTERED_IN_ERROR
    if withdrawn and report.last_signed() is not None:
        await owe_report(tx, store, settings, report)
