"""Stored instances in the transfer syntax of their receiver (PS3.5 10, A.4)."""

from io import BytesIO

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread
from pydicom.filewriter import dcmwrite, write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_scp.services.transcode import NATIVE, encoded_for
from node.domain.errors import ErrorKind, NodeError
from node.imaging import StoredImage
from node.store import studies
from node.store.store import Store
from tests.dicom_scp.instances import data_set_bytes, make_instance, stored
from tests.dicom_scp.services.archive import keep
from tests.dicom_scp.web.test_dicomweb import instance as build

LITTLE = str(ExplicitVRLittleEndian)
IMPLICIT = str(ImplicitVRLittleEndian)
IR58_NAME = b"Wang^XiaoDong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab"


async def sent(store: Store, uid: str, *accepted: str) -> tuple[Dataset, bytes]:
    """Return what a receiver of these syntaxes gets, as a dataset and as bytes."""
    instance = await stored(store, uid)
    assert instance is not None
    with studies.open_blob(store, instance) as reader:
        encoded = encoded_for(reader, instance, accepted)
        content = b"".join(encoded.chunks)
    meta = make_instance().file_meta
    meta.TransferSyntaxUID = UID(encoded.transfer_syntax_uid)
    buffer = BytesIO(bytes(128) + b"DICM")
    buffer.seek(132)
    write_file_meta_info(buffer, meta)
    return dcmread(BytesIO(buffer.getvalue() + content)), content


def rich() -> Dataset:
    """Return an instance with all that a conversion may get wrong."""
    instance = make_instance(rows=3, columns=5, SOPInstanceUID="2.25.5")
    instance.BitsAllocated, instance.BitsStored, instance.HighBit = 16, 12, 11
    instance.PixelData = np.arange(15, dtype="<u2").tobytes()
    instance["PixelData"].VR = "OW"
    region = Dataset()
    region.RegionLocationMinX0, region.PhysicalDeltaX = 70000, 0.0125
    region.add_new(0x00091001, "UN", b"priv")
    instance.SequenceOfUltrasoundRegions = [region, Dataset()]
    instance.SmallestImagePixelValue = 3
    instance.FrameIncrementPointer = 0x00181063
    instance.add_new(0x00090010, "LO", "VENDOR")
    instance.add_new(0x00091002, "UL", [1, 2, 3])
    instance.add_new(0xFFFCFFFC, "OB", b"\0\0")
    return instance


@pytest.mark.parametrize(
    "own",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian],
)
async def test_native_instance_is_the_same_in_every_native_syntax(
    store: Store, own: UID
) -> None:
    original = rich()
    original.file_meta.TransferSyntaxUID = own
    content = await keep(store, original)
    for accepted in NATIVE:
        received, encoded = await sent(store, "2.25.5", accepted)
        if accepted == own:
            assert encoded == data_set_bytes(content)
        for element in original:
            if element.tag.is_private:
                continue
            other = received[element.tag]
            if element.keyword == "PixelData":
                order = "<" if accepted != ExplicitVRBigEndian else ">"
                values = np.frombuffer(other.value, f"{order}u2")
                assert values[:15].tolist() == list(range(15))
            else:
                assert str(other.value) == str(element.value), element.keyword


async def test_big_endian_instance_is_turned_round(store: Store) -> None:
    original = rich()
    original.PixelData = np.arange(15, dtype=">u2").tobytes()
    original.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    await keep(store, original)
    received, _ = await sent(store, "2.25.5", IMPLICIT)
    assert received.Rows == 3
    assert received.SequenceOfUltrasoundRegions[0].RegionLocationMinX0 == 70000
    assert received.FrameIncrementPointer == 0x00181063
    assert np.frombuffer(received.PixelData, "<u2")[:15].tolist() == list(range(15))


