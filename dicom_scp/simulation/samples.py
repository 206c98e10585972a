"""Real breast pictures for the demonstration, fetched from their publisher on request.

The set BrEaST-Lesions-USG may be used with citation (CC BY 4.0) and is not shipped with
this product. Only pictures that no shipped model was trained on are kept.
"""

from __future__ import annotations

import csv
import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.domain.errors import ErrorKind, NodeError

ARCHIVE_URL = (
    "https://www.cancerimagingarchive.net/wp-content/uploads/"
    "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023.zip"
)
MAX_ARCHIVE_BYTES = 1024 * 1024 * 1024
MAX_PICTURE_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 30.0
CHUNK = 256 * 1024

LICENCE = """\
BrEaST-Lesions-USG, The Cancer Imaging Archive, https://doi.org/10.7937/9WKK-Q141
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
https://creativecommons.org/licenses/by/4.0/

Please cite: Pawlowska A, Cwierz-Pienkowska A, Domalik A, et al. Curated benchmark
dataset for ultrasound based breast lesion analysis. Scientific Data 11, 148 (2024).
https://doi.org/10.1038/s41597-024-02984-z

Some of its pictures, unchanged; scale and BI-RADS category as published.
For demonstration and test only, not for diagnosis.
"""


@dataclass(frozen=True)
class Sample:
    """One picture: what the publisher says of it and the SHA-256 of its file."""

    name: str
    birads: str
    label: str
    pixel_mm: str
    sha256: str


SAMPLES = (
    Sample(
        "case136",
        "2",
        "benign",
        "0.0668896",
        "279e6ae120af7f82ea76b79266da38ce872615ca28b476b867c2f652d5034c7a",
    ),
    Sample(
        "case091",
        "3",
        "benign",
        "0.0694444",
        "a946cbd97859d776c1a8d3a131836de74a7e3566773c5d0886602c6db745bcfd",
    ),
    Sample(
        "case202",
        "3",
        "benign",
        "0.0434028",
        "e3b368dce40c6e6ddb05ff9402fa3dce351a5c7153214c682477a1aa840a6bfd",
    ),
    Sample(
        "case014",
        "4a",
        "benign",
        "0.0694444",
        "bcc59f996a3be6a226e7a38df266b32ff54edf4f0209e00b6cce17d18164e4b9",
    ),
    Sample(
        "case002",
        "4b",
        "benign",
        "0.0646204",
        "da1cb176968b77fea24495f04288a3b2f0538f60c0a672954666dea8fa2c3bec",
    ),
    Sample(
        "case060",
        "4c",
        "malignant",
        "0.0694444",
        "251ee9abe37e75cc6ca43b14d046c1e91b377b7dd709dfb99146a828aaf7109f",
    ),
    Sample(
        "case046",
        "5",
        "malignant",
        "0.0919732",
        "f0a281a2eeb49d0be66c0ecdbdd460cee054bca3eb0e545f30b2033df3160463",
    ),
    Sample(
        "case213",
        "1",
        "normal",
        "0.1035503",
        "c0a675aff2ac12c9ee398f1f1f73c69793715507f897c1261258418e4e8e260b",
    ),
)

Open = Callable[[str], BinaryIO]
Progress = Callable[[int, int | None], None]


def download(
    directory: Path, *, progress: Progress | None = None, open_url: Open | None = None
) -> Path:
    """Fetch the pictures into `directory` with manifest and licence; return it.

    What is there and whole is not fetched again. Every picture is checked against its
    SHA-256 before it is written. Raises NodeError: UNAVAILABLE when the publisher
    cannot be reached, INTEGRITY when what came is not what was published.
    """
    pictures = directory / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    if not all(_is_whole(pictures / f"{s.name}.png", s) for s in SAMPLES):
        archive = _fetch(ARCHIVE_URL, progress, open_url or _open)
        for sample in SAMPLES:
            (pictures / f"{sample.name}.png").write_bytes(_picture(archive, sample))
    (directory / "LICENCE.txt").write_text(LICENCE, encoding="utf-8")
    _write_manifest(directory / "manifest.csv")
    return directory


def _is_whole(path: Path, sample: Sample) -> bool:
    return path.is_file() and _sha256(path.read_bytes()) == sample.sha256


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _open(url: str) -> BinaryIO:
    agent = {"User-Agent": "sononode"}
    request = urllib.request.Request(url, headers=agent)  # noqa: S310
    opened: BinaryIO = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    return opened


def _fetch(url: str, progress: Progress | None, open_url: Open) -> zipfile.ZipFile:
    content = io.BytesIO()
    try:
        with open_url(url) as response:
            length = getattr(response, "headers", {}).get("Content-Length")
            total = int(length) if length else None
            while chunk := response.read(CHUNK):
                content.write(chunk)
                if content.tell() > MAX_ARCHIVE_BYTES:
                    raise NodeError(
                        "the archive is larger than expected", ErrorKind.INTEGRITY
                    )
                if progress is not None:
                    progress(content.tell(), total)
    except (urllib.error.URLError, OSError) as error:
        host = url.split("/")[2]
        raise NodeError(
            f"no answer from {host}: is this machine online? "
            "`make demo` works without samples, on phantoms",
            ErrorKind.UNAVAILABLE,
        ) from error
    try:
        return zipfile.ZipFile(content)
    except zipfile.BadZipFile as error:
        raise NodeError("what came is not a zip file", ErrorKind.INTEGRITY) from error


def _picture(archive: zipfile.ZipFile, sample: Sample) -> bytes:
    wanted = f"{sample.name}.png"
    for member in archive.infolist():
        if member.filename.rsplit("/", 1)[-1] != wanted:
            continue
        if member.file_size <= MAX_PICTURE_BYTES:
            try:
                content = archive.read(member)
            except (zipfile.BadZipFile, OSError, NotImplementedError):
                break
            if _sha256(content) == sample.sha256:
                return content
        break
    raise NodeError(
        f"{wanted} is missing or not the published picture", ErrorKind.INTEGRITY
    )


def _write_manifest(path: Path) -> None:
    """Write the columns that `plan_demo` reads; all of it is held-out data."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ("id", "set", "file", "shipped", "label", "split", "birads", "pixel_mm")
        )
        for s in SAMPLES:
            row = (s.name, "breast", f"images/{s.name}.png", "1", s.label, "test")
            writer.writerow((*row, s.birads, s.pixel_mm))
