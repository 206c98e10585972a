"""What machines measured, on disk: one sealed body for each of their reports."""

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.measurement import (
    STRUCTURED_REPORTS,
    Code,
    MachineReport,
    Measurement,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_TABLE = "machine_reports"


async def unread(tx: "Transaction", study_instance_uid: str) -> list[str]:
    """Return the received Structured Reports of a study that nobody has read yet."""
    rows = await tx.fetch(
        "select sop_instance_uid from instances i where study_instance_uid = $1"
        " and origin = 'received' and sop_class_uid = any($2) and not exists"
        " (select from machine_reports m"
        "  where m.sop_instance_uid = i.sop_instance_uid) order by sequence",
        study_instance_uid,
        list(STRUCTURED_REPORTS),
    )
    return [row["sop_instance_uid"] for row in rows]


async def keep(
    tx: "Transaction",
    store: "Store",
    patient_id: UUID,
    study_instance_uid: str,
    report: MachineReport,
    *,
    at: datetime,
) -> None:
    """Write what a document says; one that was read before stays as it is."""
    sealer = await store.ring.patient(tx, patient_id)
    uid = report.sop_instance_uid
    body = json.dumps(asdict(report), ensure_ascii=False).encode()
    await tx.execute(
        "insert into machine_reports"
        " (sop_instance_uid, study_instance_uid, body, read_at)"
        " values ($1, $2, $3, $4) on conflict do nothing",
        uid,
        study_instance_uid,
        sealer.seal(body, table=_TABLE, row=uid, column="body"),
        at,
    )


async def of_study(
    tx: "Transaction", store: "Store", patient_id: UUID, study_instance_uid: str
) -> list[MachineReport]:
    """Return what the machines of a study told, in the order in which it came."""
    rows = await tx.fetch(
        "select m.sop_instance_uid, m.body from machine_reports m"
        " join instances i using (sop_instance_uid)"
        " where m.study_instance_uid = $1 order by i.sequence",
        study_instance_uid,
    )
    if not rows:
        return []
    sealer = await store.ring.patient(tx, patient_id)
    return [
        _report(
            json.loads(
                sealer.open(
                    row["body"],
                    table=_TABLE,
                    row=row["sop_instance_uid"],
                    column="body",
                )
            )
        )
        for row in rows
    ]


def _report(told: dict[str, Any]) -> MachineReport:
    items = tuple(_measurement(item) for item in told.pop("measurements"))
    return MachineReport(**told, measurements=items)


def _measurement(told: dict[str, Any]) -> Measurement:
    term = told.pop("term")
    return Measurement(
        group=tuple(told.pop("group")),
        name=Code(**told.pop("name")),
        term=None if term is None else Code(**term),
        **told,
    )
