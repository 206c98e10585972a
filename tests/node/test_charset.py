"""Text of headers in the sets of PS3.5 6.1.2 and annex K, and without a true label."""

from io import BytesIO

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from node.charset import decode_text, encode_text
from node.domain.errors import ErrorKind, NodeError
from node.imaging import read_header

NAME = "Wang^XiaoDong=王^小东"


def gb2312_escaped(text: str) -> bytes:
    """Encode as PS3.5 annex K does: announce GB2312 anew after each delimiter."""
    out, announced = b"", False
    for character in text:
        if character.isascii():
            out += character.encode()
            announced = announced and character not in "^="
        else:
            out += (b"" if announced else b"\x1b$)A") + character.encode("gb2312")
            announced = True
    return out


def part10(name: bytes, character_set: bytes | None, *, nested: bytes = b"") -> bytes:
    """Write a file whose text elements hold exactly these bytes."""
    item = Dataset()
    item.CodeMeaning = "M" * len(nested)
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.SOPInstanceUID = "2.25.1"
    dataset.SpecificCharacterSet = "S" * len(character_set or b"")
    dataset.PatientName = "N" * len(name)
    dataset.AnatomicRegionSequence = [item]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    content = buffer.getvalue()
    for mark, value in ((b"S", character_set or b""), (b"N", name), (b"M", nested)):
        if value:
            assert content.count(mark * len(value)) == 1
            content = content.replace(mark * len(value), value)
    return content


@pytest.mark.parametrize(
    ("raw", "character_set"),
    [
        (NAME.encode(), b"ISO_IR 192"),
        (NAME.encode("gb18030"), b"GB18030"),
        (NAME.encode("gbk"), b"GBK"),
        (gb2312_escaped(NAME), b"\\ISO 2022 IR 58"),
        (NAME.encode("gb2312"), b"ISO_IR 100"),
        (NAME.encode(), b"ISO_IR 100"),
        (NAME.encode("gb18030"), None),
        (NAME.encode("gb18030"), b"ISO_IR 192"),
    ],
)
def test_chinese_name_is_read_whatever_the_label_says(
    raw: bytes, character_set: bytes | None
) -> None:
    header = read_header(part10(raw, character_set))
    assert str(header.PatientName) == NAME
    assert header.SpecificCharacterSet == "ISO_IR 192"


def test_header_copy_survives_a_round_trip_through_dicom_json() -> None:
    header = read_header(part10(gb2312_escaped(NAME), b"\\ISO 2022 IR 58"))
    again = Dataset.from_json(header.to_json())
    assert str(again.PatientName) == NAME


def test_items_of_sequences_inherit_the_character_set() -> None:
    content = part10(b"A^B", b"GB18030", nested="乳腺".encode("gb18030"))
    header = read_header(content)
    assert header.AnatomicRegionSequence[0].CodeMeaning == "乳腺"
    assert "SpecificCharacterSet" not in header.AnatomicRegionSequence[0]


def test_trail_byte_that_looks_like_a_backslash_does_not_split_the_value() -> None:
    name = "誠^亜"
    assert b"\\" in name.encode("gb18030") or b"\\" in "誠".encode("gbk")
    assert decode_text(name.encode("gb18030"), ["GB18030"]) == name


def test_accents_of_a_true_latin_1_name_stay_accents() -> None:
    assert decode_text("Müller^José".encode("latin-1"), ["ISO_IR 100"]) == "Müller^José"


def test_value_that_breaks_its_vr_is_kept_and_undeciphered() -> None:
    broken = b"\x20\x00\x13\x00IS\x04\x00one "
    header = read_header(part10(b"A^B", None) + broken)
    assert header[0x00200013].VR == "OB"
    assert header[0x00200013].value == b"one "
    assert Dataset.from_json(header.to_json())[0x00200013].value == b"one "


def test_garbage_is_named_invalid() -> None:
    with pytest.raises(NodeError) as caught:
        read_header(b"not DICOM at all")
    assert caught.value.kind is ErrorKind.INVALID


@pytest.mark.parametrize(
    "character_sets",
    [["", "ISO 2022 IR 58"], ["GB18030"], ["GBK"], ["ISO_IR 192"]],
)
def test_chinese_text_is_written_as_it_is_read(character_sets: list[str]) -> None:
    written = encode_text("Wang^XiaoDong=王^小东", character_sets)
    assert written is not None
    assert decode_text(written, character_sets) == "Wang^XiaoDong=王^小东"


def test_escape_of_gb2312_stands_before_every_part_with_han() -> None:
    written = encode_text("Wang^XiaoDong=王^小东", ["", "ISO 2022 IR 58"])
    assert written == gb2312_escaped("Wang^XiaoDong=王^小东")


@pytest.mark.parametrize("character_sets", [[], [""], ["ISO_IR 100"], ["ISO_IR 144"]])
def test_text_that_a_character_set_lacks_is_not_written(
    character_sets: list[str],
) -> None:
    assert encode_text("王", character_sets) is None
