"""A de-identified set of the site's own images with what doctors signed about them.

Pictures are cut to the ultrasound region, text in them is blacked out, and the manifest
has the layout of the published sets, so that training reads it like any other. Labels
come from the signed version and from recorded outcomes; free text is never read.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from dicom_scp.export.burned_in import black_out
from dicom_scp.export.deidentify import Subject, deidentified
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Lesion, PixelBox
from node.domain.lexicon import FieldKey
from node.domain.manifest import COLUMNS, descriptor_cells, row_of
from node.domain.study import UltrasoundRegion
from node.imaging import StoredImage, ultrasound_regions
from node.store import studies
from node.store.store import Store
from node.workflow.export import LeftOut, SignedStudy, release_for_training, report_ids

SET = "site"
README = """\
De-identified images of a site with what its radiologists signed, for training.

manifest.csv has one row per image. label is empty unless biopsy or follow-up was
recorded; `normal` is a signed category 1 without any lesion. mask_from=box marks
lesions whose border nobody drew. study_date is shifted by a number of days of each
patient's own; age 90 stands for 90 and more. group_id is the patient; splits never
divide one.

Text in the pictures was looked for by a program and blacked out (text_run counts the
lines found). Faint text can be left: look at the pictures before giving them away.
"""
_ULTRASOUND = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.6.1",  # Ultrasound Image
        "1.2.840.10008.5.1.4.1.1.3.1",  # Ultrasound Multi-frame Image
    }
)
_SPATIAL_2D, _TISSUE = 1, 1  # PS3.3 C.8.5.5.1.1, C.8.5.5.1.2
_SIMULATED = "SIMULATED"

NOT_ULTRASOUND = "image: not ultrasound"
OF_A_SIMULATOR = "image: of a simulator"
NO_REGION = "image: no single known tissue region"
UNDECODABLE = "image: cannot be decoded"
UNLABELLED = "image: nothing was said about it"

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]


@dataclass
class Exported:
    """What went and what stayed, by reason."""

    images: int = 0
    patients: set[str] = field(default_factory=set)
    lines_of_text: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Shown:
    """One frame to export: the lesions that were marked in it, none when normal."""

    instance: studies.StoredInstance
    frame: int
    lesions: tuple[Lesion, ...]


async def export_training(
    store: Store,
    target: Path,
    *,
    since: date | None = None,
    by: str,
    dicom: bool = False,
    whole_frames: bool = False,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write `target/site`; CONFLICT when there is one already.

    `since`: only reports signed on that day or later. `dicom`: each picture also as a
    DICOM object. `whole_frames`: also images whose header names no region; then only
    found text is blacked out, and the margin of such a screen often names the patient.
    """
    folder = target / SET
    if (folder / "manifest.csv").exists():
        raise NodeError(
            f"{folder} holds an export already; name another folder", ErrorKind.CONFLICT
        )
    for part in ("images", "masks", *(("dicom",) if dicom else ())):
        (folder / part).mkdir(parents=True, exist_ok=True)
    done = Exported()
    rows: list[dict[str, str]] = []
    ids = await report_ids(store)
    for number, report_id in enumerate(ids, start=1):
        released = await release_for_training(store, report_id, since=since, by=by)
        if isinstance(released, LeftOut):
            done.left_out[released.value] += 1
        else:
            writer = _Writer(store, folder, released, done, dicom, whole_frames)
            rows += await asyncio.to_thread(writer.rows)
        progress(number, len(ids))
    (folder / "README.txt").write_text(README, encoding="utf-8")
    _write_manifest(folder / "manifest.csv", rows)
    return done


