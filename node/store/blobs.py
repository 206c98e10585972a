"""Encrypted objects as files, in Tink's AES256-GCM-HKDF 1 MB streaming format.

Layout of a file: header (length 40, 32 bytes salt, 7 bytes nonce prefix), then
segments of 1 MiB ciphertext; the first is shorter by the header. A segment's nonce
is prefix, its number and whether it is the last, so that segments can neither be
moved nor cut off; the associated data goes into the key derivation. Any byte range
is read by decrypting only the segments that hold it.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.domain.errors import ErrorKind, NodeError

SEGMENT = 1 << 20
TAG = 16
SALT = 32
PREFIX = 7
HEADER = 1 + SALT + PREFIX
PLAIN = SEGMENT - TAG
FIRST_PLAIN = PLAIN - HEADER
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = ".part"


class BlobStore:
    """Files below `root`, sharded by a hash of their opaque names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def writer(self, name: str, *, key: bytes, associated_data: bytes) -> "BlobWriter":
        """Return a writer; nothing is visible under `name` before its commit."""
        return BlobWriter(self._path(name), key, associated_data)

    def reader(self, name: str, *, key: bytes, associated_data: bytes) -> "BlobReader":
        """Return a reader; NOT_FOUND when there is no such object."""
        return BlobReader(self._path(name), key, associated_data)

    def exists(self, name: str) -> bool:
        """Tell whether `name` was committed."""
        return self._path(name).exists()

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when it is not there."""
        self._path(name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the room left on the disk."""
        return shutil.disk_usage(self._root).free

    def sweep(self) -> int:
        """Remove what interrupted writers left; return how many files.

        Only at start, before any writer of this process: a writer's file carries
        its process id and those of living processes are kept.
        """
        removed = 0
        for path in self._root.glob(f"*/*/*{_TEMPORARY}"):
            process = path.name.removesuffix(_TEMPORARY).rsplit(".", 2)[-2]
            if process == str(os.getpid()) or not Path("/proc", process).exists():
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._root / digest[:2] / digest[2:4] / digest


class BlobWriter:
    """Encrypts a stream of bytes into one file; holds at most one segment in memory."""

    def __init__(self, path: Path, key: bytes, associated_data: bytes) -> None:
        self._path = path
        salt, self._prefix = os.urandom(SALT), os.urandom(PREFIX)
        self._cipher = AESGCM(_derive(key, salt, associated_data))
        self._buffer = bytearray()
        self._segment = 0
        self._size = 0
        unique = f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}{_TEMPORARY}"
        self._temporary = path.with_name(unique)
        with _disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file: BinaryIO = open(self._temporary, "xb", buffering=0)  # noqa: SIM115
            os.fchmod(self._file.fileno(), 0o600)
        try:
            self._put(bytes([HEADER]) + salt + self._prefix)
        except BaseException:
            self.abort()
            raise

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append plaintext; EXHAUSTED when the disk is full, nothing is kept then."""
        view = memoryview(data)
        self._size += len(view)
        while view:
            # A full buffer waits until more comes: the last segment says it is last.
            if len(self._buffer) == self._room():
                self._flush(last=False)
            taken = min(len(view), self._room() - len(self._buffer))
            self._buffer += view[:taken]
            view = view[taken:]

    def commit(self) -> int:
        """Make the object durable under its name; return its plaintext size.

        On return the file and its directory entry are on disk.
        """
        try:
            self._flush(last=True)
            with _disk_errors():
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self._path)
                _fsync_directories(self._path.parent)
        except BaseException:
            self.abort()
            raise
        return self._size

    def abort(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _room(self) -> int:
        return PLAIN if self._segment else FIRST_PLAIN

    def _flush(self, *, last: bool) -> None:
        nonce = _nonce(self._prefix, self._segment, last=last)
        try:
            self._put(self._cipher.encrypt(nonce, bytes(self._buffer), None))
        except BaseException:
            self.abort()
            raise
        self._buffer.clear()
        self._segment += 1

    def _put(self, data: bytes) -> None:
        with _disk_errors():
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]


class BlobReader:
    """Reads any range of one object, decrypting only the segments that hold it."""

    def __init__(self, path: Path, key: bytes, associated_data: bytes) -> None:
        try:
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError:
            raise NodeError(
                "the object is not stored here", ErrorKind.NOT_FOUND
            ) from None
        self._length = os.fstat(self._file.fileno()).st_size
        header = self._file.read(HEADER)
        if len(header) < HEADER or header[0] != HEADER:
            self.close()
            raise _damaged()
        self._prefix = header[1 + SALT :]
        self._cipher = AESGCM(_derive(key, header[1 : 1 + SALT], associated_data))
        self._segments = max(1, -(-self._length // SEGMENT))
        self._cached: tuple[int, bytes] | None = None

    def __enter__(self) -> "BlobReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """Return the plaintext size in bytes."""
        return self._length - HEADER - TAG * self._segments

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the object.

        INTEGRITY when anything that is read was changed on disk. Reading to the
        end also proves that nothing was cut off.
        """
        end = self.size if length is None else min(offset + length, self.size)
        parts = []
        for index in _segments_of(offset, max(offset, end), self._segments):
            start = _plain_start(index)
            plain = self._segment(index)
            parts.append(plain[max(0, offset - start) : max(0, end - start)])
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole object, a segment at a time."""
        for index in range(self._segments):
            yield self._segment(index)

    def _segment(self, index: int) -> bytes:
        if self._cached is not None and self._cached[0] == index:
            return self._cached[1]
        start = HEADER if index == 0 else index * SEGMENT
        stop = min((index + 1) * SEGMENT, self._length)
        sealed = os.pread(self._file.fileno(), stop - start, start)
        nonce = _nonce(self._prefix, index, last=index == self._segments - 1)
        try:
            plain = self._cipher.decrypt(nonce, sealed, None)
        except (InvalidTag, ValueError):
            raise _damaged() from None
        self._cached = (index, plain)
        return plain


def _derive(key: bytes, salt: bytes, associated_data: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, associated_data).derive(key)


def _nonce(prefix: bytes, segment: int, *, last: bool) -> bytes:
    return prefix + segment.to_bytes(4, "big") + (b"\x01" if last else b"\x00")


def _plain_start(index: int) -> int:
    return 0 if index == 0 else FIRST_PLAIN + (index - 1) * PLAIN


def _segments_of(start: int, end: int, count: int) -> range:
    def holding(position: int) -> int:
        past_first = position - FIRST_PLAIN
        return 0 if past_first < 0 else 1 + past_first // PLAIN

    if start >= end:  # an empty object still proves itself by its one segment
        return range(0, 1 if start == 0 and count == 1 else 0)
    return range(holding(start), min(holding(end - 1) + 1, count))


def _damaged() -> NodeError:
    return NodeError("a stored object is not what was written", ErrorKind.INTEGRITY)


def _fsync_directories(directory: Path) -> None:
    """Make the name durable, and the two shard folders that may be new."""
    for folder in (directory, directory.parent, directory.parent.parent):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise NodeError("the disk is full", ErrorKind.EXHAUSTED) from None
        raise NodeError(
            f"the disk refuses to write ({errno.errorcode.get(error.errno or 0)});"
            " check storage.objects",
            ErrorKind.UNAVAILABLE,
        ) from None
