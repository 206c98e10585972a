"""Reads the images of a study and drafts what the algorithm has to say.

The most suspicious lesion over all readable images is reported, one per study.
Every image that was not read is named with its reason. A field that the model may
not speak on is left out: absent is "not assessed", never "normal".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from inference.explain import activation_map, heat_map
from inference.preprocess import Array, RegionView, view_region
from inference.record import (
    BIRADS_STEPS,
    CHOICE_KEYS,
    MARGIN_KEYS,
    Fusion,
    ModelRecord,
    Network,
)
from inference.select import (
    ImageHeader,
    Reason,
    UsableRegion,
    candidate_frames,
    frame_bins,
    refuse_pixels,
    select_region,
    sharpest,
)
from inference.two_pass import RegionAnswers, read_regions, sigmoid
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import (
    Extent,
    Findings,
    ImageReference,
    Lesion,
    NotRead,
    PixelBox,
)
from node.domain.lexicon import FieldKey

Frames = NDArray[np.uint8]
Points = tuple[tuple[float, float], ...]

UNREADABLE_PIXELS = frozenset(
    {ErrorKind.UNSUPPORTED, ErrorKind.INVALID, ErrorKind.EXHAUSTED}
)
"""Failures of one image that no retry mends: no decoder, damaged, beyond the limit."""

CINE_FRAMES = 5
CANDIDATES_PER_BIN = 4

CATEGORY_LIKELIHOODS = (
    ("3", 0.02),
    ("4A", 0.10),
    ("4B", 0.50),
    ("4C", 0.95),
    ("5", 1.01),
)
"""Likelihood of malignancy below which each category holds (ACR BI-RADS Atlas)."""


@dataclass(frozen=True, slots=True)
class ImageToRead:
    """One instance of the study.

    `frames` decodes the frames with the given 0-based indices to uint8
    (n, rows, columns, 3), RGB; it may raise NodeError(UNSUPPORTED).
    """

    header: ImageHeader
    frames: Callable[[Sequence[int]], Frames]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model spoke; goes into every SR and report."""

    name: str
    version: str
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class HeatMapPicture:
    """Why the algorithm suspects this lesion: uint8 (rows, columns, 3), region only."""

    tracking_uid: str
    image: ImageReference
    pixels: Frames


