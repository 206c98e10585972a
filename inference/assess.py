"""Reads the images of a study and drafts what the algorithm has to say.

Each place in the breast that shows something is a lesion, told from all its views
(`inference.aggregate`). Every image that was not read is named with its reason. A
field that the model may not speak on is left out: absent is "not assessed", never
"normal".
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from inference.aggregate import Sight, lesions_of
from inference.explain import activation_map, heat_map
from inference.likeness import lesion_vector
from inference.place import Place
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
from inference.unfamiliar import Familiarity, refuse_texture
from node.domain import lexicon
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

DECODERS = 2
"""Images of one study that are decoded at once; each holds a few frames meanwhile."""


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
    `frames_read` counts the frames that the network saw. `vectors`: what the network
    saw in each lesion, by tracking UID, to find others like it (`inference.likeness`).
    """

    findings: Findings
    heat_maps: tuple[HeatMapPicture, ...]
    model: ModelIdentity
    frames_read: int
    vectors: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class _Frame:
    """One frame ready to be read; its pixels are decoded again where they are drawn."""

    image: ImageToRead
    region: UsableRegion
    index: int
    view: RegionView

    @property
    def uid(self) -> str:
        """Return the SOP Instance UID of the image."""
        return self.image.header.sop_instance_uid

    @property
    def reference(self) -> ImageReference:
        """Return the frame as DICOM counts it, from 1 on."""
        return ImageReference(self.image.header.sop_class_uid, self.uid, self.index + 1)


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What one frame shows, in pixels and millimetres of the whole frame."""

    box: PixelBox
    outline: Points
    extent: Extent | None


class Reader:
    """A model that reads studies: its network, and the record that says what it means.

    `cine_frames`: how many frames of one cine are read. `familiarity`: what the model
    was trained on; images far from it are refused. Safe to call from several threads
    at once when the network is.
    """

    def __init__(
        self,
        network: Network,
        record: ModelRecord,
        *,
        read_simulated: bool = False,
        cine_frames: int = CINE_FRAMES,
        familiarity: Familiarity | None = None,
    ) -> None:
        self._network = network
        self._record = record
        self._read_simulated = read_simulated
        self._cine_frames = cine_frames
        self._familiarity = familiarity

    @property
    def identity(self) -> ModelIdentity:
        """Return name, version and hash of the model."""
        record = self._record
        return ModelIdentity(record.name, record.version, record.sha256)

    def read_study(
        self,
        images: Sequence[ImageToRead],
        *,
        tracking_uid: Callable[[Place], str],
    ) -> StudyReading:
        """Return the draft for a study; same images, same answer.

        `tracking_uid` gives the UID of the lesion at a place (TID 1410), and must
        give the same one when the study is read again.
        """
        frames: list[_Frame] = []
        not_read: list[NotRead] = []
        for chosen in self._chosen(images):
            if isinstance(chosen, NotRead):
                not_read.append(chosen)
            else:
                frames += chosen
        lesions: list[Lesion] = []
        pictures: list[HeatMapPicture] = []
        vectors: dict[str, tuple[float, ...]] = {}
        count = 0
        if frames:
            answers = read_regions(
                self._network,
                np.stack([frame.view.pixels for frame in frames]),
                np.array([[frame.view.rows, frame.view.columns] for frame in frames]),
                self._record.side,
            )
            rows = self._familiar_rows(frames, answers)
            count = len(rows)
            not_read += _left_out(frames, rows)
            for lesion, picture, vector in self._lesions(
                frames, answers, rows, tracking_uid
            ):
                lesions.append(lesion)
                pictures.append(picture)
                if vector:
                    vectors[lesion.tracking_uid] = vector
        findings = Findings(
            lesions=tuple(lesions),
            category=_overall(lesions) if count else None,
            not_read=tuple(not_read),
        )
        return StudyReading(findings, tuple(pictures), self.identity, count, vectors)

    def _chosen(self, images: Sequence[ImageToRead]) -> list[list[_Frame] | NotRead]:
        """Decode and judge the images of a study, some at once, in their order."""
        with ThreadPoolExecutor(DECODERS, "decode") as decoders:
            return list(decoders.map(self._choose_frames, images))

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
        frames, reasons = [], []
        for index, frame in zip(indices, pixels, strict=True):
            view = view_region(frame, region.box)
            reason = refuse_texture(view.pixels[: view.rows, : view.columns])
            if reason is None:
                frames.append(_Frame(image, region, index, view))
            else:
                reasons.append(reason)
        # One poor frame of a cine says nothing of the others.
        return frames or reasons[0].of(header.sop_instance_uid)

    def _familiar_rows(
        self, frames: Sequence[_Frame], answers: RegionAnswers
    ) -> tuple[int, ...]:
        """Return the frames that look like what the model was trained on.

        Simulated images are known not to, and read only where a site asks for it.
        """
        if self._familiarity is None:
            return tuple(range(len(frames)))
        near = self._familiarity.distance(answers.whole.pooled) <= 1
        return tuple(
            row
            for row, frame in enumerate(frames)
            if near[row] or frame.image.header.simulated
        )

    def _lesions(
        self,
        frames: Sequence[_Frame],
        answers: RegionAnswers,
        rows: Sequence[int],
        tracking_uid: Callable[[Place], str],
    ) -> Iterator[tuple[Lesion, HeatMapPicture, tuple[float, ...]]]:
        """Yield the lesions of the study, worst first, with explanation and vector."""
        shown = shows_lesion(answers, self._record)
        suspicion = fused_logits(answers, self._record.fusion)
        drawings = {row: _draw(frames[row], answers, row) for row in rows}
        sights = [
            Sight(
                frames[row].uid,
                frames[row].image.header.place,
                float(suspicion[row]),
                bool(shown[row]),
                frames[row].image.header.plane,
                drawings[row].extent,
            )
            for row in rows
        ]
        for seen in lesions_of(sights):
            row = rows[seen.drawn]
            frame, uid = frames[row], tracking_uid(seen.place)
            lesion = Lesion(
                tracking_uid=uid,
                image=frame.reference,
                box=drawings[row].box,
                outline=drawings[row].outline,
                laterality=seen.place.laterality,
                clock=seen.place.clock,
                distance_from_nipple_mm=seen.place.distance_from_nipple_mm,
                extent=seen.extent,
                descriptors=describe(answers, row, self._record),
                category=category_for(seen.suspicion, self._record.category_cuts),
                probability=Decimal(f"{probability_of(seen.suspicion):.3f}"),
            )
            evidence = activation_map(
                self._network, frame.view, answers.windows[row], self._record.side
            )
            pixels = frame.image.frames([frame.index])[0]
            picture = heat_map(pixels, frame.view, evidence)
            vector = lesion_vector(answers.crop.pooled[row])
            yield lesion, HeatMapPicture(uid, frame.reference, picture), vector


def _overall(lesions: Sequence[Lesion]) -> str:
    """Return the category of a study that was read: its worst lesion's, or 1."""
    given = [lesion.category for lesion in lesions if lesion.category is not None]
    return lexicon.worst_category(given) or "1"


def _left_out(frames: Sequence[_Frame], rows: Sequence[int]) -> list[NotRead]:
    """Return the images of which no frame is familiar."""
    kept = {frames[row].uid for row in rows}
    left = dict.fromkeys(frame.uid for frame in frames if frame.uid not in kept)
    return [Reason.UNFAMILIAR.of(uid) for uid in left]


def _draw(frame: _Frame, answers: RegionAnswers, row: int) -> _Drawing:
    view, scale = frame.view, frame.region.mm_per_pixel
    box = frame_box(view, answers.boxes[row].tolist())
    outline = tuple(view.to_frame(float(x), float(y)) for x, y in answers.outlines[row])
    return _Drawing(box, outline, extent_mm(box, outline, scale) if scale else None)


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


def probability_of(suspicion: float) -> float:
    """Return the probability of malignancy, 0 to 1, from its calibrated logit."""
    return 0.5 * (1 + math.tanh(0.5 * suspicion))


def category_for(suspicion: float, cuts: Sequence[float]) -> str:
    """Return the BI-RADS category of a lesion, 2 to 5, from its malignancy logit.

    A more probable cancer never gets a lower category.
    """
    return BIRADS_STEPS[bisect_right(cuts, suspicion)]


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
