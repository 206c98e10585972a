"""Masking and release: what reaches a phone, for names of every script."""

import re
import unicodedata
from dataclasses import fields, replace
from datetime import date, timedelta
from typing import get_args

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from node.domain.disclosure import (
    PatientReport,
    ReleaseState,
    TierText,
    last_four,
    mask_identifier,
    mask_name,
    mask_phone,
    patient_report,
    release_state,
    scrub,
)
from node.domain.errors import NodeError
from node.domain.lexicon import CATEGORIES
from node.domain.report import Conclusions, Report, ReportStatus
from tests.factories import (
    DOCTOR,
    NOW,
    make_disclosure,
    make_draft,
    make_findings,
    make_patient,
    make_signed,
)

TEXTS = {
    key: TierText(f"文{key}", f"text {key}", "建议", "advice") for key in CATEGORIES
}


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("张三", "张*"),
        ("Zhang^San=张^三", "张*"),
        ("欧阳娜娜", "欧*"),
        ("𠮷田", "𠮷*"),
        ("张", "张*"),
        ("O'Brien^Mary", "O*"),
        ("e\u0301ric", "é*"),
        ("محمد", "\u2068م*\u2069"),
        ("阿依古丽·买买提", "阿*"),
        ("Yamada^Tarou==やまだ^たろう", "Y*"),
        ("==やまだ^たろう", "や*"),
        ("^^", "*"),
        ("", "*"),
        ("\u0301\u200b", "*"),
    ],
)
def test_the_golden_names_are_masked_as_agreed(name: str, masked: str) -> None:
    assert mask_name(name) == masked


@settings(max_examples=400)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
@example("👩‍👩‍👧‍👦家")
@example("नि")
def test_at_most_one_user_perceived_character_of_a_name_survives(name: str) -> None:
    masked = mask_name(name).strip("\u2068\u2069")
    assert masked.endswith("*")
    assert masked.count("*") == 1 or name.count("*")
    assert len(regex.findall(r"\X", masked[:-1])) <= 1
    assert not any(unicodedata.category(c) == "Cc" for c in masked)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("110101197903051234", "1****************4"),
        ("11010119790305123X", "1****************X"),
        ("110101790305123", "1*************3"),
        ("E12345678", "*********"),
    ],
)
def test_identity_numbers_are_starred(number: str, shown: str) -> None:
    assert mask_identifier(number) == shown


def test_phones_and_accession_numbers_keep_only_what_the_table_allows() -> None:
    assert mask_phone("13800008000") == "138****8000"
    assert mask_phone("123") == "***"
    assert last_four("ACC20261121") == "…1121"
    assert last_four("12") == "…"


def project(report: Report, **patient: object) -> PatientReport:
    return patient_report(
        report,
        make_patient(**patient),
        examined_on=date(2026, 11, 20),
        handle="h" * 22,
        patient_handle="p" * 22,
        department_phone="010-0000",
        texts=TEXTS,
    )


@pytest.mark.parametrize("category", [c for c in CATEGORIES if not CATEGORIES[c].gated])
def test_benign_categories_are_released_when_signed(category: str) -> None:
    shown = project(make_signed(category))
    assert shown.state is ReleaseState.RELEASED
    assert shown.category == category
    assert shown.text == TEXTS[category]


@pytest.mark.parametrize("category", [c for c in CATEGORIES if CATEGORIES[c].gated])
def test_suspicious_categories_wait_until_the_patient_was_told(category: str) -> None:
    signed = make_signed(category, patient_summary="words")
    held = project(signed)
    assert held.state is ReleaseState.READY
    told = project(signed.disclose(make_disclosure()))
    assert (told.state, told.category) == (ReleaseState.RELEASED, category)


def test_a_held_report_differs_from_another_in_nothing_but_its_handle() -> None:
    held = project(make_signed("4C", patient_summary="words"))
    other = project(make_signed("5"))
    assert held == replace(other, handle=held.handle)
    empty = {f.name: getattr(held, f.name) for f in fields(held)}
    assert not any(empty[n] for n in ("category", "text", "patient_summary", "trend"))


