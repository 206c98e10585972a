"""A simulated ultrasound scanner: its screen, its header habits, its DICOM objects.

Objects are valid US and US Multi-frame instances (PS3.3 A.6, A.7) and say in the header
and on the screen, outside the picture, that they are simulated.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

Picture = NDArray[np.uint8]

SCREEN_ROWS, SCREEN_COLUMNS = 768, 1024
TISSUE, COLOUR_FLOW = 1, 2  # Region Data Type (PS3.3 C.8.5.5.1.2)
SIMULATED_NOTE = "SIMULATED - NOT A PATIENT - NOT FOR DIAGNOSIS"


class Layout(StrEnum):
    """Where a maker puts text, ruler and grey bar on the screen."""

    WIDE = "wide"
    COLUMN = "column"


@dataclass(frozen=True)
class Machine:
    """The header habits of one kind of scanner."""

    manufacturer: str
    model: str
    station: str
    character_set: str | list[str]
    layout: Layout


@dataclass(frozen=True)
class Patient:
    """An invented woman. `id_number` has eighteen digits and a wrong check digit.

    A worklist may give neither that nor an issuer: then both are empty.
    """

    name: str
    patient_id: str
    birth_date: str
    id_number: str
    issuer: str = "SIMULATOR"


def invalid_id_number(birth_date: str, serial: int) -> str:
    """Return an identity number of a district that is not assigned, wrongly checked.

    GB 11643: 6 digits district, 8 birth date, 3 serial, 1 check. Both faults are on
    purpose: a true number of a living person can never come out.
    """
    body = f"990000{birth_date}{serial:03d}"
    weights = [2 ** (17 - place) % 11 for place in range(17)]
    rest = sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11
    right = "10X98765432"[rest]
    return body + ("7" if right != "7" else "3")


@dataclass(frozen=True)
class View:
    """One picture to be stored: still or cine, with its scale if the source has one.

    `frames` are uint8 (rows, columns) greys; `mm_per_pixel` None means that the source
    gives no physical scale; then the instance has a region without units.
    """

    frames: tuple[Picture, ...]
    mm_per_pixel: float | None
    laterality: str = "L"
    colour: bool = False
    transfer_syntax: UID = ExplicitVRLittleEndian
    doppler: bool = False
    simulated: bool = True


def build_instance(
    view: View,
    patient: Patient,
    machine: Machine,
    *,
    at: datetime,
    uids: tuple[str, str, str],
    accession_number: str,
    description: str,
    instance_number: int = 1,
    frame_time_ms: float = 40.0,
) -> Dataset:
    """Return one US or US Multi-frame instance.

    `uids` are study, series and instance, in this order.
    """
    screen = _Screen.of(view, patient, machine, at)
    dataset = Dataset()
    dataset.SpecificCharacterSet = machine.character_set
    dataset.SOPClassUID = (
        UltrasoundMultiFrameImageStorage
        if len(view.frames) > 1
        else UltrasoundImageStorage
    )
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uids
    _describe_patient(dataset, patient, at)
    _describe_study(dataset, machine, at, accession_number, description)
    dataset.InstanceNumber = instance_number
    dataset.Laterality = view.laterality
    dataset.PatientOrientation = ""
    # Value 4 is a sum of modes (PS3.3 C.8.5.6.1.1): 1 tissue, 10 colour flow.
    dataset.ImageType = [
        "ORIGINAL",
        "PRIMARY",
        "BREAST",
        "0011" if view.doppler else "0001",
    ]
    dataset.BurnedInAnnotation = "YES"
    dataset.ImageComments = SIMULATED_NOTE if view.simulated else "Public research set"
    dataset.ContentQualification = "RESEARCH"
    dataset.AnatomicRegionSequence = [_code("76752008", "SCT", "Breast")]
    dataset.UltrasoundColorDataPresent = int(view.doppler)
    dataset.SequenceOfUltrasoundRegions = screen.regions
    _add_pixels(dataset, screen.pages, view.transfer_syntax, frame_time_ms)
    if "ISO 2022 IR 58" in machine.character_set:
        _encode_gb2312(dataset)
    return dataset


def _describe_patient(dataset: Dataset, patient: Patient, at: datetime) -> None:
    dataset.PatientName, dataset.PatientID = patient.name, patient.patient_id
    if patient.issuer:
        dataset.IssuerOfPatientID = patient.issuer
    dataset.PatientBirthDate, dataset.PatientSex = patient.birth_date, "F"
    if patient.birth_date:
        dataset.PatientAge = f"{at.year - int(patient.birth_date[:4]):03d}Y"
    if patient.id_number:
        national = Dataset()
        national.PatientID, national.IssuerOfPatientID = patient.id_number, "CN-ID"
        national.TypeOfPatientID = "TEXT"
        dataset.OtherPatientIDsSequence = [national]


def _describe_study(
    dataset: Dataset, machine: Machine, at: datetime, accession: str, description: str
) -> None:
    for part in ("Study", "Series", "Acquisition", "Content"):
        setattr(dataset, f"{part}Date", f"{at:%Y%m%d}")
        setattr(dataset, f"{part}Time", f"{at:%H%M%S}")
    dataset.TimezoneOffsetFromUTC = f"{at:%z}"
    dataset.AccessionNumber, dataset.StudyID = accession, accession[-6:]
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription, dataset.SeriesDescription = description, "Breast B-mode"
    dataset.Modality, dataset.SeriesNumber = "US", 1
    dataset.BodyPartExamined = "BREAST"
    dataset.Manufacturer, dataset.ManufacturerModelName = (
        machine.manufacturer,
        machine.model,
    )
    dataset.StationName, dataset.DeviceSerialNumber = machine.station, "SIM0001"
    dataset.SoftwareVersions = "1"
    dataset.InstitutionName = "Demo Hospital"
    dataset.TransducerData = ["L12-5", "", ""]
    dataset.ProcessingFunction = "SIMULATED"


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = value, scheme
    item.CodeMeaning = meaning
    return item


def _add_pixels(
    dataset: Dataset, pages: Picture, transfer_syntax: UID, frame_time_ms: float
) -> None:
    """Set the Image Pixel and Cine modules; `pages` is (frames, rows, columns[, 3])."""
    colour = pages.ndim == 4
    frames, dataset.Rows, dataset.Columns = pages.shape[:3]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
        dataset.FrameTime = frame_time_ms
        dataset.FrameIncrementPointer = 0x00181063
        dataset.CineRate = dataset.RecommendedDisplayFrameRate = round(
            1000 / frame_time_ms
        )
    dataset.LossyImageCompression = "00"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    if transfer_syntax == JPEGBaseline8Bit:
        streams = [_jpeg(page) for page in pages]
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate(streams)
        # Sent without being saved first: encapsulated data has no length (PS3.5 A.4).
        dataset["PixelData"].is_undefined_length = True
        if colour:
            dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
        ratio = pages.nbytes / sum(map(len, streams))
        dataset.LossyImageCompressionRatio = round(ratio, 2)
        dataset["PixelData"].VR = "OB"
        return
    dataset.PixelData = pages.tobytes()
    dataset["PixelData"].VR = "OB"
    if transfer_syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)


def _jpeg(page: Picture) -> bytes:
    buffer = io.BytesIO()
    options = {"subsampling": "4:2:2"} if page.ndim == 3 else {}
    Image.fromarray(page).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def _encode_gb2312(dataset: Dataset) -> None:
    r"""Put Han text into the bytes of `\ISO 2022 IR 58` (PS3.5 K); pydicom cannot."""
    for element in list(dataset):
        if element.VR not in ("PN", "LO", "SH", "LT") or str(element.value).isascii():
            continue
        raw, announced = b"", False
        for character in str(element.value):
            if character.isascii():
                raw += character.encode()
                announced = announced and character not in "^="
            else:
                raw += (b"" if announced else b"\x1b$)A") + character.encode("gb2312")
                announced = True
        raw += b" " * (len(raw) % 2)
        dataset[element.tag] = RawDataElement(
            Tag(element.tag), element.VR, len(raw), raw, 0, False, True
        )


# -- screen --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Screen:
    """Pages as shown, uint8 (frames, rows, columns[, 3]), and their regions."""

    pages: Picture
    regions: list[Dataset] = field(default_factory=list)

    @classmethod
    def of(
        cls, view: View, patient: Patient, machine: Machine, at: datetime
    ) -> _Screen:
        wide = machine.layout is Layout.WIDE
        room = (860, 620) if wide else (790, 640)
        rows, columns = view.frames[0].shape
        zoom = min(room[0] / columns, room[1] / rows)
        size = (round(columns * zoom), round(rows * zoom))
        x0 = (SCREEN_COLUMNS - size[0]) // 2 if wide else 40
        y0 = 92 if wide else 70
        blank = Image.new("RGB", (SCREEN_COLUMNS, SCREEN_ROWS))
        _furnish(blank, (x0, y0, *size), view, patient, machine, at)
        pages = []
        for number, frame in enumerate(view.frames):
            page = blank.copy()
            picture = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
            page.paste(picture.convert("RGB"), (x0, y0))
            if view.doppler:
                _paint_flow(page, (x0, y0, *size), number)
            pages.append(np.asarray(page if view.colour else page.convert("L")))
        cm = view.mm_per_pixel / zoom / 10 if view.mm_per_pixel else None
        bounds = (x0, y0, x0 + size[0] - 1, y0 + size[1] - 1)
        regions = [_region(bounds, TISSUE, cm)]
        if view.doppler:
            regions.append(_region(_flow_box((x0, y0, *size)), COLOUR_FLOW, cm))
        return cls(np.stack(pages), regions)


def _region(
    bounds: tuple[int, int, int, int], data_type: int, cm_per_pixel: float | None
) -> Dataset:
    """Return one Ultrasound Region; bounds are inclusive (PS3.3 C.8.5.5)."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, data_type, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = bounds[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = bounds[2:]
    unit = 3 if cm_per_pixel else 0
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = unit
    item.PhysicalDeltaX = item.PhysicalDeltaY = cm_per_pixel or 0.0
    return item


