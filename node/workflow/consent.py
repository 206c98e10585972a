"""Giving and withdrawing consent: each one transaction, each audited.

A patient is named by one of her studies, so that neither a name nor a number stands
in a shell's history.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.audit import AuditEntry
from node.domain.consent import Consent, ConsentScope
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, consent, studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


PUBLISH_CONSENT = "publish_consent"


async def give_consent(
    store: "Store", study_instance_uid: str, scope: ConsentScope, *, by: str
) -> None:
    """Record that the patient of a study agrees; CONFLICT when she does already."""
    async with store.db.transaction() as tx:
        patient_id = await _patient_of(tx, study_instance_uid)
        if not await consent.give(tx, patient_id, scope, at=store.clock(), by=by):
            raise NodeError("this consent is in force already", ErrorKind.CONFLICT)
        await _record(store, tx, "consent-give", patient_id, scope, by)


async def withdraw_consent(
    store: "Store", study_instance_uid: str, scope: ConsentScope, *, by: str
) -> None:
    """Record that she no longer agrees; NOT_FOUND when no consent is in force.

    What was exported before cannot be called back from here; the audit trail says
    when each of her reports was exported.
    """
    async with store.db.transaction() as tx:
        patient_id = await _patient_of(tx, study_instance_uid)
        if not await consent.withdraw(tx, patient_id, scope, at=store.clock(), by=by):
            raise NodeError("there is no such consent in force", ErrorKind.NOT_FOUND)
        await _record(store, tx, "consent-withdraw", patient_id, scope, by)


async def show_consents(store: "Store", study_instance_uid: str) -> list[Consent]:
    """Return what the patient of a study agreed to, oldest first."""
    async with store.db.transaction() as tx:
        return await consent.consents(tx, await _patient_of(tx, study_instance_uid))


async def publish_consent_later(
    tx: "Transaction", store: "Store", patient_id: UUID
) -> None:
    """Promise that /fhir tells what the patient agreed to as it is now."""
    await store.jobs.defer(
        tx, PUBLISH_CONSENT, {"patient_id": str(patient_id)}, patient_id=patient_id
    )


async def _patient_of(tx: "Transaction", study_instance_uid: str) -> UUID:
    study = await studies.study(tx, study_instance_uid)
    if study is None:
        raise NodeError("there is no such study", ErrorKind.NOT_FOUND)
    return study.patient_id


async def _record(
    store: "Store",
    tx: "Transaction",
    action: str,
    patient_id: UUID,
    scope: ConsentScope,
    by: str,
) -> None:
    await publish_consent_later(tx, store, patient_id)
    entry = AuditEntry(
        at=store.clock(),
        actor=by,
        role="administrator",
        action=action,
        entity=f"patient/{patient_id}",
        detail={"scope": scope.value},
    )
    await audit.record(tx, entry)
