"""Stored video as the stream it is (PS3.5 8.2.5-8.2.9): given out, never decoded.

A frame of a video cannot be cut out or blackened without decoding it, and names are
burned in: only callers who may have whole instances get it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from node.domain.errors import ErrorKind, NodeError
from node.imaging import FrameTable, RandomAccess, video_fragments

MP4, TRANSPORT_STREAM, MPEG = "video/mp4", "video/mp2t", "video/mpeg"
OTHER: Final = "application/octet-stream"
CHUNK: Final = 1 << 20
_MPEG2: Final = "1.2.840.10008.1.2.4.10"  # .100 and .101, fragmentable ones too


@dataclass(frozen=True)
class VideoStream:
    """The bitstream of one instance, its fragments joined; sizes in bytes."""

    reader: RandomAccess
    fragments: FrameTable
    media_type: str

    @classmethod
    def open(cls, reader: RandomAccess, transfer_syntax_uid: str) -> VideoStream:
        """Find the stream in a Part 10 file. Blocks.

        The container is told by its first bytes: the transfer syntax leaves it open.
        NodeError NOT_FOUND when there is none.
        """
        fragments = video_fragments(reader)
        if not fragments:
            raise NodeError("the instance holds no video", ErrorKind.NOT_FOUND)
        at, length = fragments[0]
        start = reader.read(at, min(length, 12))
        return cls(reader, fragments, _media_type(start, transfer_syntax_uid))

    @property
    def size(self) -> int:
        """Return the length of the stream."""
        return sum(length for _, length in self.fragments)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (offset in the file, length) of what lies between two offsets."""
        passed = 0
        for at, length in self.fragments:
            first, last = max(start - passed, 0), min(stop - passed, length)
            for begin in range(first, last, CHUNK):
                yield at + begin, min(CHUNK, last - begin)
            passed += length


def _media_type(start: bytes, transfer_syntax_uid: str) -> str:
    if start[4:8] == b"ftyp":
        return MP4
    if start[:1] == b"\x47":
        return TRANSPORT_STREAM
    syntax = transfer_syntax_uid.removesuffix(".1")
    mpeg2 = syntax[:-1] == _MPEG2 and syntax[-1] in "01"
    return MPEG if mpeg2 else OTHER