def _furnish(
    page: Image.Image,
    box: tuple[int, int, int, int],
    view: View,
    patient: Patient,
    machine: Machine,
    at: datetime,
) -> None:
    """Draw what surrounds the picture: identity, settings, ruler, grey bar, mark."""
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=17)
    small = ImageFont.load_default(size=14)
    x0, y0, width, height = box
    ink = (255, 236, 150) if view.colour else (230, 230, 230)
    latin = patient.name.split("=")[0].replace("^", " ")
    identity = f"{latin}   {patient.patient_id}   {at:%Y-%m-%d %H:%M}"
    draw.text((16, 10), "DEMO HOSPITAL", fill=ink, font=font)
    draw.text((200, 10), identity, fill=ink, font=font)
    settings = ["L12-5", "FR 31", "D 3.9 cm", "G 58", "DR 62", "MI 0.9", "TIs 0.2"]
    if machine.layout is Layout.WIDE:
        draw.text((16, 40), "   ".join(settings), fill=ink, font=small)
        bar = (24, 220)
    else:
        for n, line in enumerate(settings):
            draw.text((x0 + width + 34, 90 + 22 * n), line, fill=ink, font=small)
        bar = (x0 + width + 40, 320)
    for shade in range(200):
        grey = (255 - shade,) * 3
        draw.line((bar[0], bar[1] + shade, bar[0] + 12, bar[1] + shade), fill=grey)
    if view.mm_per_pixel:
        step = 5.0 * height / (view.frames[0].shape[0] * view.mm_per_pixel)
        for n in range(int(height / step) + 1):
            y, length = y0 + round(n * step), 10 if n % 2 == 0 else 5
            draw.line((x0 - 6 - length, y, x0 - 6, y), fill=(200, 200, 200))
    if view.simulated:
        draw.text((x0 + 60, y0 + height + 14), SIMULATED_NOTE, fill=ink, font=font)
    side = "LEFT BREAST" if view.laterality == "L" else "RIGHT BREAST"
    draw.text((16, SCREEN_ROWS - 28), side, fill=ink, font=small)


