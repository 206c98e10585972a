"""Rows that are one woman, as Patient.link says it: job `publish_merge`.

The row that gave way is not active and is replaced by the one that stands for her
(FHIR R4 Patient.link); both say so in new versions, and no longer when they are taken
apart. The links are the node's: what another system sends keeps them as they stand.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.content import mapping
from fhir.content.links import agent_of
from fhir.content.publish import put, versioned
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, parse, reference_parts
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain.access import Identity
from node.domain.errors import ErrorKind, NodeError
from node.store import clients, identities, merges, resources
from node.store.merges import Decision, Links, Verdict
from node.workflow.merging import match_anew, merge_as_told

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_PROVENANCE = UUID("2b0d9c54-5a8e-5d0b-9a55-0d6c1f1f7f3e")
_REPLACED_BY, _REPLACES = "replaced-by", "replaces"
_OURS = (_REPLACED_BY, _REPLACES)
_NOT_HERE = "the link is not to a Patient of this node: name it as Patient/id"
# The free words of whoever decided may name either woman: they stay where the keys of
# both are needed to read them.
_WHY = {
    Verdict.SAME: "同一位患者的两条记录已合并 / two rows of one woman were merged",
    Verdict.APART: "合并已撤销 / the merge of two rows was undone",
}
KEPT_AS_IS = (
    "Patient.link and Patient.active say what this node knows of merges; a merge is"
    " undone on its reconciliation page"
)


async def publish_merge(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Let both Patients of the decision `payload` {decision} say how they are linked.

    They say what is true now: a repeated or late job writes nothing, and of an erased
    woman nothing is written. Orders are matched once more.
    """
    async with store.db.transaction() as tx:
        try:
            decision = await merges.decision(tx, store, int(payload["decision"]))
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            return
        both = sorted((decision.lost, decision.kept))
        rows = await merges.rows_of(tx, both[0]) | await merges.rows_of(tx, both[1])
        await match_anew(store, tx, rows)
        for row in both:
            await resources.lock(tx, "Patient", str(row))
        changed = [
            row for row in both if await _tell(tx, store, settings, decision, row)
        ]
        told = [("Patient", str(row)) for row in changed]
        await events.resources_changed(tx, store, settings, told)


async def _tell(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    decision: Decision,
    row: UUID,
) -> bool:
    """Write the Patient of a row if its links have changed, and who said so."""
    stored = await resources.find(tx, store, "Patient", str(row))
    if stored is None:
        identity = await identities.patient(tx, store, row)
        known = mapping.to_patient(row, identity, settings.systems)
    else:
        known = parse(stored.body)
    links = await merges.links_of(tx, row)
    told = linked(known, links)
    if _is_replaced(known) and links.merged_into is None:
        told = await _as_it_was(tx, store, row, told)
    if stored is not None and told == known:
        return False
    written = await put(tx, store, told, row)
    provenance = mapping.to_provenance(
        [versioned(written)],
        recorded=decision.at,
        agents=(),
        reason=_WHY[decision.verdict],
    )
    agent = await agent_of(tx, decision.by)
    client = await clients.find(tx, decision.by)
    if client is not None:
        agent = {**agent, "who": {"display": client.name}}
    provenance |= {"agent": [agent]}
    provenance["id"] = str(uuid5(_PROVENANCE, f"{decision.number}/{row}"))
    await put(tx, store, provenance, row)
    return True


def linked(patient: Json, links: Links) -> Json:
    """Return a Patient with the links that its row has, and without any other merge."""
    kept = {key: value for key, value in patient.items() if key != "link"}
    others = [
        one for one in as_list(patient.get("link")) if one.get("type") not in _OURS
    ]
    if links.merged_into is not None:
        kept["active"] = False
        others.append(_link(links.merged_into, _REPLACED_BY))
    others += [_link(one, _REPLACES) for one in links.merged]
    return kept | {"link": others} if others else kept


def _link(row: UUID, kind: str) -> Json:
    return {"other": {"reference": f"Patient/{row}"}, "type": kind}


def _is_replaced(patient: Json) -> bool:
    return any(one.get("type") == _REPLACED_BY for one in as_list(patient.get("link")))


async def _as_it_was(
    tx: "Transaction", store: "Store", row: UUID, patient: Json
) -> Json:
    """Return a Patient as active as she said she was before she was merged."""
    kept = {key: value for key, value in patient.items() if key != "active"}
    stored = await resources.read(tx, store, "Patient", str(row))
    for version in range(stored.version - 1, 0, -1):
        older = await resources.read_version(tx, store, "Patient", str(row), version)
        body = parse(older.body)
        if not _is_replaced(body):
            told = body.get("active")
            return kept if told is None else kept | {"active": told}
    return kept


async def heed_links(
    tx: "Transaction",
    store: "Store",
    resource: Json,
    patient_id: UUID,
    identity: Identity,
) -> Json:
    """Return a Patient that was sent as it is stored: merged, if it says so.

    `replaced-by` is the merge itself, with the sender as who said it, and so is
    `replaces`, said of the one that stands. Refused with 422 where either would stay
    without effect: none is stored that is not true. `seealso` and `refer` merge nothing
    and are kept as they were sent.
    """
    for one in as_list(resource.get("link")):
        if one.get("type") not in _OURS:
            continue
        parts = reference_parts(one.get("other"))
        if parts is None or parts[0] != "Patient":
            raise _refused(_NOT_HERE)
        if await resources.find(tx, store, *parts) is None:
            raise _refused(_NOT_HERE)
        other = UUID(parts[1])
        if other == patient_id:
            raise _refused("a Patient is not replaced by itself")
        pair = (patient_id, other)
        lost, kept = pair if one["type"] == _REPLACED_BY else reversed(pair)
        await _merge(tx, store, lost, kept, identity)
    return linked(resource, await merges.links_of(tx, patient_id))


async def _merge(
    tx: "Transaction", store: "Store", lost: UUID, kept: UUID, identity: Identity
) -> None:
    try:
        await merge_as_told(store, tx, lost, kept, identity=identity)
    except NodeError as error:
        if error.kind is not ErrorKind.RULE:
            raise
        raise _refused(error.message) from None


def _refused(message: str) -> Refused:
    issue = Issue("business-rule", message, "Patient.link")
    return Refused([issue], 422, ErrorKind.RULE)
