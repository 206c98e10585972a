"""The signed report on paper, as it is stored: found and unwrapped.

It carries the whole identity: whoever hands it out asks first who may have that.
"""

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING

from pydicom import dcmread

from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report, ReportStatus
from node.domain.uids import pdf_uid
from node.store import studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store
    from node.store.studies import StoredInstance

CONTENT_TYPE = "application/pdf"


async def find_paper(
    tx: "Transaction", store: "Store", report: Report, number: int
) -> "StoredInstance | None":
    """Return the Encapsulated PDF of version `number`; None while there is none.

    GONE when the report was withdrawn: what it said must not be handed out again.
    """
    if report.current.status is ReportStatus.ENTERED_IN_ERROR:
        raise NodeError("the report was withdrawn", ErrorKind.GONE)
    return await studies.instance(tx, store, pdf_uid(report.id, number))


async def read_paper(store: "Store", instance: "StoredInstance") -> bytes:
    """Return the PDF itself, without its wrapping and padding (PS3.3 C.24.2)."""
    return await asyncio.to_thread(_read, store, instance)


def _read(store: "Store", instance: "StoredInstance") -> bytes:
    with studies.open_blob(store, instance) as reader:
        document = dcmread(BytesIO(reader.read()))
    content: bytes = document.EncapsulatedDocument
    return content[: int(document.EncapsulatedDocumentLength)]
