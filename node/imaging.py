"""Stored instances as headers, frame offsets and true-colour pixels.

The one place that decodes stored pixel data: DICOMweb, SR and inference all see the
colours and regions that come from here. Whatever is wrong with an object is told as a
`NodeError`; sizes are checked before memory is taken, because anybody on the network
can send a header.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedReader, BytesIO, RawIOBase
from typing import Any, BinaryIO, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import dcmread, read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_windowing
from typing_extensions import Buffer

from node.charset import unicode_header
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import UltrasoundRegion

# pydicom quotes offending values in warnings and log lines: names would reach the log.
warnings.filterwarnings("ignore", module=r"pydicom\b")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

FrameTable = tuple[tuple[int, int], ...]
Pixels = NDArray[np.uint8]

# A frame of 8K x 8K true colour is far beyond any ultrasound machine; a cine of 4 GiB
# too.
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
MAX_INSTANCE_BYTES: Final = 8 * 1024 * 1024 * 1024
MAX_INFLATED_BYTES: Final = 1024 * 1024 * 1024
MAX_FRAMES: Final = 100_000

JPEG_XL: Final = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (110, 111, 112))
VIDEO: Final = frozenset(
    f"1.2.840.10008.1.2.4.{n}" for n in range(100, 109)
) | frozenset(f"1.2.840.10008.1.2.4.{n}.1" for n in range(100, 107))
JPEG_LOSSLESS: Final = frozenset({str(uid.JPEGLossless), str(uid.JPEGLosslessSV1)})
JPEG_DCT: Final = frozenset({str(uid.JPEGBaseline8Bit), str(uid.JPEGExtended12Bit)})
JPEG_2000: Final = frozenset(
    str(name)
    for name in (
        *uid.JPEG2000TransferSyntaxes,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
        uid.HTJ2K,
    )
)

ITEM = 0xFFFEE000
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_LENGTH_VR = (b"OB", b"OW", b"UN", b"OD", b"OF")


class Undecodable(NodeError):
    """The instance is safe in the store, but nothing here can show its pixels."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ErrorKind.UNSUPPORTED)


class RandomAccess(Protocol):
    """Stored bytes with random access, such as a blob reader of the store."""

    @property
    def size(self) -> int:
        """Length of the content in bytes."""
        ...

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return up to `length` bytes from `offset` on; the rest when None."""
        ...


class Keywords(Protocol):
    """A header by keyword: pydicom's Dataset, or what answers like it."""

    def get(self, keyword: str, default: Any = None, /) -> Any:
        """Return the value of an attribute, or `default`."""
        ...

    def __getattr__(self, keyword: str) -> Any: ...


