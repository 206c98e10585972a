"""DICOM JSON (PS3.18 F.2) straight from the bytes is what pydicom makes of them."""

import random
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_scp.receiving.intake import json_header
from dicom_scp.receiving.json_header import (
    JsonHeader,
    Unusual,
    encapsulated_end,
    scan_header,
)
from dicom_scp.simulation.scanner import View, build_instance
from dicom_scp.simulation.simulator import GE_LIKE, MINDRAY_LIKE, OLD_CHINESE
from node.charset import UTF8
from node.domain.errors import NodeError
from node.imaging import read_part10
from node.workflow.intake import data_set_offset
from tests.dicom_scp.instances import make_instance
from tests.journeys.rig import invented

MACHINES = (GE_LIKE, MINDRAY_LIKE, OLD_CHINESE)
FILES = sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*.dcm"))


def part10(data_set: Dataset, *, implicit: bool = False) -> bytes:
    file = BytesIO()
    syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = syntax
    data_set.file_meta.MediaStorageSOPClassUID = "1.2"
    data_set.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data_set.save_as(file, enforce_file_format=True, implicit_vr=implicit)
    return file.getvalue()


def told_by_pydicom(content: bytes) -> Any:
    return orjson.loads(json_header(read_part10(content)[0]))


def scanned(content: bytes, *, implicit: bool = False) -> Any:
    start = data_set_offset(content)
    header = scan_header(memoryview(content), start, explicit=not implicit)
    return orjson.loads(orjson.dumps(header.elements))


def test_test_files_of_pydicom_read_the_same_or_are_left_to_it() -> None:
    read = 0
    for path in FILES:
        content = path.read_bytes()
        try:
            header = read_part10(content)[0]
            syntax = header.file_meta.TransferSyntaxUID
            implicit = syntax == ImplicitVRLittleEndian
            if syntax.is_deflated or not syntax.is_little_endian:
                continue
            found = scanned(content, implicit=implicit)
        except (Unusual, NodeError, AttributeError):
            continue
        assert found == told_by_pydicom(content), path.name
        read += 1
    assert read >= 50


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.model)
@pytest.mark.parametrize("implicit", [False, True])
def test_what_scanners_send_is_read_here(machine: Any, implicit: bool) -> None:
    frame = np.zeros((100, 120), np.uint8)
    image = build_instance(
        View(frames=(frame, frame), mm_per_pixel=0.1),
        invented(1, "Zhang^San=张^三"),
        machine,
        at=datetime(2026, 11, 21, 8, tzinfo=UTC),
        uids=("2.25.1", "2.25.2", "2.25.3"),
        accession_number="ACC-1",
        description="乳腺超声",
    )
    content = part10(image, implicit=implicit)
    assert scanned(content, implicit=implicit) == told_by_pydicom(content)


# -- everything that a header may say --------------------------------------------------

TEXT = st.text("AZaz09 .-^=\\äß王小明é\t", max_size=12)
CODE = st.text("ABC 09_\\", max_size=10)
UIDS = st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){0,4}", fullmatch=True)
SMALL = st.integers(0, 0xFFFF)
ELEMENTS: dict[int, tuple[str, st.SearchStrategy[Any]]] = {
    0x00080008: ("CS", st.lists(CODE.map(lambda t: t.replace("\\", "")), max_size=3)),
    0x00080020: ("DA", st.sampled_from(["", "20260131", "2026", "19700101"])),
    0x00080030: ("TM", st.sampled_from(["", "120000", "1200", "120000.123"])),
    0x00081030: ("LO", TEXT),
    0x00081048: ("PN", TEXT.map(lambda t: t.replace("\\", ""))),
    0x00080054: ("AE", CODE),
    0x00080018: ("UI", UIDS),
    0x00101010: ("AS", st.sampled_from(["", "045Y"])),
    0x00102000: ("LO", st.lists(TEXT.map(lambda t: t.replace("\\", "")), max_size=3)),
    0x00104000: ("LT", TEXT),
    0x00180050: ("DS", st.sampled_from(["", "1.5", "-0.25", "1e3", " 7 ", "1.5\\2"])),
    0x00181063: ("DS", st.floats(-1e4, 1e4).map(lambda f: f"{f:.4g}")),
    0x00186012: ("US", SMALL),
    0x00186020: ("SL", st.integers(-(2**31), 2**31 - 1)),
    0x0018602C: ("FD", st.floats(width=64)),
    0x00189073: ("FD", st.lists(st.floats(width=64, allow_nan=False), max_size=3)),
    0x00200013: ("IS", st.sampled_from(["", "1", "-7", " 42", "007", "1.0"])),
    0x00209165: ("AT", st.integers(0, 0xFFFFFFFF)),
    0x00280009: ("AT", st.lists(st.integers(0, 0xFFFFFFFF), max_size=3)),
    0x00280010: ("US", SMALL),
    0x00281050: ("DS", st.lists(st.sampled_from(["1", "2.5"]), max_size=3)),
    0x00420011: (
        "OB",
        st.binary(max_size=500).map(lambda b: b + b),
    ),
}
LABELS = st.sampled_from([None, UTF8, "ISO_IR 100", "GB18030", "ISO_IR 6"])


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 0) -> Dataset:
    made = Dataset()
    if not depth and (label := draw(LABELS)) is not None:
        made.SpecificCharacterSet = label
    for tag in sorted(draw(st.sets(st.sampled_from(sorted(ELEMENTS)), max_size=8))):
        vr, values = ELEMENTS[tag]
        made.add(DataElement(tag, vr, draw(values), validation_mode=0))
    if depth < 2 and draw(st.booleans()):
        made.add(
            DataElement(
                0x00186011, "SQ", draw(st.lists(data_sets(depth + 1), max_size=2))
            )
        )
        made[0x00186011].is_undefined_length = draw(st.booleans())
        for item in made[0x00186011].value:
            item.is_undefined_length_sequence_item = draw(st.booleans())
    return made


