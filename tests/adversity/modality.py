"""A modality that does not give up: it sends again what nobody acknowledged.

Its instances are small, so that a run of hundreds is a matter of the node and not
of pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from time import monotonic

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dsutils import encode

from dicom_scp.simulation.phantoms import build_phantom
from dicom_scp.simulation.scanner import Patient, View, build_instance
from dicom_scp.simulation.simulator import GE_LIKE
from node.workflow.intake import data_set_offset
from tests.journeys.rig import HOST, LESION, new_uid

SIDE = 192
MM_PER_PIXEL = 0.2
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


@dataclass
class Examination:
    """A study to be sent, and what the node has promised about it so far."""

    study_instance_uid: str
    patient: Patient
    instances: tuple[Dataset, ...]
    acknowledged: set[str] = field(default_factory=set)
    refusals: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.acknowledged) == len(self.instances)


class Studies:
    """Makes small studies; the one phantom that they share is drawn once."""

    def __init__(self) -> None:
        phantom = build_phantom((LESION,), seed=7, rows=400, columns=460)
        small = Image.fromarray(phantom.pixels).resize((SIDE, SIDE))
        self._pixels = np.asarray(small)
        self._view = View(frames=(phantom.pixels,), mm_per_pixel=phantom.mm_per_pixel)

    def make(self, patient: Patient, images: int = 5) -> Examination:
        study, series = new_uid(), new_uid()
        template = build_instance(
            self._view,
            patient,
            GE_LIKE,
            at=datetime.now(UTC),
            uids=(study, series, new_uid()),
            accession_number=study[-10:],
            description="Breast US",
        )
        instances = tuple(
            _shrunk(template, np.roll(self._pixels, 3 * number, axis=1), number)
            for number in range(images)
        )
        return Examination(study, patient, instances)


def _shrunk(template: Dataset, pixels: NDArray[np.uint8], number: int) -> Dataset:
    """Return a copy of an instance with other pixels, all of them tissue."""
    file = BytesIO()
    template.save_as(file, enforce_file_format=True)
    instance = dcmread(BytesIO(file.getvalue()))
    uid = new_uid()
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid
    instance.InstanceNumber = number + 1
    instance.Rows, instance.Columns = pixels.shape
    instance.PixelData = pixels.tobytes()
    (region,) = instance.SequenceOfUltrasoundRegions
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = SIDE - 1
    region.PhysicalDeltaX = region.PhysicalDeltaY = MM_PER_PIXEL / 10
    return instance


def data_set(instance: Dataset) -> bytes:
    """Return the data set of an instance as it goes over the wire."""
    encoded = encode(instance, is_implicit_vr=False, is_little_endian=True)
    assert encoded is not None
    return encoded


def stored_data_set(part10: bytes) -> bytes:
    return part10[data_set_offset(part10) :]


def send_until_stored(
    examination: Examination,
    port: int,
    *,
    patience_s: float,
    pause: Callable[[float], object],
) -> None:
    """Send what is not acknowledged yet, on new associations, until all of it is.

    `pause(seconds)` waits between tries, as scanners do.
    """
    deadline = monotonic() + patience_s
    while not examination.complete:
        assert monotonic() < deadline, "the modality has given up"
        _send_missing(examination, port)
        if not examination.complete:
            pause(0.3)


def send_once(examination: Examination, port: int) -> Sequence[int]:
    """Send what is missing on one association; return the refusing statuses."""
    before = len(examination.refusals)
    _send_missing(examination, port)
    return examination.refusals[before:]


def _send_missing(examination: Examination, port: int) -> None:
    missing = [
        instance
        for instance in examination.instances
        if instance.SOPInstanceUID not in examination.acknowledged
    ]
    entity = AE(ae_title="MODALITY")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    entity.connection_timeout = 5
    entity.add_requested_context(missing[0].SOPClassUID, ExplicitVRLittleEndian)
    association = entity.associate(HOST, port, ae_title="SONONODE")
    for instance in missing:
        if not association.is_established:
            break
        status = association.send_c_store(instance).get("Status")
        if status == SUCCESS:
            examination.acknowledged.add(str(instance.SOPInstanceUID))
        elif status is not None:
            examination.refusals.append(int(status))
    if association.is_established:
        association.release()
