"""A model is a folder: whole, as hashed, and nothing outside it; else it is refused."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.models import ModelFolder, Shelf, read_folder, verify_folder
from inference.record import RECORD_FORMAT
from node.domain.errors import ErrorKind, NodeError
from node.store.models import Origin
from tests.factories import NOW

WEIGHTS = b"not really weights" * 1000


def make_folder(path: Path, version: str = "1.0", **changes: Any) -> Path:
    """Write a folder whose hashes are right, with the record changed as told."""
    path.mkdir(parents=True)
    (path / "tiny.safetensors").write_bytes(WEIGHTS)
    record = {
        "name": "tiny",
        "version": version,
        "weights": "tiny.safetensors",
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
        "side": 64,
        **changes,
    }
    (path / "model.json").write_text(json.dumps(record))
    return path


def cut_off(path: Path) -> None:
    os.truncate(path / "tiny.safetensors", 100)


def flip_a_bit(path: Path) -> None:
    content = bytearray(WEIGHTS)
    content[-1] ^= 1
    (path / "tiny.safetensors").write_bytes(content)


def take_away(path: Path) -> None:
    (path / "tiny.safetensors").unlink()


def make_a_folder_of_it(path: Path) -> None:
    take_away(path)
    (path / "tiny.safetensors").mkdir()


def rewrite(**changes: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        record = json.loads((path / "model.json").read_text())
        (path / "model.json").write_text(json.dumps(record | changes))

    return apply


def write(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path / "model.json").write_bytes(content) and None  # type: ignore[func-returns-value]


REFUSED = {
    "cut off": (cut_off, "tiny.safetensors has SHA-256"),
    "one bit flipped": (flip_a_bit, "restore the released file"),
    "weights gone": (take_away, "tiny.safetensors is missing"),
    "weights are a folder": (make_a_folder_of_it, "is missing"),
    "another file": (rewrite(weights="other.bin"), "other.bin is missing"),
    "file above": (rewrite(weights="../tiny.safetensors"), "outside its folder"),
    "absolute file": (rewrite(weights="/etc/passwd"), "outside its folder"),
    "hidden file": (rewrite(weights=".tiny"), "outside its folder"),
    "record as weights": (rewrite(weights="model.json"), "outside its folder"),
    "more files above": (rewrite(files={"../x": "0" * 64}), "outside its folder"),
    "more files that are none": (rewrite(files=[1]), "outside its folder"),
    "no digest": (rewrite(sha256=None), "no SHA-256"),
    "half a digest": (rewrite(sha256="abc"), "no SHA-256"),
    "newer form": (rewrite(format=RECORD_FORMAT + 1), "newer form"),
    "form that is no number": (rewrite(format="x"), "not a JSON object"),
    "name with a path": (rewrite(name="../tiny"), "no plain name"),
    "no version": (rewrite(version=None), "no plain name"),
    "no window": (rewrite(side=None), "window side"),
    "huge window": (rewrite(side=1 << 20), "window side"),
    "empty record": (write(b""), "not a JSON object"),
    "list": (write(b"[]"), "not a JSON object"),
    "not text": (write(b"\xff\xfe\x00"), "not a JSON object"),
    "deeply nested": (write(b"[" * 100_000), "not a JSON object"),
    "endless record": (write(b" " * (5 << 20)), "too large"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_as_released_is_refused_in_one_line(
    case: str, tmp_path: Path
) -> None:
    change, told = REFUSED[case]
    path = make_folder(tmp_path / "model")
    change(path)
    with pytest.raises(NodeError) as caught:
        verify_folder(path)
    assert caught.value.kind is ErrorKind.INTEGRITY
    assert told in caught.value.message
    assert "\n" not in caught.value.message


def test_folder_without_record_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NodeError, match=r"model\.json cannot be read"):
            read_folder(path)


def test_same_weights_under_another_version_are_another_device(tmp_path: Path) -> None:
    one = verify_folder(make_folder(tmp_path / "one"))
    two = verify_folder(make_folder(tmp_path / "two", version="1.1"))
    assert one.weights_sha256 == two.weights_sha256
    assert one.model_id != two.model_id
    assert one.weights_sha256[:12] in one.model_id


# --- the shelf ----------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models", make_folder(tmp_path / "release", "0.9"))


def on_shelf(shelf: Shelf, folder: ModelFolder) -> Path:
    return shelf.find(folder.known(Origin.ADDED, at=NOW, by="me")).path


def test_kept_model_is_whole_and_found_again(shelf: Shelf, tmp_path: Path) -> None:
    extra = hashlib.sha256(b"more").hexdigest()
    path = make_folder(tmp_path / "new", files={"more.bin": extra})
    (path / "more.bin").write_bytes(b"more")
    (path / "unrelated.txt").write_text("x")
    kept = shelf.keep(verify_folder(path))
    assert kept.path == tmp_path / "models" / "tiny-1.0"
    assert sorted(p.name for p in kept.path.iterdir()) == [
        "model.json",
        "more.bin",
        "tiny.safetensors",
    ]
    assert on_shelf(shelf, verify_folder(path)) == kept.path
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["tiny-1.0"]


def test_file_that_changes_while_it_is_copied_is_not_kept(
    shelf: Shelf, tmp_path: Path
) -> None:
    folder = verify_folder(make_folder(tmp_path / "new"))
    flip_a_bit(folder.path)
    with pytest.raises(NodeError, match="SHA-256"):
        shelf.keep(folder)
    assert list((tmp_path / "models").iterdir()) == []


def test_another_model_of_the_same_version_is_refused(
    shelf: Shelf, tmp_path: Path
) -> None:
    first = verify_folder(make_folder(tmp_path / "one"))
    shelf.keep(first)
    assert shelf.keep(first).record_sha256 == first.record_sha256
    other = verify_folder(make_folder(tmp_path / "two", threshold=0.3))
    with pytest.raises(NodeError) as caught:
        shelf.keep(other)
    assert caught.value.kind is ErrorKind.CONFLICT
    assert on_shelf(shelf, first)


def test_damaged_model_on_the_shelf_is_mended_by_adding_it_again(
    shelf: Shelf, tmp_path: Path
) -> None:
    folder = verify_folder(make_folder(tmp_path / "one"))
    flip_a_bit(shelf.keep(folder).path)
    verify_folder(shelf.keep(folder).path)


def test_model_of_a_release_survives_the_next_one(shelf: Shelf, tmp_path: Path) -> None:
    old = verify_folder(shelf.release)
    shelf.keep(old, release=True)
    (shelf.release / "tiny.safetensors").unlink()
    rewrite(version="1.0")(shelf.release)
    assert on_shelf(shelf, old) == tmp_path / "models" / "tiny-0.9"
    verify_folder(tmp_path / "models" / "tiny-0.9")


def test_record_changed_on_the_shelf_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    folder = verify_folder(make_folder(tmp_path / "one"))
    rewrite(threshold=0.9)(shelf.keep(folder).path)
    with pytest.raises(NodeError, match="changed after it was added"):
        on_shelf(shelf, folder)


def test_model_that_is_nowhere_is_not_found(shelf: Shelf, tmp_path: Path) -> None:
    folder = verify_folder(make_folder(tmp_path / "one"))
    with pytest.raises(NodeError) as caught:
        on_shelf(shelf, folder)
    assert caught.value.kind is ErrorKind.NOT_FOUND