@settings(max_examples=300)
@given(data_sets(), st.booleans())
def test_every_header_reads_as_pydicom_reads_it(made: Dataset, implicit: bool) -> None:
    try:
        content = part10(made, implicit=implicit)
    except (UnicodeEncodeError, ValueError, TypeError, AttributeError):
        return  # pydicom does not write it
    try:
        found = scanned(content, implicit=implicit)
    except Unusual:
        return
    assert found == told_by_pydicom(content)


def test_damaged_headers_are_left_to_pydicom_or_read_as_it_reads_them() -> None:
    chance = random.Random(7)
    whole = bytearray(part10(make_instance()))
    start = data_set_offset(whole)
    end = whole.index(b"\xe0\x7f\x10\x00")
    same = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(start, end)] = chance.randrange(256)
        try:
            found = scanned(bytes(damaged))
        except Unusual:
            continue
        assert found == told_by_pydicom(bytes(damaged))
        same += 1
    assert same > 100


# -- what the scan will not say --------------------------------------------------------


def test_a_cut_header_is_not_a_shorter_one() -> None:
    content = part10(make_instance())
    start = data_set_offset(content)
    pixels = content.index(b"\xe0\x7f\x10\x00")
    whole = scan_header(memoryview(content), start, explicit=True)
    assert (whole.value_at, whole.length) == (pixels + 12, 64 * 64)
    for end in range(start + 1, pixels + 12):
        try:
            cut = scan_header(memoryview(content)[:end], start, explicit=True)
        except Unusual:
            continue
        assert cut.value_at == 0  # it ends between two elements, before any pixels


def test_encapsulated_pixel_data_end_at_their_delimiter() -> None:
    item = b"\xfe\xff\x00\xe0\x04\0\0\0JPEG"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert encapsulated_end(memoryview(item + item + end), 0) == 32
    for damaged in (item, item + b"\0" * 8, item[:-2] + end, b""):
        with pytest.raises(Unusual):
            encapsulated_end(memoryview(damaged), 0)


NAME = {"Alphabetic": "A", "Ideographic": "王"}
OTHER_ID = {"00100020": {"vr": "LO", "Value": ["7"]}}


def test_attributes_answer_by_keyword_as_in_a_dataset() -> None:
    header = JsonHeader(
        {
            "00100010": {
                "vr": "PN",
                "Value": [{"Alphabetic": "A", "Ideographic": "王"}],
            },
            "00101002": {
                "vr": "SQ",
                "Value": [{"00100020": {"vr": "LO", "Value": ["7"]}}],
            },
            "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY"]},
            "00280010": {"vr": "US"},
        }
    )
    assert header.get("PatientName") == "A=王"
    assert header.get("OtherPatientIDsSequence")[0].PatientID == "7"
    assert "Rows" in header
    assert header.get("Rows", 7) == 7
    with pytest.raises(AttributeError):
        _ = header.Columns
    with pytest.raises(Unusual):
        header.get("ImageType")
