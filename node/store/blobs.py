"""Encrypted objects as files, in Tink's AES256-GCM-HKDF 1 MB streaming format.

Layout of a file: header (length 40, 32 bytes salt, 7 bytes nonce prefix), then
segments of 1 MiB ciphertext; the first is shorter by the header. A segment's nonce
is prefix, its number and whether it is the last, so that segments can neither be
moved nor cut off; the associated data goes into the key derivation. Any byte range
is read by decrypting only the segments that hold it.

An object is written under `unfinished/` and moved to its place when somebody has noted
that it exists. Until then its writer holds a lock on it, so that what nobody holds is
the work of a process that was killed: `abandoned` finds it, and whoever knows the notes
says whether to keep it. So the flush of an object and that of the note can run side by
side, and a crash at any moment loses nothing and leaves nothing.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

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
SEGMENTS_AT_ONCE = 4  # of all writers of a process, beside those that gather
# File systems on which a new file's name is durable when the file is: they write one
# journal in order (ext4, xfs) or log the name with the file (btrfs).
_NAMES_FOLLOW_FILES = frozenset({"ext4", "xfs", "btrfs"})
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class BlobStore:
    """Files below `root`, sharded by a hash of their opaque names."""

    def __init__(self, root: Path) -> None:
        """Open the folder, made if new."""
        self._root = root
        self._unfinished = root / "unfinished"
        with _disk_errors():
            self._unfinished.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_shards()
            self._names_follow = _file_system(root) in _NAMES_FOLLOW_FILES
        self._aside = ThreadPoolExecutor(SEGMENTS_AT_ONCE, "segments")
        self._buffers = _Buffers()

    def writer(self, name: str, *, key: bytes, associated_data: bytes) -> "BlobWriter":
        """Return a writer; nothing is visible under `name` before it is synced."""
        return BlobWriter(
            self._path(name),
            self._unfinished_path(name),
            key,
            bind_name(name, associated_data),
            names_follow=self._names_follow,
            aside=self._aside,
            buffers=self._buffers,
        )

    def reader(self, name: str, *, key: bytes, associated_data: bytes) -> "BlobReader":
        """Return a reader; NOT_FOUND when there is no such object."""
        bound = bind_name(name, associated_data)
        # It may be noted already and on its way from one place to the other.
        for path in (self._path(name), self._unfinished_path(name)):
            with suppress(FileNotFoundError):
                return BlobReader(path, key, bound)
        with suppress(FileNotFoundError):
            return BlobReader(self._path(name), key, bound)
        raise NodeError("the object is not stored here", ErrorKind.NOT_FOUND)

    def exists(self, name: str) -> bool:
        """Tell whether `name` was written, in its place or on its way there."""
        return self._path(name).exists() or self._unfinished_path(name).exists()

    def delete(self, name: str) -> None:
        """Remove an object; nothing happens when it is not there."""
        self._unfinished_path(name).unlink(missing_ok=True)
        self._path(name).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the room left on the disk."""
        return shutil.disk_usage(self._root).free

    @contextmanager
    def abandoned(self) -> Iterator[list["AbandonedObject"]]:
        """Yield the unfinished objects of killed writers, which nobody else has.

        A living writer holds a lock on its file, in whatever process or container
        it runs, so this is safe at any time.
        """
        found: list[AbandonedObject] = []
        try:
            for path in self._unfinished.iterdir():
                taken = _lock_abandoned(path)
                if taken is not None:
                    name = unquote(path.name)
                    found.append(
                        AbandonedObject(name, path, self._path(name), descriptor=taken)
                    )
            yield found
        finally:
            for one in found:
                os.close(one.descriptor)

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return Path(f"{self._root}/{digest[:2]}/{digest}")

    def _unfinished_path(self, name: str) -> Path:
        return Path(f"{self._unfinished}/{quote(name, safe='')}")

    def _make_shards(self) -> None:
        """Make all folders now: a commit then has one entry to make durable."""
        present = {entry.name for entry in os.scandir(self._root)}
        missing = {f"{number:02x}" for number in range(256)} - present
        for shard in missing:
            (self._root / shard).mkdir(mode=0o700, exist_ok=True)
        if missing:
            _fsync_directory(self._root)


