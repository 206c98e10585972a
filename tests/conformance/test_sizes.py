"""Sizes in millimetres against phantoms whose truth is known: within one pixel.

From the phantom through the machine's header (PS3.3 C.8.5.5) to what the SR says.
"""

from datetime import UTC, datetime
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.results.sr import build_ai_sr, to_part10
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import (
    Patient,
    View,
    build_instance,
    invalid_id_number,
)
from dicom_scp.simulation.simulator import GE_LIKE
from inference.assess import extent_mm
from node.domain.finding import Findings, ImageReference, PixelBox
from node.imaging import read_header, ultrasound_regions
from tests.dicom_scp.results.test_sr import (
    EQUIPMENT,
    REPORT,
    make_version,
    name_of,
    walk,
)
from tests.factories import make_lesion

ROUNDING_MM = 0.05

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_image(pixels: object, mm_per_pixel: float | None) -> Dataset:
    instance = build_instance(
        View(frames=(pixels,), mm_per_pixel=mm_per_pixel),  # type: ignore[arg-type]
        Patient("A^B", "SIM-1", "19790412", invalid_id_number("19790412", 1)),
        GE_LIKE,
        at=datetime(2026, 11, 21, tzinfo=UTC),
        uids=("2.25.9001", "2.25.9002", "2.25.9003"),
        accession_number="SIM1",
        description="Breast ultrasound",
    )
    file = BytesIO()
    instance.save_as(file, enforce_file_format=True)
    return read_header(file.getvalue())


@pytest.mark.parametrize("mm_per_pixel", [0.065, 0.09])
def test_a_lesion_measures_what_it_is_within_one_pixel(mm_per_pixel: float) -> None:
    lesion = PhantomLesion(20, 14, 14.0, 9.0)
    phantom = build_phantom(
        (lesion,), seed=3, rows=400, columns=500, mm_per_pixel=mm_per_pixel
    )
    header = make_image(phantom.pixels, mm_per_pixel)
    (region,) = ultrasound_regions(header)
    scale = region.millimetres_per_pixel(int(header.Rows), int(header.Columns))
    assert scale is not None
    # The machine shows the picture larger or smaller, and says so in the region.
    larger = (region.x1 - region.x0 + 1) / phantom.pixels.shape[1]
    x0, y0, x1, y1 = (round(larger * edge) for edge in phantom.boxes[0])
    box = PixelBox(x0 + region.x0, y0 + region.y0, x1 + region.x0, y1 + region.y0)
    extent = extent_mm(box, (), scale)  # type: ignore[arg-type]
    assert float(extent.width_mm) == pytest.approx(
        lesion.width_mm, abs=mm_per_pixel + ROUNDING_MM
    )
    assert float(extent.height_mm) == pytest.approx(
        lesion.height_mm, abs=mm_per_pixel + ROUNDING_MM
    )
    image = ImageReference(str(header.SOPClassUID), str(header.SOPInstanceUID))
    found = make_lesion(image=image, box=box, outline=(), extent=extent)
    document = build_ai_sr(
        make_version(Findings(lesions=(found,))),
        [header],
        report_id=REPORT,
        equipment=EQUIPMENT,
    )
    stored = dcmread(BytesIO(to_part10(document)))
    said = {
        name_of(item): float(item.MeasuredValueSequence[0].NumericValue)
        for item in walk(stored)
        if item.get("ValueType") == "NUM"
    }
    assert said["Width"] == float(extent.width_mm)
    assert said["Height"] == float(extent.height_mm)


def test_without_a_calibration_nothing_is_said_in_millimetres() -> None:
    phantom = build_phantom((PhantomLesion(20, 14, 14.0, 9.0),), seed=3, rows=300)
    header = make_image(phantom.pixels, None)
    regions = ultrasound_regions(header)
    rows, columns = int(header.Rows), int(header.Columns)
    assert all(r.millimetres_per_pixel(rows, columns) is None for r in regions)
