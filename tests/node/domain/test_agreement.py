"""Agreement of draft and signed report: kappa, its interval, and the drift test.

Kappa: Cohen 1960 and 1968; standard error: Fleiss, Cohen & Everitt 1969.
"""

import random
from collections import Counter
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from node.domain import agreement
from node.domain.agreement import (
    LEAST_PAIRS,
    LEAST_TRIALS,
    LESION,
    LESION_CATEGORY,
    NONE_SEEN,
    OVERALL_CATEGORY,
    SUSPICION_SCALE,
    Comparison,
    Trials,
    Verdict,
    compare,
    fisher,
    judge_drift,
    kappa,
    summarise,
    wilson,
)
from node.domain.lexicon import FieldKey
from tests.factories import make_findings, make_lesion


def by_field(rows: tuple[Comparison, ...], lesion: int = 1) -> dict[str, Comparison]:
    return {row.field: row for row in rows if row.lesion in (0, lesion)}


# --- one report ---------------------------------------------------------------


def test_a_report_signed_as_drafted_agrees_in_every_field_that_was_assessed() -> None:
    rows = by_field(compare(make_findings(), make_findings()))
    assert set(rows) == set(agreement.FIELDS)
    assert all(row.ai == row.signed for row in rows.values())
    assert rows["margin"].ai == "angular+spiculated"
    assert rows["calcifications"].ai == NONE_SEEN
    assert rows["posterior_features"].ai is None
    assert all(row.leading for row in rows.values())


def test_what_one_of_them_left_open_is_told_apart_from_a_value() -> None:
    drafted = make_lesion()
    signed = drafted.describe(FieldKey.SHAPE, None).describe(
        FieldKey.POSTERIOR_FEATURES, ("shadowing",)
    )
    rows = by_field(
        compare(make_findings(), replace(make_findings(), lesions=(signed,)))
    )
    assert (rows["shape"].ai, rows["shape"].signed) == ("irregular", None)
    posterior = rows["posterior_features"]
    assert (posterior.ai, posterior.signed) == (None, "shadowing")


def test_terms_are_written_in_the_order_of_the_lexicon() -> None:
    drafted = make_lesion()
    signed = drafted.describe(FieldKey.MARGIN, ("spiculated", "angular"))
    rows = by_field(
        compare(make_findings(), replace(make_findings(), lesions=(signed,)))
    )
    assert rows["margin"].ai == rows["margin"].signed


def test_withdrawn_and_missed_lesions_count_as_lesions_only() -> None:
    first, second = make_lesion(), make_lesion(tracking_uid="2.25.1002")
    missed = make_lesion(tracking_uid="2.25.1003", category="5")
    rows = compare(
        make_findings(lesions=(first, second)),
        make_findings("5", lesions=(second, missed)),
    )
    lesions = [(r.ai, r.signed, r.leading) for r in rows if r.field == LESION]
    assert lesions == [
        ("present", None, True),
        ("present", "present", False),
        (None, "present", False),
    ]
    categories = [r for r in rows if r.field == LESION_CATEGORY]
    # The lesion that both saw speaks for the report.
    assert [(r.lesion, r.leading) for r in categories] == [(2, True)]


def test_of_every_field_at_most_one_row_of_a_report_leads() -> None:
    lesions = tuple(make_lesion(tracking_uid=f"2.25.{n}") for n in range(1, 5))
    rows = compare(
        make_findings(lesions=lesions[:3]), make_findings(lesions=lesions[1:])
    )
    leading = Counter(row.field for row in rows if row.leading)
    assert set(leading.values()) == {1}


# --- kappa and shares -----------------------------------------------------------


def table(*rows: tuple[int, ...], labels: str = "abcdefg") -> dict:
    return {
        (labels[i], labels[j]): n
        for i, row in enumerate(rows)
        for j, n in enumerate(row)
    }


def test_kappa_is_cohens() -> None:
    found = kappa(table((20, 5), (10, 15)))
    assert found is not None
    assert found.value == pytest.approx(0.4)


def test_weighted_kappa_punishes_by_the_square_of_the_distance() -> None:
    near, far = Counter(), Counter()
    for key in SUSPICION_SCALE:
        near[key, key] = far[key, key] = 10
    near["4A", "4B"] = far["2", "5"] = 10
    close, wide = kappa(near, SUSPICION_SCALE), kappa(far, SUSPICION_SCALE)
    assert close is not None
    assert wide is not None
    assert wide.value < close.value < 1
    assert close.value == pytest.approx(_weighted(near), abs=1e-12)


def _weighted(cells: Counter) -> float:
    """Return quadratic kappa by its other formula, from squared distances."""
    size = len(SUSPICION_SCALE)
    counts = np.zeros((size, size))
    for (a, s), n in cells.items():
        counts[SUSPICION_SCALE.index(a), SUSPICION_SCALE.index(s)] += n
    distance = np.subtract.outer(np.arange(size), np.arange(size)) ** 2
    chance = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    return 1 - (distance * counts).sum() / (distance * chance).sum()


@pytest.mark.parametrize("scale", [None, tuple("abcd")])
def test_the_interval_is_as_wide_as_resampling_says(scale: tuple | None) -> None:
    rng = np.random.default_rng(7)
    counts = np.array([[60, 9, 3, 1], [12, 50, 10, 2], [4, 9, 40, 12], [1, 3, 9, 35]])
    found = kappa(table(*counts.tolist()), scale)
    assert found is not None
    drawn = rng.multinomial(counts.sum(), counts.ravel() / counts.sum(), 600)
    values = [kappa(table(*d.reshape(4, 4).tolist()), scale) for d in drawn]
    spread = np.std([v.value for v in values if v])
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(spread, rel=0.1)