@dataclass(frozen=True, slots=True)
class StudyReading:
    """What the algorithm says about a study.

    `findings.category` is None when no image could be read.
    `frames_read` counts the frames that the network saw.
    """

    findings: Findings
    heat_maps: tuple[HeatMapPicture, ...]
    model: ModelIdentity
    frames_read: int


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame ready to be read."""

    header: ImageHeader
    region: UsableRegion
    index: int
    pixels: Frames
    view: RegionView

    @property
    def reference(self) -> ImageReference:
        """Return the frame as DICOM counts it, from 1 on."""
        header = self.header
        return ImageReference(
            header.sop_class_uid, header.sop_instance_uid, self.index + 1
        )


class Reader:
    """A model that reads studies: its network, and the record that says what it means.

    `cine_frames`: how many frames of one cine are read. Safe to call from several
    threads at once when the network is.
    """

    def __init__(
        self,
        network: Network,
        record: ModelRecord,
        *,
        read_simulated: bool = False,
        cine_frames: int = CINE_FRAMES,
    ) -> None:
        self._network = network
        self._record = record
        self._read_simulated = read_simulated
        self._cine_frames = cine_frames

    @property
    def identity(self) -> ModelIdentity:
        """Return name, version and hash of the model."""
        record = self._record
        return ModelIdentity(record.name, record.version, record.sha256)

    def read_study(
        self,
        images: Sequence[ImageToRead],
        *,
        tracking_uid: Callable[[int], str],
    ) -> StudyReading:
        """Return the draft for a study; same images, same answer.

        `tracking_uid` gives the UID of the n-th lesion, from 1 on (TID 1410), and
        must give the same one when the study is read again.
        """
        frames: list[_Frame] = []
        not_read: list[NotRead] = []
        for image in images:
            chosen = self._choose_frames(image)
            if isinstance(chosen, NotRead):
                not_read.append(chosen)
            else:
                frames += chosen
        if not frames:
            return self._reading(Findings(not_read=tuple(not_read)), (), 0)
        lesion, picture = self._read_frames(frames, tracking_uid(1))
        findings = Findings(
            lesions=(lesion,) if lesion else (),
            category=lesion.category if lesion else "1",
            not_read=tuple(not_read),
        )
        return self._reading(findings, (picture,) if picture else (), len(frames))

    def _reading(
        self, findings: Findings, pictures: tuple[HeatMapPicture, ...], count: int
    ) -> StudyReading:
        return StudyReading(findings, pictures, self.identity, count)

    def _choose_frames(self, image: ImageToRead) -> list[_Frame] | NotRead:
        header = image.header
        region = select_region(header, read_simulated=self._read_simulated)
        if isinstance(region, NotRead):
            return region
        try:
            indices, pixels = _sharp_frames(image, region, self._cine_frames)
        except NodeError as error:
            if error.kind not in UNREADABLE_PIXELS:
                raise
            return Reason.UNDECODABLE.of(header.sop_instance_uid)
        refused = refuse_pixels(pixels, region, header.sop_instance_uid)
        if refused is not None:
            return refused
        return [
            _Frame(header, region, index, frame, view_region(frame, region.box))
            for index, frame in zip(indices, pixels, strict=True)
        ]

    def _read_frames(
        self, frames: Sequence[_Frame], tracking_uid: str
    ) -> tuple[Lesion | None, HeatMapPicture | None]:
        answers = read_regions(
            self._network,
            np.stack([frame.view.pixels for frame in frames]),
            np.array([[frame.view.rows, frame.view.columns] for frame in frames]),
            self._record.side,
        )
        seen = shows_lesion(answers, self._record)
        if not seen.any():
            return None, None
        suspicion = fused_logits(answers, self._record.fusion)
        row = int(np.where(seen, suspicion, -np.inf).argmax())
        probability = float(sigmoid(suspicion[row]))
        frame = frames[row]
        lesion = self._lesion(frame, answers, row, probability, tracking_uid)
        evidence = activation_map(
            self._network, frame.view, answers.windows[row], self._record.side
        )
        picture = HeatMapPicture(
            tracking_uid,
            frame.reference,
            heat_map(frame.pixels, frame.view, evidence),
        )
        return lesion, picture

    def _lesion(
        self,
        frame: _Frame,
        answers: RegionAnswers,
        row: int,
        probability: float,
        tracking_uid: str,
    ) -> Lesion:
        view = frame.view
        box = frame_box(view, answers.boxes[row].tolist())
        outline = tuple(
            view.to_frame(float(x), float(y)) for x, y in answers.outlines[row]
        )
        scale = frame.region.mm_per_pixel
        header = frame.header
        return Lesion(
            tracking_uid=tracking_uid,
            image=frame.reference,
            box=box,
            outline=outline,
            laterality=header.laterality if header.laterality in ("L", "R") else None,
            extent=extent_mm(box, outline, scale) if scale else None,
            descriptors=describe(answers, row, self._record),
            category=category_for(
                probability, float(answers.crop.birads[row, 0]), self._record
            ),
            probability=Decimal(f"{probability:.3f}"),
        )


def fused_logits(answers: RegionAnswers, fusion: Fusion) -> Array:
    """Return the calibrated malignancy logit of each region."""
    logits = (
        fusion.whole * answers.whole.malignancy
        + fusion.crop * answers.crop.malignancy
        + fusion.ordinal * answers.crop.birads.mean(axis=1)
        + fusion.offset
    )
    return np.asarray(logits, dtype=np.float32)


def shows_lesion(answers: RegionAnswers, record: ModelRecord) -> NDArray[np.bool_]:
    """Tell for each region whether it shows a lesion; False is category 1.

    A region is normal only when both passes and the suspicion agree: a cancer taken
    for normal tissue costs more than any number of benign lesions reported.
    """
    suspicion = sigmoid(fused_logits(answers, record.fusion))
    seen = lesion_logits(answers) >= record.lesion_threshold
    return np.asarray(seen | (suspicion >= record.threshold))


def lesion_logits(answers: RegionAnswers) -> Array:
    """Return the stronger of both passes' logits that there is a lesion."""
    return np.maximum(answers.whole.lesion, answers.crop.lesion)


def category_for(probability: float, above_benign: float, record: ModelRecord) -> str:
    """Return the BI-RADS category whose likelihood band holds `probability`.

    Category and probability can so never contradict each other. Below 2 % the
    ordinal head's logit of "above 2" tells benign (2) from probably benign (3).
    """
    for category, below in CATEGORY_LIKELIHOODS:
        if probability < below:
            if category == "3" and above_benign < record.benign_step:
                return BIRADS_STEPS[0]
            return category
    raise NodeError("probability is 0 to 1", ErrorKind.INVALID)


