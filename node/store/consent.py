"""Consents of patients on disk: closed when withdrawn, never deleted."""

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.consent import Consent, ConsentScope

if TYPE_CHECKING:
    from node.store.database import Transaction


async def give(
    tx: "Transaction", patient_id: UUID, scope: ConsentScope, *, at: datetime, by: str
) -> bool:
    """Record a consent; False when one is in force already."""
    written = await tx.fetchval(
        "insert into patient_consent (patient_id, scope, given_at, given_by)"
        " values ($1, $2, $3, $4) on conflict do nothing returning true",
        patient_id,
        scope.value,
        at,
        by,
    )
    return bool(written)


async def withdraw(
    tx: "Transaction", patient_id: UUID, scope: ConsentScope, *, at: datetime, by: str
) -> bool:
    """Close the consent in force; False when there is none."""
    closed = await tx.fetchval(
        "update patient_consent set withdrawn_at = $3, withdrawn_by = $4"
        " where patient_id = $1 and scope = $2 and withdrawn_at is null"
        " returning true",
        patient_id,
        scope.value,
        at,
        by,
    )
    return bool(closed)


async def consents(tx: "Transaction", patient_id: UUID) -> list[Consent]:
    """Return all that a patient ever agreed to, oldest first."""
    rows = await tx.fetch(
        "select * from patient_consent where patient_id = $1 order by sequence",
        patient_id,
    )
    return [
        Consent(
            scope=ConsentScope(row["scope"]),
            given_at=row["given_at"],
            given_by=row["given_by"],
            withdrawn_at=row["withdrawn_at"],
            withdrawn_by=row["withdrawn_by"],
        )
        for row in rows
    ]


async def in_force(tx: "Transaction", patient_id: UUID, scope: ConsentScope) -> bool:
    """Tell whether she agrees now; locked, so that she cannot withdraw within `tx`."""
    found = await tx.fetchval(
        "select true from patient_consent where patient_id = $1 and scope = $2"
        " and withdrawn_at is null for share",
        patient_id,
        scope.value,
    )
    return bool(found)
