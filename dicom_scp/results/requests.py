"""Which orders a result answers, as its DICOM object says it.

Documents have a Referenced Request Sequence (PS3.3 C.17.2, C.17.6.2), all other
results the Request Attributes Sequence of their series (PS3.3 C.7.3.1). What the
images themselves name is repeated, unless it is an order of another patient.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Final

from pydicom.dataset import Dataset

from node.domain.order import Code, Order
from node.store.orders import StudyOrder

_DOCUMENTS: Final = frozenset({"SR", "KO"})


def add_requests(
    result: Dataset, sources: Sequence[Dataset], named: Sequence[StudyOrder]
) -> None:
    """Write into `result` the orders that its study answers.

    `sources` are the Unicode headers of the study's images, `named` the orders that
    the study was matched to.
    """
    document = result.Modality in _DOCUMENTS
    keyword = "ReferencedRequestSequence" if document else "RequestAttributesSequence"
    items = [*_of_orders(named, document), *_of_images(sources, named, document)]
    if items:
        setattr(result, keyword, items)
    elif keyword in result:
        delattr(result, keyword)


def referenced_requests(sources: Sequence[Dataset]) -> list[Dataset]:
    """Return the orders that the images themselves name, for a document."""
    return list(_of_images(sources, (), document=True))


def _of_orders(named: Sequence[StudyOrder], document: bool) -> Iterator[Dataset]:
    for one in named:
        if one.agrees:
            yield _referenced(one.order) if document else _attributes(one.order)


def _referenced(order: Order) -> Dataset:
    """Return an item of Referenced Request Sequence (PS3.3 table C.17-2)."""
    step, item = order.step, Dataset()
    item.StudyInstanceUID = step.study_instance_uid
    item.ReferencedStudySequence = []
    item.AccessionNumber = step.accession_number
    item.PlacerOrderNumberImagingServiceRequest = step.placer_order_number
    item.FillerOrderNumberImagingServiceRequest = step.filler_order_number
    item.RequestedProcedureID = step.requested_procedure_id
    item.RequestedProcedureDescription = step.requested_procedure_description
    item.RequestedProcedureCodeSequence = _codes(step.requested_procedure_code)
    if step.reason:
        item.ReasonForTheRequestedProcedure = step.reason
    return item


def _attributes(order: Order) -> Dataset:
    """Return an item of Request Attributes Sequence (PS3.3 table 10-9)."""
    step, item = order.step, Dataset()
    item.StudyInstanceUID = step.study_instance_uid
    if step.accession_number:
        item.AccessionNumber = step.accession_number
    item.RequestedProcedureID = step.requested_procedure_id
    if step.requested_procedure_description:
        item.RequestedProcedureDescription = step.requested_procedure_description
    if codes := _codes(step.requested_procedure_code):
        item.RequestedProcedureCodeSequence = codes
    item.ScheduledProcedureStepID = step.step_id
    if step.step_description:
        item.ScheduledProcedureStepDescription = step.step_description
    return item


def _codes(code: Code | None) -> list[Dataset]:
    if code is None:
        return []
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme
    item.CodeMeaning = code.meaning
    return [item]


def _of_images(
    sources: Sequence[Dataset], named: Sequence[StudyOrder], document: bool
) -> Iterator[Dataset]:
    """Yield what the images name and no known order says better.

    Once an order of another patient is among what they name, none of it is repeated.
    """
    if any(not one.agrees for one in named):
        return
    known = {_ids(one.order) for one in named}
    for header in sources:
        for told in header.get("RequestAttributesSequence", None) or ():
            accession = str(
                told.get("AccessionNumber") or header.get("AccessionNumber") or ""
            )
            procedure = str(told.get("RequestedProcedureID") or "")
            if (accession, procedure) in known:
                continue
            known.add((accession, procedure))
            if document:
                yield _told_reference(told, str(header.StudyInstanceUID), accession)
            else:
                yield copy.deepcopy(told)


def _ids(order: Order) -> tuple[str, str]:
    return order.step.accession_number, order.step.requested_procedure_id


def _told_reference(told: Dataset, study_instance_uid: str, accession: str) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = study_instance_uid
    item.ReferencedStudySequence = []
    item.AccessionNumber = accession
    for keyword in (
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
        "RequestedProcedureID",
        "RequestedProcedureDescription",
    ):
        setattr(item, keyword, str(told.get(keyword) or ""))
    item.RequestedProcedureCodeSequence = copy.deepcopy(
        list(told.get("RequestedProcedureCodeSequence", None) or ())
    )
    return item
