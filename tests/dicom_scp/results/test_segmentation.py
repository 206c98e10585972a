"""Outlines as binary Segmentations: PS3.3 A.51, C.8.20.2, C.7.6.16.2.6."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from highdicom.seg import segread
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_scp.results.segmentation import build_segmentations, mask_of
from dicom_scp.results.sr import build_ai_sr, to_part10
from inference.outline import outline_of
from node.domain.finding import Findings, ImageReference, Lesion
from tests.conformance.judges import dciodvfy
from tests.dicom_scp.results.test_sr import (
    EQUIPMENT,
    REPORT,
    groups_of,
    make_ai,
    make_sources,
    make_version,
)
from tests.dicom_scp.ultrasound import make_header
from tests.factories import ULTRASOUND_IMAGE, make_lesion

CINE = "1.2.840.10008.5.1.4.1.1.3.1"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def segment(*lesions: Lesion, sources: list[Dataset] | None = None) -> list[Dataset]:
    return build_segmentations(
        make_version(Findings(lesions=lesions)),
        sources or make_sources(),
        report_id=REPORT,
        equipment=EQUIPMENT,
    )


def test_a_contour_encloses_the_pixels_that_it_was_traced_from() -> None:
    rows, columns = np.mgrid[0:120, 0:160]
    disc = (rows - 60) ** 2 / 30**2 + (columns - 80) ** 2 / 45**2 <= 1
    outline = tuple((float(x), float(y)) for x, y in outline_of(disc))
    drawn = mask_of(outline, 120, 160)
    both = (drawn & disc).sum() / (drawn | disc).sum()
    assert both > 0.97


def test_a_contour_beyond_the_image_is_cut_off_and_none_is_empty() -> None:
    mask = mask_of(((-9.0, -9.0), (4.0, -9.0), (4.0, 4.0), (-9.0, 4.0)), 8, 10)
    assert mask.shape == (8, 10)
    assert mask[:4, :4].all()
    assert mask.sum() == 16
    assert not mask_of((), 8, 10).any()


def test_lesions_of_one_frame_are_segments_of_one_object() -> None:
    other = make_lesion(
        tracking_uid="2.25.1002",
        outline=((400.5, 300.5), (460.5, 300.5), (430.5, 350.5)),
    )
    cine = make_lesion(
        tracking_uid="2.25.1003", image=ImageReference(CINE, "2.25.2002", 4)
    )
    still, moving = (
        segread(BytesIO(to_part10(s))) for s in segment(make_lesion(), other, cine)
    )
    assert [s.tracking_uid for s in still.SegmentSequence] == [
        "2.25.1001",
        "2.25.1002",
    ]
    assert list(still.segment_numbers) == [1, 2]
    (third,) = moving.SegmentSequence
    assert (third.tracking_id, third.segment_number) == ("Lesion 3", 1)
    frame = moving.PerFrameFunctionalGroupsSequence[0]
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPClassUID == CINE
    assert source.ReferencedFrameNumber == 4
    (listed,) = moving.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert listed.ReferencedSOPClassUID == CINE


def test_pixels_are_those_of_the_outline() -> None:
    lesion = make_lesion()
    (stored,) = (dcmread(BytesIO(to_part10(s))) for s in segment(lesion))
    assert stored.pixel_array.shape == (600, 800)
    np.testing.assert_array_equal(
        stored.pixel_array.astype(bool), mask_of(lesion.outline, 600, 800)
    )


def test_a_segment_has_the_identity_that_the_document_gives_its_lesion() -> None:
    version = make_version()
    document = build_ai_sr(
        version, make_sources(), report_id=REPORT, equipment=EQUIPMENT
    )
    (group, *_) = groups_of(document)
    identifier, uid = group.ContentSequence[:2]
    (described,) = segment(*version.findings.lesions)[0].SegmentSequence
    assert described.TrackingID == identifier.TextValue
    assert described.TrackingUID == uid.UID


def test_a_segment_names_the_algorithm_that_drew_it_and_what_it_shows() -> None:
    (described,) = segment(make_lesion())[0].SegmentSequence
    assert described.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = described.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "sononode breast ResNet50"
    assert algorithm.AlgorithmVersion == "model-1"
    (shown,) = described.SegmentedPropertyTypeCodeSequence
    assert (shown.CodeValue, shown.CodingSchemeDesignator) == ("4147007", "SCT")
    assert make_ai().SoftwareVersions == segment(make_lesion())[0].SoftwareVersions


@pytest.mark.parametrize(
    "lesion",
    [
        make_lesion(outline=()),
        make_lesion(image=None),
        make_lesion(image=ImageReference(ULTRASOUND_IMAGE, "2.25.9999")),
        make_lesion(outline=((9000.5, 1.5), (9001.5, 1.5), (9001.5, 9.5))),
    ],
    ids=["box only", "no image", "image elsewhere", "outside the image"],
)
def test_no_mask_is_invented(lesion: Lesion) -> None:
    assert segment(lesion) == []


def test_a_retry_builds_the_same_bytes() -> None:
    one, other = (to_part10(segment(make_lesion())[0]) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"NumberOfFrames": 5},
        {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": 12.5,
            "LossyImageCompressionMethod": "ISO_10918_1",
        },
        {"PatientSex": "unknown", "PatientBirthDate": "1980"},
    ],
    ids=["still", "cine", "lossy", "nonsense in the header"],
)
def test_dciodvfy_accepts_the_segmentation(
    source: dict[str, object], tmp_path: Path
) -> None:
    header = make_header("2.25.2001", **source)
    image = ImageReference(str(header.SOPClassUID), "2.25.2001", 1)
    (made,) = segment(make_lesion(image=image), sources=[header])
    path = tmp_path / "object.dcm"
    path.write_bytes(to_part10(made))
    assert dciodvfy(path) == []
    assert made.LossyImageCompression == source.get("LossyImageCompression", "00")