def _flow_box(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, width, height = box
    return (
        x0 + width // 4,
        y0 + height // 6,
        x0 + 3 * width // 4,
        y0 + 3 * height // 5,
    )


def _paint_flow(page: Image.Image, box: tuple[int, int, int, int], phase: int) -> None:
    """Paint a colour box with red and blue vessels around the middle."""
    draw = ImageDraw.Draw(page)
    left, top, right, bottom = _flow_box(box)
    random = np.random.default_rng(7)
    for n in range(46):
        angle = random.uniform(0, 2 * np.pi)
        x = (left + right) / 2 + np.cos(angle) * (right - left) * random.uniform(
            0.2, 0.33
        )
        y = (top + bottom) / 2 + np.sin(angle) * (bottom - top) * random.uniform(
            0.22, 0.36
        )
        size = random.uniform(4, 11) * (1 + 0.2 * np.sin(phase + n))
        speed = int(random.uniform(120, 255))
        paint = (speed, speed // 4, 0) if n % 3 else (0, speed // 4, speed)
        draw.ellipse((x - 1.5 * size, y - size, x + 1.5 * size, y + size), fill=paint)
    draw.rectangle((left, top, right, bottom), outline=(80, 255, 120))
    bar = SCREEN_COLUMNS - 40
    for n in range(100):
        speed = abs(n - 50) * 5
        paint = (speed, speed // 4, 0) if n < 50 else (0, speed // 4, speed)
        draw.line((bar, 560 + n, bar + 12, 560 + n), fill=paint)
