"""Drafting, revising and disclosing a report: each one transaction, each audited."""

from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.report import (
    Author,
    Conclusions,
    Disclosure,
    Report,
    ReportStatus,
    ReportVersion,
)
from node.domain.study import StudyRecord
from node.store import audit, cases, completion, models, reports, studies
from node.workflow.completion import publish_study_later
from node.workflow.orders import match_study

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

ASSESS_SHADOW = "assess_shadow"
PUBLISH_DOCUMENT = "publish_document"


async def draft_report(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    findings: Findings,
    *,
    author: Author,
    status: ReportStatus = ReportStatus.PARTIAL,
    followup: str | None = None,
) -> Report:
    """Write the algorithm's reading of a study as the newest version of its report.

    Defers the FHIR and SR projections in the same transaction, and the reading by
    the shadow where one was chosen. RULE when a physician has already worked on
    the report (`Report.draft`).
    """
    report, study = await _report_of(store, tx, study_instance_uid)
    report = report.draft(
        findings, author=author, at=store.clock(), status=status, followup=followup
    )
    await _write(store, tx, report, role="algorithm")
    await completion.take_note(tx, study_instance_uid)
    await _defer(store, tx, "publish_report", report)
    await _ask_shadow(store, tx, report, study.generation)
    return report


async def propose_reading(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    findings: Findings,
    *,
    author: Author,
    followup: str | None = None,
) -> bool:
    """Keep a reading beside the report that a physician has worked on, and tell her.

    False when nobody has: then it is a draft. Her version stays what it is, whether
    signed or not; she decides what the new images change.
    """
    study = await studies.study(tx, study_instance_uid)
    report_id = reports.report_id_for(study_instance_uid)
    if study is None or not await reports.version_count(tx, report_id):
        return False
    report = await reports.read_for_update(tx, store, report_id)
    if not report.physician_has_written:
        return False
    proposal = ReportVersion(
        number=study.generation,
        status=ReportStatus.PARTIAL,
        author=author,
        at=store.clock(),
        findings=findings,
        conclusions=Conclusions(followup=followup),
    )
    await reports.keep_proposal(tx, store, report, proposal)
    await publish_study_later(tx, store, study_instance_uid, read=True)
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=author.id,
            role="algorithm",
            action="report-proposal",
            entity=f"report/{report_id}/proposal/{study.generation}",
        ),
    )
    return True


async def revise_report(
    store: "Store",
    tx: "Transaction",
    report_id: UUID,
    status: ReportStatus,
    findings: Findings,
    conclusions: Conclusions,
    *,
    author: Author,
    reason: str | None = None,
) -> Report:
    """Write a physician's version inside the caller's transaction.

    The caller writes the FHIR resources of the version in `tx` too, so that the
    report and what the EHR reads can never differ. Raises RULE (`Report.revise`).
    """
    report = await reports.read_for_update(tx, store, report_id)
    report = report.revise(
        status,
        findings,
        conclusions,
        author=author,
        at=store.clock(),
        reason=reason,
    )
    await _write(store, tx, report, role="physician")
    return report


async def disown_report(
    store: "Store",
    tx: "Transaction",
    study_instance_uid: str,
    *,
    author: Author,
    reason: str,
) -> UUID:
    """Withdraw the report of a study that shows another patient; return its id.

    A study that was never read gets a withdrawn report, so that archives are told.
    One that is withdrawn by a physician is withdrawn once more, for this reason.
    """
    report, _ = await _report_of(store, tx, study_instance_uid)
    report = report.disown(author=author, at=store.clock(), reason=reason)
    await _write(store, tx, report, role="registrar")
    return report.id


async def record_disclosure(
    store: "Store", tx: "Transaction", report_id: UUID, disclosure: Disclosure
) -> Report:
    """Record that the patient was told; what was gated may now reach her phone."""
    report = await reports.read_for_update(tx, store, report_id)
    report = report.disclose(disclosure)
    await reports.append_disclosure(tx, store, report, disclosure)
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=disclosure.by,
            role="physician",
            action="disclose",
            entity=f"report/{report_id}",
            detail={"medium": disclosure.medium},
        ),
    )
    return report


async def publish_document_later(
    tx: "Transaction",
    store: "Store",
    report: Report,
    number: int,
    *,
    forms: str = "",
    quietly: bool = False,
) -> None:
    """Promise that the paper of a signed version is told of, now that it is stored.

    `forms` names what has come: of each a promise of its own. `quietly` tells no
    subscriber: the paper is as old as the signature.
    """
    await store.jobs.defer(
        tx,
        PUBLISH_DOCUMENT,
        {"report_id": str(report.id), "version": number, "quietly": quietly},
        key=f"{report.id}/{number}/{forms}",
        order_key=f"{PUBLISH_DOCUMENT}/{report.id}",
        patient_id=report.patient_id,
    )


async def _report_of(
    store: "Store", tx: "Transaction", study_instance_uid: str
) -> tuple[Report, StudyRecord]:
    """Return the report of a study for writing, made if it is new, and the study."""
    study = await studies.study(tx, study_instance_uid)
    if study is None:
        raise NodeError(f"there is no study {study_instance_uid}", ErrorKind.NOT_FOUND)
    report_id = await reports.create(
        tx,
        study_instance_uid=study_instance_uid,
        patient_id=study.patient_id,
        at=store.clock(),
    )
    return await reports.read_for_update(tx, store, report_id), study


async def _write(store: "Store", tx: "Transaction", report: Report, role: str) -> None:
    version = report.current
    await reports.append_version(tx, store, report, version)
    await cases.follow(tx, report)
    await match_study(store, tx, report.study_instance_uid)
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=version.author.id,
            role=role,
            action=f"report-{version.status.value}",
            entity=f"report/{report.id}/{version.number}",
        ),
    )
    withdrawn = version.status is ReportStatus.ENTERED_IN_ERROR
    if version.signed or withdrawn or role == "algorithm":
        await _defer(store, tx, "encode_report", report)
    if report.last_signed() is not None:
        # A withdrawn report takes its comparison back.
        await _defer(store, tx, "compare_report", report)


async def _ask_shadow(
    store: "Store", tx: "Transaction", report: Report, generation: int
) -> None:
    """Let the silent model read the same images; nobody waits for it."""
    shadow = await models.chosen(tx, models.ModelRole.SHADOW)
    if shadow is None or shadow.model_id is None:
        return
    uid = report.study_instance_uid
    await store.jobs.defer(
        tx,
        ASSESS_SHADOW,
        {"study_instance_uid": uid, "generation": generation},
        key=f"{uid}/{generation}",
        patient_id=report.patient_id,
    )


async def _defer(store: "Store", tx: "Transaction", kind: str, report: Report) -> None:
    await store.jobs.defer(
        tx,
        kind,
        {"report_id": str(report.id), "version": report.current.number},
        key=f"{report.id}/{report.current.number}",
        # Archives get the draft before what was signed.
        order_key=f"{kind}/{report.id}" if kind == "encode_report" else None,
        patient_id=report.patient_id,
    )