class BytesReader:
    """Random access to bytes in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Length of the content in bytes."""
        return len(self._content)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return up to `length` bytes from `offset` on; the rest when None."""
        end = None if length is None else offset + length
        return self._content[offset:end]


# -- headers ---------------------------------------------------------------------------


def read_header(source: bytes | BinaryIO | Dataset) -> Dataset:
    """Return the header in Unicode (ISO_IR 192), with file meta and without pixel data.

    `source` is a Part 10 file or a dataset; it is only read. Raises NodeError(INVALID)
    for anything that is not DICOM.
    """
    return unicode_header(
        source if isinstance(source, Dataset) else _parse(_as_file(source))
    )


def read_part10(source: bytes | BinaryIO) -> tuple[Dataset, FrameTable]:
    """Return the Unicode header and the frame table of a Part 10 file."""
    file = _as_file(source)
    raw = _parse(file)
    return unicode_header(raw), _frame_table(file, raw)


def frame_table(source: bytes | BinaryIO) -> FrameTable:
    """Return (offset, length) of every frame in a Part 10 file, found once at ingest.

    Native frames are their bare bytes. An encapsulated frame spans its items, headers
    included, so that a frame in several fragments is still one read;
    `StoredImage.stored_frame` unwraps it. Offsets of the deflated syntax count in the
    inflated file. Empty when there are no frames or they cannot be told apart (a lossy
    network may have cut the object short).
    """
    return read_part10(source)[1]


@dataclass(frozen=True)
class AroundPixels:
    """A Part 10 file: its data set as stored, and where its pixel data lies, unread.

    The element of the pixel data is `pixels` (offset, end) in `file`; nothing without.
    """

    data_set: Dataset
    file: BinaryIO
    pixels: tuple[int, int]

    @classmethod
    def open(cls, reader: RandomAccess) -> AroundPixels:
        """Read what stands before and after the pixels; only they may be large."""
        file = _as_file(cast(BinaryIO, BufferedReader(ReaderFile(reader))))
        raw = _parse(file)
        start = file.tell()
        end = _pixels_end(file, raw, start)
        file.seek(end)
        implicit, little = raw.original_encoding
        after = read_dataset(file, bool(implicit), little is not False)
        raw.update(after)
        return cls(raw, file, (start, end))

    def chunks(self, length: int = 1 << 20) -> Iterator[bytes]:
        """Yield the element of the pixel data as stored."""
        at, end = self.pixels
        while at < end:
            self.file.seek(at)
            chunk = self.file.read(min(length, end - at))
            if not chunk:
                return
            yield chunk
            at += len(chunk)


def _pixels_end(file: BinaryIO, raw: Dataset, start: int) -> int:
    """Return where the pixel data that begins at `start` ends (PS3.5 A.4)."""
    pixels = _pixel_value(file, raw)
    size = file.seek(0, SEEK_END)
    if pixels is None:
        return start
    _, end, length = pixels
    if length != UNDEFINED_LENGTH:
        return min(end + length, size)
    for at, item_length in _items(file, end, size):
        end = at + 8 + item_length
    file.seek(end)
    if file.read(4) not in (b"\xfe\xff\xdd\xe0", b""):  # its end, or it was cut short
        raise NodeError("the pixel data is damaged", ErrorKind.INVALID)
    return min(end + 8, size)


def video_fragments(reader: RandomAccess) -> FrameTable:
    """Return (offset, length) of the parts of a video stream in a Part 10 file.

    Empty when its pixel data is not encapsulated (PS3.5 A.4).
    """
    file = cast(BinaryIO, BufferedReader(ReaderFile(reader)))
    _parse(file)
    start = file.tell()
    tag_and_length = file.read(12)
    if tag_and_length[:4] != b"\xe0\x7f\x10\0" or tag_and_length[8:] != b"\xff" * 4:
        return ()
    items = list(_items(file, start + 12, reader.size))  # first the offset table
    return tuple((at + 8, length) for at, length in items[1:])


def transfer_syntax_of(header: Dataset) -> str:
    """Return the Transfer Syntax UID; Implicit VR Little Endian when none is given."""
    meta = getattr(header, "file_meta", None)
    return str((meta or {}).get("TransferSyntaxUID", "") or uid.ImplicitVRLittleEndian)


def ultrasound_regions(header: Dataset) -> tuple[UltrasoundRegion, ...]:
    """Return the Sequence of Ultrasound Regions as the header has it (PS3.3 C.8.5.5).

    An item without bounds or formats is left out: a region that is nowhere measures
    nothing.
    """
    regions = []
    for item in header.get("SequenceOfUltrasoundRegions", None) or ():
        try:
            regions.append(
                UltrasoundRegion(
                    x0=int(item.RegionLocationMinX0),
                    y0=int(item.RegionLocationMinY0),
                    x1=int(item.RegionLocationMaxX1),
                    y1=int(item.RegionLocationMaxY1),
                    spatial_format=int(item.RegionSpatialFormat),
                    data_type=int(item.RegionDataType),
                    physical_units_x=int(
                        item.get("PhysicalUnitsXDirection", None) or 0
                    ),
                    physical_units_y=int(
                        item.get("PhysicalUnitsYDirection", None) or 0
                    ),
                    physical_delta_x=float(item.get("PhysicalDeltaX", None) or 0.0),
                    physical_delta_y=float(item.get("PhysicalDeltaY", None) or 0.0),
                )
            )
        except (AttributeError, TypeError, ValueError):
            continue
    return tuple(regions)


def _as_file(source: bytes | BinaryIO) -> BinaryIO:
    file = BytesIO(source) if isinstance(source, bytes) else source
    file.seek(0)
    at = _deflated_syntax(file)
    file.seek(0)
    return file if at is None else _inflated(file, *at)


class _InflatedFile(BytesIO):
    """A deflated Part 10 file after inflating; offsets count in this one."""


def _deflated_syntax(file: BinaryIO) -> tuple[int, int] | None:
    """Return offsets (Transfer Syntax UID, dataset) when the file is deflated."""
    head = file.read(64 * 1024)
    if head[128:138] != b"DICM\x02\x00\x00\x00UL":
        return None
    end = 144 + int.from_bytes(head[140:144], "little")
    at = head.find(b"\x02\x00\x10\x00UI", 132, end)
    if at < 0:
        return None
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    value = head[at + 8 : at + 8 + length].rstrip(b"\0 ").decode("ascii", "replace")
    return (at + 8, end) if value == uid.DeflatedExplicitVRLittleEndian else None


def _inflated(file: BinaryIO, syntax_at: int, dataset_at: int) -> BinaryIO:
    """Return the file with its dataset inflated, up to a limit (PS3.5 A.5).

    pydicom would inflate without one. The syntax is overwritten in place for its sake,
    padded to the old length, and put back by `_parse`.
    """
    meta = bytearray(file.read(dataset_at))
    old = len(str(uid.DeflatedExplicitVRLittleEndian))
    meta[syntax_at : syntax_at + old] = uid.ExplicitVRLittleEndian.encode().ljust(
        old, b"\0"
    )
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(file.read(), MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise NodeError("the deflated dataset is damaged", ErrorKind.INVALID) from error
    if inflater.unconsumed_tail:
        raise NodeError(
            "the deflated dataset is larger than the limit", ErrorKind.EXHAUSTED
        )
    return _InflatedFile(bytes(meta) + content)


def _parse(file: BinaryIO) -> Dataset:
    """Read the header as pydicom sees it, up to the pixel data element."""
    try:
        file.seek(0)
        dataset = dcmread(file, stop_before_pixels=True)
    except Exception as error:  # pydicom raises whatever the damage happens to cause
        raise NodeError(
            f"not a readable DICOM file ({type(error).__name__})", ErrorKind.INVALID
        ) from None
    if isinstance(file, _InflatedFile):
        dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return dataset


# -- frame offsets ---------------------------------------------------------------------


def _frame_table(file: BinaryIO, raw: Dataset) -> FrameTable:
    """Locate the frames; `file` stands where `_parse` left it."""
    pixels = _pixel_value(file, raw)
    if pixels is None or pixels[0] != (0x7FE0, 0x0010):
        return ()
    return frames_at(file, raw, *pixels[1:], transfer_syntax_of(raw))


def _pixel_value(
    file: BinaryIO, raw: Dataset
) -> tuple[tuple[int, int], int, int] | None:
    """Return tag, offset and length of the value where `_parse` left `file`."""
    start = file.tell()
    implicit, little = raw.original_encoding
    order = "<" if little is not False else ">"
    element = file.read(12)
    if len(element) < 12:
        return None
    group, number = struct.unpack(f"{order}HH", element[:4])
    if implicit:
        return (group, number), start + 8, struct.unpack(f"{order}L", element[4:8])[0]
    if element[4:6] in LONG_LENGTH_VR:
        return (group, number), start + 12, struct.unpack(f"{order}L", element[8:])[0]
    return None


def frames_at(
    file: BinaryIO,
    header: Keywords,
    value_at: int,
    length: int,
    transfer_syntax_uid: str,
) -> FrameTable:
    """Locate the frames in the value of Pixel Data, which is `length` bytes long."""
    size = file.seek(0, SEEK_END)
    if transfer_syntax_uid in VIDEO:
        return ()  # its fragments are parts of a stream, not frames
    try:
        picture = Picture.of(header)
    except NodeError:
        return ()
    if length == UNDEFINED_LENGTH:
        return _encapsulated_frames(file, value_at, size, header, picture.frames)
    available = min(length, size - value_at)
    frame_bytes = picture.native_frame_bytes(available)
    whole = min(picture.frames, available // frame_bytes) if frame_bytes else 0
    return tuple((value_at + n * frame_bytes, frame_bytes) for n in range(whole))


def _encapsulated_frames(
    file: BinaryIO, value_at: int, size: int, header: Keywords, frames: int
) -> FrameTable:
    """Group fragments to frames: one each, by offset table or by start marker."""
    items = list(_items(file, value_at, size))
    if len(items) < 2:
        return ()
    (table_at, table_length), fragments = items[0], items[1:]
    if len(fragments) == frames:
        starts = list(range(frames))
    elif frames == 1:
        starts = [0]
    else:
        file.seek(table_at + 8)
        basic = file.read(table_length)
        offsets: Sequence[int] = struct.unpack(
            f"<{len(basic) // 4}L", basic[: len(basic) // 4 * 4]
        )
        extended = header.get("ExtendedOffsetTable", None)
        if isinstance(extended, bytes):
            offsets = struct.unpack(
                f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8]
            )
        place = {at - fragments[0][0]: n for n, (at, _) in enumerate(fragments)}
        starts = [place.get(offset, -1) for offset in offsets]
        if len(starts) != frames or starts[:1] != [0] or starts != sorted(set(starts)):
            starts = [
                n for n, (at, _) in enumerate(fragments) if _starts_image(file, at + 8)
            ]
    if len(starts) != frames:
        return ()
    table = []
    for first, following in zip(starts, [*starts[1:], len(fragments)], strict=True):
        at = fragments[first][0]
        last_at, last_length = fragments[following - 1]
        table.append((at, last_at + 8 + last_length - at))
    return tuple(table)


def _items(file: BinaryIO, at: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset of the item header, value length) up to delimiter or damage."""
    for _ in range(10 * MAX_FRAMES):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return
        group, element, length = struct.unpack("<HHL", header)
        if group << 16 | element != ITEM or at + 8 + length > size:
            return
        yield at, length
        at += 8 + length


