"""Domain to FHIR and back: what a report says survives the way in both directions."""

import importlib
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import fhirkit
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fhir.content import mapping
from fhir.content.concepts import MEMBER_SUFFIXES
from fhir.content.masked import for_doctor, to_masked_report
from fhir.content.reading import (
    Content,
    observation_name,
    read_conclusions,
    read_observation,
    read_patient,
)
from fhir.encoding.wire import date_range, parse, to_bytes
from node.domain import lexicon
from node.domain.disclosure import patient_report
from node.domain.finding import Extent, Findings, Lesion
from node.domain.lexicon import FieldKey
from node.domain.report import Conclusions, ReportStatus
from tests.factories import (
    DOCTOR,
    NOW,
    make_draft,
    make_findings,
    make_lesion,
    make_patient,
    make_signed,
)
from tests.fhir.rig import TEXTS

SYSTEMS = mapping.Systems("urn:oid:2.25.41", "urn:oid:2.25.42")
EXAM = mapping.Exam(date(2026, 11, 20), "ACC-1")


def values_of(key: FieldKey) -> st.SearchStrategy[tuple[str, ...]]:
    field = lexicon.FIELDS[key]
    keys = [term.key for term in field.terms]
    if not field.multiple:
        return st.sampled_from(keys).map(lambda value: (value,))
    fewest = 0 if key is FieldKey.CALCIFICATIONS else 1
    chosen = st.sets(st.sampled_from(keys), min_size=fewest)
    return chosen.map(lambda c: tuple(k for k in keys if k in c))


millimetres = st.decimals("0.1", "200", places=1)
lesions = st.builds(
    Lesion,
    tracking_uid=st.just("2.25.1001"),
    laterality=st.sampled_from([None, "L", "R"]),
    clock=st.sampled_from([None, *range(1, 13)]),
    distance_from_nipple_mm=st.none() | millimetres,
    extent=st.none()
    | st.builds(Extent, millimetres, millimetres, millimetres, st.none() | millimetres),
    descriptors=st.fixed_dictionaries(
        {}, optional={key: values_of(key) for key in FieldKey}
    ),
    category=st.sampled_from([None, *lexicon.CATEGORIES]),
    probability=st.none() | st.decimals(0, 1, places=3),
)
conclusions = st.builds(
    Conclusions,
    impression=st.sampled_from(["", "左乳结节", "0.910 mm"]),
    followup=st.sampled_from([None, *lexicon.FOLLOWUP]),
    advice=st.sampled_from(["", "半年后复查"]),
    patient_summary=st.sampled_from(["", "请放心"]),
)


@settings(max_examples=150)
@given(lesions, st.sampled_from([None, *lexicon.CATEGORIES]), conclusions)
def test_what_resources_say_is_what_the_report_says(
    lesion: Lesion, category: str | None, said: Conclusions
) -> None:
    report = make_draft()
    findings = Findings(lesions=(lesion,), category=category)
    version = replace(report.current, findings=findings, conclusions=said)
    report = replace(report, versions=(version,))
    start = Content(
        make_findings(lesions=(Lesion(lesion.tracking_uid),)), Conclusions()
    )
    start = replace(
        start,
        findings=replace(
            start.findings,
            lesions=(Lesion(lesion.tracking_uid, probability=lesion.probability),),
        ),
    )
    content = start
    for observation in mapping.to_observations(report, EXAM):
        raw = to_bytes(observation)
        assert not [str(i) for i in fhirkit.validate(raw)]
        content = read_observation(content, report, parse(raw))
    diagnostic = parse(to_bytes(mapping.to_diagnostic_report(report, EXAM, SYSTEMS)))
    content = replace(
        content, conclusions=read_conclusions(content.conclusions, diagnostic)
    )
    assert content.findings == findings
    assert content.conclusions == said


def test_a_patient_of_any_script_comes_back_as_she_went() -> None:
    for name in ("Zhang^San=张^三", "ZHANG^SAN", "=欧阳^娜娜", "O'Brien^Mary Ann"):
        identity = make_patient(name=name)
        patient = mapping.to_patient(make_draft().patient_id, identity, SYSTEMS)
        assert not [str(i) for i in fhirkit.validate(to_bytes(patient))]
        assert read_patient(patient, SYSTEMS) == identity
    foreign = make_patient(issuer="urn:oid:1.2.3")
    patient = mapping.to_patient(make_draft().patient_id, foreign, SYSTEMS)
    assert read_patient(patient, SYSTEMS) == foreign


