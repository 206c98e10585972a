"""Header facts from real datasets of the simulated scanner."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from inference.images import header_of, image_to_read
from inference.place import NOWHERE, Place
from inference.select import UsableRegion, select_region
from node.domain.study import UltrasoundRegion

SYNTAX = str(ExplicitVRLittleEndian)


def make_dataset() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    dataset.SOPInstanceUID = "2.25.5"
    dataset.Rows, dataset.Columns = 300, 400
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    dataset.BodyPartExamined = "BREAST"
    dataset.Laterality = "R"
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 10, 20
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 389, 279
    region.RegionSpatialFormat, region.RegionDataType = 1, 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.01, 0.02
    dataset.SequenceOfUltrasoundRegions = [region]
    return dataset


def test_header_of_a_calibrated_b_mode_image_is_usable() -> None:
    header = header_of(make_dataset(), SYNTAX)
    assert header.place == Place("R")
    assert header.regions == (
        UltrasoundRegion(10, 20, 389, 279, 1, 1, 3, 3, 0.01, 0.02),
    )
    assert header.decodable
    assert not header.simulated
    assert isinstance(select_region(header), UsableRegion)


def test_image_laterality_precedes_the_series_laterality() -> None:
    dataset = make_dataset()
    dataset.ImageLaterality = "L"
    assert header_of(dataset, SYNTAX).place == Place("L")


def test_header_without_image_attributes_is_neutral_not_an_error() -> None:
    header = header_of(Dataset(), SYNTAX)
    assert (header.rows, header.number_of_frames, header.image_type) == (0, 1, ())
    assert header.place == NOWHERE


def test_syntax_without_decoder_is_known_before_any_pixel_is_touched() -> None:
    assert header_of(make_dataset(), "1.2.840.10008.1.2.4.111").decodable is False


def test_phantom_is_known_by_its_comment() -> None:
    dataset = make_dataset()
    dataset.ImageComments = "SIMULATED - NOT A PATIENT - NOT FOR DIAGNOSIS"
    assert header_of(dataset, SYNTAX).simulated


def test_pixels_are_opened_only_when_frames_are_asked_for() -> None:
    opened = []

    class Stored:
        def frame(self, index: int) -> np.ndarray:
            return np.full((300, 400, 3), index, np.uint8)

    def open_pixels() -> Stored:
        opened.append(1)
        return Stored()

    image = image_to_read(make_dataset(), SYNTAX, open_pixels)  # type: ignore[arg-type]
    assert not opened
    assert image.frames([2, 4])[:, 0, 0, 0].tolist() == [2, 4]