@dataclass(frozen=True)
class AbandonedObject:
    """What a killed writer left under the name that it was writing."""

    name: str
    _path: Path
    _place: Path
    descriptor: int

    def keep(self) -> None:
        """Move it to its place: it was noted, so all of it was written."""
        with _disk_errors():
            os.replace(self._path, self._place)

    def remove(self) -> None:
        """Remove it: nobody knows of it."""
        self._path.unlink(missing_ok=True)


class _Buffers:
    """Memory for segments, used again: a fresh page costs more than filling it."""

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque(maxlen=2 * SEGMENTS_AT_ONCE)

    def take(self) -> memoryview:
        """Return room for one segment."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(bytearray(PLAIN))

    def give_back(self, buffer: memoryview) -> None:
        """Let somebody else have `buffer`."""
        self._free.append(buffer)


class BlobWriter:
    """Encrypts a stream of bytes into one file; holds at most two segments in memory.

    While one segment gathers, the one before it is encrypted and written.

    `commit` is all that is needed for an object on its own. Who notes it elsewhere at
    the same time calls the three steps: `complete`, `sync` beside the note, `publish`.
    """

    def __init__(
        self,
        path: Path,
        unfinished: Path,
        key: bytes,
        associated_data: bytes,
        *,
        names_follow: bool,
        aside: Executor,
        buffers: _Buffers,
    ) -> None:
        self._path = path
        self._unfinished = unfinished
        self._names_follow = names_follow
        self._aside = aside
        self._under_way: Future[None] | None = None
        fresh = os.urandom(SALT + PREFIX)
        salt, self._prefix = fresh[:SALT], fresh[SALT:]
        self._header = bytes([HEADER]) + fresh
        self._cipher = AESGCM(_derive(key, salt, associated_data))
        self._buffers = buffers
        self._buffer = buffers.take()
        self._filled = 0
        self._segment = 0
        self._size = 0
        self._completed = False
        self._file: int | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append plaintext; EXHAUSTED when the disk is full, nothing is kept then."""
        view = memoryview(data)
        self._size += len(view)
        while view:
            # A full buffer waits until more comes: the last segment says it is last.
            if self._filled == self._room():
                self._flush(last=False)
            end = min(self._filled + len(view), self._room())
            taken = end - self._filled
            self._buffer[self._filled : end] = view[:taken]
            self._filled, view = end, view[taken:]

    def complete(self) -> int:
        """Write what is left; return the plaintext size. A reader finds it now."""
        if not self._completed:
            self._flush(last=True)
            self._completed = True
        return self._size

    def sync(self) -> None:
        """Make file and name durable; an object that cannot be is dropped."""
        try:
            with _disk_errors():
                os.fsync(self._descriptor())
                if not self._names_follow:
                    _fsync_directory(self._unfinished.parent)
        except BaseException:
            self.abort()
            raise

    def publish(self) -> None:
        """Move a noted object to its place and let go of it.

        The move need not be durable: an object that a crash puts back is moved again.
        """
        with _disk_errors():
            os.replace(self._unfinished, self._path)
        self._close()

    def commit(self) -> int:
        """Make the object durable in its place, for who notes it only afterwards.

        Return its plaintext size.
        """
        self.complete()
        self.sync()
        self.publish()
        with _disk_errors():
            _fsync_directory(self._path.parent)
        return self._size

    def leave(self) -> None:
        """Let go of an object of which nobody can say whether it was noted.

        Whoever settles what is abandoned can, when the notes can be read again.
        """
        self._close()

    def abort(self) -> None:
        """Drop what was written."""
        with suppress(Exception):
            self._wait()
        if self._file is not None:
            self._unfinished.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        descriptor, self._file = self._file, None
        if descriptor is not None:
            os.close(descriptor)

    def _room(self) -> int:
        return PLAIN if self._segment else FIRST_PLAIN

    def _flush(self, *, last: bool) -> None:
        nonce = _nonce(self._prefix, self._segment, last=last)
        segment, length = self._buffer, self._filled
        self._segment, self._filled = self._segment + 1, 0
        try:
            self._wait()
            if last:
                self._seal(nonce, segment, length)
            else:
                self._buffer = self._buffers.take()
                self._under_way = self._aside.submit(self._seal, nonce, segment, length)
        except BaseException:
            self.abort()
            raise

    def _wait(self) -> None:
        """Let the segment before end, and raise what it met."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _seal(self, nonce: bytes, segment: memoryview, length: int) -> None:
        sealed = self._cipher.encrypt(nonce, segment[:length], None)
        self._buffers.give_back(segment)
        self._put(sealed)

    def _put(self, data: bytes) -> None:
        with _disk_errors():
            descriptor, view = self._descriptor(), memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    def _descriptor(self) -> int:
        """Return the file, made when there is something to put into it."""
        if self._file is None:
            self._file = _create_locked(self._unfinished)
            os.write(self._file, self._header)
        return self._file


class BlobReader:
    """Reads any range of one object, decrypting only the segments that hold it."""

    def __init__(self, path: Path, key: bytes, associated_data: bytes) -> None:
        with _disk_errors(absent=True):
            self._file: BinaryIO = open(path, "rb", buffering=0)  # noqa: SIM115
        self._length = os.fstat(self._file.fileno()).st_size
        header = self._file.read(HEADER)
        if len(header) < HEADER or header[0] != HEADER:
            self.close()
            raise _damaged()
        self._prefix = header[1 + SALT :]
        self._cipher = AESGCM(_derive(key, header[1 : 1 + SALT], associated_data))
        self._segments = max(1, -(-self._length // SEGMENT))
        self._cached: tuple[int, bytes] | None = None
        self._proved = False

    def __enter__(self) -> "BlobReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def size(self) -> int:
        """Return the plaintext size in bytes; INTEGRITY when the end was cut off."""
        self._prove_end()
        return self._size()

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the object.

        INTEGRITY when anything that is read was changed on disk, and when fewer
        bytes would be returned because the end was cut off.
        """
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length count from the start")
        end = self._size()
        if length is None or offset + length > end:
            self._prove_end()
        else:
            end = offset + length
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

    def _size(self) -> int:
        return max(0, self._length - HEADER - TAG * self._segments)

    def _prove_end(self) -> None:
        """Open the last segment: only the true one opens as the last."""
        if not self._proved:
            self._segment(self._segments - 1)
            self._proved = True

    def _segment(self, index: int) -> bytes:
        if self._cached is not None and self._cached[0] == index:
            return self._cached[1]
        start = HEADER if index == 0 else index * SEGMENT
        stop = min((index + 1) * SEGMENT, self._length)
        with _disk_errors():
            sealed = os.pread(self._file.fileno(), stop - start, start)
        nonce = _nonce(self._prefix, index, last=index == self._segments - 1)
        try:
            plain = self._cipher.decrypt(nonce, sealed, None)
        except (InvalidTag, ValueError):
            raise _damaged() from None
        self._cached = (index, plain)
        return plain


