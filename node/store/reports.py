"""Reports on disk: every version sealed with the patient's key, none overwritten."""

import json
import secrets
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from node.domain.audit import note_patient
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Disclosure, Report, ReportVersion
from node.domain.serial import (
    disclosure_from_json,
    disclosure_to_json,
    version_from_json,
    version_to_json,
)

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store


def _new_handle() -> str:
    """Return 22 random signs (about 127 bits) that are a FHIR id: no underscore."""
    return secrets.token_urlsafe(16).replace("_", "-")


_NAMESPACE = UUID("b1a2e7f0-6f1c-5f0e-9c55-0d0f5b8f7c11")


def report_id_for(study_instance_uid: str) -> UUID:
    """Return the id of the report of a study; the same on every machine."""
    return uuid5(_NAMESPACE, study_instance_uid)


async def create(
    tx: "Transaction", *, study_instance_uid: str, patient_id: UUID, at: datetime
) -> UUID:
    """Make sure that the study has a report row; return its id."""
    report_id = report_id_for(study_instance_uid)
    await tx.execute(
        "INSERT INTO report (id, study_instance_uid, patient_id, handle, created_at)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        report_id,
        study_instance_uid,
        patient_id,
        _new_handle(),
        at,
    )
    return report_id


async def read(tx: "Transaction", store: "Store", report_id: UUID) -> Report:
    """Return the report with all its versions; NOT_FOUND when there is none."""
    return await _assemble(tx, store, report_id)


async def read_for_update(tx: "Transaction", store: "Store", report_id: UUID) -> Report:
    """Like `read`, and no other writer gets the report until `tx` ends."""
    return await _assemble(tx, store, report_id, f"{_WHOSE} FOR UPDATE")


_WHOSE = "SELECT study_instance_uid, patient_id FROM report WHERE id = $1"


async def _assemble(
    tx: "Transaction", store: "Store", report_id: UUID, query: str = _WHOSE
) -> Report:
    row = await tx.fetchrow(query, report_id)
    if row is None:
        raise NodeError(f"there is no report {report_id}", ErrorKind.NOT_FOUND)
    note_patient(row["patient_id"])
    sealer = await store.ring.patient(tx, row["patient_id"])
    return Report(
        id=report_id,
        study_instance_uid=row["study_instance_uid"],
        patient_id=row["patient_id"],
        versions=await _versions(tx, sealer, report_id),
        disclosures=await _disclosures(tx, sealer, report_id),
    )


async def _versions(
    tx: "Transaction", sealer: "Sealer", report_id: UUID
) -> tuple[ReportVersion, ...]:
    rows = await tx.fetch(
        "SELECT number, body FROM report_version WHERE report_id = $1 ORDER BY number",
        report_id,
    )
    return tuple(
        version_from_json(
            json.loads(
                sealer.open(
                    row["body"],
                    table="report_version",
                    row=f"{report_id}/{row['number']}",
                    column="body",
                )
            )
        )
        for row in rows
    )


async def _disclosures(
    tx: "Transaction", sealer: "Sealer", report_id: UUID
) -> tuple[Disclosure, ...]:
    rows = await tx.fetch(
        "SELECT number, body FROM report_disclosure WHERE report_id = $1"
        " ORDER BY number",
        report_id,
    )
    return tuple(
        disclosure_from_json(
            json.loads(
                sealer.open(
                    row["body"],
                    table="report_disclosure",
                    row=f"{report_id}/{row['number']}",
                    column="body",
                )
            )
        )
        for row in rows
    )


async def all_ids(tx: "Transaction") -> list[UUID]:
    """Return the ids of all reports, oldest first."""
    rows = await tx.fetch("SELECT id FROM report ORDER BY created_at, id")
    return [row["id"] for row in rows]


async def version_count(tx: "Transaction", report_id: UUID) -> int:
    """Return how many versions the report has, 0 when there is none yet."""
    count: int = await tx.fetchval(
        "SELECT count(*) FROM report_version WHERE report_id = $1", report_id
    )
    return count