def test_the_models_of_fhir_resources_accept_what_we_write() -> None:
    report = make_signed("4A", impression="words", patient_summary="words")
    patient = mapping.to_patient(report.patient_id, make_patient(), SYSTEMS)
    written = [
        mapping.to_diagnostic_report(report, EXAM, SYSTEMS),
        *mapping.to_observations(report, EXAM),
        patient,
        for_doctor(patient, date(2026, 11, 21)),
        mapping.to_device(report.versions[0].author, mapping.Model("m", "1", "ff")),
        mapping.to_practitioner("dr-li", "Li Ming"),
        mapping.to_provenance(
            ["Patient/1"], recorded=NOW, agents=[("author", "Device/1")]
        ),
    ]
    for resource in written:
        kind = resource["resourceType"]
        module = importlib.import_module(f"fhir.resources.R4B.{kind.lower()}")
        getattr(module, kind).model_validate_json(to_bytes(resource))


def test_a_lesion_keeps_its_number_when_another_is_withdrawn() -> None:
    first, second = make_lesion(), make_lesion(tracking_uid="2.25.1002")
    report = make_draft()
    version = replace(report.current, findings=Findings((first, second), "2"))
    report = replace(report, versions=(version,)).revise(
        ReportStatus.FINAL,
        Findings((second,), "2"),
        Conclusions(),
        author=DOCTOR,
        at=NOW,
    )
    ids = [o["id"] for o in mapping.to_observations(report, EXAM)]
    assert f"{report.id}-l2" in ids
    assert f"{report.id}-l1" not in ids


def test_only_our_observation_ids_are_understood() -> None:
    report_id = str(make_draft().id)
    for suffix in ("l1", "category", "advice", *(f"l12-{s}" for s in MEMBER_SUFFIXES)):
        assert observation_name(f"{report_id}-{suffix}") is not None
    for other in ("", "x", report_id, f"{report_id}-l", f"{report_id}-l1-x", "l1"):
        assert observation_name(other) is None


def test_an_uncalibrated_lesion_has_no_size_and_no_zero() -> None:
    value = mapping.size_value(make_lesion(extent=None))
    assert value["dataAbsentReason"]["text"] == "uncalibrated"
    assert "component" not in value


def test_the_report_for_the_relay_is_valid_and_holds_only_masked_data() -> None:
    for category in lexicon.CATEGORIES:
        report = make_signed(category, patient_summary="张三, call 13800008000")
        masked = to_masked_report(
            patient_report(
                report,
                make_patient(),
                examined_on=date(2026, 11, 20),
                handle="A" * 22,
                patient_handle="B" * 22,
                department_phone="010-55551234",
                texts=TEXTS,
            )
        )
        raw = to_bytes(masked)
        assert not [str(i) for i in fhirkit.validate(raw)]
        text = raw.decode()
        for secret in ("三", "Zhang", "MRN", "1380000", "2.25.3001", str(report.id)):
            assert secret not in text
        gated = lexicon.category(category).gated
        assert ("trend-point" in text) is not gated


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2026", (2026, 1, 1), (2027, 1, 1)),
        ("2026-12", (2026, 12, 1), (2027, 1, 1)),
        ("2026-11-21", (2026, 11, 21), (2026, 11, 22)),
        ("2026-11-21T08:00:00Z", (2026, 11, 21, 8), (2026, 11, 21, 8, 0, 1)),
        ("2026-11-21T08:00:00+08:00", (2026, 11, 21), (2026, 11, 21, 0, 0, 1)),
    ],
)
def test_a_date_covers_what_its_precision_says(
    text: str, start: tuple[Any, ...], end: tuple[Any, ...]
) -> None:
    covered = date_range(text)
    assert covered == (datetime(*start, tzinfo=UTC), datetime(*end, tzinfo=UTC))


def test_numbers_are_written_as_they_were_read() -> None:
    for number in ("0.910", "1.00", "100000000000000000000.01", "1e2", "-0.0", "7"):
        assert (
            to_bytes(parse(f'{{"a":{number}}}'.encode()))
            == f'{{"a":{number}}}'.encode()
        )
    assert to_bytes({"a": Decimal("1E+2")}) == b'{"a":100}'
