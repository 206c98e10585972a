"""The life cycle of a report (FHIR R4 DiagnosticReport.status), as a whole table."""

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.report import Conclusions, Report, ReportStatus
from tests.factories import (
    ALGORITHM,
    DOCTOR,
    NOW,
    make_disclosure,
    make_draft,
    make_findings,
    make_signed,
)

S = ReportStatus
_UNSIGNED = {S.PARTIAL, S.PRELIMINARY}
_AFTER = {S.AMENDED, S.CORRECTED, S.APPENDED, S.ENTERED_IN_ERROR}
ALLOWED = {
    S.PARTIAL: {S.PRELIMINARY, S.FINAL},
    S.PRELIMINARY: {S.PRELIMINARY, S.FINAL},
    S.FINAL: _AFTER,
    S.AMENDED: _AFTER,
    S.CORRECTED: _AFTER,
    S.APPENDED: _AFTER,
    S.ENTERED_IN_ERROR: set(),
}


def report_in(status: ReportStatus) -> Report:
    report = make_draft()
    if status in _UNSIGNED:
        return replace(report, versions=(replace(report.versions[0], status=status),))
    signed = make_signed("4C")
    return replace(
        signed,
        versions=(*signed.versions[:-1], replace(signed.current, status=status)),
    )


@pytest.mark.parametrize("before", list(S))
@pytest.mark.parametrize("after", list(S))
def test_a_physician_moves_a_report_only_along_the_life_cycle(
    before: ReportStatus, after: ReportStatus
) -> None:
    report = report_in(before)

    def revise() -> Report:
        return report.revise(
            after,
            report.current.findings,
            report.current.conclusions,
            author=DOCTOR,
            at=NOW,
            reason="pathology",
        )

    if after in ALLOWED[before]:
        assert revise().current.status is after
    else:
        with pytest.raises(NodeError) as caught:
            revise()
        assert caught.value.kind is ErrorKind.RULE


def test_the_algorithm_never_signs() -> None:
    with pytest.raises(NodeError, match="only a physician"):
        make_draft().revise(
            S.FINAL, make_findings(), Conclusions(), author=ALGORITHM, at=NOW
        )


def test_a_late_reading_never_overwrites_a_physicians_work() -> None:
    with pytest.raises(NodeError, match="physician has already"):
        make_signed().draft(make_findings("2"), author=ALGORITHM, at=NOW)


def test_a_late_reading_supersedes_an_earlier_draft_and_keeps_it() -> None:
    report = make_draft("2").draft(make_findings("4A"), author=ALGORITHM, at=NOW)
    assert [v.findings.category for v in report.versions] == ["2", "4A"]


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_a_change_after_sign_off_needs_a_reason(reason: str | None) -> None:
    with pytest.raises(NodeError, match="needs a reason"):
        make_signed().revise(
            S.AMENDED,
            make_findings("3"),
            Conclusions(),
            author=DOCTOR,
            at=NOW,
            reason=reason,
        )


def test_a_signed_report_needs_an_overall_category() -> None:
    with pytest.raises(NodeError, match="BI-RADS"):
        make_draft().revise(S.FINAL, Findings(), Conclusions(), author=DOCTOR, at=NOW)


def test_an_appended_report_keeps_what_was_said_before() -> None:
    report = make_signed("2", impression="Cyst.")
    longer = replace(report.current.conclusions, impression="Cyst. Seen again.")
    appended = report.revise(
        S.APPENDED, report.current.findings, longer, author=DOCTOR, at=NOW, reason="x"
    )
    assert appended.current.status is S.APPENDED
    for findings, conclusions in (
        (make_findings("3"), longer),
        (report.current.findings, replace(longer, impression="Something else")),
    ):
        with pytest.raises(NodeError, match="amended or corrected"):
            report.revise(
                S.APPENDED, findings, conclusions, author=DOCTOR, at=NOW, reason="x"
            )


@pytest.mark.parametrize(
    ("before", "after", "adds"),
    [
        ("", "anything", True),
        ("Cyst.", "Cyst. Seen again.", True),
        ("Cyst.", "Cyst.", True),
        ("良性", "良性。补充：已随访", True),
        ("良性", "良性\n补充：已随访", True),
        ("良性。", "良性。补充", True),
        ("良性", "良性不能排除恶性", False),
        ("benign", "benign is unlikely", False),
        ("1", "1.5 mm", False),
        ("1.", "1.5 mm", False),
        ("良性。", "恶性。良性。", False),
    ],
)
@pytest.mark.parametrize("text", ["impression", "advice", "patient_summary"])
def test_added_words_leave_the_sentence_before_them_alone(
    text: str, before: str, after: str, adds: bool
) -> None:
    report = make_signed("2", **{text: before})
    longer = replace(report.current.conclusions, **{text: after})
    expected = nullcontext() if adds else pytest.raises(NodeError, match="sentence")
    with expected:
        report.revise(
            S.APPENDED,
            report.current.findings,
            longer,
            author=DOCTOR,
            at=NOW,
            reason="x",
        )


def test_earlier_versions_stay_as_they_are() -> None:
    signed = make_signed("2")
    amended = signed.revise(
        S.AMENDED,
        make_findings("3"),
        Conclusions(),
        author=DOCTOR,
        at=NOW + timedelta(days=1),
        reason="second look",
    )
    assert amended.versions[:2] == signed.versions
    assert amended.last_signed(before=3) == signed.current


def test_the_patient_is_told_about_signed_reports_only() -> None:
    with pytest.raises(NodeError, match="signed reports only"):
        make_draft().disclose(make_disclosure())
