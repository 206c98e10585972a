"""Frame offsets and true colours of pixel data (PS3.3 C.7.6.3, PS3.5 8 and A)."""

import csv
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.pixels.utils import pixel_array
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
    UltrasoundMultiFrameImageStorage,
)

from node import imaging
from node.domain.errors import ErrorKind, NodeError
from node.imaging import (
    BytesReader,
    StoredImage,
    Undecodable,
    frame_table,
    jpeg_shows_true_colours,
    read_header,
    ultrasound_regions,
)

ROWS, COLUMNS, FRAMES = 64, 80, 3


def colours() -> NDArray[np.uint8]:
    """Return frames with smooth areas of strong colour, different in each frame."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    stack = [
        np.stack([3 * x, 4 * y, np.full_like(x, 60 * n)], axis=-1)
        for n in range(FRAMES)
    ]
    return np.stack(stack).astype(np.uint8)


def instance(
    pixels: NDArray[np.generic],
    *,
    syntax: UID = ExplicitVRLittleEndian,
    photometric: str = "RGB",
    planar: int = 0,
    value: bytes | None = None,
) -> Dataset:
    """Build a multi-frame instance; `value` stands in for the pixel data."""
    dataset = Dataset()
    dataset.SOPClassUID = UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = "2.25.7"
    dataset.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
    dataset.PhotometricInterpretation = photometric
    if pixels.ndim == 4:
        dataset.PlanarConfiguration = planar
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = value if value is not None else pixels.tobytes()
    dataset["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def part10(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def jpeg(frame: NDArray[np.uint8], mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(frame).convert(mode).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def shown(content: bytes) -> NDArray[np.uint8]:
    image = StoredImage.open(BytesReader(content))
    return np.stack([image.frame(n) for n in range(image.number_of_frames)])


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
@pytest.mark.parametrize("planar", [0, 1])
def test_uncompressed_colour_is_exact(syntax: UID, planar: int) -> None:
    truth = colours()
    stored = truth if planar == 0 else np.moveaxis(truth, -1, 1)
    dataset = instance(truth, planar=planar, syntax=syntax, value=stored.tobytes())
    assert np.array_equal(shown(part10(dataset)), truth)


def test_monochrome1_is_shown_inverted() -> None:
    grey = colours()[..., 0]
    picture = shown(part10(instance(grey, photometric="MONOCHROME1")))
    assert np.array_equal(picture[..., 1], 255 - grey)


def test_sixteen_bit_grey_uses_the_full_range() -> None:
    grey = (colours()[..., 0].astype(np.uint16)) * 257
    picture = shown(part10(instance(grey, photometric="MONOCHROME2")))
    assert np.array_equal(picture[..., 0], colours()[..., 0])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours_are_looked_up(bits: int, syntax: UID) -> None:
    indices = colours()[..., 0]
    dataset = instance(indices, photometric="PALETTE COLOR", syntax=syntax)
    order = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    ramp = np.arange(256)
    for name, table in (("Red", ramp), ("Green", 255 - ramp), ("Blue", ramp * 0 + 9)):
        words = table * 256 if bits == 16 else table.astype(np.uint8).view("<u2")
        entries = words.astype(order)  # 8-bit entries go two to a word
        keyword = f"{name}PaletteColorLookupTable"
        setattr(dataset, f"{keyword}Descriptor", [256, 0, bits])
        setattr(dataset, f"{keyword}Data", entries.tobytes())
        dataset[f"{keyword}Data"].VR = "OW"
    picture = shown(part10(dataset))
    assert np.array_equal(picture[..., 0], indices)
    assert np.array_equal(picture[..., 1], 255 - indices)


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda u: u.name
)
def test_lossless_compression_is_exact(syntax: UID) -> None:
    dataset = instance(colours())
    dataset.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(shown(part10(dataset)), colours())


def test_deflated_instance_is_shown_and_its_bomb_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = part10(instance(colours(), syntax=DeflatedExplicitVRLittleEndian))
    assert np.array_equal(shown(content), colours())
    header = read_header(content)
    assert header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    monkeypatch.setattr(imaging, "MAX_INFLATED_BYTES", 1000)
    with pytest.raises(NodeError) as caught:
        read_header(content)
    assert caught.value.kind is ErrorKind.EXHAUSTED


def test_jpeg_baseline_has_the_colours_that_were_compressed() -> None:
    truth = colours()
    value = encapsulate([jpeg(frame, subsampling=0) for frame in truth])
    dataset = instance(
        truth, syntax=JPEGBaseline8Bit, photometric="YBR_FULL_422", value=value
    )
    error = np.abs(shown(part10(dataset)).astype(int) - truth)
    assert error.mean() < 2


def test_jpeg_of_rgb_samples_without_a_marker_is_not_converted_twice() -> None:
    truth = colours()
    streams = [without_markers(jpeg(frame, keep_rgb=True)) for frame in truth]
    dataset = instance(
        truth, syntax=JPEGBaseline8Bit, value=encapsulate(streams), photometric="RGB"
    )
    content = part10(dataset)
    error = np.abs(shown(content).astype(int) - truth)
    assert error.mean() < 2
    assert not jpeg_shows_true_colours(streams[0], read_header(content))
    assert jpeg_shows_true_colours(jpeg(truth[0]), read_header(content))


def without_markers(stream: bytes) -> bytes:
    """Drop JFIF and Adobe segments and number the components 1, 2, 3."""
    out, at = stream[:2], 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = bytearray(stream[at:end])
        if segment[1] == 0xC0:
            segment[10], segment[13], segment[16] = 1, 2, 3
        if segment[1] not in (0xE0, 0xEE):
            out += bytes(segment)
        at = end
    scan = bytearray(stream[at:])
    scan[5], scan[7], scan[9] = 1, 2, 3
    return out + bytes(scan)


@pytest.mark.parametrize("has_bot", [True, False])
def test_frames_in_several_fragments_are_found(has_bot: bool) -> None:
    truth = colours()
    streams = [jpeg(frame, subsampling=0) for frame in truth]
    value = encapsulate(streams, fragments_per_frame=2, has_bot=has_bot)
    dataset = instance(
        truth, syntax=JPEGBaseline8Bit, photometric="YBR_FULL", value=value
    )
    image = StoredImage.open(BytesReader(part10(dataset)))
    assert [image.stored_frame(n).rstrip(b"\0") for n in range(FRAMES)] == streams


def test_one_frame_is_one_read() -> None:
    content = part10(instance(colours()))
    reads: list[tuple[int, int | None]] = []

    class Counting(BytesReader):
        def read(self, offset: int = 0, length: int | None = None) -> bytes:
            reads.append((offset, length))
            return super().read(offset, length)

    table = frame_table(content)
    image = StoredImage(Counting(content), header=read_header(content), frames=table)
    image.frame(2)
    assert reads == [table[2]]


def test_frame_outside_the_header_is_not_found() -> None:
    image = StoredImage.open(BytesReader(part10(instance(colours()))))
    for index in (-1, FRAMES):
        with pytest.raises(NodeError) as caught:
            image.frame(index)
        assert caught.value.kind is ErrorKind.NOT_FOUND


def test_cut_object_shows_what_arrived_and_names_the_rest() -> None:
    content = part10(instance(colours()))
    image = StoredImage.open(BytesReader(content[:-100]))
    assert np.array_equal(image.frame(1), colours()[1])
    with pytest.raises(Undecodable):
        image.frame(2)


def test_huge_header_is_refused_before_allocation() -> None:
    dataset = instance(colours())
    dataset.Rows = dataset.Columns = 65535
    with pytest.raises(NodeError) as caught:
        StoredImage.open(BytesReader(part10(dataset)))
    assert caught.value.kind is ErrorKind.EXHAUSTED
    assert frame_table(part10(dataset)) == ()


def test_stream_of_another_size_than_the_header_is_refused() -> None:
    truth = colours()
    big = jpeg(np.zeros((2000, 2000, 3), np.uint8))
    dataset = instance(
        truth[:1],
        syntax=JPEGBaseline8Bit,
        photometric="YBR_FULL_422",
        value=encapsulate([big]),
    )
    with pytest.raises(Undecodable, match="2000 x 2000"):
        shown(part10(dataset))


@pytest.mark.parametrize(
    ("syntax", "word"),
    [("1.2.840.10008.1.2.4.110", "JPEG XL"), ("1.2.840.10008.1.2.4.102", "video")],
)
def test_syntax_without_decoder_is_named(syntax: str, word: str) -> None:
    content = part10(instance(colours()))
    image = StoredImage(
        BytesReader(content),
        header=read_header(content),
        frames=frame_table(content),
        transfer_syntax_uid=syntax,
    )
    assert not image.decodable
    with pytest.raises(Undecodable, match=word):
        image.frame(0)


def test_flipped_bytes_never_escape_as_foreign_exceptions() -> None:
    dataset = instance(colours())
    dataset.compress(RLELossless, generate_instance_uid=False)
    content = part10(dataset)
    random = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(content)
        for at in random.integers(128, len(content), 6):
            damaged[at] = random.integers(256)
        with suppress(NodeError):
            StoredImage.open(BytesReader(bytes(damaged))).frame(0)


def test_random_deflate_is_refused() -> None:
    content = bytearray(
        part10(instance(colours(), syntax=DeflatedExplicitVRLittleEndian))
    )
    start = 144 + struct.unpack("<L", content[140:144])[0]
    content[start:] = zlib.compress(b"no dataset")[:9]
    with pytest.raises(NodeError):
        read_header(bytes(content))


def test_shipped_cine_has_a_region_whose_scale_is_not_trusted() -> None:
    path = get_testdata_file("examples_ybr_color.dcm")
    header = read_header(Path(str(path)).read_bytes())
    (region,) = ultrasound_regions(header)
    assert (region.x0, region.y0, region.x1, region.y1) == (84, 31, 595, 414)
    assert region.millimetres_per_pixel(header.Rows, header.Columns) is None


@pytest.mark.parametrize(
    "name",
    [
        "examples_ybr_color.dcm",
        "examples_rgb_color.dcm",
        "examples_palette.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_rle_2frame.dcm",
    ],
)
def test_files_of_pydicom_agree_with_its_own_decoding(name: str) -> None:
    content = Path(str(get_testdata_file(name))).read_bytes()
    image = StoredImage.open(BytesReader(content))
    dataset = dcmread(BytesIO(content))
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        assert image.frame(0).std() > 5
        return
    reference = pixel_array(dataset, index=0)
    assert np.abs(image.frame(0).astype(int) - reference).mean() < 0.1


def test_every_real_ultrasound_file_is_shown_or_named(samples: Path) -> None:
    with (samples / "dicom_us" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    named = set()
    for row in rows:
        content = (samples / "dicom_us" / row["file"]).read_bytes()
        image = StoredImage.open(BytesReader(content))
        frames = int(row["frames"])
        assert image.number_of_frames == frames == len(frame_table(content))
        if not image.decodable:
            named.add(row["ts_uid"])
            continue
        picture = image.frame(frames - 1)
        assert picture.shape == (int(row["rows"]), int(row["cols"]), 3)
        if row["photometric"] != "PALETTE COLOR":
            reference = pixel_array(dcmread(BytesIO(content)), index=frames - 1)
            plane = picture if reference.ndim == 3 else picture[..., 0]
            assert np.abs(plane.astype(int) - reference).mean() < 0.1
    assert named <= {"1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.70"}
