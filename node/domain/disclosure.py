"""What a patient may read, and when; what of her name anybody may see.

The masked report is built from an allow-list: a field that is not named here
cannot leave the hospital. `张*` with age, sex and a diagnosis is still personal
information (de-identified in the sense of PIPL, not anonymous).
"""

import unicodedata
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum

from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report, ReportStatus, ReportVersion
from node.domain.study import PatientIdentity

_RTL = frozenset({"R", "AL"})
_ISOLATE, _POP = "\u2068", "\u2069"
_ZWJ = "\u200d"


class ReleaseState(StrEnum):
    """How much of a report the patient's phone may show."""

    READY = "ready"  # exists; the doctor will call
    RELEASED = "released"
    WITHDRAWN = "withdrawn"


def mask_name(name: str) -> str:
    """Return the first character of the family name and one star.

    `name` is a DICOM PN (ideographic group preferred) or plain text. One
    user-perceived character stays (UAX #29 as far as names need it), the star
    has no length: 张三 and 欧阳娜娜 give 张* and 欧*. Right-to-left text is
    isolated. Nothing readable gives `*`.
    """
    family = _family_component(name)
    first = _first_cluster(family)
    if not first:
        return "*"
    masked = f"{first}*"
    if unicodedata.bidirectional(first[0]) in _RTL:
        return f"{_ISOLATE}{masked}{_POP}"
    return masked


def _family_component(name: str) -> str:
    groups = [_clean(group) for group in unicodedata.normalize("NFC", name).split("=")]
    ideographic = groups[1] if len(groups) > 1 else ""
    chosen = ideographic if ideographic.strip("^ ") else groups[0]
    if not chosen.strip("^ ") and len(groups) > 2:
        chosen = groups[2]
    for component in chosen.split("^"):
        if component.strip():
            return component.strip()
    return ""


def _clean(text: str) -> str:
    kept = (c for c in text if c == _ZWJ or unicodedata.category(c) not in {"Cc", "Cf"})
    return "".join(kept).strip()


def _first_cluster(text: str) -> str:
    """Return the first grapheme cluster that starts with a letter-like sign."""
    start = 0
    while start < len(text) and (
        text[start] == _ZWJ or unicodedata.category(text[start])[0] in "MZPC"
    ):
        start += 1
    end = start + 1
    while end < len(text) and _extends(text, end):
        end += 1
    return text[start:end].rstrip(_ZWJ)


def _extends(text: str, at: int) -> bool:
    sign = text[at]
    if sign == _ZWJ or unicodedata.category(sign)[0] == "M":
        return True
    if 0x1F3FB <= ord(sign) <= 0x1F3FF:  # emoji skin tone
        return True
    if text[at - 1] == _ZWJ and ord(text[at]) > 0x2000:
        return True
    return _is_hangul_tail(text[at - 1], sign)


def _is_hangul_tail(before: str, sign: str) -> bool:
    vowel_or_tail = 0x1160 <= ord(sign) <= 0x11FF
    return vowel_or_tail and (
        0x1100 <= ord(before) <= 0x11FF or 0xAC00 <= ord(before) <= 0xD7A3
    )


def mask_identifier(number: str) -> str:
    """Return an identity number as its owner may see it echoed.

    Chinese numbers of 15 or 18 digits keep their first and last sign; any other
    document (passport, permit) is stars alone.
    """
    if len(number) in (15, 18) and number[:-1].isascii() and number[:-1].isdigit():
        return f"{number[0]}{'*' * (len(number) - 2)}{number[-1]}"
    return "*" * len(number)


def mask_phone(number: str) -> str:
    """Return a phone number with its middle starred: 138****8000."""
    digits = "".join(c for c in number if c.isdigit())
    if len(digits) < 8:
        return "*" * len(digits)
    return f"{digits[:3]}****{digits[-4:]}"


def last_four(number: str) -> str:
    """Return what a doctor may see of an accession number: its last four signs."""
    return f"…{number[-4:]}" if len(number) > 4 else "…"


@dataclass(frozen=True)
class TierText:
    """What a patient reads for one BI-RADS category; site configuration."""

    text_zh: str
    text_en: str
    advice_zh: str
    advice_en: str


@dataclass(frozen=True)
class TrendPoint:
    """One released lesion size for the patient's trend; None stays a gap."""

    laterality: str | None
    clock: int | None
    size_mm: Decimal | None


@dataclass(frozen=True)
class PatientReport:
    """All that leaves the hospital about one report version; nothing else does.

    In the states READY and WITHDRAWN every field below `department_phone` is
    empty: gating must not be visible in a grade, a text or a size.
    """

    handle: str
    patient_handle: str
    display: str
    age: str | None
    examined_on: date | None
    version: int
    status: ReportStatus
    state: ReleaseState
    department_phone: str
    category: str | None = None
    text: TierText | None = None
    patient_summary: str = ""
    trend: tuple[TrendPoint, ...] = ()