def test_kappa_is_not_judged_on_few_pairs_nor_where_chance_agrees_always() -> None:
    assert kappa(table((LEAST_PAIRS - 1, 0), (0, 0))) is None
    assert kappa({("a", "a"): 500}) is None
    assert kappa({}) is None


def test_perfect_agreement_is_not_claimed_to_be_certain() -> None:
    found = kappa(table((15, 0), (0, 15)))
    assert found is not None
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.7 < found.low < 0.95


def test_a_share_has_wilsons_interval() -> None:
    found = wilson(81, 263)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=5e-4)
    assert wilson(0, 0) is None


def test_missing_values_are_counted_and_are_no_disagreement() -> None:
    cells = {
        ("oval", "oval"): 30,
        ("oval", "round"): 10,
        (None, "oval"): 7,
        ("oval", None): 5,
        (None, None): 3,
    }
    found = summarise("shape", cells)
    assert (found.compared, found.agreed) == (40, 30)
    assert found.not_assessed_by_ai == 10
    assert (found.added_by_doctor, found.removed_by_doctor) == (7, 5)
    assert not found.few


def test_incomplete_and_proven_have_no_place_on_the_scale_of_suspicion() -> None:
    cells = {("4A", "4A"): 30, ("3", "3"): 30, ("5", "6"): 9, ("4A", "0"): 4}
    found = summarise(OVERALL_CATEGORY, cells)
    assert (found.compared, found.agreed, found.off_scale) == (73, 60, 13)
    assert found.kappa is not None
    assert found.kappa.value == 1.0


def test_a_multiple_field_is_told_term_by_term() -> None:
    cells = {
        ("angular+spiculated", "spiculated"): 12,
        ("circumscribed", "circumscribed"): 20,
        ("indistinct", "angular"): 8,
    }
    found = summarise("margin", cells)
    assert (found.compared, found.agreed) == (40, 20)
    angular = next(term for term in found.terms if term.term == "angular")
    assert (angular.both, angular.ai_only, angular.signed_only) == (0, 12, 8)
    spiculated = next(term for term in found.terms if term.term == "spiculated")
    assert (spiculated.both, spiculated.neither) == (12, 28)
    assert spiculated.kappa is not None
    assert spiculated.kappa.value == 1.0
    assert summarise("calcifications", {(NONE_SEEN, "macro"): 25}).terms[0].ai_only == 0


def test_a_lesion_that_only_one_saw_is_a_disagreement() -> None:
    cells = {("present", "present"): 90, ("present", None): 8, (None, "present"): 2}
    found = summarise(LESION, cells)
    assert (found.compared, found.agreed) == (100, 90)
    assert (found.removed_by_doctor, found.added_by_doctor) == (8, 2)
    assert found.kappa is None


# --- drift ------------------------------------------------------------------------


def _enumerated(one: Trials, other: Trials) -> float:
    agreed, total = one.agreed + other.agreed, one.total + other.total
    ways = {
        k: comb(one.total, k) * comb(other.total, agreed - k)
        for k in range(max(0, agreed - other.total), min(one.total, agreed) + 1)
    }
    rarer = sum(n for n in ways.values() if n <= ways[one.agreed])
    return rarer / comb(total, agreed)


def test_the_p_value_is_fishers() -> None:
    rng = random.Random(5)
    for _ in range(50):
        totals = rng.randint(1, 60), rng.randint(1, 200)
        one, other = (Trials(rng.randint(0, t), t) for t in totals)
        assert fisher(one, other) == pytest.approx(_enumerated(one, other), rel=1e-6)


def _windows(rng: np.random.Generator, shares: dict, before: int, size: int) -> dict:
    return {
        field: (
            Trials(int(rng.binomial(size, now)), size),
            Trials(int(rng.binomial(before, then)), before),
        )
        for field, (now, then) in shares.items()
    }


STABLE = {
    field: (share, share)
    for field, share in zip(
        agreement.FIELDS,
        (0.7, 0.7, 0.95, 0.85, 0.9, 0.6, 0.8, 0.97, 0.88, 0.75),
        strict=True,
    )
}


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_stable_sequences_alarm_no_more_often_than_stated(alpha: float) -> None:
    rng = np.random.default_rng(20261121)
    runs = 1500
    alarms = sum(
        any(
            row.verdict is Verdict.DRIFTED
            for row in judge_drift(_windows(rng, STABLE, 500, 100), alpha)
        )
        for _ in range(runs)
    )
    # Three standard errors above what is stated; an exact test stays below it.
    assert alarms / runs < alpha + 3 * (alpha * (1 - alpha) / runs) ** 0.5
    assert alarms / runs > alpha / 10


@pytest.mark.parametrize("change", [-0.25, 0.25])
def test_a_planted_change_is_found_in_the_field_where_it_is(change: float) -> None:
    rng = np.random.default_rng(3)
    planted = STABLE | {"margin": (0.6 + change, 0.6)}
    found = Counter()
    for _ in range(100):
        rows = judge_drift(_windows(rng, planted, 500, 100), 0.01)
        found.update(row.field for row in rows if row.verdict is Verdict.DRIFTED)
    assert found["margin"] >= 90
    assert sum(found.values()) - found["margin"] <= 5


def test_few_reports_are_not_judged() -> None:
    few, many = Trials(0, LEAST_TRIALS - 1), Trials(500, 500)
    (row,) = judge_drift({"shape": (few, many)}, 0.5)
    assert (row.verdict, row.p_value) == (Verdict.TOO_FEW, None)
    assert judge_drift({}, 0.01) == ()
