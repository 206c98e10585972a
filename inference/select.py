"""Which images the algorithm may read, and which part of them.

An image is read only when everything that its header and its pixels say is
compatible with one plain 2D B-mode picture of a breast. Each refusal has its
reason from a closed list, shown to the doctor in her own language: an image
silently left out looks like an image found clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from inference.place import NOWHERE, Place, Plane
from node.domain.finding import NotRead, PixelBox
from node.domain.study import UltrasoundRegion

READABLE_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image
        "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image
    }
)

OTHER_ULTRASOUND = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.2",  # Enhanced US Volume
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image, retired
        "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image, retired
    }
)

WITHOUT_PICTURE = frozenset(
    {
        *(f"1.2.840.10008.5.1.4.1.1.88.{n}" for n in (11, 22, 33, 34, 59)),  # SR, KO
        # Presentation states.
        *(f"1.2.840.10008.5.1.4.1.1.11.{n}" for n in (1, 2, 3, 4)),
        "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
        "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation, of another picture
    }
)
"""What machines send beside pictures: nothing in it was left unread."""

SPATIAL_2D, M_MODE, SPECTRAL = 1, 2, 3
"""Region Spatial Format (PS3.3 C.8.5.5.1.1)."""

TISSUE, COLOUR_FLOW = 1, 2
"""Region Data Type (PS3.3 C.8.5.5.1.2)."""

TISSUE_CHARACTERISATION = 0x0200
"""Bit of Image Type value 4 that elastography sets (PS3.3 C.8.5.6.1.1)."""

OTHER_MODES = 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0100
"""Bits of Image Type value 4 for M-mode, CW, PW, colour, colour M-mode, 3D, power."""

MOST_PIXELS = 16_000_000
"""Four times the largest screen of an ultrasound machine."""

SHORTEST_SIDE_PX = 48
"""A smaller region holds too little speckle for the network to have an opinion."""


class Reason(Enum):
    """Why an image was not read: key, 中文, English."""

    NOT_ULTRASOUND = (
        "not_ultrasound",
        "非超声图像，AI 未阅读",
        "Not an ultrasound image",
    )
    NOT_BREAST = (
        "not_breast",
        "检查部位不是乳腺，AI 未阅读",
        "The body part is not the breast",
    )
    NO_FRAMES = (
        "no_frames",
        "图像不含像素数据，AI 未阅读",
        "The instance holds no pixel data",
    )
    OTHER_ULTRASOUND = (
        "other_ultrasound",
        "三维容积或旧版超声对象，AI 未阅读",
        "A 3D volume, or an object of a retired ultrasound class",
    )
    VIDEO = (
        "video",
        "视频格式，已保存，AI 未阅读",
        "A video: stored, not read",
    )
    UNDECODABLE = (
        "undecodable",
        "图像压缩格式无法解码，AI 未阅读",
        "The pixels cannot be decoded here",
    )
    OTHER_MODE = (
        "other_mode",
        "非单纯二维灰阶图像（多普勒、M 型等），AI 未阅读",
        "Not plain 2D B-mode (Doppler, M-mode or another mode)",
    )
    COLOUR = (
        "colour",
        "图像含彩色血流或弹性成像，AI 未阅读",
        "Colour flow or strain colours lie over the tissue",
    )
    ELASTOGRAM = (
        "elastogram",
        "弹性成像，AI 未阅读",
        "Elastography or another tissue characterisation",
    )
    DUAL_VIEW = (
        "dual_view",
        "双幅图像，AI 未阅读",
        "Dual view: two tissue regions in one image",
    )
    NO_TISSUE = (
        "no_tissue",
        "未找到二维组织图像区域，AI 未阅读",
        "No 2D tissue region",
    )
    TOO_SMALL = (
        "too_small",
        "图像区域过小，AI 未阅读",
        "The tissue region is too small",
    )
    BLANK = (
        "blank",
        "图像无内容，AI 未阅读",
        "The image is blank",
    )
    TOO_LARGE = (
        "too_large",
        "图像尺寸超出超声图像范围，AI 未阅读",
        "The image is larger than any ultrasound image",
    )
    BAD_VALUES = (
        "bad_values",
        "图像像素值无效，AI 未阅读",
        "The pixel values are not grey levels or colours",
    )
    NO_SPECKLE = (
        "no_speckle",
        "图像无超声散斑纹理（文字界面、图形等），AI 未阅读",
        "No speckle of ultrasound: a text screen, a drawing or another picture",
    )
    UNFAMILIAR = (
        "unfamiliar",
        "图像与 AI 学习过的乳腺超声图像差异过大，AI 未阅读",
        "Too unlike the breast ultrasound images that AI has learned from",
    )
    SIMULATED = (
        "simulated",
        "模拟图像，AI 未阅读",
        "A simulated phantom, not a patient",
    )

    def __init__(self, key: str, zh: str, en: str) -> None:
        self.key = key
        self.zh = zh
        self.en = en

    def of(self, sop_instance_uid: str) -> NotRead:
        """Return the refusal of one instance for this reason."""
        return NotRead(sop_instance_uid, self.key, self.zh, self.en)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the gates need to know of one instance.

    `image_type` holds the values of Image Type; value 4 is a hexadecimal set of
    modes. `decodable` is False when no decoder for its transfer syntax is here,
    None when nobody has tried yet; `video` when it is a stream without frames of its
    own. `simulated` marks the simulator's phantoms.
    """

    sop_class_uid: str
    sop_instance_uid: str
    rows: int
    columns: int
    number_of_frames: int = 1
    image_type: tuple[str, ...] = ()
    regions: tuple[UltrasoundRegion, ...] = ()
    body_part_examined: str = ""
    place: Place = NOWHERE
    plane: Plane | None = None
    ultrasound_color_data_present: bool = False
    decodable: bool | None = None
    video: bool = False
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class UsableRegion:
    """The part of an image to read.

    `box` lies inside the image. `mm_per_pixel` is (x, y), None when uncalibrated
    or when the header's bounds show that its scale is stale.
    """

    box: PixelBox
    mm_per_pixel: tuple[float, float] | None