@dataclass(frozen=True)
class _Writer:
    """Writes the pictures of one study."""

    store: Store
    folder: Path
    study: SignedStudy
    done: Exported
    dicom: bool
    whole_frames: bool

    def rows(self) -> list[dict[str, str]]:
        rows = []
        for shown in self._shown():
            row = self._row(shown)
            if isinstance(row, str):
                self.done.left_out[row] += 1
            else:
                rows.append(row)
                self.done.images += 1
                self.done.patients.add(self.study.pseudonyms.patient)
        return rows

    def _shown(self) -> Iterator[_Shown]:
        """Yield the frames about which the signed version says something.

        A frame with a marked lesion; or, where category 1 was signed and no lesion
        stands, the middle frame of every image. That a lesion is not marked in an
        image does not say that the image does not show it.
        """
        findings = self.study.version.findings
        normal = findings.category == "1" and not findings.lesions
        for instance in self.study.instances:
            marked: dict[int, list[Lesion]] = {}
            for lesion in findings.lesions:
                image = lesion.image
                if image and image.sop_instance_uid == instance.sop_instance_uid:
                    marked.setdefault(image.frame, []).append(lesion)
            for frame, lesions in marked.items():
                if any(lesion.box or lesion.outline for lesion in lesions):
                    yield _Shown(instance, frame, tuple(lesions))
            if normal:
                yield _Shown(instance, (instance.number_of_frames + 1) // 2, ())
            elif not marked:
                self.done.left_out[UNLABELLED] += 1

    def _row(self, shown: _Shown) -> dict[str, str] | str:
        """Write one picture; return its row, or why it is left out."""
        instance = shown.instance
        if instance.sop_class_uid not in _ULTRASOUND:
            return NOT_ULTRASOUND
        header = Dataset.from_json(json.loads(instance.metadata))
        if str(header.get("ImageComments", None) or "").upper().startswith(_SIMULATED):
            return OF_A_SIMULATOR
        try:
            stored = StoredImage(
                studies.open_blob(self.store, instance),
                header=header,
                frames=instance.frame_table,
                transfer_syntax_uid=instance.transfer_syntax_uid,
            )
            frame = stored.frame(max(1, shown.frame) - 1)
        except NodeError:
            return UNDECODABLE
        place = self._region(header, frame.shape[0], frame.shape[1])
        if place is None:
            return NO_REGION
        box, scale = place
        cleaned, lines = black_out(_grey_if_grey(frame), box)
        self.done.lines_of_text += lines
        uid = f"{instance.sop_instance_uid}/{shown.frame}"
        name = self.study.pseudonyms.uid(uid).removeprefix("2.25.")
        if self.dicom:
            subject = self._subject()
            dataset = deidentified(header, cleaned, subject, shown.frame)
            path = self.folder / "dicom" / f"{name}.dcm"
            dataset.save_as(path, enforce_file_format=True)
        cut = cleaned[box.y0 : box.y1, box.x0 : box.x1]
        file = self.folder / "images" / f"{name}.webp"
        Image.fromarray(cut).save(file, lossless=True, quality=60, method=2)
        cells = {
            **self._study_cells(header, name),
            **self._label_cells(shown.lesions),
            **_picture_cells(cut, lines, scale),
        }
        if shown.lesions:
            cells |= self._mask_cells(shown.lesions, box, name, scale)
        return row_of(cells.items())

    def _region(
        self, header: Dataset, rows: int, columns: int
    ) -> tuple[PixelBox, tuple[float, float] | None] | None:
        """Return the one tissue region and its mm per pixel, or None."""
        regions = ultrasound_regions(header)
        if not regions and self.whole_frames:
            return PixelBox(0, 0, columns, rows), None
        if len(regions) != 1 or not _is_tissue(regions[0]):
            return None
        only = regions[0]
        x0, y0 = max(0, only.x0), max(0, only.y0)
        x1, y1 = min(columns, only.x1 + 1), min(rows, only.y1 + 1)
        if x0 >= x1 or y0 >= y1:
            return None
        return PixelBox(x0, y0, x1, y1), only.millimetres_per_pixel(rows, columns)

    def _subject(self) -> Subject:
        study = self.study
        return Subject(
            name=study.pseudonyms.patient,
            age=study.age,
            sex=study.sex,
            study_date=study.study_date,
            uid=study.pseudonyms.uid,
        )

    def _study_cells(self, header: Dataset, name: str) -> dict[str, object]:
        study = self.study
        device = (header.get("Manufacturer", None), header.get("ManufacturerModelName"))
        return {
            "id": f"{SET}_{name}",
            "set": SET,
            "file": f"{SET}/images/{name}.webp",
            "shipped": 1,
            "split": study.pseudonyms.split,
            "group_id": study.pseudonyms.patient,
            "lesion_linked": 0,
            "age": study.age,
            "device": " ".join(str(part) for part in device if part),
            "modality": "US",
            "study_date": study.study_date,
        }

    def _label_cells(self, lesions: Sequence[Lesion]) -> dict[str, object]:
        """Return category, descriptors and outcome of what the picture shows.

        Several lesions in one picture: the worst category, the descriptors in which
        they agree, an outcome only where all are known.
        """
        if not lesions:
            return {"label": "normal", "birads": "1"}
        given = [lesion.category for lesion in lesions if lesion.category is not None]
        if not given and len(self.study.version.findings.lesions) == len(lesions):
            given = [self.study.version.findings.category or ""]
        worst = lexicon.worst_category(key for key in given if key)
        ends = [self.study.outcomes.get(lesion.tracking_uid) for lesion in lesions]
        label = max(end.value for end in ends if end) if all(ends) else ""
        sides = {lesion.laterality for lesion in lesions}
        clocks = {lesion.clock for lesion in lesions}
        return {
            "label": label,
            "verification": "recorded outcome" if label else "",
            "birads": (worst or "").lower(),
            "laterality": sides.pop() if len(sides) == 1 else "",
            "clock": clocks.pop() if len(clocks) == 1 else "",
            "n_lesions": len(lesions),
            **descriptor_cells(_agreed(lesions)),
        }

    def _mask_cells(
        self,
        lesions: Sequence[Lesion],
        region: PixelBox,
        name: str,
        scale: tuple[float, float] | None,
    ) -> dict[str, object]:
        size = (region.x1 - region.x0, region.y1 - region.y0)
        mask = Image.new("1", size)
        for lesion in lesions:
            _draw(ImageDraw.Draw(mask), lesion, region)
        mask.save(self.folder / "masks" / f"{name}.png", optimize=True)
        around = mask.getbbox()
        if around is None:
            return {}
        x0, y0, x1, y1 = around
        cells: dict[str, object] = {
            "mask": f"{SET}/masks/{name}.png",
            "mask_from": "outline" if all(le.outline for le in lesions) else "box",
            "lesion_x": x0,
            "lesion_y": y0,
            "lesion_w_px": x1 - x0,
            "lesion_h_px": y1 - y0,
            "lesion_area_px": int(np.count_nonzero(np.asarray(mask))),
            "taller_than_wide": round((y1 - y0) / (x1 - x0), 4),
        }
        if scale is not None:
            cells["lesion_w_mm"] = round((x1 - x0) * scale[0], 2)
            cells["lesion_h_mm"] = round((y1 - y0) * scale[1], 2)
        return cells


def _draw(draw: ImageDraw.ImageDraw, lesion: Lesion, region: PixelBox) -> None:
    """Fill a lesion's outline, or its box, in pixels of the region."""
    if lesion.outline:
        points = [(x - region.x0, y - region.y0) for x, y in lesion.outline]
        draw.polygon(points, fill=1, outline=1)
    elif lesion.box is not None:
        box = lesion.box
        draw.rectangle(
            (
                box.x0 - region.x0,
                box.y0 - region.y0,
                box.x1 - 1 - region.x0,
                box.y1 - 1 - region.y0,
            ),
            fill=1,
        )


def _agreed(lesions: Sequence[Lesion]) -> dict[FieldKey, tuple[str, ...]]:
    """Return the descriptors that all lesions have in common."""
    first = lesions[0].descriptors
    return {
        key: values
        for key, values in first.items()
        if all(lesion.descriptors.get(key) == values for lesion in lesions)
    }


def _picture_cells(
    cut: Picture, lines: int, scale: tuple[float, float] | None
) -> dict[str, object]:
    height, width = cut.shape[:2]
    square = scale is not None and abs(scale[0] - scale[1]) < 0.01 * scale[0]
    return {
        "width": width,
        "height": height,
        "orig_width": width,
        "orig_height": height,
        "scale": 1.0,
        "color": int(cut.ndim == 3),
        "text_run": lines,
        "pixel_mm": f"{scale[0]:.6g}" if scale is not None and square else "",
    }


def _grey_if_grey(frame: Picture) -> Picture:
    return frame[..., 0] if (frame == frame[..., :1]).all() else frame


def _is_tissue(region: UltrasoundRegion) -> bool:
    return (region.spatial_format, region.data_type) == (_SPATIAL_2D, _TISSUE)


def _write_manifest(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write the manifest last and whole: it is the sign that the set is complete."""
    fresh = path.with_suffix(".part")
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["id"]))
    os.replace(fresh, path)
