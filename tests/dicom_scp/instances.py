"""Whole ultrasound instances to send, and what is left of them in the store."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

from node.store import studies
from node.store.store import Store


def make_instance(
    *, frames: int = 1, rows: int = 64, columns: int = 64, **attributes: object
) -> Dataset:
    """Return a whole ultrasound instance with noise for an image."""
    instance = Dataset()
    instance.SpecificCharacterSet = "ISO_IR 192"
    instance.SOPClassUID = (
        UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    )
    instance.SOPInstanceUID = generate_uid()
    instance.StudyDate, instance.Modality = "20261120", "US"
    instance.AccessionNumber, instance.StudyDescription = "ACC-7", "乳腺超声"
    instance.PatientName, instance.PatientID = "Zhang^San=张^三", "P-0001"
    instance.PatientBirthDate, instance.PatientSex = "19700131", "F"
    instance.StudyInstanceUID, instance.SeriesInstanceUID = "2.25.71", "2.25.72"
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.Rows, instance.Columns = rows, columns
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    if frames > 1:
        instance.NumberOfFrames = frames
        instance.FrameTime = "40"
        instance.FrameIncrementPointer = 0x00181063
    noise = np.random.default_rng(7).integers(0, 256, frames * rows * columns)
    instance.PixelData = noise.astype(np.uint8).tobytes()
    instance["PixelData"].VR = "OB"
    for keyword, value in attributes.items():
        if value is None:
            delattr(instance, keyword)
        else:
            setattr(instance, keyword, value)
    instance.file_meta = FileMetaDataset()
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.get(
        "SOPInstanceUID", UID("2.25.1")
    )
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return instance


def write_instance(folder: Path, **attributes: object) -> Path:
    """Write an instance as a Part 10 file; return its path."""
    instance = make_instance(**attributes)  # type: ignore[arg-type]
    path = folder / f"{instance.SOPInstanceUID}.dcm"
    instance.save_as(path, enforce_file_format=True)
    return path


def data_set_bytes(part10: bytes) -> bytes:
    """Return the encoded data set of a Part 10 file."""
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


async def stored(store: Store, sop_instance_uid: str) -> studies.StoredInstance | None:
    """Return the stored instance."""
    async with store.db.transaction() as tx:
        return await studies.instance(tx, store, sop_instance_uid)