def test_a_lesion_worse_than_the_overall_category_gates_the_report() -> None:
    draft = make_draft("4C")
    signed = draft.revise(
        ReportStatus.FINAL,
        replace(make_findings("4C"), category="2"),
        Conclusions(),
        author=DOCTOR,
        at=NOW,
    )
    assert release_state(signed) is ReleaseState.READY


def test_an_amendment_that_raises_the_tier_is_held_again() -> None:
    told = make_signed("4A").disclose(make_disclosure())
    assert release_state(told) is ReleaseState.RELEASED
    later = NOW + timedelta(days=2)
    worse = told.revise(
        ReportStatus.AMENDED,
        make_findings("5"),
        Conclusions(),
        author=DOCTOR,
        at=later,
        reason="pathology",
    )
    assert release_state(worse) is ReleaseState.READY
    assert release_state(worse.disclose(make_disclosure(later))) is (
        ReleaseState.RELEASED
    )


def test_an_amendment_in_the_same_tier_stays_released() -> None:
    told = make_signed("4A").disclose(make_disclosure())
    same = told.revise(
        ReportStatus.CORRECTED,
        make_findings("4A"),
        Conclusions(impression="side corrected"),
        author=DOCTOR,
        at=NOW + timedelta(days=2),
        reason="side",
    )
    assert release_state(same) is ReleaseState.RELEASED


def test_a_withdrawn_report_shows_nothing() -> None:
    withdrawn = make_signed("2").revise(
        ReportStatus.ENTERED_IN_ERROR,
        make_findings("2"),
        Conclusions(),
        author=DOCTOR,
        at=NOW,
        reason="wrong patient",
    )
    shown = project(withdrawn)
    assert (shown.state, shown.category) == (ReleaseState.WITHDRAWN, None)


def test_an_unsigned_report_never_leaves() -> None:
    with pytest.raises(NodeError, match="never leaves"):
        project(make_draft("2"))


_NAMES = st.text(
    alphabet=st.one_of(
        st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5),
        st.characters(categories=["Lu", "Ll"], max_codepoint=0x24F),
        st.characters(min_codepoint=0x0621, max_codepoint=0x064A),
        st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=300)
@given(
    family=_NAMES, given_name=_NAMES, digits=st.from_regex(r"[0-9]{18}", fullmatch=True)
)
def test_nothing_that_identifies_her_leaves_with_a_report(
    family: str, given_name: str, digits: str
) -> None:
    phone = f"138{digits[:8]}"
    signed = make_signed(
        "2",
        impression=f"{family}{given_name} has a cyst",
        advice=f"call {phone}",
        patient_summary=f"Dear {family} {given_name}, {digits} {phone} MRN-0042",
    )
    shown = project(
        signed, name=f"{family}^{given_name}", id_number=digits, phone=phone
    )
    text = repr(shown)
    for secret in (f"{family}{given_name}", given_name * 3, digits, phone, "MRN-0042"):
        assert secret not in text
    assert signed.study_instance_uid not in text
    assert not re.search("1979(-0|, )3", text)


def test_words_for_the_patient_lose_her_name_and_every_long_number() -> None:
    text = scrub("张三您好，ZHANG san，编号123456，复查6个月，三餐正常", make_patient())
    assert "张三" not in text
    assert "zhang" not in text.lower()
    assert "123456" not in text
    assert "6个月" in text


def test_every_field_that_can_leave_is_on_the_allow_list() -> None:
    assert {f.name for f in fields(PatientReport)} == {
        "handle",
        "patient_handle",
        "display",
        "age",
        "examined_on",
        "version",
        "status",
        "state",
        "department_phone",
        "category",
        "text",
        "patient_summary",
        "trend",
    }
    assert not get_args(PatientReport)
    assert re.fullmatch(r"\d+", str(project(make_signed("2")).age))
