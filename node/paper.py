"""The signed report as people read it, as it is stored: found and unwrapped.

On paper it is a PDF, kept once as the DICOM object that the archive has too; for
browsers a page in HTML. Both carry the whole identity: whoever hands them out asks
first who may have that.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import dcmread

from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report, ReportStatus
from node.domain.uids import pdf_uid
from node.store import pages, studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store
    from node.store.studies import StoredInstance

PDF = "application/pdf"
HTML = "text/html"
# In the order in which they are offered.
FORMS = (PDF, HTML)


@dataclass(frozen=True)
class Paper:
    """A signed version in one form; `sop_instance_uid` is that of a PDF."""

    content_type: str
    made_at: datetime
    sop_instance_uid: str | None
    _read: Callable[[], bytes] = field(repr=False)

    async def read(self) -> bytes:
        """Return its bytes; a PDF without its wrapping and padding (PS3.3 C.24.2)."""
        return await asyncio.to_thread(self._read)


async def find_paper(
    tx: "Transaction",
    store: "Store",
    report: Report,
    number: int,
    content_type: str = PDF,
) -> Paper | None:
    """Return version `number` in one of `FORMS`; None while there is none.

    GONE when the report was withdrawn: what it said must not be handed out again.
    """
    if report.current.status is ReportStatus.ENTERED_IN_ERROR:
        raise NodeError("the report was withdrawn", ErrorKind.GONE)
    if content_type == HTML:
        page = await pages.find(tx, store, report, number)
        if page is None:
            return None
        return Paper(HTML, page.made_at, None, lambda: pages.read(store, page))
    instance = await studies.instance(tx, store, pdf_uid(report.id, number))
    if instance is None:
        return None
    return Paper(
        PDF,
        instance.received_at,
        instance.sop_instance_uid,
        lambda: _unwrapped(store, instance),
    )


async def find_papers(
    tx: "Transaction", store: "Store", report: Report, number: int
) -> list[Paper]:
    """Return version `number` in every form there is of it, in their order; GONE."""
    found = [await find_paper(tx, store, report, number, form) for form in FORMS]
    return [paper for paper in found if paper is not None]


def _unwrapped(store: "Store", instance: "StoredInstance") -> bytes:
    with studies.open_blob(store, instance) as reader:
        document = dcmread(BytesIO(reader.read()))
    content: bytes = document.EncapsulatedDocument
    return content[: int(document.EncapsulatedDocumentLength)]
