"""`make samples`: nothing unverified is kept, and being offline is said plainly."""

import hashlib
import io
import urllib.error
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from dicom_scp.simulation import samples
from dicom_scp.simulation.simulator import plan_demo
from node.domain.errors import ErrorKind, NodeError


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive as the publisher has it, with pictures of our own."""
    content = io.BytesIO()
    wanted = []
    with zipfile.ZipFile(content, "w") as file:
        for n, sample in enumerate(samples.SAMPLES):
            picture = io.BytesIO()
            Image.fromarray(np.full((90, 120), 20 + n, np.uint8)).save(picture, "PNG")
            file.writestr(f"set/{sample.name}.png", picture.getvalue())
            digest = hashlib.sha256(picture.getvalue()).hexdigest()
            wanted.append(replace(sample, sha256=digest))
    monkeypatch.setattr(samples, "SAMPLES", tuple(wanted))
    return content.getvalue()


def test_pictures_come_with_manifest_and_licence_and_feed_the_simulator(
    archive: bytes, tmp_path: Path
) -> None:
    asked: list[str] = []
    told: list[tuple[int, int | None]] = []

    def open_url(url: str) -> BinaryIO:
        asked.append(url)
        return io.BytesIO(archive)

    for _ in range(2):
        samples.download(
            tmp_path, progress=lambda *x: told.append(x), open_url=open_url
        )
    assert len(asked) == 1
    assert told[-1][0] == len(archive)
    assert "CC BY 4.0" in (tmp_path / "LICENCE.txt").read_text()
    uids = (f"2.25.{n}" for n in count(1))
    now = datetime(2026, 11, 21, tzinfo=UTC)
    studies = plan_demo(tmp_path, uid=lambda: next(uids), now=now)
    assert sum("public set" in study.description for study in studies) == 6


def test_changed_picture_is_refused_and_not_written(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(samples.SAMPLES[0], sha256="0" * 64)
    monkeypatch.setattr(samples, "SAMPLES", (changed,))
    with pytest.raises(NodeError) as caught:
        samples.download(tmp_path, open_url=lambda _: io.BytesIO(archive))
    assert caught.value.kind is ErrorKind.INTEGRITY
    assert list((tmp_path / "images").iterdir()) == []


def test_being_offline_is_said_with_a_way_out(tmp_path: Path) -> None:
    def offline(url: str) -> BinaryIO:
        raise urllib.error.URLError("no route")

    with pytest.raises(NodeError, match="phantoms") as caught:
        samples.download(tmp_path, open_url=offline)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
