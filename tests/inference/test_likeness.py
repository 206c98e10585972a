"""Vectors of lesions: angles are kept, and every machine projects alike."""

import numpy as np
import pytest

from inference.likeness import DIMENSIONS, _projection, lesion_vector
from node.store import cases


def _lesions(count: int) -> np.ndarray:
    """Return features as a network pools them: never negative, most small."""
    return np.random.RandomState(7).gamma(0.5, 0.3, (count, 2048)).astype(np.float32)


def test_a_vector_fits_the_archive_and_has_length_1() -> None:
    vector = lesion_vector(_lesions(1)[0])
    assert len(vector) == DIMENSIONS == cases.DIMENSIONS
    assert sum(value**2 for value in vector) == pytest.approx(1)


def test_what_looks_alike_stays_nearest() -> None:
    lesions = _lesions(40)
    noise = np.random.RandomState(8).uniform(0.8, 1.2, lesions.shape)
    archive = np.array([lesion_vector(row) for row in lesions])
    again = np.array([lesion_vector(row) for row in (lesions * noise).astype("f4")])
    assert ((again @ archive.T).argmax(axis=1) == np.arange(40)).all()


def test_brightness_of_all_features_does_not_count() -> None:
    lesion = _lesions(1)[0]
    assert lesion_vector(2 * lesion + 1) == pytest.approx(
        lesion_vector(lesion), abs=1e-6
    )


def test_the_projection_is_the_stored_vectors_own() -> None:
    """Another one would make every archive wrong without anybody noticing."""
    first = _projection(2048)
    assert first[0, :3] * np.sqrt(DIMENSIONS) == pytest.approx(
        [-0.2522544057766743, 2.1718701769986284, -2.2782601801435356]
    )
    assert first.sum() == pytest.approx(-12.506971082797252)


@pytest.mark.parametrize("value", [0.0, 0.7, np.nan, np.inf])
def test_features_without_a_direction_give_no_vector(value: float) -> None:
    assert lesion_vector(np.full(2048, value, dtype=np.float32)) == ()
