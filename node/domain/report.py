"""A report and its life cycle: every version is kept, only physicians sign.

The table `_ALLOWED` is DESIGN's life cycle in the words of FHIR R4
DiagnosticReport.status; every protocol that can change a report asks it.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings


class ReportStatus(StrEnum):
    """FHIR R4 DiagnosticReport.status, as far as the node uses it."""

    PARTIAL = "partial"
    PRELIMINARY = "preliminary"
    FINAL = "final"
    AMENDED = "amended"
    CORRECTED = "corrected"
    APPENDED = "appended"
    ENTERED_IN_ERROR = "entered-in-error"


class AuthorKind(StrEnum):
    """Who wrote a version. The algorithm drafts and never signs.

    A registrar corrects whose report it is: she withdraws, and says nothing medical.
    """

    ALGORITHM = "algorithm"
    PHYSICIAN = "physician"
    REGISTRAR = "registrar"


SIGNED = frozenset(
    {
        ReportStatus.FINAL,
        ReportStatus.AMENDED,
        ReportStatus.CORRECTED,
        ReportStatus.APPENDED,
    }
)
_UNSIGNED = frozenset({ReportStatus.PARTIAL, ReportStatus.PRELIMINARY})
_AFTER_SIGNING = frozenset(
    {
        ReportStatus.AMENDED,
        ReportStatus.CORRECTED,
        ReportStatus.APPENDED,
        ReportStatus.ENTERED_IN_ERROR,
    }
)
_BY_PHYSICIAN = {
    ReportStatus.PARTIAL: frozenset({ReportStatus.PRELIMINARY, ReportStatus.FINAL}),
    ReportStatus.PRELIMINARY: frozenset({ReportStatus.PRELIMINARY, ReportStatus.FINAL}),
    **{status: _AFTER_SIGNING for status in SIGNED},
    ReportStatus.ENTERED_IN_ERROR: frozenset[ReportStatus](),
}


@dataclass(frozen=True)
class Author:
    """Who wrote a version: a Device id for the algorithm, a Practitioner id else."""

    kind: AuthorKind
    id: str
    display: str


@dataclass(frozen=True)
class Conclusions:
    """The words around the findings.

    `followup` is a key of `lexicon.FOLLOWUP`; `advice` and `impression` are the
    doctor's free text and stay inside the hospital; `patient_summary` is what
    she wrote for the patient.
    """

    impression: str = ""
    followup: str | None = None
    advice: str = ""
    patient_summary: str = ""


@dataclass(frozen=True)
class ReportVersion:
    """One state of a report; never changed after it is written."""

    number: int
    status: ReportStatus
    author: Author
    at: datetime
    findings: Findings
    conclusions: Conclusions = Conclusions()
    reason: str | None = None

    @property
    def signed(self) -> bool:
        """Tell whether a physician stands behind this version."""
        return self.status in SIGNED


@dataclass(frozen=True)
class Disclosure:
    """A physician's record that the patient was told before she reads a grade."""

    by: str
    at: datetime
    medium: str


