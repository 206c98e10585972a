"""The explanation of a lesion as an RGB Secondary Capture that every viewer shows."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Final
from uuid import UUID

import highdicom
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_scp.results.sr import (
    MANUFACTURER,
    Equipment,
    complete_header,
    stamp,
)
from node.charset import UTF8
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Lesion
from node.domain.report import ReportVersion
from node.domain.uids import heat_map_uid, result_uid

_SERIES_NUMBER: Final = 9100
# An overlay is one cropped region of one frame; more is not ours.
_MAX_PIXELS: Final = 64 * 1024 * 1024
_LOSSY: Final = "01"
_LOSSY_SYNTAXES: Final[Sequence[UID]] = tuple(
    UID(f"1.2.840.10008.1.2.4.{n}") for n in (50, 51, 81, 91, 203)
)


def decode_overlay(png: bytes) -> NDArray[np.uint8]:
    """Return the overlay as uint8, (rows, columns, 3); INTEGRITY when it is no PNG."""
    try:
        with Image.open(BytesIO(png), formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise NodeError("the overlay is too large", ErrorKind.INTEGRITY)
            return np.asarray(image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise NodeError("the overlay is no image", ErrorKind.INTEGRITY) from error


def build_heat_map(
    overlay: NDArray[np.uint8],
    version: ReportVersion,
    lesion: Lesion,
    source: Dataset,
    *,
    report_id: UUID,
    equipment: Equipment,
    number: int,
) -> Dataset:
    """Return the overlay of one lesion as a derived image of the study.

    `overlay`: uint8, (rows, columns, 3), the source frame cropped to its
    ultrasound region under the class activation; the crop leaves the machine's
    text strip out, but callipers and notes inside the region stay burned in.
    `source` is the Unicode header of the image that the lesion lies in.
    """
    if overlay.ndim != 3 or overlay.shape[2] != 3 or overlay.dtype != np.uint8:
        raise NodeError("an overlay is uint8 true colour", ErrorKind.INVALID)
    first = complete_header(source)
    capture = highdicom.sc.SCImage.from_ref_dataset(
        ref_dataset=first,
        pixel_array=overlay,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # highdicom insists; emptied below
        series_instance_uid=result_uid(report_id, version.number, "heat-map/series"),
        series_number=_SERIES_NUMBER + version.number,
        sop_instance_uid=heat_map_uid(report_id, version.number, lesion.tracking_uid),
        instance_number=number,
        manufacturer=MANUFACTURER,
        transfer_syntax_uid=str(ExplicitVRLittleEndian),
    )
    stamp(capture, version, equipment)
    capture.SpecificCharacterSet = UTF8
    capture.Modality, capture.ConversionType = "OT", "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture["PatientOrientation"].value = None
    capture.SeriesDescription = "AI heat map (not for measurement)"
    capture.ImageComments = (
        f"AI class activation for lesion {number}, unverified; not for measurement"
    )
    equipment.sign(capture)
    if first.get("StudyDescription"):
        capture.StudyDescription = first.StudyDescription
    _place(capture, lesion, first)
    _derive(capture, lesion, source)
    return capture


def _place(capture: Dataset, lesion: Lesion, source: Dataset) -> None:
    """Write body part and side as far as somebody told them.

    Laterality is Type 2C: of a breast it is empty when the side is unknown, of
    an unpaired part (somebody sent a heart) it is absent.
    """
    part = source.get("BodyPartExamined")
    if part:
        capture.BodyPartExamined = part
    if part in (None, "", "BREAST"):
        told = source.get("ImageLaterality") or source.get("Laterality")
        side = lesion.laterality or told
        capture.Laterality = side if side in ("L", "R") else ""


def _derive(capture: Dataset, lesion: Lesion, source: Dataset) -> None:
    """Write what the image was made of and how (PS3.3 C.7.6.1.1.3, C.7.6.1.1.5)."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    if int(source.get("NumberOfFrames") or 1) > 1 and lesion.image is not None:
        reference.ReferencedFrameNumber = lesion.image.frame
    reference.PurposeOfReferenceCodeSequence = [
        _item("121322", "DCM", "Source image for image processing operation")
    ]
    activation = lexicon.CLASS_ACTIVATION
    capture.SourceImageSequence = [reference]
    capture.DerivationDescription = "AI heat map: class activation over the source"
    capture.DerivationCodeSequence = [
        _item(activation.value, activation.scheme, activation.meaning)
    ]
    # Nobody looked for text inside the region: unless told otherwise, it is there.
    burned_in = source.get("BurnedInAnnotation")
    capture.BurnedInAnnotation = burned_in if burned_in in ("YES", "NO") else "YES"
    if _was_lossy(source):
        capture.LossyImageCompression = _LOSSY
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if source.get(keyword) not in (None, ""):
                setattr(capture, keyword, source.get(keyword))
    else:
        capture.LossyImageCompression = "00"


def _was_lossy(source: Dataset) -> bool:
    """Tell whether the pixels ever lost something; what is lost stays lost."""
    if source.get("LossyImageCompression") == _LOSSY:
        return True
    syntax = str(getattr(source, "file_meta", Dataset()).get("TransferSyntaxUID", ""))
    return syntax in _LOSSY_SYNTAXES


def _item(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item
