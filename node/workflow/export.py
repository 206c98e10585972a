"""Which studies may leave the node for training, and what stands for her identity.

A study goes when a physician has signed its report, nobody has withdrawn it, and the
patient's consent to research is in force; it is audited before a pixel is written.
Everything that named her becomes a keyed hash: without the node's keys nobody can
compute it from a UID or a number, with them a later export gives the same patient
the same name. Dates move by a number of days of her own (PS3.15 E.3.6).
"""

from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry
from node.domain.consent import ConsentScope
from node.domain.errors import ErrorKind, NodeError
from node.domain.outcome import CaseOutcome, outcome_of_lesion
from node.domain.report import ReportStatus, ReportVersion
from node.domain.study import Origin
from node.store import audit, cases, consent, identities, reports, studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import KeyRing
    from node.store.store import Store

OLDEST_AGE = 90
"""Women of this age and above are one group: few live that long (PS3.15 E.3.7)."""
_SHIFT_DAYS = range(30, 1826)
_SHARES = (("train", 0.6), ("val", 0.7), ("test", 0.85), ("holdout", 1.0))


class LeftOut(StrEnum):
    """Why a study is not exported."""

    UNSIGNED = "no signed report"
    WITHDRAWN = "report withdrawn"
    EARLIER = "signed before the day asked for"
    NO_CONSENT = "no consent to research in force"
    ERASED = "patient erased"


@dataclass(frozen=True)
class Pseudonyms:
    """What stands for one patient in an export; computed with the node's keys."""

    ring: "KeyRing"
    patient_id: UUID

    @property
    def patient(self) -> str:
        """Return her name in the set: the same in every export of this node."""
        return f"p{self._digest('patient').hex()[:16]}"

    @property
    def split(self) -> str:
        """Return the split that all her images belong to, in this and later sets."""
        place = int.from_bytes(self._digest("split")[:8]) / 2**64
        return next(split for split, limit in _SHARES if place < limit)

    @property
    def shift(self) -> timedelta:
        """Return by how much her dates move; intervals between them stay."""
        number = int.from_bytes(self._digest("shift")[:8])
        return -timedelta(days=_SHIFT_DAYS[number % len(_SHIFT_DAYS)])

    def uid(self, uid: str) -> str:
        """Return the UID that stands for `uid` (PS3.5 B.2), always the same one."""
        digest = self.ring.blind("export uid", uid)
        return f"2.25.{int.from_bytes(digest)}"

    def _digest(self, field: str) -> bytes:
        return self.ring.blind(f"export {field}", str(self.patient_id))


@dataclass(frozen=True)
class SignedStudy:
    """A study that may go: what its physician signed, and the images it speaks of.

    `study_date` is shifted; `age` is in whole years, at most `OLDEST_AGE`.
    `outcomes` names the lesions whose end is known, by tracking UID.
    """

    report_id: UUID
    pseudonyms: Pseudonyms
    version: ReportVersion
    instances: tuple[studies.StoredInstance, ...]
    outcomes: dict[str, CaseOutcome]
    study_date: date | None
    age: int | None
    sex: str | None


async def report_ids(store: "Store") -> list[UUID]:
    """Return every report of the node."""
    async with store.db.connection() as connection:
        return await reports.all_ids(connection)


async def release_for_training(
    store: "Store", report_id: UUID, *, since: date | None, by: str
) -> SignedStudy | LeftOut:
    """Return a study that may go, with the audit entry that it went; else why not."""
    async with store.db.transaction() as tx:
        try:
            report = await reports.read(tx, store, report_id)
        except NodeError as error:
            if error.kind is ErrorKind.GONE:
                return LeftOut.ERASED
            raise
        current = report.current if report.versions else None
        if current is not None and current.status is ReportStatus.ENTERED_IN_ERROR:
            return LeftOut.WITHDRAWN
        if current is None or not current.signed:
            return LeftOut.UNSIGNED
        if since is not None and current.at.date() < since:
            return LeftOut.EARLIER
        if not await consent.in_force(tx, report.patient_id, ConsentScope.RESEARCH):
            return LeftOut.NO_CONSENT
        released = await _assembled(store, tx, report_id, report.patient_id, current)
        entry = AuditEntry(
            at=store.clock(),
            actor=by,
            role="administrator",
            action="export-training",
            entity=f"report/{report_id}/{current.number}",
        )
        await audit.record(tx, entry)
        return released


async def _assembled(
    store: "Store",
    tx: "Transaction",
    report_id: UUID,
    patient_id: UUID,
    version: ReportVersion,
) -> SignedStudy:
    report = await reports.read(tx, store, report_id)
    study = await studies.study(tx, report.study_instance_uid)
    day = study.study_date if study is not None else None
    identity = await identities.patient(tx, store, patient_id)
    age = identity.age_at(day) if day is not None else None
    recorded = await cases.outcomes(tx, report_id)
    lesions = version.findings.lesions
    known = {
        lesion.tracking_uid: outcome_of_lesion(
            lesion.tracking_uid, len(lesions), recorded
        )
        for lesion in lesions
    }
    pseudonyms = Pseudonyms(store.ring, patient_id)
    return SignedStudy(
        report_id=report_id,
        pseudonyms=pseudonyms,
        version=version,
        instances=tuple(
            await studies.instances_of(
                tx, store, report.study_instance_uid, Origin.RECEIVED
            )
        ),
        outcomes={
            uid: entry.outcome
            for uid, entry in known.items()
            if entry is not None and entry.outcome is not None
        },
        study_date=None if day is None else day + pseudonyms.shift,
        age=None if age is None else min(age, OLDEST_AGE),
        sex=identity.sex,
    )