@dataclass(frozen=True)
class Report:
    """A report of one study with all its versions, oldest first."""

    id: UUID
    study_instance_uid: str
    patient_id: UUID
    versions: tuple[ReportVersion, ...] = ()
    disclosures: tuple[Disclosure, ...] = ()

    @property
    def current(self) -> ReportVersion:
        """Return the newest version."""
        return self.versions[-1]

    @property
    def physician_has_written(self) -> bool:
        """Tell whether a version is a person's: nothing may take its place then."""
        return any(v.author.kind is not AuthorKind.ALGORITHM for v in self.versions)

    @property
    def is_disowned(self) -> bool:
        """Tell whether the report was withdrawn because it is another patient's."""
        return bool(self.versions) and (
            self.current.author.kind is AuthorKind.REGISTRAR
        )

    def version(self, number: int) -> ReportVersion:
        """Return version `number`; NOT_FOUND when there is none such."""
        for version in self.versions:
            if version.number == number:
                return version
        raise NodeError(f"the report has no version {number}", ErrorKind.NOT_FOUND)

    def last_signed(self, before: int | None = None) -> ReportVersion | None:
        """Return the newest signed version, of those older than number `before`."""
        for version in reversed(self.versions):
            if version.signed and (before is None or version.number < before):
                return version
        return None

    def draft(
        self,
        findings: Findings,
        *,
        author: Author,
        at: datetime,
        status: ReportStatus = ReportStatus.PARTIAL,
        followup: str | None = None,
    ) -> "Report":
        """Return this report with the algorithm's reading as its newest version.

        Allowed until a physician has touched the report: a reading that comes
        later (late images) never overwrites her work, RULE says so.
        """
        if author.kind is not AuthorKind.ALGORITHM or status not in _UNSIGNED:
            raise NodeError("only the algorithm drafts, and unsigned", ErrorKind.RULE)
        if self.physician_has_written:
            raise NodeError(
                "a physician has already worked on this report", ErrorKind.RULE
            )
        return self._append(
            status, author, at, findings, Conclusions(followup=followup), None
        )

    def revise(
        self,
        status: ReportStatus,
        findings: Findings,
        conclusions: Conclusions,
        *,
        author: Author,
        at: datetime,
        reason: str | None = None,
    ) -> "Report":
        """Return this report with one more version, written by a physician.

        RULE when the life cycle does not allow `status` now, when a change after
        sign-off gives no reason, when a signed version has no category, or when
        `appended` changes what was said before. Earlier versions stay as they
        are: somebody may already have acted on them.
        """
        if author.kind is not AuthorKind.PHYSICIAN:
            raise NodeError("only a physician may sign or amend", ErrorKind.RULE)
        current = self.current
        if status not in _BY_PHYSICIAN[current.status]:
            raise NodeError(
                f"a report that is {current.status.value} cannot become {status.value}",
                ErrorKind.RULE,
                expression="DiagnosticReport.status",
            )
        if status in _AFTER_SIGNING and not (reason and reason.strip()):
            raise NodeError(
                "a change after sign-off needs a reason",
                ErrorKind.RULE,
                expression="Provenance.reason",
            )
        if status in SIGNED and findings.category is None:
            raise NodeError(
                "a signed report needs an overall BI-RADS category",
                ErrorKind.RULE,
                expression="DiagnosticReport.result",
            )
        if status is ReportStatus.APPENDED:
            _require_unchanged(current, findings, conclusions)
        return self._append(status, author, at, findings, conclusions, reason)

    def disown(self, *, author: Author, at: datetime, reason: str) -> "Report":
        """Return this report withdrawn, as its images are of another patient.

        Signed or not: it names the wrong woman, whoever wrote it. Not medical, so no
        physician has to do it; what she wrote stays in the versions before.
        """
        if author.kind is not AuthorKind.REGISTRAR:
            raise NodeError("a registrar says whose a report is", ErrorKind.RULE)
        before = self.current if self.versions else None
        return self._append(
            ReportStatus.ENTERED_IN_ERROR,
            author,
            at,
            before.findings if before is not None else Findings(),
            before.conclusions if before is not None else Conclusions(),
            reason,
        )

    def disclose(self, disclosure: Disclosure) -> "Report":
        """Return this report with the record that the patient was told."""
        if not self.current.signed:
            raise NodeError(
                "the patient is told about signed reports only", ErrorKind.RULE
            )
        return replace(self, disclosures=(*self.disclosures, disclosure))

    def _append(
        self,
        status: ReportStatus,
        author: Author,
        at: datetime,
        findings: Findings,
        conclusions: Conclusions,
        reason: str | None,
    ) -> "Report":
        version = ReportVersion(
            number=len(self.versions) + 1,
            status=status,
            author=author,
            at=at,
            findings=findings,
            conclusions=conclusions,
            reason=reason,
        )
        return replace(self, versions=(*self.versions, version))


def _require_unchanged(
    current: ReportVersion, findings: Findings, conclusions: Conclusions
) -> None:
    """Raise RULE unless the earlier content stands unchanged at its beginning."""
    kept = findings.lesions[: len(current.findings.lesions)]
    before, after = current.conclusions, conclusions
    unchanged = (
        kept == current.findings.lesions
        and findings.category == current.findings.category
        and after.followup == before.followup
        and _only_adds(before.impression, after.impression)
        and _only_adds(before.advice, after.advice)
        and _only_adds(before.patient_summary, after.patient_summary)
    )
    if not unchanged:
        raise NodeError(
            "an appended report keeps its earlier content, and what is added begins a"
            " new sentence; use amended or corrected",
            ErrorKind.RULE,
            expression="DiagnosticReport.status",
        )


_ENDS_SENTENCE = re.compile(r"[\n。；！？;!?]\s*\Z|\.\s+\Z")
_BEGINS_ANEW = re.compile(r"\s*\Z|[ \t]*(?:[\n。；！？;!?]|\.(?:\s|\Z))")


def _only_adds(before: str, after: str) -> bool:
    """Tell whether `after` is `before` and then more, in a sentence of its own.

    Words that go on with a sentence change it: 良性 is another finding than
    良性不能排除恶性, and so is 1 than 1.5 mm.
    """
    if not before.strip():
        return True
    added = after[len(before) :]
    if not after.startswith(before):
        return False
    ended = _ENDS_SENTENCE.search(before) or (
        before.endswith(".") and added[:1].isspace()
    )
    return bool(ended or _BEGINS_ANEW.match(added))
