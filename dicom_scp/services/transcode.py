"""A stored instance in a transfer syntax that its receiver takes (PS3.5 10, A).

The stored bytes go out as they are where their syntax was accepted. Else elements are
written anew one by one, in the VR encoding and byte order of the receiver: values of
text are copied, never decoded, so that no character set can be lost; pixel data
streams, a frame or a piece at a time. Compressed pictures become native ones with the
photometric interpretation that their samples then have. UIDs stay: it is the same
instance, for the receiver that cannot read it otherwise.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_scp.receiving.encoding import CutOff, inflate
from node.domain.errors import ErrorKind, NodeError
from node.imaging import RandomAccess, ReaderFile, StoredImage, why_undecodable
from node.workflow.intake import data_set_offset

if TYPE_CHECKING:
    from node.store.studies import StoredInstance

# In the order in which we would rather send them.
NATIVE: Final = tuple(
    str(syntax)
    for syntax in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
    )
)
LOSSY: Final = frozenset(
    f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 112, 203)
)
PIECE: Final = 1 << 20
KEPT_FRAMES: Final = 64 << 20  # decoded once and kept up to here, else decoded twice
MAX_VALUE: Final = 256 << 20
MAX_DEPTH: Final = 32

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED: Final = 0xFFFFFFFF
PIXEL_DATA: Final = 0x7FE00010
SAMPLES_PER_PIXEL: Final = 0x00280002
PHOTOMETRIC_INTERPRETATION: Final = 0x00280004
PLANAR_CONFIGURATION: Final = 0x00280006
PIXEL_REPRESENTATION: Final = 0x00280103
LOSSY_IMAGE_COMPRESSION: Final = 0x00282110
# Of a picture that was compressed: offsets into fragments that are no longer there
# (PS3.3 C.7.6.3.1.8), and the icon, which is compressed too.
_LEFT_OUT: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003, 0x00880200})
_LONG: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN"}
    | {b"UR", b"UT", b"UV"}
)
_WORDS: Final = {
    **dict.fromkeys((b"US", b"SS", b"OW", b"AT"), "H"),
    **dict.fromkeys((b"UL", b"SL", b"FL", b"OF", b"OL"), "I"),
    **dict.fromkeys((b"FD", b"OD", b"SV", b"UV", b"OV"), "Q"),
}


@dataclass(frozen=True)
class Encoded:
    """A data set as it goes out, to be read once."""

    transfer_syntax_uid: str
    chunks: Iterator[bytes]


@dataclass(frozen=True)
class _Syntax:
    explicit: bool
    order: str
    deflated: bool = False

    @classmethod
    def of(cls, transfer_syntax_uid: str) -> _Syntax:
        return cls(
            explicit=transfer_syntax_uid != ImplicitVRLittleEndian,
            order=">" if transfer_syntax_uid == ExplicitVRBigEndian else "<",
            deflated=transfer_syntax_uid == DeflatedExplicitVRLittleEndian,
        )


def reachable(transfer_syntax_uid: str) -> list[str]:
    """Return the syntaxes in which such an instance can be sent, its own first."""
    others = [uid for uid in NATIVE if uid != transfer_syntax_uid]
    if transfer_syntax_uid in NATIVE or why_undecodable(transfer_syntax_uid) is None:
        return [transfer_syntax_uid, *others]
    return [transfer_syntax_uid]


def encoded_for(
    reader: RandomAccess, instance: StoredInstance, accepted: Collection[str]
) -> Encoded:
    """Return the data set of `instance` in one of the `accepted` transfer syntaxes.

    `reader` holds the stored Part 10 file and stays open until the chunks are read.
    Raises NodeError UNSUPPORTED (Undecodable too) when none of them can be reached:
    a video, a codec without decoder here, a damaged stream. Blocks.
    """
    own = instance.transfer_syntax_uid
    if own in accepted:
        return Encoded(own, _pieces(reader, _start(reader), reader.size))
    wanted = next((uid for uid in reachable(own)[1:] if uid in accepted), None)
    if wanted is None:
        reason = why_undecodable(own) if own not in NATIVE else None
        raise NodeError(
            reason or "no transfer syntax that the receiver takes",
            ErrorKind.UNSUPPORTED,
        )
    chunks = (
        _converted(reader, own, wanted)
        if own in NATIVE
        else _decompressed(reader, instance, wanted)
    )
    if _Syntax.of(wanted).deflated:
        chunks = _deflated(chunks)
    return Encoded(wanted, chunks)


# -- native to native ------------------------------------------------------------------


def _converted(reader: RandomAccess, own: str, wanted: str) -> Iterator[bytes]:
    source, target = _Syntax.of(own), _Syntax.of(wanted)
    file = _data_set(reader, source)
    writer = _Rewriter(file, source, target)
    elements, pixels = writer.elements()
    yield b"".join(content for _, content in sorted(elements.items()))
    if pixels is None:
        return
    vr, length = pixels
    yield _header(PIXEL_DATA, vr, length, target)
    word = _WORDS.get(vr) if source.order != target.order else None
    left = length
    while left:
        piece = file.read(min(PIECE, left))
        if not piece:
            raise CutOff
        left -= len(piece)
        yield _swapped(piece, word)
    yield writer.rest()


# -- compressed to native --------------------------------------------------------------


def _decompressed(
    reader: RandomAccess, instance: StoredInstance, wanted: str
) -> Iterator[bytes]:
    """Return the chunks; every frame has been decoded once before the first one."""
    header = Dataset.from_json(instance.metadata.decode())
    image = StoredImage(
        reader,
        header=header,
        frames=instance.frame_table,
        transfer_syntax_uid=instance.transfer_syntax_uid,
    )
    photometric, frames = _decoded(image)
    source, target = _Syntax(explicit=True, order="<"), _Syntax.of(wanted)
    file = _data_set(reader, source)
    writer = _Rewriter(file, source, target)
    elements, _ = writer.elements()
    for tag in _LEFT_OUT:
        elements.pop(tag, None)
    elements |= _pixel_module(image, photometric, elements, target)
    deep = image.picture.bits_allocated > 8
    swap = "H" if deep and target.order == ">" else None

    def chunks() -> Iterator[bytes]:
        yield b"".join(content for _, content in sorted(elements.items()))
        length = image.picture.frame_bytes * image.number_of_frames
        vr = b"OW" if deep else b"OB"
        yield _header(PIXEL_DATA, vr, length + length % 2, target)
        for frame in frames():
            yield _swapped(frame, swap)
        yield b"\0" * (length % 2)
        _pass_fragments(file)
        yield writer.rest()

    return chunks()


def _decoded(image: StoredImage) -> tuple[str, Callable[[], Iterable[bytes]]]:
    """Decode every frame; return what they are, and how to get them (again).

    A stream that is damaged in its last frame has to be known before the first byte
    is sent: half an instance cannot be taken back.
    """
    kept: list[bytes] | None = []
    told: set[str] = set()
    for index in range(image.number_of_frames):
        frame, photometric = image.native_frame(index)
        told.add(photometric)
        if kept is not None:
            kept.append(frame)
            if len(kept) * len(frame) > KEPT_FRAMES:
                kept = None
    if len(told) != 1:
        raise NodeError("frames of different colours", ErrorKind.UNSUPPORTED)
    if kept is not None:
        frames = kept
        return told.pop(), lambda: frames
    again = (image.native_frame(index)[0] for index in range(image.number_of_frames))
    return told.pop(), lambda: again


def _pixel_module(
    image: StoredImage, photometric: str, elements: dict[int, bytes], target: _Syntax
) -> dict[int, bytes]:
    """Return what the image pixel module says differently of native samples."""
    text = photometric.encode() + b" " * (len(photometric) % 2)
    changed = {PHOTOMETRIC_INTERPRETATION: (b"CS", text)}
    if image.picture.samples_per_pixel > 1:
        number = struct.pack(f"{target.order}H", 0)  # colour by pixel
        changed[PLANAR_CONFIGURATION] = (b"US", number)
    lossy = image.transfer_syntax_uid in LOSSY
    if lossy and LOSSY_IMAGE_COMPRESSION not in elements:
        changed[LOSSY_IMAGE_COMPRESSION] = (b"CS", b"01")
    return {
        tag: _header(tag, vr, len(value), target) + value
        for tag, (vr, value) in changed.items()
    }


# -- elements --------------------------------------------------------------------------


class _Rewriter:
    """Reads the elements of a data set and writes each in another encoding."""

    def __init__(self, file: BinaryIO, source: _Syntax, target: _Syntax) -> None:
        self._file = file
        self._source = source
        self._target = target
        self._signed = False

    def elements(self) -> tuple[dict[int, bytes], tuple[bytes, int] | None]:
        """Return what comes before the pixel data, and its VR and length if any."""
        elements: dict[int, bytes] = {}
        while (head := self._head(self._source)) is not None:
            tag, vr, length = head
            if tag == PIXEL_DATA:
                return elements, (vr, length)
            content = self._element(tag, vr, length, self._source, depth=0)
            if tag & 0xFFFF:  # lengths of groups would be wrong now, and are retired
                elements[tag] = content
        return elements, None

    def rest(self) -> bytes:
        """Return what comes after the pixel data."""
        elements, _ = self.elements()
        return b"".join(elements.values())

    def _head(self, source: _Syntax) -> tuple[int, bytes, int] | None:
        """Read tag, VR and length; None at the end of the data set."""
        order, head = source.order, self._file.read(8)
        if not head:
            return None
        if len(head) < 8:
            raise CutOff
        group, number = struct.unpack_from(f"{order}HH", head)
        tag = group << 16 | number
        if group == 0xFFFE or not source.explicit:
            (length,) = struct.unpack_from(f"{order}I", head, 4)
            return tag, b"" if group == 0xFFFE else self._vr_of(tag), length
        vr = head[4:6]
        if vr in _LONG:
            (length,) = struct.unpack(f"{order}I", self._read(4))
        else:
            (length,) = struct.unpack_from(f"{order}H", head, 6)
        return tag, vr, length

    def _element(
        self, tag: int, vr: bytes, length: int, source: _Syntax, *, depth: int
    ) -> bytes:
        """Return one element whose head has just been read."""
        if depth > MAX_DEPTH:
            raise NodeError("sequences are nested too deep", ErrorKind.INVALID)
        if vr == b"SQ":
            content = self._items(length, source, depth)
            return _header(tag, vr, len(content), self._target) + content
        if length == UNDEFINED and vr in (b"OB", b"OW"):
            _pass_fragments(self._file)  # of an icon, see `_decompressed`
            return b""
        if length == UNDEFINED:
            # UN of undefined length is a sequence in Implicit VR (PS3.5 6.2.2 note 2).
            inner = _Syntax(explicit=False, order="<")
            content = self._items(length, inner, depth)
            return _header(tag, b"SQ", len(content), self._target) + content
        value = self._read(length)
        if tag == PIXEL_REPRESENTATION:
            self._signed = value[:1] == b"\1" or value[1:2] == b"\1"
        if source.order != self._target.order:
            value = _swapped(value, _WORDS.get(vr))
        return _header(tag, vr, len(value), self._target) + value

    def _items(self, length: int, source: _Syntax, depth: int) -> bytes:
        """Return the items of a sequence, each with its length."""
        written = []
        for tag, _, item_length in self._heads(length, source, SEQUENCE_END):
            if tag != ITEM:
                raise NodeError("a sequence holds something else", ErrorKind.INVALID)
            content = self._item(item_length, source, depth)
            written.append(_header(ITEM, b"", len(content), self._target) + content)
        return b"".join(written)

    def _item(self, length: int, source: _Syntax, depth: int) -> bytes:
        """Return the elements of an item; group lengths (PS3.5 7.2) are left out."""
        written = []
        for tag, vr, inner in self._heads(length, source, ITEM_END):
            content = self._element(tag, vr, inner, source, depth=depth + 1)
            if tag & 0xFFFF:
                written.append(content)
        return b"".join(written)

    def _heads(
        self, length: int, source: _Syntax, delimiter: int
    ) -> Iterator[tuple[int, bytes, int]]:
        """Yield tag, VR and length of what stands within `length` bytes.

        One of undefined length ends with its `delimiter`; CutOff when it does not.
        """
        end = None if length == UNDEFINED else self._file.tell() + length
        while end is None or self._file.tell() < end:
            head = self._head(source)
            if head is None:
                raise CutOff
            if head[0] == delimiter:
                return
            yield head

    def _vr_of(self, tag: int) -> bytes:
        """Return the VR of an element whose encoding does not tell it."""
        if tag >> 16 & 1:
            return b"LO" if 0x10 <= tag & 0xFFFF <= 0xFF else b"UN"
        try:
            told = dictionary_VR(tag)
        except KeyError:
            return b"UN"
        if len(told) == 2:
            return told.encode()
        if "OW" in told:
            return b"OW"
        return b"SS" if self._signed else b"US"

    def _read(self, length: int) -> bytes:
        if length > MAX_VALUE:
            raise NodeError("an element is larger than the limit", ErrorKind.EXHAUSTED)
        value = self._file.read(length)
        if len(value) < length:
            raise CutOff
        return value


def _header(tag: int, vr: bytes, length: int, target: _Syntax) -> bytes:
    """Return tag, VR and length of an element as `target` writes them (PS3.5 7.1)."""
    order = target.order
    place = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if not target.explicit or tag >> 16 == 0xFFFE:
        return place + struct.pack(f"{order}I", length)
    if vr not in _LONG:
        if length <= 0xFFFF:
            return place + vr + struct.pack(f"{order}H", length)
        vr = b"UN"  # too long for its VR (PS3.5 6.2.2)
    return place + vr + b"\0\0" + struct.pack(f"{order}I", length)


def _swapped(value: bytes, word: str | None) -> bytes:
    """Return `value` with the bytes of each of its words turned round."""
    if word is None:
        return value
    words = array(word)
    whole = len(value) - len(value) % words.itemsize
    words.frombytes(value[:whole])
    words.byteswap()
    return words.tobytes() + value[whole:]


# -- stored files ----------------------------------------------------------------------


def _start(reader: RandomAccess) -> int:
    return data_set_offset(reader.read(0, 144))


def _data_set(reader: RandomAccess, source: _Syntax) -> BinaryIO:
    start = _start(reader)
    if source.deflated:
        whole = reader.read(start, reader.size - start)
        return BytesIO(inflate(memoryview(whole)))
    file = cast(BinaryIO, BufferedReader(ReaderFile(reader), 1 << 16))
    file.seek(start)
    return file


def _pieces(reader: RandomAccess, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, PIECE):
        yield reader.read(at, min(PIECE, end - at))


def _pass_fragments(file: BinaryIO) -> None:
    """Leave `file` behind the fragments of encapsulated pixel data (PS3.5 A.4)."""
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise CutOff
        group, element, length = struct.unpack("<HHI", head)
        if group << 16 | element == SEQUENCE_END:
            return
        file.seek(length, 1)


def _deflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    length = 0
    for chunk in chunks:
        piece = deflater.compress(chunk)
        length += len(piece)
        yield piece
    piece = deflater.flush()
    yield piece + b"\0" * ((length + len(piece)) % 2)