def _starts_image(file: BinaryIO, at: int) -> bool:
    """Tell whether a JPEG, JPEG-LS (SOI) or JPEG 2000 (SOC) stream starts here."""
    file.seek(at)
    return file.read(2) in (b"\xff\xd8", b"\xff\x4f")


# -- pixels ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """The Image Pixel module of one instance, checked (PS3.3 C.7.6.3)."""

    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    planar_configuration: int

    @classmethod
    def of(cls, header: Keywords) -> Picture:
        """Return the checked values; raise before anything is allocated."""
        try:
            picture = cls(
                rows=int(header.Rows),
                columns=int(header.Columns),
                frames=int(header.get("NumberOfFrames", None) or 1),
                samples_per_pixel=int(header.get("SamplesPerPixel", None) or 1),
                photometric_interpretation=str(
                    header.PhotometricInterpretation
                ).strip(),
                bits_allocated=int(header.BitsAllocated),
                bits_stored=int(header.get("BitsStored", None) or header.BitsAllocated),
                pixel_representation=int(header.get("PixelRepresentation", None) or 0),
                planar_configuration=int(header.get("PlanarConfiguration", None) or 0),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise NodeError(
                "the image pixel module is incomplete", ErrorKind.INVALID
            ) from error
        picture._check()
        return picture

    def _check(self) -> None:
        if not (0 < self.rows <= 0xFFFF and 0 < self.columns <= 0xFFFF):
            raise NodeError(
                "Rows or Columns out of range", ErrorKind.INVALID, expression="Rows"
            )
        if not 0 < self.frames <= MAX_FRAMES:
            raise NodeError(
                "Number of Frames out of range",
                ErrorKind.INVALID,
                expression="NumberOfFrames",
            )
        if self.samples_per_pixel not in (1, 3) or self.bits_allocated not in (
            8,
            16,
            32,
        ):
            raise NodeError("pixels of an unknown cell size", ErrorKind.UNSUPPORTED)
        if not 0 < self.bits_stored <= self.bits_allocated:
            raise NodeError(
                "Bits Stored out of range", ErrorKind.INVALID, expression="BitsStored"
            )
        if (
            self.frame_bytes > MAX_FRAME_BYTES
            or self.frame_bytes * self.frames > MAX_INSTANCE_BYTES
        ):
            raise NodeError(
                "the decoded image is larger than the limit", ErrorKind.EXHAUSTED
            )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return (
            self.rows * self.columns * self.samples_per_pixel * self.bits_allocated // 8
        )

    def native_frame_bytes(self, available: int) -> int:
        """Return the bytes of one uncompressed frame as stored.

        4:2:2 stores two samples a pixel, unless the value is long enough for three:
        then the photometric interpretation is a left-over of a former compression.
        """
        halved = available < self.frame_bytes * self.frames
        if self.photometric_interpretation == "YBR_FULL_422" and halved:
            return self.rows * self.columns * 2 * self.bits_allocated // 8
        return self.frame_bytes


# What these say of a compressed stream is not so of its whole samples.
_NATIVE_PHOTOMETRIC: Final = {
    "YBR_RCT": "RGB",
    "YBR_ICT": "RGB",
    "YBR_FULL_422": "YBR_FULL",
    "YBR_PARTIAL_420": "YBR_FULL",
}


class StoredImage:
    """The pictures of one stored instance, frame by frame in true colours."""

    def __init__(
        self,
        reader: RandomAccess,
        *,
        header: Dataset,
        frames: FrameTable,
        transfer_syntax_uid: str | None = None,
    ) -> None:
        """Open an instance whose header and frame table are known from ingest."""
        self.header = header
        self.transfer_syntax_uid = transfer_syntax_uid or transfer_syntax_of(header)
        self.picture = Picture.of(header)
        self._frames = frames
        self._reader = reader
        if self.transfer_syntax_uid == uid.DeflatedExplicitVRLittleEndian:
            self._reader = _inflated_reader(reader)

    @classmethod
    def open(cls, reader: RandomAccess) -> StoredImage:
        """Open an instance of which only the bytes are known."""
        header, frames = read_part10(cast(BinaryIO, BufferedReader(ReaderFile(reader))))
        return cls(reader, header=header, frames=frames)

    @property
    def number_of_frames(self) -> int:
        """Frames as the header counts them."""
        return self.picture.frames

    @property
    def decodable(self) -> bool:
        """Tell whether pixels of this transfer syntax can be shown here at all."""
        return why_undecodable(self.transfer_syntax_uid) is None

    def stored_frame(self, index: int) -> bytes:
        """Return frame `index` (from 0) as stored: native bytes or one stream."""
        if not 0 <= index < self.picture.frames:
            raise NodeError(f"there is no frame {index + 1}", ErrorKind.NOT_FOUND)
        if index >= len(self._frames):
            raise Undecodable(
                f"frame {index + 1} is missing from the stored pixel data"
            )
        offset, length = self._frames[index]
        span = self._reader.read(offset, length)
        if len(span) < length:
            raise NodeError(
                "the stored object is shorter than its frames", ErrorKind.INTEGRITY
            )
        return _unwrapped(span) if _encapsulated(self.transfer_syntax_uid) else span

    def frame(self, index: int) -> Pixels:
        """Return frame `index` (from 0) as uint8 RGB, (rows, columns, 3).

        Raises Undecodable when no decoder here knows the syntax or the stream is
        damaged.
        """
        stream = self._decodable_stream(index)
        with _damage_named():
            if self._is_colour_jpeg:
                return _jpeg_pixels(stream, self.picture)
            return self._true_colour(self._samples(stream))

    def native_frame(self, index: int) -> tuple[bytes, str]:
        """Return frame `index` (from 0) uncompressed, and what its samples are.

        Little endian, colour by pixel. What was coded without loss keeps every bit
        and its photometric interpretation; YCbCr of a JPEG or JPEG 2000 stream comes
        as RGB. Raises Undecodable as `frame` does.
        """
        stream = self._decodable_stream(index)
        photometric = self.picture.photometric_interpretation
        with _damage_named():
            if self._is_colour_jpeg:
                return _jpeg_pixels(stream, self.picture).tobytes(), "RGB"
            if self.transfer_syntax_uid in JPEG_2000:
                photometric = _jpeg2000_photometric(stream, photometric)
            samples = self._samples(stream, raw=True)
        photometric = _NATIVE_PHOTOMETRIC.get(photometric, photometric)
        order = samples.dtype.newbyteorder("<")
        native = samples.astype(order, copy=False).tobytes()
        if len(native) != self.picture.frame_bytes:
            raise Undecodable("the compressed frame has another size than the header")
        return native, photometric

    @property
    def _is_colour_jpeg(self) -> bool:
        colour = self.picture.samples_per_pixel == 3
        return colour and self.transfer_syntax_uid in JPEG_DCT

    def _decodable_stream(self, index: int) -> bytes:
        """Return what a decoder is given, after everything that can be checked."""
        reason = why_undecodable(self.transfer_syntax_uid)
        if reason is not None:
            raise Undecodable(reason)
        stream = self.stored_frame(index)
        if _encapsulated(self.transfer_syntax_uid):
            _check_stream_size(stream, self.picture)
        return stream

    def _samples(self, stream: bytes, *, raw: bool = False) -> NDArray[np.generic]:
        """Decode one frame to its samples, RGB where it was a YBR unless `raw`."""
        picture, syntax = self.picture, uid.UID(self.transfer_syntax_uid)
        photometric = picture.photometric_interpretation
        source = stream
        if _encapsulated(syntax):
            source = encapsulate([stream])
            if syntax in JPEG_2000 and picture.samples_per_pixel == 3:
                photometric = _jpeg2000_photometric(stream, photometric)
        elif photometric == "YBR_FULL_422" and len(stream) == picture.frame_bytes:
            photometric = "YBR_FULL"
        options: dict[str, object] = {
            "rows": picture.rows,
            "columns": picture.columns,
            "number_of_frames": 1,
            "samples_per_pixel": picture.samples_per_pixel,
            "photometric_interpretation": photometric,
            "bits_allocated": picture.bits_allocated,
            "bits_stored": picture.bits_stored,
            "pixel_representation": picture.pixel_representation,
            "planar_configuration": picture.planar_configuration,
            "pixel_keyword": "PixelData",
            "pixel_vr": "OW" if picture.bits_allocated > 8 else "OB",
        }
        array, _ = get_decoder(syntax).as_array(source, index=0, raw=raw, **options)  # type: ignore[arg-type]
        return cast(NDArray[np.generic], array)

    def _true_colour(self, samples: NDArray[np.generic]) -> Pixels:
        photometric = self.picture.photometric_interpretation
        if photometric == "PALETTE COLOR":
            return _palette_pixels(samples, self._header_with_palette())
        if samples.ndim == 3:
            deep = self.picture.bits_stored - 8
            return np.ascontiguousarray(
                np.right_shift(samples, deep) if deep > 0 else samples, dtype=np.uint8
            )
        grey = _grey_pixels(samples, self.picture, self.header)
        if photometric == "MONOCHROME1":
            grey = 255 - grey
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)

    def _header_with_palette(self) -> Dataset:
        """Return a header with lookup tables; a stored JSON header may lack them."""
        names = (
            "RedPaletteColorLookupTableData",
            "SegmentedRedPaletteColorLookupTableData",
        )
        if any(isinstance(self.header.get(name, None), bytes) for name in names):
            return self.header
        self.header = read_header(
            cast(BinaryIO, BufferedReader(ReaderFile(self._reader)))
        )
        return self.header


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what a codec raises into Undecodable; every codec has errors of its own."""
    try:
        yield
    except NodeError:
        raise
    except Exception as error:
        raise Undecodable(
            f"the pixel data is damaged ({type(error).__name__})"
        ) from None


def why_undecodable(transfer_syntax_uid: str) -> str | None:
    """Return why pixels of this transfer syntax cannot be shown, or None."""
    if transfer_syntax_uid in JPEG_XL:
        return "JPEG XL: no decoder here"
    if transfer_syntax_uid in VIDEO:
        return "video: stored and forwarded, not decoded"
    try:
        available = get_decoder(transfer_syntax_uid).is_available
    except (NotImplementedError, ValueError):
        available = False
    if available:
        return None
    if transfer_syntax_uid in JPEG_LOSSLESS:
        return "JPEG Lossless: needs the optional package python-gdcm"
    return f"{uid.UID(transfer_syntax_uid).name}: no decoder here"


def jpeg_shows_true_colours(stream: bytes, header: Dataset) -> bool:
    """Tell whether a browser shows this stored JPEG in its true colours.

    Browsers know the marker segments only, not Photometric Interpretation: a stream
    stored as RGB without any marker would be shown as if it were YCbCr, with green skin
    and blue flow.
    """
    picture = Picture.of(header)
    try:
        facts = _JpegFacts.of(stream)
    except Undecodable:
        return False
    if picture.photometric_interpretation in ("MONOCHROME1", "PALETTE COLOR"):
        return False
    if facts.precision != 8 or len(facts.component_ids) != picture.samples_per_pixel:
        return False
    if picture.samples_per_pixel == 1:
        return True
    return facts.browser_sees_ycbcr == facts.is_ycbcr(
        picture.photometric_interpretation
    )


@dataclass(frozen=True)
class _JpegFacts:
    """What the marker segments of a JPEG stream say (ITU-T T.81 annex B)."""

    rows: int
    columns: int
    precision: int
    component_ids: tuple[int, ...]
    subsampled: bool
    jfif: bool
    adobe_transform: int | None

    @classmethod
    def of(cls, stream: bytes) -> _JpegFacts:
        jfif, adobe = False, None
        for marker, segment in _jpeg_segments(stream):
            if marker == 0xE0 and segment.startswith(b"JFIF\0"):
                jfif = True
            elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
                adobe = segment[11]
            elif (
                0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
            ) or marker == 0xF7:
                if len(segment) < 6 + 3 * segment[5]:
                    break
                parts = [segment[6 + 3 * n : 9 + 3 * n] for n in range(segment[5])]
                return cls(
                    rows=int.from_bytes(segment[1:3], "big"),
                    columns=int.from_bytes(segment[3:5], "big"),
                    precision=segment[0],
                    component_ids=tuple(part[0] for part in parts),
                    subsampled=len({part[1] for part in parts}) > 1,
                    jfif=jfif,
                    adobe_transform=adobe,
                )
        raise Undecodable("the JPEG stream has no frame header")

    @property
    def browser_sees_ycbcr(self) -> bool:
        """What libjpeg, and so every browser, takes three components for."""
        if self.jfif:
            return True
        if self.adobe_transform is not None:
            return self.adobe_transform != 0
        return self.component_ids != (0x52, 0x47, 0x42)

    def is_ycbcr(self, photometric_interpretation: str) -> bool:
        """Tell whether the samples are YCbCr: the encoder's marker knows best."""
        if self.jfif or self.adobe_transform is not None:
            return self.browser_sees_ycbcr
        if self.component_ids in ((0x52, 0x47, 0x42), (0x72, 0x67, 0x62)):
            return False
        return self.subsampled or photometric_interpretation != "RGB"