def select_region(
    header: ImageHeader, *, read_simulated: bool = False
) -> UsableRegion | NotRead:
    """Return the tissue region of an image, or why the header forbids to read it."""
    reason = _why_not(header, read_simulated)
    if reason is not None:
        return reason.of(header.sop_instance_uid)
    whole = PixelBox(0, 0, header.columns, header.rows)
    if not header.regions:
        return _large_enough(header, whole, None)
    tissue = [r for r in header.regions if _is_tissue(r)]
    if not tissue:
        return Reason.NO_TISSUE.of(header.sop_instance_uid)
    if len(tissue) > 1:
        return Reason.DUAL_VIEW.of(header.sop_instance_uid)
    box = _clipped(tissue[0], header)
    if box is None:
        return Reason.TOO_SMALL.of(header.sop_instance_uid)
    scale = tissue[0].millimetres_per_pixel(header.rows, header.columns)
    return _large_enough(header, box, scale)


def refuse_pixels(
    frames: NDArray[np.uint8], region: UsableRegion, sop_instance_uid: str
) -> NotRead | None:
    """Return why the pixels forbid to read an image whose header allowed it, or None.

    `frames`: uint8, (frames, rows, columns, 3), RGB. Headers of colour Doppler and
    elastography are often poor; their pixels are not.
    """
    if not len(frames):
        return Reason.NO_FRAMES.of(sop_instance_uid)
    if frames.dtype != np.uint8:  # NaN is a number of another type
        return Reason.BAD_VALUES.of(sop_instance_uid)
    box = region.box
    inside = frames[:, box.y0 : box.y1, box.x0 : box.x1]
    if any(has_flow_colours(frame) for frame in inside):
        return Reason.COLOUR.of(sop_instance_uid)
    if all(float(frame.std()) < 2.0 for frame in inside):
        return Reason.BLANK.of(sop_instance_uid)
    return None


def has_flow_colours(
    pixels: NDArray[np.uint8], *, spread: int = 24, share: float = 0.004
) -> bool:
    """Tell colour flow and strain overlays from B-mode, tinted B-mode included.

    `pixels`: uint8, (rows, columns, 3). A tint (sepia, blue) makes the chroma a
    function of brightness: within one band of brightness it hardly varies. Flow
    and strain colours do vary there.
    """
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    brightest = np.maximum(np.maximum(red, green), blue)
    coloured = brightest - np.minimum(np.minimum(red, green), blue) > spread
    if float(coloured.mean()) <= share:
        return False
    points = pixels.reshape(-1, 3).astype(np.int32)
    luma = (points @ np.array([299, 587, 114])) // 1000
    chroma = points[:, (0, 2)] - points[:, 1:2]
    odd = 0
    for low in range(0, 256, 16):
        band = chroma[(luma >= low) & (luma < low + 16)]
        if len(band) > 50:
            distance = np.abs(band - np.median(band, axis=0)).max(axis=1)
            odd += int((distance > spread).sum())
    return odd / len(points) > share


