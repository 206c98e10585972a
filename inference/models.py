"""Models as folders: a record, its weights, and nothing that the record does not hash.

A model of the release lies beside the software. Every model that may read lies on the
shelf as well, `<data>/models/<name>-<version>/`: the next release takes the old files
away, and a step back needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from inference.author import author_of
from inference.record import RECORD_FILE, RECORD_FORMAT
from node.domain.errors import ErrorKind, NodeError
from node.store.models import KnownModel, Origin

_MAX_RECORD_BYTES = 4 << 20
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with a readable record; `files` are the hashed ones, weights first."""

    path: Path
    name: str
    version: str
    weights_sha256: str
    record_sha256: str
    side: int
    files: tuple[tuple[str, str], ...]

    @property
    def model_id(self) -> str:
        """Return the id of the Device that drafts with this model."""
        return author_of(self.name, self.version, self.weights_sha256).id

    @property
    def label(self) -> str:
        """Return how people call the model; its folder on the shelf has this name."""
        return f"{self.name}-{self.version}"

    def known(self, origin: Origin, *, at: datetime, by: str) -> KnownModel:
        """Return the row that puts this model on file."""
        return KnownModel(
            self.model_id,
            self.name,
            self.version,
            self.weights_sha256,
            self.record_sha256,
            origin,
            at,
            by,
        )


def read_folder(path: Path) -> ModelFolder:
    """Return what the record in `path` says of itself and its files, unchecked.

    INTEGRITY in one line when there is no record, it is of a newer form, or it
    names a file outside its folder.
    """
    content = _record_bytes(path)
    try:
        record = json.loads(content)
        newer = int(record.get("format", 1)) > RECORD_FORMAT
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _refused(path, "its record is not a JSON object") from None
    if newer:
        raise _refused(path, "its record is of a newer form; install that release")
    name, version = record.get("name"), record.get("version")
    for word in (name, version):
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            raise _refused(path, "its record has no plain name and version")
    side = record.get("side")
    if not isinstance(side, int) or not 32 <= side <= 1024 or side % 32:
        raise _refused(path, "its record has no window side that the network takes")
    files = _named_files(path, record)
    return ModelFolder(
        path,
        name,
        version,
        files[0][1],
        hashlib.sha256(content).hexdigest(),
        side,
        files,
    )


def verify_folder(path: Path) -> ModelFolder:
    """Like `read_folder`, and every file is what the record says. Blocks.

    INTEGRITY names the file that is missing, cut off or changed.
    """
    folder = read_folder(path)
    for name, expected in folder.files:
        file = path / name
        if not file.is_file():
            raise _refused(path, f"{name} is missing")
        try:
            found = _sha256(file)
        except OSError as error:
            raise _refused(path, f"{name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise _refused(
                path,
                f"{name} has SHA-256 {found[:12]}, its record says {expected[:12]};"
                " restore the released file",
            )
    return folder


def _record_bytes(path: Path) -> bytes:
    try:
        with open(path / RECORD_FILE, "rb") as file:
            content = file.read(_MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise _refused(
            path, f"{RECORD_FILE} cannot be read ({error.strerror})"
        ) from None
    if len(content) > _MAX_RECORD_BYTES:
        raise _refused(path, f"{RECORD_FILE} is too large")
    return content


def _named_files(path: Path, record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return (name, SHA-256) of the weights and of what else the record hashes."""
    more = record.get("files", {})
    named = [(record.get("weights"), record.get("sha256"))]
    named += list(more.items()) if isinstance(more, dict) else [(None, None)]
    for name, digest in named:
        plain = isinstance(name, str) and _WORD.fullmatch(name) and name != RECORD_FILE
        if not plain:
            raise _refused(path, "its record names a file outside its folder")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise _refused(path, f"its record has no SHA-256 of {name}")
    return tuple(named)  # type: ignore[arg-type]


def _refused(path: Path, why: str) -> NodeError:
    return NodeError(f"model in {path.name}: {why}", ErrorKind.INTEGRITY)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# --- the shelf ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where the models of an installation lie; `release` ships with the software."""

    root: Path
    release: Path

    def find(self, model: KnownModel) -> ModelFolder:
        """Return the folder of `model`, its record checked, its files not.

        NOT_FOUND when it is nowhere, INTEGRITY when the record is not the one
        that was put on file.
        """
        fault = NodeError(
            f"{model.label}: there is no such folder in {self.root}",
            ErrorKind.NOT_FOUND,
        )
        for path in (self.root / model.label, self.release):
            if not path.is_dir():
                continue
            try:
                folder = read_folder(path)
            except NodeError as error:
                if path != self.release:
                    fault = error
                continue
            if folder.model_id != model.model_id:
                continue
            if folder.record_sha256 == model.record_sha256:
                return folder
            fault = _refused(path, f"{RECORD_FILE} was changed after it was added")
        raise fault

    def keep(self, folder: ModelFolder, *, release: bool = False) -> ModelFolder:
        """Put a verified folder on the shelf, whole or not at all. Blocks.

        CONFLICT when another model lies under the same name and version; that of
        a release takes its place. The files of a release are shared, not copied,
        where the file system can.
        """
        target = self.root / folder.label
        if target.exists():
            try:
                there = verify_folder(target)
            except NodeError:
                there = None  # damaged: what was just verified mends it
            if there is not None and there.record_sha256 == folder.record_sha256:
                return there
            if there is not None and not release:
                raise NodeError(
                    f"another model is here as {folder.label}; give this one a"
                    " version of its own",
                    ErrorKind.CONFLICT,
                )
        with _naming_full_disks(self.root), self._beside(folder.label) as made:
            for name in (RECORD_FILE, *(name for name, _ in folder.files)):
                _bring(folder.path / name, made / name, share=release)
            _fsync(made)
            kept = verify_folder(made)
            if kept.record_sha256 != folder.record_sha256:
                raise _refused(folder.path, f"{RECORD_FILE} was changed meanwhile")
            if target.exists():
                os.rename(target, made.with_suffix(".old"))
            os.rename(made, target)
            _fsync(self.root)
        return read_folder(target)

    @contextmanager
    def _beside(self, label: str) -> Iterator[Path]:
        """Yield an empty folder on the shelf; nothing of it stays but what moved."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = self.root / f".{label}.{os.getpid()}.new"
        try:
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(mode=0o700)
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)
            shutil.rmtree(made.with_suffix(".old"), ignore_errors=True)


def _bring(source: Path, target: Path, *, share: bool) -> None:
    if share and source.name != RECORD_FILE:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or somebody else's file: copy it
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def _fsync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming_full_disks(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NodeError(
            f"{root}: a model cannot be kept there ({error.strerror})",
            ErrorKind.EXHAUSTED,
        ) from None
