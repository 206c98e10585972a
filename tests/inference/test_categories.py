"""Cut points of BI-RADS categories: agreement with readers, and no cancer below 4A."""

import numpy as np
import pytest

from inference.record import ACR_CUTS, BIRADS_STEPS
from inference.training.categories import (
    KEPT_SUSPICIOUS,
    Graded,
    cross_validated,
    figures,
    fit_cuts,
    steps_of,
)


def graded(count: int = 240, *, noise: float = 0.4, seed: int = 1) -> Graded:
    """Return lesions of two sets; the readers see the same suspicion with noise."""
    random = np.random.default_rng(seed)
    suspicion = random.normal(-0.5, 2, count)
    seen = suspicion + random.normal(0, noise, count)
    step = np.searchsorted([-2.5, -1.5, -0.5, 0.5, 2.0], seen)
    divided = np.arange(count) % 4 == 0
    names = np.array(BIRADS_STEPS)[step]
    plain = np.array([name[0] for name in names])
    return Graded(
        suspicion,
        np.where(divided, "fine", "plain"),
        np.array([f"g{n // 2}" for n in range(count)]),
        np.where(divided, names, plain),
        (random.uniform(size=count) < 1 / (1 + np.exp(-suspicion))).astype(float),
    )


def test_cuts_rise_and_find_what_the_readers_meant() -> None:
    cuts = fit_cuts(graded(noise=0.1))
    assert list(cuts) == sorted(cuts)
    assert cuts[0] == pytest.approx(-2.5, abs=0.4)
    assert cuts[4] == pytest.approx(2.0, abs=0.5)


def test_hardly_a_cancer_falls_below_4a_whatever_the_readers_said() -> None:
    lenient = graded()
    lenient = Graded(
        lenient.suspicion,
        lenient.sets,
        lenient.groups,
        np.full(len(lenient.sets), "2"),
        lenient.malignancy,
    )
    for known in (graded(), lenient):
        steps = steps_of(known.suspicion, fit_cuts(known))
        assert figures(known, steps)["sensitivity_4a"] >= KEPT_SUSPICIOUS


def test_sets_without_categories_leave_the_bands_of_the_acr() -> None:
    known = graded()
    silent = Graded(
        known.suspicion,
        known.sets,
        known.groups,
        np.full(len(known.sets), ""),
        known.malignancy,
    )
    assert fit_cuts(silent) == ACR_CUTS


def test_fit_agrees_better_than_the_bands_and_holds_on_groups_left_out() -> None:
    known = graded()
    bands = figures(known, steps_of(known.suspicion, ACR_CUTS))
    fitted = figures(known, steps_of(known.suspicion, fit_cuts(known)))
    held_out = figures(known, cross_validated(known))
    for name in ("weighted_kappa_fine", "weighted_kappa_plain"):
        assert fitted[name] > bands[name]
        assert held_out[name] > bands[name]


def test_unspecific_4_counts_as_any_of_its_parts() -> None:
    four = Graded(
        np.array([-1.0, 0.0, 1.0, -9.0, 9.0]),
        np.full(5, "plain"),
        np.array(list("abcde")),
        np.array(["4", "4", "4", "2", "5"]),
        np.array([0.0, 1.0, 1.0, 0.0, 1.0]),
    )
    steps = np.array([2, 3, 4, 0, 5])
    assert figures(four, steps)["weighted_kappa_plain"] == 1.0
