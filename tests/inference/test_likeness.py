"""Vectors of lesions: angles are kept, and every machine projects alike."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from dicom_scp.simulation.phantoms import PhantomLesion
from inference.assess import ModelIdentity, Reader, StudyReading
from inference.likeness import DIMENSIONS, _projection, lesion_vector
from inference.place import NOWHERE, Place
from inference.reading import ReadingSettings, assess_study
from node.domain.finding import Findings
from node.store import cases, reports, studies
from node.store.store import Store
from tests.factories import make_lesion
from tests.fhir.rig import make_settings
from tests.review_ui.rig import Case, Node


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


class _OneLesion:
    """Finds one lesion wherever it looks."""

    def read_study(
        self, images: Any, *, tracking_uid: Callable[[Place], str]
    ) -> StudyReading:
        uid = tracking_uid(NOWHERE)
        findings = Findings((make_lesion(tracking_uid=uid),), category="4C")
        vector = lesion_vector(_lesions(1)[0])
        model = ModelIdentity("breast", "1", "ab" * 32)
        return StudyReading(findings, (), model, 1, {uid: vector})


async def test_a_reading_keeps_the_vectors_with_its_draft(store: Store) -> None:
    node = Node(store, "", make_settings("http://node/fhir"), [])
    case = Case("Li^Mei=李^梅", PhantomLesion(24, 14, 9.4, 6.2), "3", "0.1")
    _, dataset = await node.receive_images(case)
    study = str(dataset.StudyInstanceUID)
    async with store.db.transaction() as tx:
        await studies.close_study(tx, study, at=store.clock(), evidence="test")
        record = await studies.study(tx, study)
    assert record is not None
    job = {"study_instance_uid": study, "generation": record.generation}
    await assess_study(store, job, cast(Reader, _OneLesion()), ReadingSettings())
    async with store.db.transaction() as tx:
        report = await reports.read(tx, store, reports.report_id_for(study))
        (lesion,) = report.current.findings.lesions
        assert await cases.similar(tx, report.id, lesion.tracking_uid) == []
        kept = await tx.fetchrow("select * from lesion_vector")
    assert (kept["model_sha"], kept["confirmed"]) == ("ab" * 32, False)
