"""What a machine says around its images: worklist, performed step, commitment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from pydicom.dataset import Dataset

from dicom_scp.simulation.scanner import Machine, Patient
from node.charset import unicode_header

_RETURN_KEYS: Final = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "StudyInstanceUID",
    "ReferringPhysicianName",
)


@dataclass(frozen=True)
class Scheduled:
    """What a worklist item gives the machine (PS3.4 K.6.1.2.2)."""

    study_instance_uid: str
    patient: Patient
    accession_number: str
    requested_procedure_id: str
    scheduled_step_id: str
    description: str


def written(patient: Patient, machine: Machine) -> Patient:
    """Return the patient as the machine can write her: a Latin one has no Han group."""
    if machine.character_set != "ISO_IR 100":
        return patient
    return replace(patient, name=patient.name.partition("=")[0])


def worklist_query(station: str, now: datetime, machine: Machine) -> Dataset:
    """Return the worklist query of a machine: its station, today, ultrasound."""
    step = Dataset()
    step.ScheduledStationAETitle, step.Modality = station, "US"
    step.ScheduledProcedureStepStartDate = f"{now:%Y%m%d}"
    step.ScheduledProcedureStepStartTime = ""
    step.ScheduledProcedureStepID = step.ScheduledProcedureStepDescription = ""
    step.ScheduledPerformingPhysicianName = ""
    query = Dataset()
    query.SpecificCharacterSet = machine.character_set
    query.ScheduledProcedureStepSequence = [step]
    for keyword in _RETURN_KEYS:
        setattr(query, keyword, "")
    return query


def scheduled_by(item: Dataset, alone: Scheduled) -> Scheduled:
    """Return what an item says; what it leaves out is as without a worklist."""
    item = unicode_header(item)
    steps = item.get("ScheduledProcedureStepSequence") or [Dataset()]
    patient = replace(
        alone.patient,
        name=str(item.get("PatientName", "")) or alone.patient.name,
        patient_id=str(item.get("PatientID", "")) or alone.patient.patient_id,
        birth_date=str(item.get("PatientBirthDate", "")) or alone.patient.birth_date,
        issuer=str(item.get("IssuerOfPatientID", "")),
        id_number="",
    )
    return Scheduled(
        study_instance_uid=str(item.get("StudyInstanceUID", ""))
        or alone.study_instance_uid,
        patient=patient,
        accession_number=str(item.get("AccessionNumber", "")),
        requested_procedure_id=str(item.get("RequestedProcedureID", "")),
        scheduled_step_id=str(steps[0].get("ScheduledProcedureStepID", "")),
        description=str(item.get("RequestedProcedureDescription", ""))
        or alone.description,
    )


def step_begins(
    scheduled: Scheduled, machine: Machine, station: str, at: datetime
) -> Dataset:
    """Return the attributes of a step that begins (PS3.4 Table F.7.2-1)."""
    step = Dataset()
    step.SpecificCharacterSet = machine.character_set
    patient = written(scheduled.patient, machine)
    step.PatientName, step.PatientID = patient.name, patient.patient_id
    step.IssuerOfPatientID = patient.issuer
    step.PatientBirthDate, step.PatientSex = patient.birth_date, "F"
    step.ReferencedPatientSequence = []
    request = request_attributes(scheduled)
    request.StudyInstanceUID = scheduled.study_instance_uid
    request.AccessionNumber = scheduled.accession_number
    request.ReferencedStudySequence = []
    request.RequestedProcedureDescription = scheduled.description
    request.ScheduledProtocolCodeSequence = []
    step.ScheduledStepAttributesSequence = [request]
    step.PerformedProcedureStepID = f"P{at:%H%M%S}"
    step.PerformedStationAETitle = station
    step.PerformedStationName, step.PerformedLocation = machine.station, ""
    step.PerformedProcedureStepStartDate = f"{at:%Y%m%d}"
    step.PerformedProcedureStepStartTime = f"{at:%H%M%S}"
    step.PerformedProcedureStepStatus = "IN PROGRESS"
    step.PerformedProcedureStepDescription = scheduled.description
    step.PerformedProcedureTypeDescription = ""
    step.ProcedureCodeSequence = []
    step.PerformedProcedureStepEndDate = step.PerformedProcedureStepEndTime = ""
    step.Modality, step.StudyID = "US", ""
    step.PerformedProtocolCodeSequence = []
    step.PerformedSeriesSequence = []
    return step


def step_ends(
    stored: Sequence[Dataset], at: datetime, *, discontinued: bool
) -> Dataset:
    """Return what ends a step: its status, and every instance that it made."""
    step = Dataset()
    status = "DISCONTINUED" if discontinued else "COMPLETED"
    step.PerformedProcedureStepStatus = status
    step.PerformedProcedureStepEndDate = f"{at:%Y%m%d}"
    step.PerformedProcedureStepEndTime = f"{at:%H%M%S}"
    step.PerformedSeriesSequence = []
    for series_uid in dict.fromkeys(i.SeriesInstanceUID for i in stored):
        members = [i for i in stored if i.SeriesInstanceUID == series_uid]
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.PerformingPhysicianName = series.OperatorsName = ""
        series.SeriesDescription = str(members[0].get("SeriesDescription", ""))
        series.ProtocolName, series.RetrieveAETitle = "Breast", ""
        images = [i for i in members if "Rows" in i]
        others = [i for i in members if "Rows" not in i]
        series.ReferencedImageSequence = [reference_to(i) for i in images]
        series.ReferencedNonImageCompositeSOPInstanceSequence = [
            reference_to(i) for i in others
        ]
        step.PerformedSeriesSequence.append(series)
    return step


def request_attributes(scheduled: Scheduled) -> Dataset:
    request = Dataset()
    request.RequestedProcedureID = scheduled.requested_procedure_id
    request.ScheduledProcedureStepID = scheduled.scheduled_step_id
    request.ScheduledProcedureStepDescription = scheduled.description
    return request


def reference_to(instance: Dataset) -> Dataset:
    return referenced(instance.SOPClassUID, instance.SOPInstanceUID)


def referenced(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = sop_class_uid
    reference.ReferencedSOPInstanceUID = sop_instance_uid
    return reference
