"""One frame as a DICOM object that no longer says whose it is (PS3.15 annex E).

An allow-list, stricter than the Basic Application Level Confidentiality Profile asks:
what is not named here is left out, private and unknown attributes with it. Applied
options: Clean Pixel Data (by `burned_in`), Retain Longitudinal Temporal Information
with Modified Dates, Retain Patient Characteristics (age, sex). Maker and model stay,
because how a model does on each machine has to be known; serial number and station go:
that is less than the Retain Device Identity option, which is not claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
)

METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113101", "Clean Pixel Data Option"),
    (
        "113107",
        "Retain Longitudinal Temporal Information Modified Dates Option",
    ),
    ("113108", "Retain Patient Characteristics Option"),
)
_BODY_PART = "BREAST"
_KEPT = (
    "Manufacturer",
    "ManufacturerModelName",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "UltrasoundColorDataPresent",
)
_REGION_KEPT = (
    "RegionSpatialFormat",
    "RegionDataType",
    "RegionFlags",
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
    "PhysicalUnitsXDirection",
    "PhysicalUnitsYDirection",
    "PhysicalDeltaX",
    "PhysicalDeltaY",
)


@dataclass(frozen=True)
class Subject:
    """Who the object is about, in the words of the export.

    `uid` maps a UID of the node to the one that stands for it; `study_date` is shifted.
    """

    name: str
    age: int | None
    sex: str | None
    study_date: date | None
    uid: Callable[[str], str]


def deidentified(
    header: Dataset, pixels: NDArray[np.uint8], subject: Subject, frame: int
) -> Dataset:
    """Return one cleaned frame as an Ultrasound Image.

    `pixels`: uint8, (rows, columns[, 3]), already black where text was, of the size of
    the stored image. `frame` counts from 1 and is part of the new SOP Instance UID.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = UltrasoundImageStorage
    dataset.SOPInstanceUID = subject.uid(f"{header.SOPInstanceUID}/{frame}")
    dataset.StudyInstanceUID = subject.uid(str(header.StudyInstanceUID))
    dataset.SeriesInstanceUID = subject.uid(str(header.SeriesInstanceUID))
    _describe_subject(dataset, subject)
    dataset.Modality = "US"
    dataset.SeriesNumber = dataset.InstanceNumber = None
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PatientOrientation = None
    for keyword in _KEPT:
        if header.get(keyword, None) not in (None, ""):
            setattr(dataset, keyword, header.get(keyword))
    if "Manufacturer" not in dataset:
        dataset.Manufacturer = ""
    if _BODY_PART in str(header.get("BodyPartExamined", None) or "").upper():
        dataset.BodyPartExamined = _BODY_PART
    side = header.get("ImageLaterality", None) or header.get("Laterality", None)
    if side in ("L", "R"):
        dataset.ImageLaterality = side
    _copy_regions(dataset, header)
    _add_pixels(dataset, pixels)
    _say_how(dataset)
    return dataset


def _describe_subject(dataset: Dataset, subject: Subject) -> None:
    """Write the modules of patient and study; what must be present is empty."""
    dataset.PatientName = dataset.PatientID = subject.name
    dataset.PatientBirthDate = None
    dataset.PatientSex = subject.sex if subject.sex in ("F", "M", "O") else None
    if subject.age is not None:
        dataset.PatientAge = f"{subject.age:03d}Y"
    day = None if subject.study_date is None else f"{subject.study_date:%Y%m%d}"
    dataset.StudyDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.ContentTime = None
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = None


def _copy_regions(dataset: Dataset, header: Dataset) -> None:
    regions = []
    for source in header.get("SequenceOfUltrasoundRegions", None) or ():
        region = Dataset()
        for keyword in _REGION_KEPT:
            if source.get(keyword, None) is not None:
                setattr(region, keyword, source.get(keyword))
        regions.append(region)
    if regions:
        dataset.SequenceOfUltrasoundRegions = regions


def _add_pixels(dataset: Dataset, pixels: NDArray[np.uint8]) -> None:
    colour = pixels.ndim == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    content = np.ascontiguousarray(pixels).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID


def _say_how(dataset: Dataset) -> None:
    """Write what was done (PS3.15 E.1.1).

    Burned In Annotation is left out: a program looked, nobody has confirmed it.
    """
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = "sononode export for training"
    items = []
    for value, meaning in METHODS:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator = value, "DCM"
        item.CodeMeaning = meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = items