async def newest_status(tx: "Transaction", study_instance_uid: str) -> str:
    """Return the status of a study's report, empty while there is none."""
    status = await tx.fetchval(
        "SELECT status FROM report_version WHERE report_id = $1"
        " ORDER BY number DESC LIMIT 1",
        report_id_for(study_instance_uid),
    )
    return status or ""


async def append_version(
    tx: "Transaction", store: "Store", report: Report, version: ReportVersion
) -> None:
    """Write `version`; CONFLICT when somebody wrote that number first."""
    sealer = await store.ring.patient(tx, report.patient_id)
    body = sealer.seal(
        json.dumps(version_to_json(version), ensure_ascii=False).encode(),
        table="report_version",
        row=f"{report.id}/{version.number}",
        column="body",
    )
    written = await tx.fetchval(
        "INSERT INTO report_version"
        " (report_id, number, status, author_kind, written_at, body)"
        " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING number",
        report.id,
        version.number,
        version.status.value,
        version.author.kind.value,
        version.at,
        body,
    )
    if written is None:
        raise NodeError(
            f"version {version.number} of the report exists already",
            ErrorKind.CONFLICT,
        )


async def keep_proposal(
    tx: "Transaction", store: "Store", report: Report, proposal: ReportVersion
) -> None:
    """Keep a reading beside a physician's report; its number is the generation read.

    The same generation again changes nothing.
    """
    sealer = await store.ring.patient(tx, report.patient_id)
    body = sealer.seal(
        json.dumps(version_to_json(proposal), ensure_ascii=False).encode(),
        table="report_proposal",
        row=f"{report.id}/{proposal.number}",
        column="body",
    )
    await tx.execute(
        "INSERT INTO report_proposal (report_id, generation, made_at, body)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        report.id,
        proposal.number,
        proposal.at,
        body,
    )


async def newest_proposal(
    tx: "Transaction", store: "Store", report_id: UUID
) -> ReportVersion | None:
    """Return the last reading that was kept beside a report, or None."""
    row = await tx.fetchrow(
        "SELECT p.*, r.patient_id FROM report_proposal p JOIN report r ON r.id ="
        " p.report_id WHERE report_id = $1 ORDER BY generation DESC LIMIT 1",
        report_id,
    )
    if row is None:
        return None
    sealer = await store.ring.patient(tx, row["patient_id"])
    body = sealer.open(
        row["body"],
        table="report_proposal",
        row=f"{report_id}/{row['generation']}",
        column="body",
    )
    return version_from_json(json.loads(body))


async def append_disclosure(
    tx: "Transaction", store: "Store", report: Report, disclosure: Disclosure
) -> None:
    """Write the record that the patient was told."""
    sealer = await store.ring.patient(tx, report.patient_id)
    number = 1 + await tx.fetchval(
        "SELECT count(*) FROM report_disclosure WHERE report_id = $1", report.id
    )
    body = sealer.seal(
        json.dumps(disclosure_to_json(disclosure), ensure_ascii=False).encode(),
        table="report_disclosure",
        row=f"{report.id}/{number}",
        column="body",
    )
    await tx.execute(
        "INSERT INTO report_disclosure (report_id, number, recorded_at, body)"
        " VALUES ($1, $2, $3, $4)",
        report.id,
        number,
        disclosure.at,
        body,
    )


async def handles(tx: "Transaction", report_id: UUID) -> tuple[str, str]:
    """Return (report handle, patient handle): random names for the patient channel."""
    row = await tx.fetchrow(
        "SELECT handle, patient_id FROM report WHERE id = $1", report_id
    )
    if row is None:
        raise NodeError(f"there is no report {report_id}", ErrorKind.NOT_FOUND)
    return row["handle"], await patient_handle(tx, row["patient_id"])


async def patient_handle(tx: "Transaction", patient_id: UUID) -> str:
    """Return the random name of a patient in the patient channel."""
    await tx.execute(
        "INSERT INTO patient_handle (patient_id, handle) VALUES ($1, $2)"
        " ON CONFLICT DO NOTHING",
        patient_id,
        _new_handle(),
    )
    handle = await tx.fetchval(
        "SELECT handle FROM patient_handle WHERE patient_id = $1", patient_id
    )
    return str(handle)