def describe(
    answers: RegionAnswers, row: int, record: ModelRecord
) -> dict[FieldKey, tuple[str, ...]]:
    """Return the descriptors of one lesion, only of fields the model may speak on."""
    said: dict[FieldKey, tuple[str, ...]] = {}
    for field, allowed in record.speaks_on.items():
        if field == "margin":
            terms = _margins(answers.crop.margin[row].tolist(), record)
        elif field == "orientation":
            terms = (orientation_of(answers.boxes[row].tolist()),)
        else:
            best = int(answers.crop.choices[field][row].argmax())
            terms = (CHOICE_KEYS[field][best],)
        if terms and set(terms) <= set(allowed):
            said[FieldKey(field)] = terms
    return said


def _margins(logits: Sequence[float], record: ModelRecord) -> tuple[str, ...]:
    """Return the margin terms above their thresholds.

    Circumscribed excludes the other four (BI-RADS US): the stronger side speaks.
    """
    excess = {
        key: logit - record.margin_thresholds[key]
        for key, logit in zip(MARGIN_KEYS, logits, strict=True)
        if key in record.speaks_on["margin"]
    }
    terms = {key for key, value in excess.items() if value > 0}
    if "circumscribed" in terms and len(terms) > 1:
        rest = max(excess[key] for key in terms - {"circumscribed"})
        terms = (
            {"circumscribed"}
            if excess["circumscribed"] > rest
            else terms - {"circumscribed"}
        )
    return tuple(key for key in MARGIN_KEYS if key in terms)


def orientation_of(box: Sequence[float]) -> str:
    """Return whether a lesion lies along the skin: taller than wide is not parallel.

    The skin is at the top of every breast image, so the rows run away from it.
    """
    x0, y0, x1, y1 = box
    return "not_parallel" if y1 - y0 > x1 - x0 else "parallel"


def frame_box(view: RegionView, box: Sequence[float]) -> PixelBox:
    """Return a box of the reduced region in whole pixels of the frame, half-open."""
    x0, y0 = view.to_frame(box[0], box[1])
    x1, y1 = view.to_frame(box[2], box[3])
    left = min(int(np.floor(x0)), view.box.x1 - 1)
    top = min(int(np.floor(y0)), view.box.y1 - 1)
    right = min(max(int(np.ceil(x1)), left + 1), view.box.x1)
    bottom = min(max(int(np.ceil(y1)), top + 1), view.box.y1)
    return PixelBox(left, top, right, bottom)


def extent_mm(
    box: PixelBox, outline: Points, mm_per_pixel: tuple[float, float]
) -> Extent:
    """Return the size of a lesion in millimetres.

    `box` and `outline` are in pixels of the whole frame; `mm_per_pixel` is (x, y),
    which differ on some machines. The long axis is the largest distance between two
    points of the outline, and never shorter than a side of the box.
    """
    across, down = mm_per_pixel
    width, height = (box.x1 - box.x0) * across, (box.y1 - box.y0) * down
    points = np.array(outline, dtype=np.float64).reshape(-1, 2) * (across, down)
    apart = points[:, None, :] - points[None, :, :]
    longest = float(np.hypot(apart[..., 0], apart[..., 1]).max(initial=0.0))
    return Extent(
        long_axis_mm=_tenths(max(longest, width, height)),
        width_mm=_tenths(width),
        height_mm=_tenths(height),
    )


def _tenths(value_mm: float) -> Decimal:
    """Round to 0.1 mm, the finest that the pixels carry; never down to zero."""
    return max(Decimal(f"{value_mm:.1f}"), Decimal("0.1"))


def _sharp_frames(
    image: ImageToRead, region: UsableRegion, count: int
) -> tuple[list[int], Frames]:
    """Return the sharpest frame of each of `count` spans of time, and its index.

    Decodes a bounded number of frames, however long the cine, and holds those of
    one span at a time.
    """
    indices, chosen = [], []
    for span in frame_bins(image.header.number_of_frames, count):
        candidates = candidate_frames(span, CANDIDATES_PER_BIN)
        frames = image.frames(candidates)
        best = sharpest(frames, region) if len(candidates) > 1 else 0
        indices.append(candidates[best])
        chosen.append(frames[best])
    return indices, np.stack(chosen)