async def test_text_keeps_its_bytes_and_its_character_set(store: Store) -> None:
    original = make_instance(rows=4, columns=4, SOPInstanceUID="2.25.5")
    del original.PatientName
    original.SpecificCharacterSet = ["", "ISO 2022 IR 58"]
    buffer = BytesIO()
    original.StudyDescription = "US"
    dcmwrite(buffer, original, enforce_file_format=True)
    name = b"\x10\x00\x10\x00PN" + len(IR58_NAME + b" ").to_bytes(2, "little")
    content = buffer.getvalue()
    at = content.index(b"\x10\x00\x20\x00LO")
    content = content[:at] + name + IR58_NAME + b" " + content[at:]
    from tests.intake import receive_object

    await receive_object(store, dcmread(BytesIO(content)), content)
    _, encoded = await sent(store, "2.25.5", IMPLICIT)
    assert IR58_NAME in encoded


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
async def test_lossless_pictures_keep_every_bit(
    store: Store, syntax: UID, colour: bool
) -> None:
    original = make_instance(frames=3, rows=63, columns=65, SOPInstanceUID="2.25.5")
    shape = (3, 63, 65)
    if colour:
        original.SamplesPerPixel, original.PlanarConfiguration = 3, 0
        original.PhotometricInterpretation = "RGB"
        shape = (*shape, 3)
    pixels = np.random.default_rng(3).integers(0, 255, shape).astype(np.uint8)
    original.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    original.compress(syntax, generate_instance_uid=False)
    await keep(store, original)
    received, _ = await sent(store, "2.25.5", LITTLE, IMPLICIT)
    assert received.SOPInstanceUID == "2.25.5"
    assert received.PhotometricInterpretation == ("RGB" if colour else "MONOCHROME2")
    assert np.array_equal(received.pixel_array.reshape(shape), pixels)
    assert received.get("PlanarConfiguration", 0) == 0
    assert "LossyImageCompression" not in received


async def test_ycbcr_of_a_lossless_stream_stays_ycbcr(store: Store) -> None:
    original = make_instance(rows=8, columns=8, SOPInstanceUID="2.25.5")
    original.SamplesPerPixel, original.PlanarConfiguration = 3, 0
    original.PhotometricInterpretation = "YBR_FULL"
    pixels = np.random.default_rng(3).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    original.PixelData = pixels.tobytes()
    original.compress(RLELossless, generate_instance_uid=False)
    original.PlanarConfiguration = 1
    await keep(store, original)
    received, _ = await sent(store, "2.25.5", LITTLE)
    assert received.PhotometricInterpretation == "YBR_FULL"
    assert received.PlanarConfiguration == 0
    assert received.PixelData == pixels.tobytes()


async def test_jpeg_goes_out_as_rgb_with_the_mark_of_its_loss(store: Store) -> None:
    original = build(2, JPEGBaseline8Bit, frames=3)
    await keep(store, original)
    instance = await stored(store, str(original.SOPInstanceUID))
    assert instance is not None
    received, _ = await sent(store, str(original.SOPInstanceUID), IMPLICIT)
    with studies.open_blob(store, instance) as reader:
        image = StoredImage.open(reader)
        expected = np.stack([image.frame(n) for n in range(3)])
    assert np.array_equal(received.pixel_array, expected)
    assert original.PhotometricInterpretation != "RGB"
    assert received.PhotometricInterpretation == "RGB"
    assert (received.PlanarConfiguration, received.LossyImageCompression) == (0, "01")
    assert received.SOPInstanceUID == original.SOPInstanceUID


async def test_accepted_syntax_is_sent_as_it_was_stored(store: Store) -> None:
    original = build(2, JPEGBaseline8Bit, frames=3)
    content = await keep(store, original)
    uid = str(original.SOPInstanceUID)
    _, encoded = await sent(store, uid, LITTLE, str(JPEGBaseline8Bit))
    assert encoded == data_set_bytes(content)


async def test_video_cannot_be_sent_otherwise(store: Store) -> None:
    original = make_instance(frames=2, rows=4, columns=4, SOPInstanceUID="2.25.5")
    original.PixelData = encapsulate([b"\0\0\1\xb3not a movie!"])
    original["PixelData"].is_undefined_length = True
    original.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.102")
    await keep(store, original)
    with pytest.raises(NodeError, match="video") as caught:
        await sent(store, "2.25.5", LITTLE)
    assert caught.value.kind is ErrorKind.UNSUPPORTED


async def test_damage_in_the_last_frame_is_known_before_the_first_byte(
    store: Store,
) -> None:
    original = make_instance(frames=2, rows=16, columns=16, SOPInstanceUID="2.25.5")
    original.compress(JPEGLSLossless, generate_instance_uid=False)
    whole = original.PixelData
    original.PixelData = whole[:-40] + b"\x55" * 30 + whole[-10:]
    await keep(store, original)
    instance = await stored(store, "2.25.5")
    assert instance is not None
    with (
        studies.open_blob(store, instance) as reader,
        pytest.raises(NodeError) as caught,
    ):
        encoded_for(reader, instance, [LITTLE])
    assert caught.value.kind is ErrorKind.UNSUPPORTED