def _jpeg_segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of the segments before the first scan."""
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        length = int.from_bytes(stream[at + 2 : at + 4], "big")
        yield marker, stream[at + 4 : at + 2 + length]
        at += 2 + max(length, 2)


def _jpeg_pixels(stream: bytes, picture: Picture) -> Pixels:
    """Decode a colour JPEG, undoing YCbCr when and only when the samples are YCbCr."""
    facts = _JpegFacts.of(stream)
    image: Image.Image = Image.open(BytesIO(stream), formats=("JPEG",))
    is_ycbcr = facts.is_ycbcr(picture.photometric_interpretation)
    if facts.browser_sees_ycbcr == is_ycbcr:
        return np.array(image.convert("RGB"))
    if is_ycbcr:
        return np.array(
            Image.frombytes("YCbCr", image.size, image.tobytes()).convert("RGB")
        )
    # Asking libjpeg for YCbCr leaves the samples, which are RGB, untouched.
    image.draft("YCbCr", image.size)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(
        picture.rows, picture.columns, 3
    )


def _check_stream_size(stream: bytes, picture: Picture) -> None:
    """Refuse a stream whose own size is not the header's, before it is allocated."""
    if stream[:2] == b"\xff\xd8":
        facts = _JpegFacts.of(stream)
        size = (facts.rows, facts.columns)
    elif stream[:4] == b"\xff\x4f\xff\x51" and len(stream) >= 24:
        right, bottom, left, top = struct.unpack(">4L", stream[8:24])
        size = (bottom - top, right - left)
    else:
        return  # RLE carries no size; its decoder fills the header's and stops
    if size != (picture.rows, picture.columns):
        raise Undecodable(
            f"the compressed stream is {size[1]} x {size[0]}, the header says other"
        )


