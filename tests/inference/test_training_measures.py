"""Figures of merit against hand computations and published values."""

import math

import numpy as np
import pytest

from inference.training.measures import (
    auc,
    calibration_error,
    compare_areas,
    delong,
    delong_interval,
    interval,
    kappa,
    macro_f1,
    pointing,
    roc_curve,
    sensitivity_at,
    threshold_for_sensitivity,
    youden_index,
)

TRUTH = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
SCORE = np.array([0.9, 0.8, 0.3, 0.6, 0.2, 0.1])


def test_auc_counts_ties_half() -> None:
    truth = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(truth, np.array([0.1, 0.4, 0.4, 0.9])) == pytest.approx(0.875)
    assert math.isnan(auc(np.ones(3), np.ones(3)))


def test_delong_variance_is_the_one_computed_by_hand() -> None:
    # Placements of positives 1, 1, 2/3 and of negatives 2/3, 1, 1 around 8/9:
    # both variances are 1/27, so Var(AUC) = 1/27 / 3 + 1/27 / 3 = 2/81.
    areas, covariance = delong(TRUTH, SCORE)
    assert areas[0] == pytest.approx(8 / 9)
    assert covariance[0, 0] == pytest.approx(2 / 81)
    drawn = delong_interval(TRUTH, SCORE)
    assert drawn["low"] == pytest.approx(8 / 9 - 1.959964 * math.sqrt(2 / 81))
    assert drawn["high"] == 1.0


def test_paired_difference_is_the_one_computed_by_hand() -> None:
    # The second score has placements 1, 1/3, 1 and 1, 2/3, 2/3 around 7/9.
    # Cov10 = -1/27 , Cov01 = -1/54: Var(d) = 2/81 + Var(second) - 2 Cov.
    second = np.array([0.9, 0.3, 0.8, 0.2, 0.5, 0.6])
    wins = (np.array([1, 1, 2 / 3]), np.array([1, 1 / 3, 1]))
    losses = (np.array([2 / 3, 1, 1]), np.array([1, 2 / 3, 2 / 3]))
    variance = np.var(wins[0] - wins[1], ddof=1) + np.var(losses[0] - losses[1], ddof=1)
    found = compare_areas(TRUTH, SCORE, second)
    assert found.difference == pytest.approx(1 / 9)
    error = math.sqrt(variance / 3)
    assert found.high == pytest.approx(1 / 9 + 1.959964 * error)
    assert found.p == pytest.approx(math.erfc(1 / 9 / error / math.sqrt(2)))


def test_the_same_score_twice_differs_by_nothing() -> None:
    found = compare_areas(TRUTH, SCORE, SCORE.copy())
    assert (found.difference, found.p) == (0.0, 1.0)


def test_delong_follows_a_score_of_many_cases_as_the_bootstrap_does() -> None:
    random = np.random.default_rng(3)
    truth = np.repeat([1.0, 0.0], 150)
    score = random.normal(truth, 1.0)
    ours = delong_interval(truth, score)
    drawn = interval(lambda i: auc(truth[i], score[i]), list(map(str, range(300))))
    assert ours["low"] == pytest.approx(drawn["low"], abs=0.015)
    assert ours["high"] == pytest.approx(drawn["high"], abs=0.015)


def test_copies_of_a_patient_do_not_make_the_interval_narrower() -> None:
    random = np.random.default_rng(5)
    truth = np.repeat([1.0, 0.0], 40)
    score = random.normal(truth, 1.0)
    names = [str(index) for index in range(80)]
    once = delong(truth, score, names)[1][0, 0]
    thrice = delong(np.tile(truth, 3), np.tile(score, 3), names * 3)[1][0, 0]
    assert thrice == pytest.approx(once, rel=1e-9)
    assert once == pytest.approx(delong(truth, score)[1][0, 0])


def test_one_class_alone_has_no_curve() -> None:
    ones = np.ones(4)
    assert math.isnan(delong_interval(ones, ones)["value"])
    assert math.isnan(compare_areas(ones, ones, ones).p)
    assert math.isnan(sensitivity_at(ones, ones, 0.9))
    assert math.isnan(youden_index(ones, ones)[0])


def test_roc_curve_goes_from_nobody_to_everybody_called() -> None:
    false_rate, true_rate, thresholds = roc_curve(TRUTH, SCORE)
    assert (false_rate[0], true_rate[0]) == (0.0, 0.0)
    assert (false_rate[-1], true_rate[-1]) == (1.0, 1.0)
    area = float(np.trapezoid(true_rate, false_rate))
    assert area == pytest.approx(auc(TRUTH, SCORE))
    assert thresholds[0] == math.inf


def test_youden_index_and_sensitivity_at_a_specificity() -> None:
    value, threshold = youden_index(TRUTH, SCORE)
    assert value == pytest.approx(2 / 3)
    assert threshold == 0.3
    assert sensitivity_at(TRUTH, SCORE, 0.9) == pytest.approx(2 / 3)
    assert sensitivity_at(TRUTH, SCORE, 0.6) == pytest.approx(1.0)


def test_threshold_keeps_the_wanted_sensitivity() -> None:
    truth = np.array([1.0] * 10 + [0.0] * 5)
    chance = np.concatenate([np.linspace(0.1, 1.0, 10), np.zeros(5)])
    level = threshold_for_sensitivity(truth, chance, 0.9)
    assert (chance[:10] >= level).sum() == 9


def test_perfectly_calibrated_chances_have_no_error() -> None:
    truth = np.array([0.0, 0.0, 0.0, 1.0])
    assert calibration_error(truth, np.full(4, 0.25)) == pytest.approx(0.0)


def test_kappa_is_one_for_the_same_reading_and_zero_for_a_constant() -> None:
    reading = np.array([0.0, 1.0, 2.0, 1.0])
    assert kappa(reading, reading, 3) == pytest.approx(1.0)
    assert kappa(reading, np.ones(4), 3) == pytest.approx(0.0)


def test_macro_f1_is_the_mean_over_terms_that_occur() -> None:
    truth, said = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    assert macro_f1(truth, said, range(3)) == pytest.approx(2 / 3)


def test_interval_draws_whole_groups() -> None:
    values = np.array([0.0, 0.0, 1.0, 1.0])
    drawn = interval(lambda rows: float(values[rows].mean()), ["a", "a", "b", "b"])
    assert drawn["value"] == 0.5
    assert drawn["low"] == 0.0
    assert drawn["high"] == 1.0


def test_pointing_gives_no_credit_for_what_lies_outside_the_crop() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[2:4, 2:4] = 1
    heat[0, 0] = 9
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:6] = True
    crop = np.zeros((8, 8), bool)
    crop[2:6, 2:6] = True
    found = pointing(heat, mask, crop)
    assert found is not None
    assert found.hit
    assert found.energy == pytest.approx(1.0)
    assert found.area == pytest.approx(0.5)
    assert pointing(heat, np.zeros_like(mask), crop) is None
    assert pointing(np.zeros_like(heat), mask, crop) is None
