"""A study is closed on the strongest evidence there is; then its reading is asked for.

What speaks for completeness, and what against, is weighed by `node.domain.completion`.
Every closing keeps its evidence, and says so when images may be missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from node.domain.audit import by_the_node
from node.domain.completion import (
    CompletionRules,
    Verdict,
    stronger,
    weigh,
    words_of,
)
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import StudyRecord, StudyStatus
from node.store import (
    associations,
    audit,
    completion,
    measurements,
    receiving,
    reports,
    studies,
)
from node.store.associations import EndedHow
from node.store.completion import WeighedStudy
from node.workflow.orders import match_study

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

ASSESS_STUDY = "assess_study"
READ_MACHINE_REPORT = "read_machine_report"
PUBLISH_STUDY = "publish_study"


@dataclass(frozen=True)
class CompletionSettings:
    """When a study counts as complete, in seconds; `by_ae` for machines by AE title.

    The fields above `by_ae` hold for machines that are not named there; see
    `node.domain.completion.CompletionRules`. `stale_association_s` ends the wait
    for a receiving process that is gone for good.
    """

    quiet_period_s: float = 60.0
    quiet_after_release_s: float = 5.0
    stale_association_s: float = 3600.0
    missing_wait_s: float = 300.0
    stale_step_s: float = 7200.0
    by_ae: Mapping[str, CompletionRules] = field(default_factory=dict)

    def rules_of(self, ae_title: str) -> CompletionRules:
        """Return what counts for the machine with this title."""
        return self.by_ae.get(ae_title) or CompletionRules(
            quiet_period_s=self.quiet_period_s,
            quiet_after_release_s=self.quiet_after_release_s,
            missing_wait_s=self.missing_wait_s,
            stale_s=self.stale_step_s,
        )


async def close_due_studies(
    store: "Store", settings: CompletionSettings | None = None
) -> int:
    """Close every study whose time has come and ask for its reading; return how many.

    Closing, evidence, audit and the job are one commit: a study is never closed
    and forgotten. Studies that were closed before and of which something new was
    told are opened again when it contradicts what closed them.
    """
    settings = settings or CompletionSettings()
    async with store.db.transaction() as tx:
        uids = await completion.studies_to_weigh(tx)
        weighed = await _weigh(tx, store, settings, uids)
    due = [
        study.facts.study_instance_uid
        for study, verdict in weighed
        if study.status is not StudyStatus.RECEIVING or _is_due(store, verdict)
    ]
    closed = 0
    for uid in due:
        # Weighed again under the lock: an image may have come in between.
        async with store.db.transaction() as tx:
            locked = await completion.lock_studies(tx, [uid])
            for study, verdict in await _weigh(tx, store, settings, locked):
                closed += await _settle(tx, store, study, verdict)
    return closed


async def end_association(
    store: "Store", association: str, how: EndedHow
) -> Sequence[str]:
    """Note that an association is over; return the open studies that it fed."""
    async with store.db.transaction() as tx:
        return await associations.end_associations(
            tx, association=association, how=how, at=store.clock()
        )


async def end_lost_associations(store: "Store", process: str) -> Sequence[str]:
    """Clear what a killed process of this name left open; return the studies it fed."""
    async with store.db.transaction() as tx:
        await receiving.withdraw_unacknowledged(tx, store, process)
        return await associations.end_associations(
            tx, process=process, how=EndedHow.LOST, at=store.clock()
        )


async def publish_study_later(
    tx: "Transaction", store: "Store", study_instance_uid: str, *, read: bool = False
) -> None:
    """Let the readers of a study's report see how complete it is now, if it has one.

    `read` tells that its images have been read anew since the study was closed.
    """
    study = await studies.study(tx, study_instance_uid)
    report_id = reports.report_id_for(study_instance_uid)
    if study is None or not await reports.version_count(tx, report_id):
        return
    told = await completion.last_told(tx, study_instance_uid)
    await store.jobs.defer(
        tx,
        PUBLISH_STUDY,
        {"study_instance_uid": study_instance_uid, "report_id": str(report_id)},
        key=f"{study_instance_uid}/{study.generation}/{told}" + "/read" * read,
        order_key=f"{PUBLISH_STUDY}/{report_id}",
        patient_id=study.patient_id,
    )


async def read_discontinued(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> None:
    """Ask for the reading of a study that was closed as discontinued.

    RULE when it is not, or no longer. The caller audits.
    """
    study = await studies.study(tx, study_instance_uid, for_update=True)
    if study is None or study.status is not StudyStatus.DISCONTINUED:
        raise NodeError("the study is not discontinued", ErrorKind.RULE)
    await studies.mark_study(
        tx, study_instance_uid, StudyStatus.CLOSED, generation=study.generation
    )
    await _ask_for_reading(tx, store, study)


async def _ask_for_reading(
    tx: "Transaction", store: "Store", closed: StudyRecord
) -> None:
    uid = closed.study_instance_uid
    await store.jobs.defer(
        tx,
        ASSESS_STUDY,
        {"study_instance_uid": uid, "generation": closed.generation},
        key=f"{uid}/{closed.generation}",
        patient_id=closed.patient_id,
    )


async def _weigh(
    tx: "Transaction",
    store: "Store",
    settings: CompletionSettings,
    uids: Sequence[str],
) -> list[tuple[WeighedStudy, Verdict | None]]:
    if not uids:
        return []
    now = store.clock()
    found = await completion.read_facts(
        tx, uids, now, stale_association=timedelta(seconds=settings.stale_association_s)
    )
    return [(study, weigh(study.facts, settings.rules_of, now)) for study in found]


def _is_due(store: "Store", verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.due_at <= store.clock()


async def _settle(
    tx: "Transaction", store: "Store", study: WeighedStudy, verdict: Verdict | None
) -> bool:
    """Do what the verdict on a locked study asks for; tell whether it was closed."""
    uid = study.facts.study_instance_uid
    if study.status is not StudyStatus.RECEIVING:
        if verdict is None or study.verdict is None:
            await completion.settle(tx, uid)
            return False
        if not _contradicts(study, study.verdict, verdict):
            await _keep_better(tx, store, uid, study.verdict, verdict)
            return False
        await completion.reopen(tx, uid)
        await _record(tx, store, "reopen", uid, {"reason": words_of(verdict).en})
    if verdict is None or not _is_due(store, verdict):
        return False
    await _close(tx, store, uid, verdict)
    return True


def _contradicts(study: WeighedStudy, known: Verdict, told: Verdict) -> bool:
    """Tell whether what is told now would have closed the study differently."""
    unread = study.status in (StudyStatus.CLOSED, StudyStatus.DISCONTINUED)
    other_reading = unread and told.discontinued != known.discontinued
    return told.incomplete != known.incomplete or other_reading


async def _keep_better(
    tx: "Transaction", store: "Store", uid: str, known: Verdict, told: Verdict
) -> None:
    """Keep what is told of a closed study when it says more than what closed it."""
    grown = (told.expected, told.missing) != (known.expected, known.missing)
    if not stronger(told.kind, known.kind) and not (grown and told.kind is known.kind):
        return await completion.settle(tx, uid)
    await completion.write_verdict(tx, uid, told, words_of(told).en)
    await publish_study_later(tx, store, uid)
    return await _record(tx, store, "evidence", uid, {"evidence": words_of(told).en})


async def _close(tx: "Transaction", store: "Store", uid: str, verdict: Verdict) -> None:
    evidence = words_of(verdict).en
    status = StudyStatus.CLOSED
    if verdict.discontinued:
        status = StudyStatus.DISCONTINUED
    closed = await studies.close_study(
        tx, uid, at=store.clock(), evidence=evidence, status=status
    )
    if closed is None:
        return
    await completion.write_verdict(tx, uid, verdict, evidence)
    await match_study(store, tx, uid)
    if status is StudyStatus.CLOSED:
        await _ask_for_reading(tx, store, closed)
    for document in await measurements.unread(tx, uid):
        await store.jobs.defer(
            tx,
            READ_MACHINE_REPORT,
            {"sop_instance_uid": document},
            key=document,
            patient_id=closed.patient_id,
        )
    await publish_study_later(tx, store, uid)
    detail = {
        "evidence": evidence,
        "kind": verdict.kind.value,
        "generation": str(closed.generation),
        "references": " ".join(verdict.references),
        "missing": " ".join(verdict.missing),
    }
    told = {key: value for key, value in detail.items() if value}
    await _record(tx, store, "close", uid, told)


async def _record(
    tx: "Transaction", store: "Store", action: str, uid: str, detail: Mapping[str, str]
) -> None:
    await audit.record(
        tx,
        by_the_node(store.clock(), action, f"study/{uid}", detail),
    )
