"""A study is complete when nobody feeds it any more; then its reading is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from node.domain.audit import AuditEntry
from node.domain.study import StudyRecord
from node.store import audit, studies
from node.store.studies import EndedHow

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

ASSESS_STUDY = "assess_study"


@dataclass(frozen=True)
class CompletionSettings:
    """How long silence must last before it counts as the end of a study, in seconds.

    A released association is strong evidence, so little silence has to follow it.
    One that was aborted, or whose end nobody saw, counts for nothing: the scanner
    is likely to try again. `stale_association_s` ends the wait for a receiving
    process that is gone for good.
    """

    quiet_period_s: float = 60.0
    quiet_after_release_s: float = 5.0
    stale_association_s: float = 3600.0


async def close_due_studies(
    store: "Store", settings: CompletionSettings | None = None
) -> int:
    """Close every study whose time has come and ask for its reading; return how many.

    Closing, evidence, audit and the job are one commit: a study is never closed
    and forgotten.
    """
    settings = settings or CompletionSettings()
    now = store.clock()
    async with store.db.transaction() as tx:
        due = await studies.studies_due(
            tx,
            now,
            quiet=timedelta(seconds=settings.quiet_period_s),
            quiet_after_release=timedelta(seconds=settings.quiet_after_release_s),
            stale_association=timedelta(seconds=settings.stale_association_s),
        )
        for study, ended_how in due:
            await _close(tx, store, study, _evidence(ended_how, settings))
    return len(due)


async def end_association(
    store: "Store", association: str, how: EndedHow
) -> Sequence[str]:
    """Note that an association is over; return the open studies that it fed."""
    async with store.db.transaction() as tx:
        return await studies.end_associations(
            tx, association=association, how=how, at=store.clock()
        )


async def end_lost_associations(store: "Store", process: str) -> Sequence[str]:
    """Clear what a killed process of this name left open; return the studies it fed."""
    async with store.db.transaction() as tx:
        await studies.withdraw_unacknowledged(tx, store, process)
        return await studies.end_associations(
            tx, process=process, how=EndedHow.LOST, at=store.clock()
        )


async def _close(
    tx: "Transaction", store: "Store", study: StudyRecord, evidence: str
) -> None:
    at, uid = store.clock(), study.study_instance_uid
    closed = await studies.close_study(tx, uid, at=at, evidence=evidence)
    if closed is None:
        return
    await store.jobs.defer(
        tx,
        ASSESS_STUDY,
        {"study_instance_uid": uid, "generation": closed.generation},
        key=f"{uid}/{closed.generation}",
        patient_id=closed.patient_id,
    )
    await audit.record(
        tx,
        AuditEntry(
            at=at,
            actor="sononode",
            role="device",
            action="close",
            entity=f"study/{uid}",
            detail={"evidence": evidence, "generation": str(closed.generation)},
        ),
    )


def _evidence(ended_how: EndedHow | None, settings: CompletionSettings) -> str:
    if ended_how is EndedHow.RELEASED:
        return (
            "every association that sent it was released,"
            f" then {settings.quiet_after_release_s:g} s of silence"
        )
    quiet = f"{settings.quiet_period_s:g} s of silence"
    if ended_how is EndedHow.ABORTED:
        return f"an association was aborted and nobody came back: {quiet}"
    if ended_how is EndedHow.LOST:
        return f"receiving was interrupted and nobody came back: {quiet}"
    return quiet
