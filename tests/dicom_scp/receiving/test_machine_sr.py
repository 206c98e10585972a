"""What machines measured is read from their Structured Reports (PS3.3 C.17.3)."""

import asyncio
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from dicom_scp.receiving.machine_sr import (
    DEEPEST,
    MOST_MEASUREMENTS,
    machine_report,
    read_machine_report,
)
from dicom_scp.results.sr import to_part10
from dicom_scp.simulation.scanner_report import (
    Calliper,
    MeasuredLesion,
    build_scanner_report,
)
from node.domain.errors import ErrorKind, NodeError
from node.domain.measurement import chinese_name
from node.store import audit, measurements, studies
from node.store.store import Store
from node.workflow.completion import READ_MACHINE_REPORT, close_due_studies
from tests.conformance.judges import dciodvfy, dsrdump
from tests.conftest import FrozenClock
from tests.dicom_scp.instances import make_instance
from tests.intake import receive_object

AT = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)


def make_report(*millimetres: str | None) -> Dataset:
    """Return the report of one lesion in the left breast with these axes."""
    image = make_instance(
        Laterality="L", Manufacturer="Maker", ManufacturerModelName="M1"
    )
    callipers = tuple(
        Calliper("long" if n == 0 else "short", image, ((1, 1), (9, 9)), value)
        for n, value in enumerate(millimetres)
    )
    return build_scanner_report(
        [image],
        [MeasuredLesion("Lesion 1", callipers)],
        at=AT,
        uids=(generate_uid(), generate_uid()),
    )


def test_measurements_come_with_their_lesion_site_unit_and_image() -> None:
    document = make_report("12.30", "8.1")

    report = machine_report(document)

    long, short = report.measurements
    assert (report.title, report.device) == ("Imaging Measurement Report", "Maker M1")
    assert long.group == ("Lesion 1",)
    assert (long.value, long.unit, long.site) == ("12.30", "mm", "Left breast")
    assert long.name.meaning == "Long Axis"
    assert chinese_name(long.name) == "长径"
    assert chinese_name(short.name) == "短径"
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0]
    image = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert long.image == image.ReferencedSOPInstanceUID
    assert not report.algorithm
    assert not report.verified


def test_a_value_left_empty_is_none_and_never_zero() -> None:
    report = machine_report(make_report("12.30", None))

    assert [one.value for one in report.measurements] == ["12.30", None]


def test_an_algorithm_behind_the_values_is_named() -> None:
    document = make_report("12.30")
    name = Dataset()
    name.RelationshipType, name.ValueType = "HAS CONCEPT MOD", "TEXT"
    name.ConceptNameCodeSequence = [_code("111001", "Algorithm Name")]
    name.TextValue = "S-Detect like"
    document.ContentSequence[0].ContentSequence.append(name)

    assert machine_report(document).algorithm == "S-Detect like"


def test_a_word_of_the_lexicon_is_taken_and_free_text_is_not() -> None:
    document = make_report("12.30")
    category = Dataset()
    category.RelationshipType, category.ValueType = "CONTAINS", "CODE"
    category.ConceptNameCodeSequence = [_code("111005", "Assessment Category")]
    category.ConceptCodeSequence = [_code("1", "3 - Probably benign")]
    text = Dataset()
    text.RelationshipType, text.ValueType = "CONTAINS", "TEXT"
    text.ConceptNameCodeSequence = [_code("121106", "Comment")]
    text.TextValue = "Zhang San, do call her"
    document.ContentSequence[0].ContentSequence.extend([category, text])

    report = machine_report(document)

    assert report.measurements[-1].term is not None
    assert report.measurements[-1].term.meaning == "3 - Probably benign"
    assert "Zhang" not in repr(report)


def test_a_foreign_tree_without_any_template_is_read() -> None:
    path = get_testdata_file("test-SR.dcm")
    assert path is not None

    report = machine_report(dcmread(path))

    assert [(m.value, m.unit) for m in report.measurements] == [("3", "cm")] * 2


def test_a_tree_that_never_ends_is_refused() -> None:
    document = item = make_report("1")
    for _ in range(DEEPEST + 1):
        below = Dataset()
        below.ValueType = "CONTAINER"
        item.ContentSequence = Sequence([below])
        item = below

    with pytest.raises(NodeError, match="nested too deep"):
        machine_report(document)


def test_more_measurements_than_anybody_reads_are_counted() -> None:
    document = make_report(*["1.0"] * 3)
    group = document.ContentSequence[0]
    group.ContentSequence.extend(list(group.ContentSequence)[-3:] * 200)

    report = machine_report(document)

    assert len(report.measurements) == MOST_MEASUREMENTS
    assert report.left_out == 3 + 600 - MOST_MEASUREMENTS


def test_the_scanners_report_is_a_valid_object(tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    path.write_bytes(to_part10(make_report("12.30", "8.1")))

    # The old codes draw warnings, which is why they are in it.
    assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
    assert dsrdump(path) == []


async def test_a_received_report_is_read_once_and_kept_sealed(store: Store) -> None:
    document = make_report("0.910")
    uid = str(document.SOPInstanceUID)
    study = str(document.StudyInstanceUID)
    await receive_object(store, document, to_part10(document))
    async with store.db.transaction() as tx:
        assert await measurements.unread(tx, study) == [uid]

    for _ in range(2):
        await read_machine_report(store, {"sop_instance_uid": uid})

    async with store.db.transaction() as tx:
        assert await measurements.unread(tx, study) == []
        kept = await studies.instance(tx, store, uid)
        assert kept is not None
        (report,) = await measurements.of_study(tx, store, kept.patient_id, study)
        body = await tx.fetchval("select body from machine_reports")
        entries = await audit.entries(tx, entity=f"instance/{uid}")
    assert report.measurements[0].value == "0.910"
    assert b"Lesion" not in body
    assert entries[-1].detail["measurements"] == "1"


async def test_closing_a_study_asks_for_its_machine_reports_once(
    store: Store, clock: FrozenClock
) -> None:
    document = make_report("12.3")
    await receive_object(store, document, to_part10(document))
    clock.advance(seconds=600)

    await close_due_studies(store)

    job = await store.jobs.claim([READ_MACHINE_REPORT], "worker")
    assert job is not None
    assert job.payload == {"sop_instance_uid": str(document.SOPInstanceUID)}
    assert await store.jobs.claim([READ_MACHINE_REPORT], "worker") is None


async def test_a_report_that_cannot_be_understood_says_so_without_its_text(
    store: Store,
) -> None:
    document = make_report("12.3")
    item: Dataset = document.ContentSequence[0]
    for _ in range(DEEPEST + 1):
        below = Dataset()
        below.ValueType = "CONTAINER"
        item.ContentSequence = Sequence([below])
        item = below
    file = BytesIO()
    await asyncio.to_thread(document.save_as, file, enforce_file_format=True)
    await receive_object(store, document, file.getvalue())

    with pytest.raises(NodeError) as raised:
        await read_machine_report(
            store, {"sop_instance_uid": str(document.SOPInstanceUID)}
        )
    assert raised.value.kind is ErrorKind.INVALID


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = value, "DCM"
    code.CodeMeaning = meaning
    return code
