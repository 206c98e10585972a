"""Headers of a small ultrasound study, as the store hands them to the builders."""

from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

STUDY = "2.25.4001"


def make_header(sop_instance_uid: str = "2.25.101", **attributes: object) -> Dataset:
    """Return the Unicode header of one image: 600 rows, 800 columns, left breast."""
    frames = attributes.get("NumberOfFrames")
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = (
        UltrasoundMultiFrameImageStorage if frames else UltrasoundImageStorage
    )
    header.SOPInstanceUID = sop_instance_uid
    header.StudyInstanceUID, header.SeriesInstanceUID = STUDY, "2.25.4002"
    header.PatientName, header.PatientID = "Wang^XiaoDong=王^小东", "BUS-0001"
    header.PatientBirthDate, header.PatientSex = "19800214", "F"
    header.StudyID, header.AccessionNumber = "1", "ACC0001"
    header.StudyDate, header.StudyTime = "20260102", "090000"
    header.ReferringPhysicianName, header.StudyDescription = "", "乳腺超声"
    header.Modality, header.BodyPartExamined = "US", "BREAST"
    header.Laterality = "L"
    header.Rows, header.Columns = 600, 800
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    return header
