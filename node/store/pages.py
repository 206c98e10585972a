"""Signed reports as pages for browsers: kept like instances, one for each version.

A page has a key of its own, sealed with the patient's: erasing her erases it, and a
study that is filed anew takes its pages along (`moves`).
"""

import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from node.domain.report import Report
    from node.store.database import Transaction
    from node.store.store import Store

_TABLE = "report_page"


@dataclass(frozen=True)
class KeptPage:
    """A page that is safe in the store and that no row refers to yet."""

    blob_name: str
    size: int
    key: bytes = field(repr=False)


@dataclass(frozen=True)
class Page:
    """The page of a signed version."""

    report_id: UUID
    number: int
    blob_name: str
    size: int
    made_at: datetime
    key: bytes = field(repr=False)


def keep(store: "Store", report_id: UUID, number: int, content: bytes) -> KeptPage:
    """Write a page durably. Blocks: call it in a thread."""
    fresh = os.urandom(16 + 32)
    name, key = f"pages/{fresh[:16].hex()}", fresh[16:]
    bound = _bound(report_id, number)
    writer = store.blobs.writer(name, key=key, associated_data=bound)
    try:
        writer.write(content)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return KeptPage(name, len(content), key)


async def insert(
    tx: "Transaction",
    store: "Store",
    report: "Report",
    number: int,
    kept: KeptPage,
) -> bool:
    """Note the page of a version; False when it has one, which stays."""
    sealer = await store.ring.patient(tx, report.patient_id)
    sealed = sealer.seal(
        kept.key, table=_TABLE, row=f"{report.id}/{number}", column="blob_key"
    )
    written = await tx.fetchval(
        "insert into report_page"
        " (report_id, number, blob_name, blob_key, size, made_at)"
        " values ($1, $2, $3, $4, $5, $6) on conflict do nothing returning 1",
        report.id,
        number,
        kept.blob_name,
        sealed,
        kept.size,
        store.clock(),
    )
    return written is not None


async def find(
    tx: "Transaction", store: "Store", report: "Report", number: int
) -> Page | None:
    """Return the page of a version; None while there is none."""
    row = await tx.fetchrow(
        "select * from report_page where report_id = $1 and number = $2",
        report.id,
        number,
    )
    if row is None:
        return None
    sealer = await store.ring.patient(tx, report.patient_id)
    key = sealer.open(
        row["blob_key"], table=_TABLE, row=f"{report.id}/{number}", column="blob_key"
    )
    return Page(report.id, number, row["blob_name"], row["size"], row["made_at"], key)


def read(store: "Store", page: Page) -> bytes:
    """Return a page as it was made. Blocks."""
    with store.blobs.reader(
        page.blob_name,
        key=page.key,
        associated_data=_bound(page.report_id, page.number),
    ) as reader:
        return reader.read()


def _bound(report_id: UUID, number: int) -> bytes:
    return f"report_page/{report_id}/{number}".encode()
