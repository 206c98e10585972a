"""Whoever a header names is found where no rule looks, and nobody else is."""

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.tag import Tag

from dicom_scp.receiving.traces import traces_of

OLD_STUDY = "1.2.3.4.55"


def header(**more: Any) -> Dataset:
    told = Dataset()
    told.PatientName = "Wang^XiaoDong=王^小东"
    told.PatientID, told.AccessionNumber = "BUS-0001", "77"
    told.OtherPatientIDs = ["P-4711", ""]
    for keyword, value in more.items():
        setattr(told, keyword, value)
    return told


def private(vr: str, value: Any) -> Dataset:
    told = header()
    told.private_block(0x0029, "MAKER", create=True).add_new(0x01, vr, value)
    return told


def cleared(told: Dataset) -> list[int]:
    return traces_of(header(), [OLD_STUDY]).clear(told)


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("LO", "WANG XIAODONG"),
        ("LT", "seen: Xiaodong Wang, left"),
        ("LO", "王小东 复查"),
        ("SH", "bus-0001"),
        ("SH", "编号BUS-0001号"),
        ("LO", ["left", "P-4711"]),
        ("UN", b"\x01\x02BUS-0001\0\xff"),
        ("UN", "王^小东".encode("gb18030")),
        ("OB", "王小东".encode()),
        ("UN", OLD_STUDY.encode()),
    ],
)
def test_a_private_element_that_names_her_goes(vr: str, value: Any) -> None:
    told = private(vr, value)
    assert 0x00291001 in cleared(told)
    assert Tag(0x00291001) not in told


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("LO", "XBUS-00012"),
        ("LO", "77"),  # too short: it would be anything
        ("LO", "Wang^Li"),
        ("UN", b"\x01\x02\x03"),
        ("FD", 4711.0),
        ("UN", (OLD_STUDY + "5").encode()),
    ],
)
def test_what_names_somebody_else_or_nobody_stays(vr: str, value: Any) -> None:
    told = private(vr, value)
    assert 0x00291001 not in cleared(told)
    assert told[0x00291001].value == value


def test_text_is_emptied_and_named_at_every_depth() -> None:
    item = Dataset()
    item.CodeMeaning, item.CodeValue = "of Wang, Xiaodong", "1"
    told = header(SeriesDescription="王小东 左", StudyDescription="左乳")
    told.ProcedureCodeSequence = [item]
    found = cleared(told)
    assert {0x0008103E, 0x00081032} <= set(found)
    assert (told.SeriesDescription, told.StudyDescription) == ("", "左乳")
    assert (item.CodeMeaning, item.CodeValue) == ("", "1")


def test_a_name_in_one_part_is_found_too() -> None:
    hers = Dataset()
    hers.PatientName = "王小东"
    told = private("LO", "王小东 复查")
    assert 0x00291001 in traces_of(hers).clear(told)


def test_who_has_no_name_is_found_nowhere() -> None:
    nobody = Dataset()
    nobody.PatientName, nobody.PatientID = "", ""
    told = private("LO", "anything")
    assert traces_of(nobody).clear(told) == []
