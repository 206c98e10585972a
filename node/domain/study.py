"""A study, its instances and the ultrasound regions in which lengths are valid."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum, StrEnum
from uuid import UUID


class PhysicalUnits(IntEnum):
    """Physical Units X/Y Direction (PS3.3 C.8.5.5.1.4); others stay plain numbers."""

    NONE = 0
    PERCENT = 1
    DECIBEL = 2
    CENTIMETRE = 3
    SECONDS = 4


@dataclass(frozen=True)
class UltrasoundRegion:
    """One item of Sequence of Ultrasound Regions (PS3.3 C.8.5.5).

    Bounds are inclusive pixels as the header has them and may lie outside the
    image; `physical_delta_x/y` are signed centimetres per pixel when the units
    say so.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    spatial_format: int
    data_type: int
    physical_units_x: int
    physical_units_y: int
    physical_delta_x: float
    physical_delta_y: float

    def inside(self, rows: int, columns: int) -> bool:
        """Tell whether the region lies in an image of `rows` x `columns`."""
        return 0 <= self.x0 <= self.x1 < columns and 0 <= self.y0 <= self.y1 < rows

    def millimetres_per_pixel(
        self, rows: int, columns: int
    ) -> tuple[float, float] | None:
        """Return (x, y) mm per pixel, or None when the scale is not to be trusted.

        Bounds outside the image mean that somebody rescaled it and left the
        header stale: every length would be wrong by the same factor.
        """
        centimetres = (PhysicalUnits.CENTIMETRE, PhysicalUnits.CENTIMETRE)
        if (self.physical_units_x, self.physical_units_y) != centimetres:
            return None
        if not self.inside(rows, columns):
            return None
        if not self.physical_delta_x or not self.physical_delta_y:
            return None
        return 10 * abs(self.physical_delta_x), 10 * abs(self.physical_delta_y)


@dataclass(frozen=True)
class PatientIdentity:
    """Who the patient is, as the modality or the EHR told it; all of it is PHI.

    `name` is a DICOM PN in Unicode with its `=` groups. `id_number` is the
    national number when the site sends one.
    """

    patient_id: str
    name: str
    birth_date: date | None = None
    sex: str | None = None
    issuer: str = ""
    id_number: str | None = None
    phone: str | None = None

    def age_at(self, day: date) -> int | None:
        """Return the completed years of age on `day`."""
        if self.birth_date is None:
            return None
        had_birthday = (day.month, day.day) >= (
            self.birth_date.month,
            self.birth_date.day,
        )
        return day.year - self.birth_date.year - (0 if had_birthday else 1)


class Origin(StrEnum):
    """Where an instance came from."""

    RECEIVED = "received"
    AI_SR = "ai_sr"
    VERIFIED_SR = "verified_sr"
    HEAT_MAP = "heat_map"
    SEGMENTATION = "segmentation"
    KEY_IMAGES = "key_images"
    REJECTION = "rejection"
    PDF = "pdf"


class Duplicates(StrEnum):
    """What becomes of other bytes under a SOP Instance UID that is taken."""

    REJECT = "reject"
    KEEP_BOTH = "keep-both"  # the first is served, the other kept for the staff


@dataclass(frozen=True)
class ReceivedInstance:
    """What intake knows of one instance after its bytes are safe in the store.

    `metadata` is the DICOM JSON (PS3.18 F) of the header in UTF-8, without
    pixel data. `frame_table` holds (offset, length) of every frame in the
    stored Part 10 file; empty when it has none or they cannot be located.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    patient: PatientIdentity
    accession_number: str
    study_date: date | None
    study_description: str
    modality: str
    number_of_frames: int
    metadata: bytes
    frame_table: tuple[tuple[int, int], ...]
    blob_name: str
    size: int
    sha256: bytes
    calling_ae: str
    association: str
    origin: Origin = Origin.RECEIVED


class StudyStatus(StrEnum):
    """Where a study stands on its way through the node."""

    RECEIVING = "receiving"
    CLOSED = "closed"  # complete; waiting for the reading
    READ = "read"  # an AI draft exists
    FAILED = "failed"  # the reading failed; can be retried
    DISCONTINUED = "discontinued"  # broken off at the machine; not to be read


@dataclass(frozen=True)
class StudyRecord:
    """A study as stored; no identity, that stays sealed with the patient."""

    study_instance_uid: str
    patient_id: UUID
    status: StudyStatus
    study_date: date | None
    opened_at: datetime
    last_instance_at: datetime
    closed_at: datetime | None
    evidence: str | None
    generation: int
    incomplete: bool = False  # images may be missing: `node.store.completion`
