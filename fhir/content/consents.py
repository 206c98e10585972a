"""What a patient agreed to beyond her care, as FHIR Consent: job `publish_consent`.

The node knows one scope, research. That she was told by a doctor is a Communication;
what she agrees to on her phone stays at the relay.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.content import site
from fhir.content.publish import put_changed
from fhir.encoding.wire import Json, instant
from node.domain.consent import Consent, ConsentScope
from node.store import consent

if TYPE_CHECKING:
    from node.store.store import Store

_NAMESPACE = UUID("3a1f6f0e-54b2-5d1f-8a7b-6a1c0f6f9b52")
_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
# What she agreed to, in the words of FHIR: its purpose, and the rule it is held by.
_TERMS: Mapping[ConsentScope, tuple[str, str]] = {
    ConsentScope.RESEARCH: (
        "HRESCH",
        "同意将去标识化的影像用于模型训练与测试"
        " / De-identified images may train and test models",
    )
}


def to_consent(patient_id: UUID, given: Consent) -> Json:
    """Return one consent; a withdrawn one stays, inactive, with the time it ended.

    Who recorded it is in the audit trail: staff are no concern of other systems.
    """
    purpose, words = _TERMS[given.scope]
    period = {"start": instant(given.given_at)}
    if given.withdrawn_at is not None:
        period["end"] = instant(given.withdrawn_at)
    key = f"{patient_id}/{given.scope.value}/{instant(given.given_at)}"
    scope = {"system": f"{_TERMINOLOGY}/consentscope", "code": given.scope.value}
    category = {
        "system": f"{_TERMINOLOGY}/consentcategorycodes",
        "code": given.scope.value,
    }
    return {
        "resourceType": "Consent",
        "id": str(uuid5(_NAMESPACE, key)),
        "status": "active" if given.in_force else "inactive",
        "scope": {"coding": [scope]},
        "category": [{"coding": [category]}],
        "patient": {"reference": f"Patient/{patient_id}"},
        "dateTime": instant(given.given_at),
        "organization": [site.HOSPITAL],
        "policyRule": {"text": words},
        "provision": {
            "type": "permit",
            "period": period,
            "purpose": [{"system": f"{_TERMINOLOGY}/v3-ActReason", "code": purpose}],
        },
    }


async def publish_consent(store: "Store", payload: Mapping[str, Any]) -> None:
    """Write all that the patient `payload` {patient_id} ever agreed to."""
    patient_id = UUID(str(payload["patient_id"]))
    async with store.db.transaction() as tx:
        for given in await consent.consents(tx, patient_id):
            await put_changed(tx, store, to_consent(patient_id, given), patient_id)
