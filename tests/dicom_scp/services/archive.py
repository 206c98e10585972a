"""A small archive to search and to retrieve from."""

from collections.abc import Iterable
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import KeyObjectSelectionDocumentStorage
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from node.store import identities, merges
from node.store.store import Store
from tests.dicom_scp.instances import make_instance
from tests.intake import receive_object

VIEWER = "VIEWER"
ZHANG, LI = "P-0001", "P-0002"
JANUARY, MARCH, UNDATED, OTHER = "2.25.1", "2.25.2", "2.25.3", "2.25.4"


def peers(*services: ServiceName, **more: object) -> Peers:
    """Return one viewer that may use these services."""
    return Peers([Peer(VIEWER, services=frozenset(services), **more)])  # type: ignore[arg-type]


def part10(dataset: Dataset) -> bytes:
    """Return the dataset as a file."""
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


async def keep(store: Store, dataset: Dataset) -> bytes:
    """Store the dataset as the receiver does; return its file."""
    content = part10(dataset)
    await receive_object(store, dataset, content)
    return content


async def fill(store: Store) -> dict[str, bytes]:
    """Store four studies of two patients; return the files by SOP Instance UID."""
    made: dict[str, bytes] = {}
    for study, day, modality, series_count in (
        (JANUARY, "20260102", "US", 2),
        (MARCH, "20260315", "US", 1),
        (UNDATED, "", "SR", 1),
    ):
        for series in range(1, series_count + 1):
            for number in (1, 2):
                instance = make_instance(
                    rows=8,
                    columns=8,
                    StudyInstanceUID=study,
                    SeriesInstanceUID=f"{study}.{series}",
                    SOPInstanceUID=f"{study}.{series}.{number}",
                    StudyDate=day,
                    StudyTime="101500" if day else "",
                    StudyID=study[-1],
                    AccessionNumber=f"ACC{study[-1]}",
                    Modality=modality,
                    SeriesNumber=str(series),
                    SeriesDescription=f"series {series}",
                    InstanceNumber=str(number),
                    IssuerOfPatientID="HIS",
                )
                made[str(instance.SOPInstanceUID)] = await keep(store, instance)
    other = make_instance(
        rows=8,
        columns=8,
        PatientName="Li^Mei=李^梅",
        PatientID=LI,
        StudyInstanceUID=OTHER,
        SeriesInstanceUID=f"{OTHER}.1",
        SOPInstanceUID=f"{OTHER}.1.1",
        StudyDate="20260316",
        AccessionNumber="ACC4",
        PatientBirthDate="19800214",
    )
    made[str(other.SOPInstanceUID)] = await keep(store, other)
    return made


async def merge(store: Store, lost: str, kept: str) -> None:
    """Say that the patients of two numbers are one woman, for whom `kept` stands."""
    async with store.db.transaction() as tx:
        rows = [
            (await identities.find_patients_by_number(tx, store, number))[0]
            for number in (lost, kept)
        ]
        await merges.link(tx, *rows)


async def reject(store: Store, study: str, uids: Iterable[str]) -> None:
    """Store a Rejection Note for patient safety reasons."""
    title = Dataset()
    title.CodeValue, title.CodingSchemeDesignator = "113037", "DCM"
    title.CodeMeaning = "Rejected for Patient Safety Reasons"
    series = Dataset()
    series.SeriesInstanceUID = f"{study}.1"
    series.ReferencedSOPSequence = []
    for uid in uids:
        reference = Dataset()
        reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
        reference.ReferencedSOPInstanceUID = uid
        series.ReferencedSOPSequence.append(reference)
    evidence = Dataset()
    evidence.StudyInstanceUID = study
    evidence.ReferencedSeriesSequence = Sequence([series])
    note = make_instance(
        rows=8,
        columns=8,
        SOPClassUID=KeyObjectSelectionDocumentStorage,
        StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.9",
        SOPInstanceUID=f"{study}.9.1",
        Modality="KO",
        IssuerOfPatientID="HIS",
        ConceptNameCodeSequence=[title],
        CurrentRequestedProcedureEvidenceSequence=[evidence],
    )
    await keep(store, note)


def identifier(level: str, **keys: object) -> Dataset:
    """Return an Identifier."""
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(asked, keyword, value)
    return asked


def associated(port: int, *contexts: object, **options: object) -> Association:
    """Return an association of the viewer, established."""
    ae = AE(ae_title=VIEWER)
    association = ae.associate(
        "127.0.0.1", port, contexts=list(contexts), ae_title="SONONODE", **options
    )
    assert association.is_established
    return association