def _jpeg2000_photometric(stream: bytes, declared: str) -> str:
    """Return what the decoder delivers: RGB when the stream transforms colours.

    Some devices keep YBR_FULL_422 from an earlier JPEG; converting twice turns grey
    into green.
    """
    at = stream.find(
        b"\xff\x52", 0, 4096
    )  # COD: Scod, progression, layers (2), transform
    return "RGB" if at >= 0 and stream[at + 8 : at + 9] == b"\x01" else declared


def _palette_pixels(indices: NDArray[np.generic], header: Dataset) -> Pixels:
    colours = apply_color_lut(indices, header)
    if colours.dtype == np.uint8:
        return np.ascontiguousarray(colours[:, :, :3])
    # Tables declared with 16 bits and filled with 8 exist; shifting those would show
    # black.
    table = header.get("RedPaletteColorLookupTableData", None)
    entries = np.frombuffer(table[: len(table) // 2 * 2], "<u2") if table else colours
    shift = 8 if int(entries.max(initial=0)) > 255 else 0
    return np.ascontiguousarray(colours[:, :, :3] >> shift, dtype=np.uint8)


def _grey_pixels(
    samples: NDArray[np.generic], picture: Picture, header: Dataset
) -> Pixels:
    """Return 8-bit greys: as stored, else windowed or over the full range."""
    if picture.bits_stored == 8 and picture.pixel_representation == 0:
        return np.ascontiguousarray(samples, dtype=np.uint8)
    bottom = -(1 << picture.bits_stored - 1) if picture.pixel_representation else 0
    values = samples.astype(np.float64)
    if "WindowCenter" in header and "WindowWidth" in header:
        values = apply_windowing(samples, header).astype(np.float64)
    scaled = (values - bottom) * (255.0 / ((1 << picture.bits_stored) - 1))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _encapsulated(transfer_syntax_uid: str) -> bool:
    return uid.UID(transfer_syntax_uid) not in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    )


def _unwrapped(span: bytes) -> bytes:
    """Return the fragments of one frame joined, without their item headers."""
    parts, at = [], 0
    while at + 8 <= len(span):
        length = int.from_bytes(span[at + 4 : at + 8], "little")
        parts.append(span[at + 8 : at + 8 + length])
        at += 8 + length
    return b"".join(parts)


# -- readers ---------------------------------------------------------------------------


class ReaderFile(RawIOBase):
    """A stored object as a seekable file, for parsers of headers."""

    name = ""  # pydicom asks every buffered reader for one

    def __init__(self, reader: RandomAccess) -> None:
        super().__init__()
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._at, SEEK_END: self._reader.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        content = self._reader.read(self._at, len(view))
        view[: len(content)] = content
        self._at += len(content)
        return len(content)


def _inflated_reader(reader: RandomAccess) -> RandomAccess:
    return BytesReader(_as_file(reader.read()).read())
