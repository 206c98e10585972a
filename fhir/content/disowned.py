"""A report of the wrong woman is withdrawn in FHIR: job `publish_disowned`.

Whoever filed it in her chart has to take it out, so it stays hers and says
`entered-in-error`; what it said is the other woman's and is said no more. Her phone and
the subscribers are told in the same transaction. After it the key of neither opens what
is left, and no token for one patient shows it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.content import concepts, mapping
from fhir.content.documents import retire_documents
from fhir.content.links import agent_of
from fhir.content.publish import put, versioned, write_places
from fhir.encoding.wire import Json, as_list, parse
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain import lexicon
from node.domain.report import Report
from node.store import moves, reports, resources, studies
from node.store.moves import Move

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_PROVENANCE = UUID("8f4b5f0f-12f5-5c06-9d52-9b5a3b9d6c77")
_SAID = (
    "valueCodeableConcept",
    "valueQuantity",
    "component",
    "bodySite",
    "interpretation",
    "note",
    "dataAbsentReason",
    "extension",
)
_REPORT_SAID = ("conclusion", "conclusionCode", "presentedForm", "extension", "basedOn")

_NOT_SAID = {"coding": [{"system": concepts.ABSENT_REASON, "code": "error"}]}


async def publish_disowned(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Withdraw the resources of the void study `payload` {study_instance_uid}.

    One commit with what subscribers are told and with the change of the key; once it
    is done a repeated job does nothing.
    """
    uid = str(payload["study_instance_uid"])
    report_id = reports.report_id_for(uid)
    async with store.db.transaction() as tx:
        await studies.study(tx, uid, for_update=True)
        move = await moves.of_study(tx, store, uid)
        if move is None or move.resealed:
            return
        report = await reports.read_for_update(tx, store, report_id)
        targets = await _withdraw(tx, store, report)
        if targets:
            await _say_who(tx, store, report, move, targets)
            await events.report_changed(tx, store, settings, report)
        await moves.reseal(tx, store, move)


async def _withdraw(tx: "Transaction", store: "Store", report: Report) -> list[str]:
    """Write the last version of every resource of a report; return references."""
    if await resources.find(tx, store, "DiagnosticReport", str(report.id)) is None:
        return []
    written = [
        *await retire_documents(tx, store, report),
        *await write_places(tx, store, report),
    ]
    for kind, resource_id in await _published(tx, store, report):
        stored = await resources.find(tx, store, kind, resource_id)
        if stored is None:
            continue
        known = parse(stored.body)
        silent = _silent(known)
        if silent != known:
            written.append(await put(tx, store, silent, report.patient_id))
    return [versioned(one) for one in written]


async def _published(
    tx: "Transaction", store: "Store", report: Report
) -> list[tuple[str, str]]:
    known = [("DiagnosticReport", str(report.id))]
    known += [("ImagingStudy", report.study_instance_uid)]
    observations = await resources.ids_from(tx, "Observation", str(report.id))
    return known + [("Observation", one) for one in observations]


def _silent(resource: Json) -> Json:
    """Return a resource as entered in error, without what it said of the other."""
    kind = resource["resourceType"]
    if kind == "ImagingStudy":
        dropped: tuple[str, ...] = ("basedOn", "note")
    else:
        dropped = _REPORT_SAID if kind == "DiagnosticReport" else _SAID
    kept = {key: value for key, value in resource.items() if key not in dropped}
    kept["status"] = "entered-in-error"
    if kind == "Observation" and not as_list(kept.get("hasMember")):
        kept["dataAbsentReason"] = _NOT_SAID
    if kind == "Observation" and "bodySite" in resource:
        kept["bodySite"] = concepts.codeable(lexicon.BREAST)  # of neither side
    return kept


async def _say_who(
    tx: "Transaction", store: "Store", report: Report, move: Move, targets: list[str]
) -> None:
    provenance = mapping.to_provenance(
        targets, recorded=move.at, agents=(), reason=move.reason
    )
    resource = {**provenance, "agent": [await agent_of(tx, move.by)]}
    resource["id"] = str(uuid5(_PROVENANCE, str(report.id)))
    resource["activity"] = {
        "coding": [{"system": concepts.DATA_OPERATION, "code": "NULLIFY"}]
    }
    await put(tx, store, resource, report.patient_id)