def bind_name(name: str, associated_data: bytes) -> bytes:
    """Return the associated data that is valid for this name only.

    A file that is put in the place of another does not open there.
    """
    return f"sononode blob {len(name)} {name} ".encode() + associated_data


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

    if start >= end:
        return range(0)
    return range(holding(start), min(holding(end - 1) + 1, count))


def _damaged() -> NodeError:
    return NodeError("a stored object is not what was written", ErrorKind.INTEGRITY)


def _create_locked(path: Path) -> int:
    """Return a new file that nobody takes for abandoned while it is open."""
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            _remove_abandoned(path)
            continue
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A sweep may have come between the two calls.
            if os.fstat(descriptor).st_nlink:
                return descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Make room for who tries again; CONFLICT when somebody is writing this."""
    taken = _lock_abandoned(path)
    if taken is not None:
        path.unlink(missing_ok=True)
        os.close(taken)
    elif path.exists():
        raise NodeError("this object is being written", ErrorKind.CONFLICT)


def _lock_abandoned(path: Path) -> int | None:
    """Return a descriptor that holds `path`; None while its writer lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have moved it on between the two calls.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _file_system(folder: Path) -> str:
    """Return the type of the file system below `folder`; empty when unknown."""
    device = folder.stat().st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            if fields.split()[2:3] == [numbers]:
                return rest.split()[0]
    return ""


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(*, absent: bool = False) -> Iterator[None]:
    """Name what the disk says; `absent` lets a missing file be the caller's matter."""
    try:
        yield
    except OSError as error:
        if absent and error.errno == errno.ENOENT:
            raise
        if error.errno in _FULL:
            raise NodeError("the disk is full", ErrorKind.EXHAUSTED) from None
        raise NodeError(
            f"the disk refuses ({errno.errorcode.get(error.errno or 0)});"
            " check storage.objects",
            ErrorKind.UNAVAILABLE,
        ) from None
