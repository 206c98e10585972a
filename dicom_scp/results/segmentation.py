"""The algorithm's outlines as binary Segmentations (PS3.3 A.51, C.8.20).

One object for each frame that lesions were drawn on, one segment for each of them,
under the tracking UID that SR and FHIR give the same lesion. Ultrasound frames have no
frame of reference, so a segmentation has its source's pixels and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from dicom_scp.results.sr import (
    MANUFACTURER,
    MODEL,
    Equipment,
    algorithm_of,
    complete_header,
    stamp,
)
from dicom_scp.results.tid1500 import coded, lesion_name
from node.charset import UTF8
from node.domain import lexicon
from node.domain.finding import ImageReference, Lesion
from node.domain.report import ReportVersion
from node.domain.uids import result_uid

SEGMENTATION: Final = "segmentation"

_SERIES_NUMBER: Final = 9200
_FEWEST_POINTS: Final = 3


def build_segmentations(
    version: ReportVersion,
    sources: Sequence[Dataset],
    *,
    report_id: UUID,
    equipment: Equipment,
) -> list[Dataset]:
    """Return a Segmentation for every frame on which the algorithm drew a lesion.

    `sources` are the Unicode headers of the study's images. A lesion that has a box
    and no outline gets no segment: four corners are no contour.
    """
    by_uid = {str(source.SOPInstanceUID): source for source in sources}
    drawn: dict[ImageReference, list[tuple[int, Lesion, NDArray[np.bool_]]]] = {}
    for number, lesion in enumerate(version.findings.lesions, start=1):
        image = lesion.image
        source = by_uid.get(image.sop_instance_uid) if image else None
        if image is None or source is None or "Rows" not in source:
            continue
        mask = mask_of(lesion.outline, int(source.Rows), int(source.Columns))
        if mask.any():
            drawn.setdefault(image, []).append((number, lesion, mask))
    return [
        _segmentation(
            version,
            by_uid[image.sop_instance_uid],
            image.frame,
            lesions,
            report_id=report_id,
            equipment=equipment,
            number=number,
        )
        for number, (image, lesions) in enumerate(drawn.items(), start=1)
    ]


def mask_of(
    outline: Sequence[tuple[float, float]], rows: int, columns: int
) -> NDArray[np.bool_]:
    """Return the pixels that an outline runs through or encloses, bool (rows, columns).

    `outline` is in image coordinates as SCOORD has them, (column, row) with the
    centre of the first pixel at 0.5, 0.5 (PS3.3 C.18.6.1.1).
    """
    mask = Image.new("1", (columns, rows))
    if len(outline) >= _FEWEST_POINTS:
        centres = [(x - 0.5, y - 0.5) for x, y in outline]
        ImageDraw.Draw(mask).polygon(centres, fill=1, outline=1)
    return np.asarray(mask, dtype=np.bool_)


def _segmentation(
    version: ReportVersion,
    source: Dataset,
    frame: int,
    lesions: Sequence[tuple[int, Lesion, NDArray[np.bool_]]],
    *,
    report_id: UUID,
    equipment: Equipment,
    number: int,
) -> Dataset:
    kind = f"{SEGMENTATION}/{source.SOPInstanceUID}/{frame}"
    segments = [
        _segment(place, number_of_lesion, lesion, version)
        for place, (number_of_lesion, lesion, _) in enumerate(lesions, start=1)
    ]
    segmentation: Dataset = Segmentation(
        source_images=[_one_frame(source)],
        pixel_array=np.stack([mask for *_, mask in lesions], axis=-1)[np.newaxis],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=result_uid(
            report_id, version.number, f"{SEGMENTATION}/series"
        ),
        series_number=_SERIES_NUMBER + version.number,
        sop_instance_uid=result_uid(report_id, version.number, kind),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=equipment.software_version,
        device_serial_number=equipment.serial_number,
        content_label="LESION",
        content_description="AI lesion outlines, unverified",
        content_creator_name=f"{MODEL.upper()}^",
        series_description="AI lesion outlines (unverified)",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    stamp(segmentation, version, equipment)
    equipment.sign(segmentation)
    segmentation.SpecificCharacterSet = UTF8
    segmentation.PatientOrientation = ""
    if source.get("StudyDescription"):
        segmentation.StudyDescription = source.StudyDescription
    _name_dimensions(segmentation, result_uid(report_id, 0, f"{SEGMENTATION}/space"))
    _name_source(segmentation, source, frame)
    return segmentation


def _segment(
    place: int, number: int, lesion: Lesion, version: ReportVersion
) -> SegmentDescription:
    name, release = algorithm_of(version.author)
    return SegmentDescription(
        segment_number=place,
        segment_label=lesion_name(number),
        segmented_property_category=coded(lexicon.ABNORMAL_STRUCTURE),
        segmented_property_type=coded(lexicon.MASS),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=name,
            family=coded(lexicon.ARTIFICIAL_INTELLIGENCE),
            version=release,
            source=MANUFACTURER,
        ),
        tracking_uid=lesion.tracking_uid,
        tracking_id=lesion_name(number),
        anatomic_regions=[coded(lexicon.BREAST)],
    )


def _one_frame(source: Dataset) -> Dataset:
    """Return a header as if its image had one frame, as the mask has.

    A cine would otherwise want an empty mask for each of its hundreds of frames.
    """
    header = complete_header(source)
    header.file_meta = getattr(source, "file_meta", FileMetaDataset())
    header.SOPClassUID = UltrasoundImageStorage
    return header


def _name_dimensions(segmentation: Dataset, uid: str) -> None:
    """Replace the random Dimension Organization UID, so that a retry is the same."""
    for organization in segmentation.DimensionOrganizationSequence:
        organization.DimensionOrganizationUID = uid
    for index in segmentation.DimensionIndexSequence:
        index.DimensionOrganizationUID = uid


def _name_source(segmentation: Dataset, source: Dataset, frame: int) -> None:
    """Write which image, and which frame of a cine, was drawn on (C.7.6.16.2.6)."""
    is_cine = int(source.get("NumberOfFrames") or 1) > 1
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", ()):
            for image in derivation.SourceImageSequence:
                image.ReferencedSOPClassUID = source.SOPClassUID
                if is_cine:
                    image.ReferencedFrameNumber = frame
    for series in segmentation.ReferencedSeriesSequence:
        for instance in series.ReferencedInstanceSequence:
            instance.ReferencedSOPClassUID = source.SOPClassUID
