"""Values that tests need again and again, with every field filled in plausibly."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from node.domain.finding import (
    Extent,
    Findings,
    ImageReference,
    Lesion,
    PixelBox,
)
from node.domain.lexicon import FieldKey
from node.domain.report import (
    Author,
    AuthorKind,
    Conclusions,
    Disclosure,
    Report,
    ReportStatus,
)
from node.domain.study import PatientIdentity

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
ULTRASOUND_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"

ALGORITHM = Author(AuthorKind.ALGORITHM, "model-1", "sononode breast ResNet50")
DOCTOR = Author(AuthorKind.PHYSICIAN, "dr-li", "Li^Ming=李^明")


def make_lesion(**changes: object) -> Lesion:
    """Return a calibrated, fully described suspicious lesion."""
    lesion = Lesion(
        tracking_uid="2.25.1001",
        image=ImageReference(ULTRASOUND_IMAGE, "2.25.2001", 1),
        box=PixelBox(100, 120, 180, 170),
        outline=((100.5, 120.5), (179.5, 120.5), (140.5, 169.5), (100.5, 120.5)),
        laterality="L",
        clock=2,
        distance_from_nipple_mm=Decimal("30"),
        extent=Extent(Decimal("11.8"), Decimal("11.2"), Decimal("7.1")),
        descriptors={
            FieldKey.SHAPE: ("irregular",),
            FieldKey.ORIENTATION: ("not_parallel",),
            FieldKey.MARGIN: ("angular", "spiculated"),
            FieldKey.ECHO_PATTERN: ("hypoechoic",),
            FieldKey.CALCIFICATIONS: (),
        },
        category="4C",
        probability=Decimal("0.873"),
    )
    return replace(lesion, **changes)  # type: ignore[arg-type]


def make_findings(category: str | None = "4C", **changes: object) -> Findings:
    """Return the findings of a study with one lesion of `category`."""
    lesion = make_lesion(category=category)
    return replace(Findings(lesions=(lesion,), category=category), **changes)  # type: ignore[arg-type]


def make_patient(**changes: object) -> PatientIdentity:
    """Return an identity with a Chinese and a Latin name."""
    patient = PatientIdentity(
        patient_id="MRN-0042",
        name="Zhang^San=张^三",
        birth_date=date(1979, 3, 5),
        sex="F",
        id_number="000000197903050000",
        phone="13800008000",
    )
    return replace(patient, **changes)  # type: ignore[arg-type]


def make_draft(category: str | None = "4C", report_id: UUID | None = None) -> Report:
    """Return a report that only the algorithm has written."""
    report = Report(
        id=report_id or uuid4(),
        study_instance_uid="2.25.3001",
        patient_id=uuid4(),
    )
    return report.draft(make_findings(category), author=ALGORITHM, at=NOW)


def make_signed(category: str = "2", **conclusions: str) -> Report:
    """Return a report that a physician has signed with `category`."""
    return make_draft(category).revise(
        ReportStatus.FINAL,
        make_findings(category),
        Conclusions(**conclusions),  # type: ignore[arg-type]
        author=DOCTOR,
        at=NOW,
    )


def make_disclosure(at: datetime = NOW) -> Disclosure:
    """Return the record that the patient was told by phone."""
    return Disclosure(by=DOCTOR.id, at=at, medium="phone")
