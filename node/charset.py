r"""Text of stored headers as Unicode, in the character sets that scanners really send.

pydicom 3.0.2 leaves the escape of `\ISO 2022 IR 58` inside the value and writes that
set without any escape, which turns 王 into Íõ. So text is decoded here from the raw
bytes, before pydicom sees it; what the node hands on is always ISO_IR 192. The stored
instance keeps its own bytes.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import chain

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

UTF8 = "ISO_IR 192"
TEXT_VR = frozenset({"SH", "LO", "ST", "LT", "UC", "UT", "PN"})
# Value Representations in which a backslash is text, not a delimiter (PS3.5 6.2).
SINGLE_VALUED_TEXT = frozenset({"ST", "LT", "UT"})

SPECIFIC_CHARACTER_SET = BaseTag(0x00080005)
# Pixel data, palettes of waveforms and the like have no place in a header copy.
PIXEL_GROUP, FILE_META_GROUP = 0x7FE0, 0x0002
EXTENDED_OFFSETS = frozenset({BaseTag(0x7FE00001), BaseTag(0x7FE00002)})

ESC_G1_GB2312 = b"\x1b$)A"
ESC_G0_ASCII = b"\x1b(B"
HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
# Here a decoder forgets which set was escaped to.
IR58_RESETS = re.compile(r"([\\^=\r\n\f])")
ONE_BYTE = {f"ISO_IR {n}" for n in (100, 101, 109, 110, 126, 127, 138, 144, 148, 166)}
MULTI_BYTE = {UTF8: "utf-8", "GB18030": "gb18030", "GBK": "gbk"}


def decode_text(
    raw: bytes, character_sets: Sequence[str], *, unlabelled: str = "gb18030"
) -> str:
    """Return the text of one element value, delimiters included (PS3.5 6.1.2).

    `character_sets` are the values of Specific Character Set in force. Where they
    cannot be true (scanners label GBK as ISO_IR 100, or not at all) the bytes decide:
    UTF-8 if they are UTF-8, then GB2312 if every run of high bytes is made of Han
    pairs, then `unlabelled` for an absent label. A name that nothing explains comes
    back as Latin-1: visibly odd, never shortened.
    """
    raw = raw.rstrip(b" \0")
    if b"\x1b" not in raw and raw.isascii():
        return raw.decode("ascii")
    if ESC_G1_GB2312 in raw or "ISO 2022 IR 58" in character_sets:
        without = raw.replace(ESC_G1_GB2312, b"").replace(ESC_G0_ASCII, b"")
        return without.decode("gb18030", "replace")
    first = character_sets[0] if character_sets else ""
    if any(name.startswith("ISO 2022") for name in character_sets):
        return str(
            decode_bytes(raw, convert_encodings(list(character_sets)), set(b"\\^="))
        )
    if first not in ("", "ISO_IR 6", "ISO_IR 100"):
        codec = MULTI_BYTE.get(first) or python_encoding.get(first)
        if codec is not None:
            try:
                return raw.decode(codec)
            except UnicodeDecodeError:
                pass  # The label is wrong; the bytes decide below.
    return _guessed(raw, declared=bool(first), unlabelled=unlabelled)


def encode_text(text: str, character_sets: Sequence[str]) -> bytes | None:
    r"""Return `text` in these Specific Character Sets, None where it does not fit.

    For answers to peers that read no UTF-8. pydicom writes `\ISO 2022 IR 58` without
    its escape, which is why this is not left to it. Each part between delimiters
    starts in ASCII again, so each with Han gets an escape of its own (PS3.5 6.1.2.5.3).
    """
    if text.isascii():
        return text.encode("ascii")
    first = character_sets[0] if character_sets else ""
    try:
        if "ISO 2022 IR 58" in character_sets:
            return b"".join(map(_gb2312, IR58_RESETS.split(text)))
        codec = MULTI_BYTE.get(first)
        if codec is None and len(character_sets) == 1 and first in ONE_BYTE:
            codec = python_encoding[first]
        return None if codec is None else text.encode(codec)
    except UnicodeEncodeError:
        return None


def _gb2312(part: str) -> bytes:
    return part.encode() if part.isascii() else ESC_G1_GB2312 + part.encode("gb2312")


def _guessed(raw: bytes, *, declared: bool, unlabelled: str) -> str:
    codecs = ["utf-8"]
    if _only_han_pairs(raw):
        codecs.append("gb2312")
    if not declared:
        codecs.append(unlabelled)
    for codec in codecs:
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _only_han_pairs(raw: bytes) -> bool:
    """Tell GB2312 from Latin-1: an accent stands alone, Han bytes come in pairs."""
    runs = HIGH_BYTES.findall(raw)
    return all(
        len(run) % 2 == 0
        and all(0xB0 <= lead <= 0xF7 for lead in run[::2])
        and all(trail >= 0xA1 for trail in run[1::2])
        for run in runs
    )


def unicode_header(
    dataset: Dataset, *, inherited: Sequence[str] = (), unlabelled: str = "gb18030"
) -> Dataset:
    """Return a copy of the header in ISO_IR 192, without pixel data.

    An element that cannot be read as its VR says (an IS of `one`) is kept as OB with
    its bytes: present and undeciphered. UN would be truer, but pydicom turns a UN of a
    known tag back into its VR and fails again.
    """
    character_sets = _declared(dataset) or list(inherited)
    header = Dataset()
    swapped = getattr(dataset, "original_encoding", (None, None))[1] is False
    for tag in sorted(dataset.keys()):
        skipped = tag.group == PIXEL_GROUP and tag not in EXTENDED_OFFSETS
        if skipped or tag.group == FILE_META_GROUP or tag.element == 0:
            continue
        if tag != SPECIFIC_CHARACTER_SET:
            element = _unicode_element(dataset, tag, character_sets, unlabelled)
            header.add(_little_endian(element) if swapped else element)
    if not inherited:
        header.SpecificCharacterSet = UTF8
    file_meta = getattr(dataset, "file_meta", None)
    if file_meta is not None:
        header.file_meta = file_meta
    return header


def _unicode_element(
    dataset: Dataset, tag: BaseTag, character_sets: list[str], unlabelled: str
) -> DataElement:
    element = dataset.get_item(tag)
    vr = element.VR or _dictionary_vr(tag)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        if vr in TEXT_VR:
            text = decode_text(element.value, character_sets, unlabelled=unlabelled)
            return DataElement(tag, vr, _values(text, vr))
        raw = element.value
        try:
            converted = dataset[tag]
        except (ValueError, TypeError, ArithmeticError, NotImplementedError):
            return DataElement(tag, "OB", raw)
        if converted.VR in ("IS", "DS") and _has_text(converted.value):
            return DataElement(tag, "OB", raw)
    else:
        converted = dataset[tag]
    if converted.VR != "SQ":
        return converted
    # Items inherit the set of the dataset; a marker keeps them from being labelled
    # again.
    scope = character_sets or [""]
    items = [
        unicode_header(item, inherited=scope, unlabelled=unlabelled)
        for item in converted.value
    ]
    return DataElement(tag, "SQ", items)


def _little_endian(element: DataElement) -> DataElement:
    """Swap the words of a lookup table: headers and DICOM JSON are little endian."""
    value = element.value
    if element.VR == "OW" and isinstance(value, bytes) and len(value) % 2 == 0:
        words = array("H", value)
        words.byteswap()
        return DataElement(element.tag, "OW", words.tobytes())
    return element


def _values(text: str, vr: str) -> str | list[str]:
    if vr in SINGLE_VALUED_TEXT or "\\" not in text:
        return text
    return [part.strip(" ") for part in text.split("\\")]


def _has_text(value: object) -> bool:
    """Tell whether a number that pydicom could not read was left as text."""
    values = value if isinstance(value, MultiValue) else [value]
    return any(isinstance(item, str) and item.strip() for item in values)


def _declared(dataset: Dataset) -> list[str]:
    if SPECIFIC_CHARACTER_SET not in dataset:
        return []
    value = dataset.get_item(SPECIFIC_CHARACTER_SET).value
    if isinstance(value, bytes):
        value = value.decode("ascii", "ignore")
    if isinstance(value, str):
        value = value.split("\\")
    return [str(name).strip(" \0") for name in chain(value or ())]


def _dictionary_vr(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"
