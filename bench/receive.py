"""C-STORE: instances and megabytes a second, ours beside DCMTK's and Orthanc's."""

from __future__ import annotations

from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from statistics import median

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

from bench.peers import (
    Peer,
    orthanc,
    send,
    send_with_storescu,
    sononode,
    storescp,
)

LOADS = {
    "JPEG stills of 0.1 MB": (200, 1),
    "stills of 0.3 MB": (200, 1),
    "cines of 20 MB": (12, 68),
}
ASSOCIATIONS = (1, 4)
REAL_TOOL = "storescu"
ROWS, COLUMNS = 480, 640

Way = int | str  # associations of our sender side by side, or the tool that sends


def measure(folder: Path, repeats: int) -> list[dict[str, object]]:
    """Return a row for each load, way of sending and program: medians of `repeats`.

    Programs take turns within each round, so that a slow minute of the machine hits
    all of them; a ratio is the median over rounds, never of two rounds.
    """
    with ExitStack() as stack:
        peers = [
            peer
            for start in (sononode, storescp, orthanc)
            for peer in stack.enter_context(start(folder / start.__name__))
        ]
        loads = {name: folder / name.replace(" ", "-") for name in LOADS}
        sizes = {
            name: _write(files, *LOADS[name], jpeg=name.startswith("JPEG"))
            for name, files in loads.items()
        }
        rows: list[dict[str, object]] = []
        for name, files in loads.items():
            for way in (*ASSOCIATIONS, REAL_TOOL):
                taken: dict[str, list[float]] = {peer.name: [] for peer in peers}
                for _ in range(repeats):
                    for peer in peers:
                        if way != REAL_TOOL or not peer.tls:
                            taken[peer.name].append(_send(peer, files, way))
                rows += [
                    _row(name, way, peer, sizes[name], taken)
                    for peer in peers
                    if taken[peer.name]
                ]
    return rows


def _send(peer: Peer, files: Path, way: Way) -> float:
    if isinstance(way, int):
        return send(peer, files, way)
    return send_with_storescu(peer, files)


def _row(
    load: str, way: Way, peer: Peer, size: int, taken: dict[str, list[float]]
) -> dict[str, object]:
    seconds = median(taken[peer.name])
    rounds = zip(taken[peer.name], taken["sononode"], strict=True)
    return {
        "load": load,
        "associations": way if isinstance(way, int) else f"1, by {way}",
        "program": peer.name,
        "instances/s": round(LOADS[load][0] / seconds, 1),
        "MB/s": round(size / seconds / 1e6, 1),
        "ours is times as fast": round(median(t / ours for t, ours in rounds), 2),
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
    image.SOPInstanceUID = f"2.25.9{len(pixels):09d}{number:012d}"
    image.StudyInstanceUID = f"2.25.9{len(pixels):09d}100000000000"
    image.SeriesInstanceUID = f"2.25.9{len(pixels):09d}200000000000"
    image.PatientName, image.PatientID = "Bench^Mark", f"BENCH{len(pixels):05d}"
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