def frame_bins(number_of_frames: int, bins: int) -> list[range]:
    """Divide a cine into up to `bins` spans of time, each with at least one frame."""
    count = min(bins, number_of_frames)
    edges = [round(i * number_of_frames / count) for i in range(count + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def candidate_frames(span: range, limit: int) -> list[int]:
    """Return up to `limit` frames of a span, evenly spread, to judge for sharpness."""
    if len(span) <= limit:
        return list(span)
    step = len(span) / limit
    return [span[int((i + 0.5) * step)] for i in range(limit)]


def sharpest(frames: NDArray[np.uint8], region: UsableRegion) -> int:
    """Return the index of the sharpest frame: largest variance of the Laplacian."""
    scores = [sharpness(frame, region.box) for frame in frames]
    return int(np.argmax(scores))


def sharpness(frame: NDArray[np.uint8], box: PixelBox) -> float:
    """Return the variance of the Laplacian inside `box`, on every second pixel."""
    inside = frame[box.y0 : box.y1 : 2, box.x0 : box.x1 : 2]
    grey = inside.astype(np.float32).mean(axis=2)
    laplacian = (
        4 * grey[1:-1, 1:-1]
        - grey[:-2, 1:-1]
        - grey[2:, 1:-1]
        - grey[1:-1, :-2]
        - grey[1:-1, 2:]
    )
    return float(laplacian.var())


def _why_not(header: ImageHeader, read_simulated: bool) -> Reason | None:
    """Return the first reason of the header alone, in the order of certainty."""
    if header.sop_class_uid in OTHER_ULTRASOUND:
        return Reason.OTHER_ULTRASOUND
    if header.sop_class_uid not in READABLE_SOP_CLASSES:
        return Reason.NOT_ULTRASOUND
    if header.simulated and not read_simulated:
        return Reason.SIMULATED
    body_part = header.body_part_examined.strip().upper()
    if body_part and "BREAST" not in body_part:  # makers also write LBREAST, BREAST_US
        return Reason.NOT_BREAST
    if header.number_of_frames < 1 or header.rows < 1 or header.columns < 1:
        return Reason.NO_FRAMES
    if header.rows * header.columns > MOST_PIXELS:
        return Reason.TOO_LARGE
    if header.video:
        return Reason.VIDEO
    if header.decodable is False:
        return Reason.UNDECODABLE
    modes = _modes(header.image_type)
    if modes & TISSUE_CHARACTERISATION:
        return Reason.ELASTOGRAM
    if modes & OTHER_MODES:
        return Reason.OTHER_MODE
    return _why_not_regions(header)


def _why_not_regions(header: ImageHeader) -> Reason | None:
    tissue = [r for r in header.regions if _is_tissue(r)]
    for region in header.regions:
        if region.spatial_format in (M_MODE, SPECTRAL):
            return Reason.OTHER_MODE
        if region.data_type == COLOUR_FLOW and any(_overlap(region, t) for t in tissue):
            return Reason.COLOUR
    if header.ultrasound_color_data_present and not header.regions:
        # Colour somewhere in the image, and no region to tell where.
        return Reason.COLOUR
    return None


def _modes(image_type: Sequence[str]) -> int:
    if len(image_type) < 4:
        return 0
    try:
        return int(image_type[3].strip() or "0", 16)
    except ValueError:
        return 0


def _is_tissue(region: UltrasoundRegion) -> bool:
    return region.spatial_format == SPATIAL_2D and region.data_type == TISSUE


def _overlap(a: UltrasoundRegion, b: UltrasoundRegion) -> bool:
    apart = a.x1 < b.x0 or b.x1 < a.x0 or a.y1 < b.y0 or b.y1 < a.y0
    return not apart


def _clipped(region: UltrasoundRegion, header: ImageHeader) -> PixelBox | None:
    """Return the part of a region inside the image as a half-open box."""
    x0, y0 = max(0, region.x0), max(0, region.y0)
    x1, y1 = min(header.columns, region.x1 + 1), min(header.rows, region.y1 + 1)
    return PixelBox(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _large_enough(
    header: ImageHeader, box: PixelBox, scale: tuple[float, float] | None
) -> UsableRegion | NotRead:
    if min(box.x1 - box.x0, box.y1 - box.y0) < SHORTEST_SIDE_PX:
        return Reason.TOO_SMALL.of(header.sop_instance_uid)
    return UsableRegion(box, scale)
