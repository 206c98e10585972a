"""Objects at rest: Tink's AES256-GCM-HKDF 1 MB format, damage, and full disks."""

import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tink
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

from node.domain.errors import ErrorKind, NodeError
from node.store import blobs
from node.store.blobs import FIRST_PLAIN, HEADER, PLAIN, SEGMENT, BlobStore, bind_name

KEY = bytes(range(32))
NAME = "1.2.840.113619.1"
PLACE = b"instances\x1f1.2.3"
# Sizes around every boundary of the format.
SIZES = [0, 1, FIRST_PLAIN - 1, FIRST_PLAIN, FIRST_PLAIN + 1, FIRST_PLAIN + PLAIN]
SIZES += [FIRST_PLAIN + PLAIN + 1, 3 * SEGMENT + 12345]


@pytest.fixture
def objects(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "objects")


def put(objects: BlobStore, data: bytes, name: str = NAME) -> Path:
    writer = objects.writer(name, key=KEY, associated_data=PLACE)
    writer.write(data)
    assert writer.commit() == len(data)
    return objects._path(name)


def get(objects: BlobStore, name: str = NAME) -> bytes:
    with objects.reader(name, key=KEY, associated_data=PLACE) as reader:
        return reader.read()


def tink_cipher() -> streaming_aead.StreamingAead:
    """Tink's own implementation under our key."""
    streaming_aead.register()
    format_ = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        version=0,
        key_value=KEY,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=SEGMENT,
            derived_key_size=32,
            hkdf_hash_type=common_pb2.SHA256,
        ),
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    key = keyset.key.add()
    key.key_data.type_url = (
        "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    )
    key.key_data.value = format_.SerializeToString()
    key.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    key.status, key.key_id = tink_pb2.ENABLED, 1
    key.output_prefix_type = tink_pb2.RAW
    handle = tink.proto_keyset_format.parse(
        keyset.SerializeToString(), secret_key_access.TOKEN
    )
    return handle.primitive(streaming_aead.StreamingAead)


@pytest.mark.parametrize("size", SIZES)
def test_tink_reads_what_we_wrote(objects: BlobStore, size: int) -> None:
    data = os.urandom(size)
    path = put(objects, data)
    with tink_cipher().new_decrypting_stream(
        io.BytesIO(path.read_bytes()), bind_name(NAME, PLACE)
    ) as stream:
        assert stream.read() == data


@pytest.mark.parametrize("size", SIZES)
def test_we_read_what_tink_wrote(objects: BlobStore, size: int) -> None:
    data = os.urandom(size)
    written = io.BytesIO()
    written.close = lambda: None  # type: ignore[method-assign]
    with tink_cipher().new_encrypting_stream(written, bind_name(NAME, PLACE)) as stream:
        stream.write(data)
    objects._path(NAME).write_bytes(written.getvalue())
    assert get(objects) == data


@pytest.fixture(scope="module")
def cine(tmp_path_factory: pytest.TempPathFactory) -> tuple[BlobStore, bytes]:
    objects = BlobStore(tmp_path_factory.mktemp("cine"))
    data = os.urandom(3 * SEGMENT + 999)
    put(objects, data)
    return objects, data


@settings(max_examples=200)
@given(
    offset=st.integers(0, 3 * SEGMENT + 2000),
    length=st.one_of(st.none(), st.integers(0, 2 * SEGMENT + 100)),
)
def test_any_range_is_the_slice_of_the_whole(
    cine: tuple[BlobStore, bytes], offset: int, length: int | None
) -> None:
    objects, data = cine
    end = None if length is None else offset + length
    with objects.reader(NAME, key=KEY, associated_data=PLACE) as reader:
        assert reader.read(offset, length) == data[offset:end]
        assert reader.size == len(data)


def test_a_frame_costs_at_most_two_segments(
    cine: tuple[BlobStore, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, data = cine
    read: list[int] = []
    original = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        read.append(offset)
        return original(descriptor, size, offset)

    monkeypatch.setattr(blobs.os, "pread", counted)
    with objects.reader(NAME, key=KEY, associated_data=PLACE) as reader:
        frame = reader.read(2 * SEGMENT - 5000, 10_000)
    assert frame == data[2 * SEGMENT - 5000 :][:10_000]
    assert len(read) == 2


def test_chunks_join_to_the_whole(cine: tuple[BlobStore, bytes]) -> None:
    objects, data = cine
    with objects.reader(NAME, key=KEY, associated_data=PLACE) as reader:
        assert b"".join(reader.chunks()) == data


@settings(max_examples=60)
@given(parts=st.lists(st.integers(0, 3000), max_size=30), split=st.integers(1, 4096))
def test_how_the_bytes_arrive_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, parts: list[int], split: int
) -> None:
    objects = BlobStore(tmp_path_factory.getbasetemp() / "arrivals")
    data = os.urandom(sum(parts))
    writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
    for start in range(0, len(data), split):
        writer.write(memoryview(data)[start : start + split])
    writer.commit()
    assert get(objects) == data


def flip_each_part(path: Path) -> Iterator[Callable[[], None]]:
    """Yield changes of one bit: header, salt, prefix, each segment, each tag."""
    whole = path.read_bytes()
    places = [0, 1, 20, HEADER - 1, HEADER, SEGMENT - 1, SEGMENT, len(whole) - 1]
    for place in places:

        def change(place: int = place) -> None:
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            path.write_bytes(damaged)

        yield change


def test_every_changed_bit_is_noticed(objects: BlobStore) -> None:
    path = put(objects, os.urandom(SEGMENT + 5000))
    for change in flip_each_part(path):
        change()
        with pytest.raises(NodeError) as told:
            get(objects)
        assert told.value.kind is ErrorKind.INTEGRITY


@pytest.mark.parametrize(
    "kept", [0, 1, HEADER, HEADER + 15, SEGMENT // 2, SEGMENT, SEGMENT + 8, 2 * SEGMENT]
)
def test_a_file_cut_short_is_noticed_even_at_a_segment_boundary(
    objects: BlobStore, kept: int
) -> None:
    path = put(objects, os.urandom(2 * SEGMENT + 5000))
    os.truncate(path, kept)
    for read in (
        lambda reader: reader.read(),
        lambda reader: reader.size,
        lambda reader: reader.read(3 * SEGMENT, 10),
        lambda reader: reader.read(2 * SEGMENT, SEGMENT),
    ):
        with (
            pytest.raises(NodeError) as told,
            objects.reader(NAME, key=KEY, associated_data=PLACE) as reader,
        ):
            read(reader)
        assert told.value.kind is ErrorKind.INTEGRITY


def test_segments_cannot_change_places(objects: BlobStore) -> None:
    path = put(objects, os.urandom(4 * SEGMENT))
    whole = path.read_bytes()
    second, third = whole[SEGMENT : 2 * SEGMENT], whole[2 * SEGMENT : 3 * SEGMENT]
    path.write_bytes(whole[:SEGMENT] + third + second + whole[3 * SEGMENT :])
    with pytest.raises(NodeError, match="not what was written"):
        get(objects)


def test_a_file_in_the_place_of_another_does_not_open(objects: BlobStore) -> None:
    first, second = put(objects, b"of one woman"), put(objects, b"of another", "2.25.2")
    os.replace(first, second)
    with pytest.raises(NodeError) as told:
        get(objects, "2.25.2")
    assert told.value.kind is ErrorKind.INTEGRITY


@pytest.mark.parametrize(
    ("key", "place"), [(bytes(32), PLACE), (KEY, b"instances\x1f9.9.9")]
)
def test_another_key_or_place_does_not_open(
    objects: BlobStore, key: bytes, place: bytes
) -> None:
    put(objects, b"pixels")
    with (
        pytest.raises(NodeError) as told,
        objects.reader(NAME, key=key, associated_data=place) as reader,
    ):
        reader.read()
    assert told.value.kind is ErrorKind.INTEGRITY


def test_nothing_of_plaintext_or_name_is_on_disk(
    objects: BlobStore, tmp_path: Path
) -> None:
    put(objects, b"ZHANG^XIAOMING" * 1000, "ZHANG-1.2.3")
    put(objects, b"ZHANG^XIAOMING", "../../../etc/ZHANG")
    for path in tmp_path.rglob("*"):
        assert b"ZHANG" not in os.fsencode(path.relative_to(tmp_path))
        assert not path.is_file() or b"ZHANG" not in path.read_bytes()


def test_files_are_for_the_node_alone(objects: BlobStore, tmp_path: Path) -> None:
    put(objects, b"pixels")
    for path in (tmp_path / "objects").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_nothing_is_there_before_a_segment_is_full_or_after_an_abort(
    objects: BlobStore,
) -> None:
    writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
    writer.write(os.urandom(SEGMENT // 2))
    assert not objects.exists(NAME)
    writer.write(os.urandom(2 * SEGMENT))
    writer.abort()
    assert not objects.exists(NAME)
    with pytest.raises(NodeError) as told:
        get(objects)
    assert told.value.kind is ErrorKind.NOT_FOUND


def test_a_complete_object_is_read_before_and_after_it_is_in_its_place(
    objects: BlobStore,
) -> None:
    writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
    writer.write(b"pixels")
    assert writer.complete() == writer.complete() == 6
    assert get(objects) == b"pixels"
    writer.sync()
    writer.publish()
    assert get(objects) == b"pixels"
    with objects.abandoned() as left:
        assert left == []


def test_two_writers_of_one_name_do_not_mix(objects: BlobStore) -> None:
    first = objects.writer(NAME, key=KEY, associated_data=PLACE)
    first.write(b"first")
    first.complete()
    second = objects.writer(NAME, key=KEY, associated_data=PLACE)
    second.write(b"second")
    with pytest.raises(NodeError) as told:
        second.complete()
    assert told.value.kind is ErrorKind.CONFLICT
    first.leave()  # as if it had been killed
    put(objects, b"third")
    assert get(objects) == b"third"


def test_an_object_written_again_is_replaced_whole(objects: BlobStore) -> None:
    put(objects, b"first")
    put(objects, b"second")
    assert get(objects) == b"second"
    objects.delete(NAME)
    objects.delete(NAME)
    assert not objects.exists(NAME)


def test_what_a_killed_writer_left_is_found_and_nothing_else(
    tmp_path: Path,
) -> None:
    root = tmp_path / "objects"
    objects = BlobStore(root)
    put(objects, b"kept")
    alive = objects.writer("2.25.7", key=KEY, associated_data=PLACE)
    alive.write(b"still coming")
    alive.complete()
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; from pathlib import Path; "
            "from node.store.blobs import BlobStore; "
            "s = BlobStore(Path(sys.argv[1])); "
            "w = s.writer('a/x', key=bytes(32), associated_data=b''); "
            "w.write(bytes(3 << 20)); "
            "v = s.writer('a/y', key=bytes(32), associated_data=b''); "
            "v.write(b'whole'); v.complete(); os.kill(os.getpid(), 9)",
            str(root),
        ],
        check=False,
    )
    assert killed.returncode == -9
    with objects.abandoned() as left:
        assert {one.name for one in left} == {"a/x", "a/y"}
        with BlobStore(root).abandoned() as taken:
            assert taken == []  # one at a time
        for one in left:
            if one.name == "a/y":
                one.keep()
            else:
                one.remove()
    assert [path.name for path in (root / "unfinished").iterdir()] == ["2.25.7"]
    with objects.reader("a/y", key=bytes(32), associated_data=b"") as reader:
        assert reader.read() == b"whole"
    assert alive.commit() == 12
    assert get(objects) == b"kept"


def test_a_full_disk_refuses_and_keeps_nothing(
    objects: BlobStore, tmp_path: Path
) -> None:
    put(objects, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SEGMENT + SEGMENT // 2, hard))
    try:
        writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
        with pytest.raises(NodeError) as told:  # noqa: PT012
            for _ in range(64):
                writer.write(bytes(1 << 16))
            writer.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.kind is ErrorKind.EXHAUSTED
    assert list((tmp_path / "objects" / "unfinished").iterdir()) == []
    assert get(objects) == b"before"


def test_a_writer_gathers_no_more_than_one_segment(objects: BlobStore) -> None:
    writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
    for _ in range(40):
        writer.write(bytes(300_000))
        assert writer._filled <= PLAIN
    assert writer.commit() == 40 * 300_000


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was flushed to the disk, in this order."""
    names: list[Path] = []
    original = os.fsync

    def noted(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        original(descriptor)

    monkeypatch.setattr(blobs.os, "fsync", noted)
    return names


@pytest.mark.parametrize("follow", [True, False])
def test_a_commit_ends_on_disk(
    objects: BlobStore, synced: list[Path], follow: bool
) -> None:
    objects._names_follow = follow
    path = put(objects, b"pixels")
    unfinished = path.parents[1] / "unfinished"
    assert synced[0].parent == unfinished  # the content first
    assert synced[-1] == path.parent  # then its name
    assert (unfinished in synced) is not follow


def test_what_is_noted_elsewhere_costs_one_flush(
    objects: BlobStore, synced: list[Path]
) -> None:
    objects._names_follow = True
    writer = objects.writer(NAME, key=KEY, associated_data=PLACE)
    writer.write(b"pixels")
    writer.complete()
    writer.sync()
    writer.publish()
    assert len(synced) == 1