def release_state(report: Report) -> ReleaseState:
    """Return how much of the newest version the patient may see.

    Raises RULE for a report that no physician has signed: it must not leave the
    hospital in any form. Suspicious categories (4A to 6) wait until a disclosure
    was recorded for this version or, when its tier did not rise since, for an
    earlier one.
    """
    version = report.current
    if version.status is ReportStatus.ENTERED_IN_ERROR:
        return ReleaseState.WITHDRAWN
    if not version.signed:
        raise NodeError("an unsigned report never leaves", ErrorKind.RULE)
    if not _gated(version):
        return ReleaseState.RELEASED
    told = [d.at for d in report.disclosures]
    if told and max(told) >= _tier_reached_at(report):
        return ReleaseState.RELEASED
    return ReleaseState.READY


def _gated(version: ReportVersion) -> bool:
    worst = version.findings.worst_category
    return worst is None or lexicon.category(worst).gated


def _tier_reached_at(report: Report) -> datetime:
    """Return when the present suspicion was first signed without falling since."""

    def rank(version: ReportVersion) -> int:
        worst = version.findings.worst_category
        return lexicon.category(worst).rank if worst else 99

    signed = [v for v in report.versions if v.signed]
    reached = signed[-1]
    for version in reversed(signed):
        if rank(version) < rank(signed[-1]):
            break
        reached = version
    return reached.at


def patient_report(
    report: Report,
    patient: PatientIdentity,
    *,
    examined_on: date | None,
    handle: str,
    patient_handle: str,
    department_phone: str,
    texts: dict[str, TierText],
) -> PatientReport:
    """Return the masked projection of the newest version for the relay."""
    state = release_state(report)
    version = report.current
    age = patient.age_at(examined_on) if examined_on else None
    masked = PatientReport(
        handle=handle,
        patient_handle=patient_handle,
        display=mask_name(patient.name),
        age=None if age is None else str(age),
        examined_on=examined_on,
        version=version.number,
        status=version.status,
        state=state,
        department_phone=department_phone,
    )
    if state is not ReleaseState.RELEASED:
        return masked
    worst = version.findings.worst_category
    if worst is None:
        raise NodeError("a released report has a category", ErrorKind.RULE)
    return _with_content(masked, version, worst, patient, texts)


def _with_content(
    masked: PatientReport,
    version: ReportVersion,
    worst: str,
    patient: PatientIdentity,
    texts: dict[str, TierText],
) -> PatientReport:
    return replace(
        masked,
        category=worst,
        text=texts[worst],
        patient_summary=scrub(version.conclusions.patient_summary, patient),
        trend=tuple(
            TrendPoint(
                lesion.laterality,
                lesion.clock,
                lesion.extent.long_axis_mm if lesion.extent else None,
            )
            for lesion in version.findings.lesions
        ),
    )


def scrub(text: str, patient: PatientIdentity) -> str:
    """Return the doctor's words for the patient without identity in them.

    Takes out the patient's own names, numbers and phone wherever they stand,
    and any run of six or more digits, which is how numbers of others look.
    """
    cleaned = unicodedata.normalize("NFC", text)
    known = [patient.patient_id, patient.id_number or "", patient.phone or ""]
    for group in unicodedata.normalize("NFC", patient.name).split("="):
        components = [part.strip() for part in group.split("^") if part.strip()]
        known += components
        if len(components) > 1:
            known += ["".join(components), " ".join(components)]
    for secret in sorted(filter(None, known), key=len, reverse=True):
        if len(secret) > 1:
            cleaned = _replace_folded(cleaned, secret)
    return _without_long_numbers(cleaned)


def _replace_folded(text: str, secret: str) -> str:
    """Replace `secret` in `text` by a star, upper and lower case alike."""
    folded, needle, out, at = text.casefold(), secret.casefold(), [], 0
    if len(folded) != len(text):  # casefolding moved positions: compare as it is
        return text.replace(secret, "*")
    while (hit := folded.find(needle, at)) >= 0:
        out += [text[at:hit], "*"]
        at = hit + len(needle)
    return "".join([*out, text[at:]])


def _without_long_numbers(text: str) -> str:
    out: list[str] = []
    run = ""
    for sign in f"{text}\0":
        if sign.isdigit():
            run += sign
            continue
        out.append("*" if len(run) >= 6 else run)
        out.append(sign)
        run = ""
    return "".join(out)[:-1]
