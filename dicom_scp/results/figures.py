"""The picture of a lesion in a printed report: its frame, cut and outlined, as SVG.

The pixels stay pixels and the outline stays a line, sharp at any size of paper. SVG
because the typesetter takes it as text: nothing of a patient becomes a file.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
import structlog
from PIL import Image
from pydicom.dataset import Dataset

from dicom_scp.results.heatmap import decode_overlay
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import ImageReference, Lesion, PixelBox
from node.domain.report import Report, ReportVersion
from node.domain.study import UltrasoundRegion
from node.imaging import Pixels, StoredImage, ultrasound_regions
from node.store import studies
from node.store.overlays import read_overlay

if TYPE_CHECKING:
    from node.store.keys import Sealer
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

_LONGEST_SIDE: Final = 1000
_QUALITY: Final = 92
_LINE: Final = "#ffd21f"
_SCALE_BAR_MM: Final = 10
# A store that is away is none of these: then the report waits.
_UNSHOWABLE: Final = frozenset(
    {ErrorKind.UNSUPPORTED, ErrorKind.NOT_FOUND, ErrorKind.INVALID}
)


@dataclass(frozen=True)
class Figure:
    """The picture of one lesion, and the algorithm's heat map of it where there is one.

    `scale_bar_mm` is the length of the bar in `svg`; None in an image without a
    trusted scale. `instance_number` and `frame` name the image to people, `rendered`
    is where DICOMweb shows the whole frame, below the root of the service (PS3.18
    10.4.1.1.3).
    """

    svg: str
    scale_bar_mm: int | None = None
    heat_map: str | None = None
    instance_number: str = ""
    frame: int | None = None
    rendered: str = ""


def figures_of(
    store: Store,
    sealer: Sealer,
    report: Report,
    version: ReportVersion,
    sources: Sequence[StoredInstance],
) -> dict[str, Figure]:
    """Return the pictures of a version's lesions by tracking UID. Blocks.

    A lesion whose image is not here or cannot be shown has none.
    """
    by_uid = {source.sop_instance_uid: source for source in sources}
    heat_maps = _heat_maps(report, version)
    found = {}
    for lesion in version.findings.lesions:
        image = lesion.image
        source = by_uid.get(image.sop_instance_uid) if image else None
        if image is None or source is None:
            continue
        header = Dataset.from_json(json.loads(source.metadata))
        try:
            pixels = _frame(store, source, header, image)
        except NodeError as error:
            if error.kind not in _UNSHOWABLE:
                raise
            uid = image.sop_instance_uid
            log.warning("figures.not_shown", sop_instance_uid=uid, error=str(error))
            continue
        svg, bar = outlined(pixels, lesion, ultrasound_regions(header))
        found[lesion.tracking_uid] = Figure(
            svg,
            bar,
            _heat_map(store, sealer, heat_maps.get(lesion.tracking_uid)),
            str(header.get("InstanceNumber") or ""),
            image.frame if source.number_of_frames > 1 else None,
            f"studies/{source.study_instance_uid}/series/{source.series_instance_uid}"
            f"/instances/{source.sop_instance_uid}/frames/{image.frame}/rendered",
        )
    return found


def _frame(
    store: Store, source: StoredInstance, header: Dataset, image: ImageReference
) -> Pixels:
    with studies.open_blob(store, source) as reader:
        stored = StoredImage(
            reader,
            header=header,
            frames=source.frame_table,
            transfer_syntax_uid=source.transfer_syntax_uid,
        )
        return stored.frame(image.frame - 1)


def _heat_maps(report: Report, version: ReportVersion) -> dict[str, str]:
    """Return the newest heat map of each lesion, whichever version painted it."""
    return {
        item.tracking_uid: item.sop_instance_uid
        for earlier in report.versions[: version.number]
        for item in earlier.findings.heat_maps
    }


def _heat_map(store: Store, sealer: Sealer, uid: str | None) -> str | None:
    png = None if uid is None else read_overlay(store, sealer, uid)
    return None if png is None else plain(decode_overlay(png))


def outlined(
    pixels: Pixels, lesion: Lesion, regions: Sequence[UltrasoundRegion]
) -> tuple[str, int | None]:
    """Return the lesion's ultrasound region with its outline, and the scale bar's mm.

    `pixels`: uint8, (rows, columns, 3), the whole frame. It is cut to the region that
    holds the lesion, which leaves out the margin where machines write the name; a
    frame of which no region is known stays whole. A lesion with a box only gets the
    box, dashed: nobody drew a contour.
    """
    region = _region_of(lesion, regions, pixels.shape[0], pixels.shape[1])
    cut = _cut(region, pixels.shape[0], pixels.shape[1])
    shown = pixels[cut.y0 : cut.y1, cut.x0 : cut.x1]
    marks = [_contour(lesion, cut)]
    scale = region and region.millimetres_per_pixel(pixels.shape[0], pixels.shape[1])
    length = _SCALE_BAR_MM if scale else None
    if scale:
        marks.append(_scale_bar(_SCALE_BAR_MM / scale[0], cut))
    return _svg(shown, marks), length


def plain(pixels: Pixels) -> str:
    """Return a picture, uint8 (rows, columns, 3), as SVG with nothing drawn on it."""
    return _svg(pixels, [])


def _region_of(
    lesion: Lesion, regions: Sequence[UltrasoundRegion], rows: int, columns: int
) -> UltrasoundRegion | None:
    """Return the region that the lesion lies in, of those that fit the image."""
    fitting = [region for region in regions if region.inside(rows, columns)]
    box = lesion.box
    if box is None:
        return fitting[0] if len(fitting) == 1 else None
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return next((r for r in fitting if r.x0 <= x <= r.x1 and r.y0 <= y <= r.y1), None)


def _cut(region: UltrasoundRegion | None, rows: int, columns: int) -> PixelBox:
    if region is None:
        return PixelBox(0, 0, columns, rows)
    return PixelBox(region.x0, region.y0, region.x1 + 1, region.y1 + 1)


def _contour(lesion: Lesion, cut: PixelBox) -> str:
    box, dashes = lesion.box, ""
    points: Sequence[tuple[float, float]] = lesion.outline
    if not points and box is not None:
        dashes = ' stroke-dasharray="8 5"'
        corners = ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1))
        points = (*corners, (box.x0, box.y1))
    if not points:
        return ""
    path = " ".join(f"{x - cut.x0:.1f},{y - cut.y0:.1f}" for x, y in points)
    width = max(1.5, (cut.x1 - cut.x0) / 350)
    # A dark edge keeps the line visible in bright tissue and in black and white.
    return "".join(
        f'<polygon points="{path}" fill="none" stroke="{colour}"'
        f' stroke-width="{width * times:.2f}" stroke-linejoin="round"{dashes}/>'
        for colour, times in (("#000000", 2.2), (_LINE, 1))
    )


def _scale_bar(length: float, cut: PixelBox) -> str:
    width, height = cut.x1 - cut.x0, cut.y1 - cut.y0
    x, y, thick = 0.03 * width, 0.96 * height, max(2.0, height / 150)
    return (
        f'<rect x="{x - 1:.1f}" y="{y - 1:.1f}" width="{length + 2:.1f}"'
        f' height="{thick + 2:.1f}" fill="#000000"/>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{length:.1f}" height="{thick:.1f}"'
        ' fill="#ffffff"/>'
    )


def _svg(pixels: Pixels, marks: Sequence[str]) -> str:
    rows, columns = pixels.shape[:2]
    grey = bool((pixels == pixels[..., :1]).all())
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels)
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    data = b64encode(file.getvalue()).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns} {rows}"'
        f' width="{columns}" height="{rows}">'
        f'<image href="data:image/jpeg;base64,{data}" width="{columns}"'
        f' height="{rows}"/>{"".join(marks)}</svg>'
    )
