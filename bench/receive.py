"""C-STORE: instances and megabytes a second, ours beside DCMTK's and Orthanc's."""

from __future__ import annotations

from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from bench.peers import Peer, orthanc, send, sononode, storescp

LOADS = {
    "JPEG stills of 0.1 MB": (200, 1),
    "stills of 0.3 MB": (200, 1),
    "cines of 20 MB": (5, 68),
}
ROWS, COLUMNS = 480, 640


def measure(folder: Path, repeats: int) -> list[dict[str, object]]:
    """Return a row for each load and program; the fastest of `repeats` counts.

    Programs take turns, so that a slow minute of the machine hits all of them.
    """
    rows: list[dict[str, object]] = []
    with ExitStack() as stack:
        found = [
            stack.enter_context(start(folder / start.__name__))
            for start in (sononode, storescp, orthanc)
        ]
        peers = [peer for peer in found if peer is not None]
        for name, (count, frames) in LOADS.items():
            files = folder / name.replace(" ", "-")
            size = _write(files, count, frames, jpeg=name.startswith("JPEG"))
            best: dict[str, float] = {}
            for _ in range(repeats):
                for peer in peers:
                    seconds = send(peer, files)
                    best[peer.name] = min(seconds, best.get(peer.name, seconds))
            rows += [_row(name, p, count, size, best) for p in peers]
    return rows


def _row(
    load: str, peer: Peer, count: int, size: int, best: dict[str, float]
) -> dict[str, object]:
    seconds = best[peer.name]
    return {
        "load": load,
        "program": peer.name,
        "instances/s": round(count / seconds, 1),
        "MB/s": round(size / seconds / 1e6, 1),
        "ours is times as fast": round(seconds / best["sononode"], 2),
        "what it does": peer.durable,
    }


def _write(folder: Path, count: int, frames: int, *, jpeg: bool) -> int:
    folder.mkdir()
    noise = np.random.default_rng(7)
    size = 0
    for number in range(count):
        pixels = noise.integers(0, 255, (frames, ROWS, COLUMNS), np.uint8)
        path = folder / f"{number}.dcm"
        image = _instance(number, pixels)
        if jpeg:
            _compress(image, pixels[0])
        image.save_as(path, enforce_file_format=True)
        size += path.stat().st_size
    return size


def _compress(image: Dataset, pixels: np.ndarray) -> None:
    """Make the picture a JPEG, as scanners send them when disks are small."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    image.PixelData = encapsulate([buffer.getvalue()])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit


def _instance(number: int, pixels: np.ndarray) -> Dataset:
    """Return an instance; its UIDs are the sender's to change."""
    multi = len(pixels) > 1
    sop_class = UltrasoundMultiFrameImageStorage if multi else UltrasoundImageStorage
    image = Dataset()
    image.SOPClassUID = sop_class
    image.SOPInstanceUID = f"2.25.88{len(pixels)}{number}"
    image.StudyInstanceUID = f"2.25.881{len(pixels)}"
    image.SeriesInstanceUID = f"2.25.882{len(pixels)}"
    image.PatientName, image.PatientID = "Bench^Mark", f"BENCH-{len(pixels)}"
    image.PatientBirthDate, image.PatientSex = "", ""
    image.StudyDate, image.StudyTime, image.StudyID = "20260101", "120000", "1"
    image.AccessionNumber, image.ReferringPhysicianName = "", ""
    image.Modality, image.SeriesNumber, image.InstanceNumber = "US", 1, number + 1
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = ROWS, COLUMNS
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    if multi:
        image.NumberOfFrames = len(pixels)
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image
