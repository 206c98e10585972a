"""Result objects: milliseconds to build and encode one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundImageStorage

from dicom_scp.results.heatmap import build_heat_map
from dicom_scp.results.sr import (
    AI_SR,
    Equipment,
    build_ai_sr,
    build_verified_sr,
    predecessor_of,
    to_part10,
)
from node.domain.finding import Extent, Findings, ImageReference, Lesion, PixelBox
from node.domain.lexicon import FieldKey
from node.domain.report import Author, AuthorKind, ReportStatus, ReportVersion

REPORT = UUID("6a3d8c1e-0000-5000-8000-000000000001")
EQUIPMENT = Equipment("Bench", "2.25.555", "1.2.3")


def measure(repeats: int) -> list[dict[str, object]]:
    """Return a row for each kind of object of a study with ten images."""
    warnings.simplefilter("ignore")
    sources = [_header(n) for n in range(10)]
    lesion = _lesion(str(sources[0].SOPInstanceUID))
    draft = _version(lesion, AuthorKind.ALGORITHM, ReportStatus.PARTIAL, 1)
    signed = _version(lesion, AuthorKind.PHYSICIAN, ReportStatus.FINAL, 2)
    before = predecessor_of("2.25.1", REPORT, 1, AI_SR)
    overlay = np.zeros((480, 640, 3), np.uint8)
    builders: dict[str, Callable[[], Dataset]] = {
        "AI SR": lambda: build_ai_sr(
            draft, sources, report_id=REPORT, equipment=EQUIPMENT
        ),
        "verified SR": lambda: build_verified_sr(
            signed, before, sources, report_id=REPORT, equipment=EQUIPMENT
        ),
        "heat map": lambda: build_heat_map(
            overlay,
            draft,
            lesion,
            sources[0],
            report_id=REPORT,
            equipment=EQUIPMENT,
            number=1,
        ),
    }
    return [_row(name, build, repeats) for name, build in builders.items()]


def _row(name: str, build: Callable[[], Dataset], repeats: int) -> dict[str, object]:
    size = len(to_part10(build()))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        to_part10(build())
        times.append(time.perf_counter() - start)
    return {"object": name, "ms": round(1000 * min(times), 1), "bytes": size}


def _version(
    lesion: Lesion, kind: AuthorKind, status: ReportStatus, number: int
) -> ReportVersion:
    return ReportVersion(
        number,
        status,
        Author(kind, "bench", "Bench^Mark"),
        datetime(2026, 1, 1, tzinfo=UTC),
        Findings((lesion,), "4C"),
    )


def _lesion(sop_instance_uid: str) -> Lesion:
    return Lesion(
        "2.25.9",
        ImageReference(str(UltrasoundImageStorage), sop_instance_uid),
        PixelBox(100, 120, 180, 170),
        laterality="L",
        extent=Extent(Decimal("11.8"), Decimal("11.2"), Decimal("7.1")),
        descriptors={
            FieldKey.SHAPE: ("irregular",),
            FieldKey.MARGIN: ("angular", "spiculated"),
            FieldKey.CALCIFICATIONS: (),
        },
        category="4C",
        probability=Decimal("0.873"),
    )


def _header(number: int) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = (
        UltrasoundImageStorage,
        f"2.25.10{number}",
    )
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.1", "2.25.2"
    header.PatientName, header.PatientID = "Bench^Mark", "BENCH"
    header.Modality, header.Rows, header.Columns = "US", 480, 640
    return header
