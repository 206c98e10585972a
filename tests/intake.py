"""Puts an object into the store as the receiver does, without a network."""

from pydicom import Dataset

from dicom_scp.receiving.intake import describe
from dicom_scp.receiving.upper_layer import StoreRequest
from node.domain.study import Duplicates
from node.imaging import read_part10
from node.store.store import Store
from node.workflow.intake import Arrival, keep_object, receive_instance


async def receive_object(
    store: Store,
    dataset: Dataset,
    part10: bytes,
    *,
    duplicates: Duplicates = Duplicates.REJECT,
) -> None:
    """Store `dataset`, whose file is `part10`."""
    header, frames = read_part10(part10)
    uid, sop_class = str(dataset.SOPInstanceUID), str(dataset.SOPClassUID)
    kept = keep_object(store, uid, part10)
    request = StoreRequest(
        message_id=1,
        sop_class_uid=sop_class,
        sop_instance_uid=uid,
        abstract_syntax=sop_class,
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        calling_ae="SCANNER",
        address="",
        association="a1",
    )
    described = describe(
        header,
        request,
        frames=frames,
        blob_name=kept.blob_name,
        size=kept.size,
        sha256=kept.sha256,
    )
    arrival = Arrival(described, blob_key=kept.key, duplicates=duplicates)
    await receive_instance(store, arrival)
