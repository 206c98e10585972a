"""Which orders a study answers, as its resources say it: job `publish_order_links`.

An order may come after its study, and a person may link or unlink by hand. The report's
words and its signature stay as they are: `basedOn` and the accession number change, in
new versions of the resources, and a Provenance names whoever decided, and why.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.content import mapping
from fhir.content.publish import put, versioned, write_exam
from fhir.encoding.wire import Json, as_list, parse
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain.report import Report
from node.store import orders, people, reports, resources
from node.store.resources import Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_PROVENANCE = UUID("5a6d4b6c-6f0f-5b67-8a35-7d1d3a6f0c21")


async def publish_links(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Tell the orders of the study `payload` {study_instance_uid, decision}.

    Does nothing while the report is not published: publishing tells it. A repeated
    job finds everything told and writes nothing.
    """
    uid = str(payload["study_instance_uid"])
    report_id = reports.report_id_for(uid)
    async with store.db.transaction() as tx:
        if not await reports.version_count(tx, report_id):
            return
        report = await reports.read_for_update(tx, store, report_id)
        if report.is_disowned:
            return
        known = await resources.find(tx, store, "DiagnosticReport", str(report_id))
        if known is None:
            return
        written = await _tell(tx, store, settings, report, known)
        if not written:
            return
        number = payload.get("decision")
        if number is not None:
            decision = await orders.decision(tx, store, int(number))
            await _say_who(tx, store, report, written, decision, int(number))
        changed = [("ImagingStudy", uid), ("DiagnosticReport", str(report_id))]
        await events.resources_changed(tx, store, settings, changed)


async def _tell(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    report: Report,
    known: Stored,
) -> list[str]:
    """Write what changes; return references to the new versions."""
    exam = await write_exam(tx, store, settings, report)
    rendered = mapping.to_diagnostic_report(report, exam, settings.systems)
    elements = ("identifier", "basedOn")
    told: Json = {key: rendered[key] for key in elements if key in rendered}
    observations = {o["id"]: o for o in mapping.to_observations(report, exam)}
    found = [known]
    for observation_id in observations:
        stored = await resources.find(tx, store, "Observation", observation_id)
        if stored is not None:
            found.append(stored)
    written = []
    for stored in found:
        body = parse(stored.body)
        asked = told if stored is known else exam.based_on
        of_body = elements if stored is known else elements[1:]
        changed = _with(body, asked, of_body)
        if changed != body:
            written.append(versioned(await put(tx, store, changed, report.patient_id)))
    return written


def _with(body: Json, told: Json, elements: tuple[str, ...]) -> Json:
    kept = {key: value for key, value in body.items() if key not in elements}
    return kept | {key: told[key] for key in elements if as_list(told.get(key))}


async def _say_who(
    tx: "Transaction",
    store: "Store",
    report: Report,
    targets: list[str],
    decision: orders.Decision,
    number: int,
) -> None:
    provenance = mapping.to_provenance(
        targets, recorded=decision.at, agents=(), reason=decision.reason
    )
    author = await agent_of(tx, decision.by)
    resource = {**provenance, "agent": [author]}
    resource["id"] = str(uuid5(_PROVENANCE, f"{report.id}/{number}"))
    await put(tx, store, resource, report.patient_id)


async def agent_of(tx: "Transaction", user_id: str) -> Json:
    """Return the agent of a Provenance for an act of a person that is not medical.

    She is named as the author of the correction; without a Practitioner of her own
    by her display, as the console is.
    """
    user = await people.find_account(tx, user_id)
    who: Json = {"display": user_id if user is None else user.display}
    if user is not None and user.practitioner_id is not None:
        who = {"reference": f"Practitioner/{user.practitioner_id}"}
    return {"type": mapping.participant("author"), "who": who}
