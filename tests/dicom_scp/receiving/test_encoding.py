"""Damaged data sets are told from whole ones, and never by an accident (PS3.5 7)."""

import struct
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UltrasoundImageStorage,
)
from pynetdicom.dsutils import encode

from dicom_scp.receiving.encoding import check_whole
from dicom_scp.receiving.intake import (
    check_data_set,
    describe,
    file_meta,
    read_beginning,
)
from dicom_scp.receiving.upper_layer import StoreRequest
from node.domain.errors import ErrorKind, NodeError
from tests.dicom_scp.instances import make_instance

UID = "2.25.77"
SYNTAXES = {
    ExplicitVRLittleEndian: (False, True),
    ImplicitVRLittleEndian: (True, True),
    ExplicitVRBigEndian: (False, False),
}


def nested() -> Dataset:
    """Return an instance with sequences of defined and undefined length."""
    inner = Dataset()
    inner.RegionSpatialFormat, inner.RegionDataType = 1, 1
    instance = make_instance(rows=8, columns=8, SOPInstanceUID=UID)
    instance.SequenceOfUltrasoundRegions = [inner, inner]
    instance["SequenceOfUltrasoundRegions"].is_undefined_length = True
    instance.SequenceOfUltrasoundRegions[0].is_undefined_length_sequence_item = True
    instance.ReferencedImageSequence = [Dataset()]
    instance.add_new(0x00091001, "UN", b"private")
    return instance


def encoded(syntax: str) -> bytes:
    implicit, little = SYNTAXES[syntax]  # type: ignore[index]
    data_set = encode(nested(), implicit, little)
    assert data_set is not None
    return data_set


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_whole_data_set_is_whole_and_no_beginning_of_it_is(syntax: str) -> None:
    data = encoded(syntax)
    check_whole(memoryview(data), len(data), data[-64:], syntax)
    for end in range(len(data)):
        part = data[:end]
        if _ends_between_elements(part, data, syntax):
            continue  # nobody can tell that more was to come; the UIDs will
        with pytest.raises(NodeError) as told:
            check_whole(memoryview(part), end, part[-64:], syntax)
        assert told.value.kind is ErrorKind.INVALID


def _ends_between_elements(part: bytes, data: bytes, syntax: str) -> bool:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import data_element_generator

    implicit, little = SYNTAXES[syntax]  # type: ignore[index]
    file = DicomBytesIO(data)
    for _ in data_element_generator(file, implicit, little):
        if file.tell() == len(part):
            return True
    return False


@pytest.mark.parametrize("syntax", SYNTAXES)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_header_is_stored_or_refused_but_never_an_accident(
    syntax: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(syntax))
    places = st.integers(0, len(content) - 1)
    damage = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)
    for place, value in data.draw(damage):
        content[place] = value
    request = StoreRequest(
        message_id=1,
        sop_class_uid=UltrasoundImageStorage,
        sop_instance_uid=UID,
        abstract_syntax=UltrasoundImageStorage,
        transfer_syntax_uid=syntax,
        calling_ae="SCANNER",
        address="127.0.0.1",
        association="a",
    )
    part10 = file_meta(request) + bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_whole(memoryview(content), len(content), bytes(content[-64:]), syntax)
            header, frames = read_beginning(memoryview(part10), len(part10))
            check_data_set(header, request)
            describe(header, request, frames=frames, blob_name="", size=1, sha256=b"")
        except NodeError as error:
            told = error.kind
        else:
            told = ErrorKind.INVALID
    assert told in (ErrorKind.INVALID, ErrorKind.EXHAUSTED)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientBirthDate": "01.02.1970"},
        {"StudyDate": "yesterday"},
        {"PatientAge": "old"},
        {"FrameTime": "abc"},
        {"InstanceNumber": "1.5"},
        {"PatientWeight": "1e999"},
        {"PixelSpacing": ["x", "y"]},
    ],
)
def test_value_that_breaks_a_rule_is_no_reason_to_lose_the_image(
    attributes: dict[str, object],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = with_raw_values(make_instance(SOPInstanceUID=UID), attributes)
        request = StoreRequest(
            1, UltrasoundImageStorage, UID, "", ImplicitVRLittleEndian, "A", "", "a"
        )
        part10 = file_meta(request) + content
        header, frames = read_beginning(memoryview(part10), len(part10))
        received = describe(
            header, request, frames=frames, blob_name="", size=1, sha256=b""
        )
    assert received.study_instance_uid == "2.25.71"
    assert received.metadata


def with_raw_values(instance: Dataset, attributes: dict[str, object]) -> bytes:
    """Return the data set in Implicit VR, where nothing checks the values."""
    raw = {int(element.tag): encode_element(element) for element in instance}
    for keyword, value in attributes.items():
        text = "\\".join(value) if isinstance(value, list) else str(value)
        content = text.encode() + b" " * (len(text) & 1)
        tag = tag_for_keyword(keyword)
        assert tag is not None
        head = struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(content))
        raw[tag] = head + content
    return b"".join(raw[tag] for tag in sorted(raw))


def encode_element(element: DataElement) -> bytes:
    alone = Dataset()
    alone.add(element)
    content = encode(alone, True, True)
    assert content is not None
    return content
