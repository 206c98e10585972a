"""The algorithm's draft as FHIR resources: handler of the job `publish_report`.

And what becomes known of its study later: handler of the job `publish_study`.

Ids follow from the report, and what is there already is not written again: a
repeated job changes nothing. A physician's version is never overwritten.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.conformance.profiles import with_profile
from fhir.content import completeness, concepts, mapping, places, site
from fhir.content.mapping import Exam, InstanceOf
from fhir.encoding.wire import Json, as_list, parse, to_bytes, with_identity
from fhir.search.parameters import INDEX_VERSION, accession_criterion, index_of
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Author, AuthorKind, Report
from node.store import (
    completion,
    identities,
    models,
    orders,
    people,
    reports,
    resources,
    studies,
)
from node.store.orders import NamedBy
from node.store.resources import Draft, Stored
from node.store.search import pages
from node.store.search.criteria import Query, RefersTo

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_PROVENANCE = UUID("0e0a1d3c-6a50-53c4-9d3e-2f4d9d2f7f10")


async def publish_report(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Write the resources of report version `payload` {report_id, version}.

    Does nothing when a newer version exists or a physician has taken over.
    """
    async with store.db.transaction() as tx:
        report = await reports.read_for_update(
            tx, store, UUID(str(payload["report_id"]))
        )
        newest = report.current
        if newest.number != payload["version"]:
            return
        if newest.author.kind is not AuthorKind.ALGORITHM:
            return
        await _publish(tx, store, settings, report)


async def publish_study(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Tell beside the report `payload` {report_id} what became known of its study.

    A physician's version stays as it is. The new version of the resource makes an
    edit that she began before she could see this a conflict. Does nothing while the
    report is not published: publishing tells it.
    """
    async with store.db.transaction() as tx:
        report_id = UUID(str(payload["report_id"]))
        report = await reports.read_for_update(tx, store, report_id)
        stored = await resources.find(tx, store, "DiagnosticReport", str(report_id))
        if stored is None or report.is_disowned:
            return
        known = parse(stored.body)
        told = await completeness.extensions_of(tx, store, report)
        others = [
            extension
            for extension in as_list(known.get("extension"))
            if extension.get("url") not in concepts.ABOUT_STUDY
        ]
        if [*others, *told] == as_list(known.get("extension")):
            return
        if report.physician_has_written:  # else the next draft is published with it
            await write_exam(tx, store, settings, report)
        newer = known | {"extension": [*others, *told]}
        written = await put(tx, store, newer, report.patient_id)
        provenance = mapping.by_the_node(
            [versioned(written)],
            recorded=written.last_updated,
            source=f"ImagingStudy/{report.study_instance_uid}",
        )
        provenance["id"] = str(uuid5(_PROVENANCE, versioned(written)))
        await put(tx, store, provenance, report.patient_id)
        await events.resources_changed(
            tx, store, settings, [("DiagnosticReport", str(report_id))]
        )


async def _publish(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> None:
    marker = marker_of(report)
    if await resources.find(tx, store, "Provenance", marker) is not None:
        return
    exam = await write_exam(tx, store, settings, report)
    author = report.current.author
    for resource in site.to_resources(settings.site):
        await write_once(tx, store, resource)
    await write_once(tx, store, await _device(tx, author))
    targets = [versioned(written) for written in await write_places(tx, store, report)]
    seen = [(one, None) for one in mapping.to_observations(report, exam)]
    targets += map(versioned, await put_all(tx, store, seen, report.patient_id))
    targets += await _withdraw_missing(tx, store, report)
    diagnostic = mapping.to_diagnostic_report(report, exam, settings.systems)
    told = await completeness.extensions_of(tx, store, report)
    if told:
        diagnostic["extension"] = [*as_list(diagnostic.get("extension")), *told]
    written = await put(tx, store, diagnostic, report.patient_id)
    provenance = mapping.to_provenance(
        [versioned(written), *targets],
        recorded=report.current.at,
        agents=[("author", f"Device/{author.id}")],
        source=f"ImagingStudy/{report.study_instance_uid}",
    )
    await put(tx, store, {**provenance, "id": marker}, report.patient_id)
    changed = [
        ("ImagingStudy", report.study_instance_uid),
        ("DiagnosticReport", str(report.id)),
    ]
    await events.resources_changed(tx, store, settings, changed)


async def _device(tx: "Transaction", author: Author) -> Json:
    """Return the Device that drafted, whether or not it is the one in use now."""
    known = await models.find(tx, author.id)
    model = None
    if known is not None:
        model = mapping.Model(known.name, known.version, known.weights_sha256)
    return mapping.to_device(author, model)


def marker_of(report: Report) -> str:
    """Return the id of the Provenance that is written when a draft is published."""
    return str(uuid5(_PROVENANCE, f"{report.id}/{report.current.number}"))


async def write_places(
    tx: "Transaction", store: "Store", report: Report
) -> list[Stored]:
    """Write the BodyStructures of a report's lesions; return those that changed."""
    numbers = mapping.lesion_numbers(report)
    written = []
    for resource in places.to_body_structures(report, numbers):
        stored = await put_changed(tx, store, resource, report.patient_id)
        if stored is not None:
            written.append(stored)
    return written


async def keep_site_current(store: "Store", settings: FhirSettings) -> None:
    """Bring what stands for the site and for the people who sign up to date.

    Called at every start and every hour: settings and accounts change, and what is as
    it was gets no new version.
    """
    async with store.db.transaction() as tx:
        for resource in site.to_resources(settings.site):
            await put_changed(tx, store, resource)
        for user in await people.list_users(tx):
            if user.practitioner_id is not None:
                await write_signer(tx, store, user.practitioner_id, user.display)


async def write_signer(
    tx: "Transaction", store: "Store", practitioner_id: str, display: str
) -> None:
    """Make sure that a person who signs is there, and what she is at the department.

    The Practitioner that an EHR has sent stays as it is.
    """
    await write_once(tx, store, mapping.to_practitioner(practitioner_id, display))
    user = await people.find_practitioner(tx, practitioner_id)
    if user is not None:
        role = site.to_practitioner_role(
            practitioner_id, user.roles, active=not user.disabled
        )
        await put_changed(tx, store, role)


async def _withdraw_missing(
    tx: "Transaction", store: "Store", report: Report
) -> list[str]:
    """Mark the Observations of lesions that an earlier reading had and this has not."""
    kept = {lesion.tracking_uid for lesion in report.current.findings.lesions}
    withdrawn = []
    for uid, number in mapping.lesion_numbers(report).items():
        if uid not in kept:
            for stored in await withdraw_lesion(tx, store, report, number):
                withdrawn.append(versioned(stored))
    return withdrawn


async def withdraw_lesion(
    tx: "Transaction", store: "Store", report: Report, number: int
) -> list[Stored]:
    """Mark the Observations of a lesion as entered in error; return what changed."""
    root_id = f"{report.id}-l{number}"
    ids = [root_id, *(f"{root_id}-{s}" for s in concepts.MEMBER_SUFFIXES)]
    written = []
    for observation_id in ids:
        stored = await resources.find(tx, store, "Observation", observation_id)
        if stored is None:
            continue
        observation = parse(stored.body)
        if observation["status"] != "entered-in-error":
            observation["status"] = "entered-in-error"
            written.append(await put(tx, store, observation, report.patient_id))
    return written


async def write_exam(
    tx: "Transaction", store: "Store", settings: FhirSettings, report: Report
) -> Exam:
    """Write Patient and ImagingStudy of a report; return what surrounds it."""
    study = await studies.study(tx, report.study_instance_uid)
    if study is None:
        raise NodeError("the report's study is not here", ErrorKind.NOT_FOUND)
    detail = await studies.study_detail(tx, store, report.study_instance_uid)
    identity = await identities.patient(tx, store, study.patient_id)
    patient = mapping.to_patient(study.patient_id, identity, settings.systems)
    await write_once(tx, store, patient, study.patient_id)
    named = await orders.of_study(tx, store, report.study_instance_uid)
    hers = [one.order for one in named if one.agrees]
    number = await _accession(tx, store, report.study_instance_uid, detail, named)
    requests = tuple(order.source_id for order in hers if order.source_id)
    conflict = any(not one.agrees for one in named)
    if not requests and not conflict:
        requests = await _order(tx, store, number, study.patient_id)
    exam = Exam(study.study_date, number, requests, conflict)
    stored = await studies.instances_of(tx, store, report.study_instance_uid)
    imaging_study = mapping.to_imaging_study(
        study,
        exam,
        detail.study_description,
        [
            InstanceOf(
                i.series_instance_uid, i.sop_instance_uid, i.sop_class_uid, i.modality
            )
            for i in stored
        ],
        settings.systems,
    )
    verdict = await completion.verdict_on(tx, report.study_instance_uid)
    if verdict is not None:
        imaging_study["extension"] = [completeness.completeness(verdict)]
    await put(tx, store, imaging_study, study.patient_id)
    return exam


async def _accession(
    tx: "Transaction",
    store: "Store",
    study_instance_uid: str,
    detail: studies.StudyDetail,
    named: Sequence[orders.StudyOrder],
) -> str:
    """Return the accession number of a study: a person's word before the headers'.

    The number of an order that a person has taken from the study is none of its own.
    """
    hers = [one for one in named if one.agrees and one.order.step.accession_number]
    hers.sort(key=lambda one: one.named_by is not NamedBy.PERSON)
    if hers and hers[0].named_by is NamedBy.PERSON:
        return hers[0].order.step.accession_number
    number = detail.accession_number
    if number and await orders.is_refuted(tx, store, study_instance_uid, number):
        number = ""
    return number or (hers[0].order.step.accession_number if hers else "")


async def _order(
    tx: "Transaction", store: "Store", accession_number: str, patient_id: UUID
) -> tuple[str, ...]:
    """Return the id of the order with this accession number, of this patient only.

    For a ServiceRequest that never stood on the worklist.
    """
    if not accession_number:
        return ()
    query = Query(
        "ServiceRequest",
        (
            accession_criterion(accession_number),
            RefersTo("patient", (("Patient", str(patient_id)),)),
        ),
        count=1,
    )
    page = await pages.search(tx, store, query)
    return tuple(match.resource_id for match in page.matches)


async def put(
    tx: "Transaction",
    store: "Store",
    resource: Json,
    patient_id: UUID | None = None,
    *,
    expected: int | None = None,
) -> Stored:
    """Store the next version of a resource of ours under the id that it has."""
    draft = _draft(resource, patient_id, expected)
    return (await resources.write_all(tx, store, [draft]))[0]


async def put_all(
    tx: "Transaction",
    store: "Store",
    told: Sequence[tuple[Json, int | None]],
    patient_id: UUID | None,
) -> list[Stored]:
    """Store several as `put` does, each with the version that was read, in one go."""
    drafts = [_draft(resource, patient_id, expected) for resource, expected in told]
    return await resources.write_all(tx, store, drafts)


def _draft(resource: Json, patient_id: UUID | None, expected: int | None) -> Draft:
    resource_id, resource = str(resource["id"]), with_profile(resource)
    return Draft(
        resource["resourceType"],
        resource_id,
        lambda version, at: with_identity(resource, resource_id, version, at),
        index_of(resource),
        patient_id,
        expected,
    )


async def write_once(
    tx: "Transaction",
    store: "Store",
    resource: Json,
    patient_id: UUID | None = None,
) -> None:
    """Store a resource unless it is there: what the EHR has sent stays."""
    kind, resource_id = resource["resourceType"], str(resource["id"])
    if await resources.find(tx, store, kind, resource_id) is None:
        try:
            async with tx.transaction():
                await put(tx, store, resource, patient_id, expected=0)
        except resources.StaleVersion:
            return  # another worker has written the same in this moment


async def put_changed(
    tx: "Transaction",
    store: "Store",
    resource: Json,
    patient_id: UUID | None = None,
) -> Stored | None:
    """Store a resource unless it says what is there already; return what was stored."""
    kind, resource_id = resource["resourceType"], str(resource["id"])
    known = await resources.find(tx, store, kind, resource_id)
    told = parse(to_bytes(with_profile(resource)))
    if known is not None and _says(parse(known.body)) == _says(told):
        return None
    expected = 0 if known is None else known.version
    try:
        async with tx.transaction():
            return await put(tx, store, resource, patient_id, expected=expected)
    except resources.StaleVersion:
        return None  # another process has brought it up to date in this moment


def _says(resource: Json) -> Json:
    meta = {
        key: value
        for key, value in resource.get("meta", {}).items()
        if key not in ("versionId", "lastUpdated")
    }
    return {**resource, "meta": meta}


def versioned(stored: Stored) -> str:
    """Return the reference to exactly this version."""
    return f"{stored.resource_type}/{stored.resource_id}/_history/{stored.version}"


async def index_older(store: "Store", count: int = 200) -> None:
    """Index anew what was stored by a release that knew fewer search parameters."""
    while True:
        async with store.db.transaction() as tx:
            older = await resources.behind(tx, store, INDEX_VERSION, count)
            for stored in older:
                index = index_of(parse(stored.body))
                await resources.index_anew(tx, store, stored, index)
        if not older:
            return
