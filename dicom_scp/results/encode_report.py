"""The job `encode_report`: what a report version says, as instances of its study."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_scp.receiving.intake import describe
from dicom_scp.receiving.upper_layer import StoreRequest
from dicom_scp.results.figures import Figure, figures_of
from dicom_scp.results.heatmap import build_heat_map, decode_overlay
from dicom_scp.results.key_objects import (
    build_key_images,
    build_rejection,
    build_wrong_patient,
)
from dicom_scp.results.report_html import build_report_html
from dicom_scp.results.report_pdf import build_report_pdf, encapsulate_report
from dicom_scp.results.requests import add_requests
from dicom_scp.results.segmentation import build_segmentations
from dicom_scp.results.sr import (
    AI_SR,
    VERIFIED_SR,
    Equipment,
    Predecessor,
    build_ai_sr,
    build_verified_sr,
    predecessor_of,
    to_part10,
)
from dicom_scp.sending.routing import RoutingTable, route_result
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.report import AuthorKind, Report, ReportStatus, ReportVersion
from node.domain.study import Origin, PatientIdentity, ReceivedInstance
from node.imaging import read_part10
from node.store import identities, models, orders, pages, reports, studies
from node.store.orders import StudyOrder
from node.store.overlays import read_overlay
from node.store.pages import KeptPage
from node.workflow.intake import KeptObject, Received, keep_object, store_result
from node.workflow.reporting import publish_document_later

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.models import KnownModel
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

CALLING_AE: Final = "SONONODE"
_NOT_REJECTED: Final = frozenset({Origin.RECEIVED, Origin.REJECTION})


@dataclass(frozen=True)
class ResultSettings:
    """Who writes what, and where it goes.

    SR, heat maps and the page for browsers are always made. `pdf` is `none`, `site` (in
    the language of the site) or `both`; the page is in both languages when the PDF is.
    `dicomweb_url` is where the page's links show whole images.
    """

    equipment: Equipment
    routing: RoutingTable = field(default_factory=RoutingTable)
    key_images: bool = True
    segmentation: bool = False
    pdf: str = "site"
    dicomweb_url: str = ""


@dataclass(frozen=True)
class _Result:
    """A finished object: its rows, and the blob that already holds it."""

    instance: ReceivedInstance
    kept: KeptObject = field(repr=False)


@dataclass(frozen=True)
class _Job:
    """All that the objects of one version are made from."""

    store: Store
    sealer: Sealer
    report: Report
    version: ReportVersion
    sources: Sequence[StoredInstance]
    made: Sequence[StoredInstance]
    model: KnownModel | None
    orders: Sequence[StudyOrder]
    settings: ResultSettings
    patient: PatientIdentity = field(repr=False)

    @cached_property
    def headers(self) -> list[Dataset]:
        headers = image_headers(self.sources)
        return [as_on_file(header, self.patient) for header in headers]

    def known_as(self) -> dict[str, Any]:
        return {
            "report_id": self.report.id,
            "equipment": self.settings.equipment,
        }


async def encode_report(
    store: Store, payload: Mapping[str, Any], settings: ResultSettings
) -> None:
    """Write the DICOM objects of one report version and ask for their delivery.

    The algorithm's version gives heat maps and its SR, a signed one the verified SR,
    its page for browsers and its PDF, both their key images; a withdrawal gives the
    note that rejects them all. A physician's draft gives none. Runs again without
    harm: the UIDs follow from the version, what is stored already stays.

    The SR is stored before the PDF is tried: a report that cannot be printed is in
    the archive, and the job says why there is no paper.
    """
    job = await _read(store, payload, settings)
    if not is_encoded(job.version):
        return
    await _store(job, await asyncio.to_thread(_encode, job))
    if job.version.signed:
        await _print(job)


async def _read(
    store: Store, payload: Mapping[str, Any], settings: ResultSettings
) -> _Job:
    report_id, number = UUID(payload["report_id"]), int(payload["version"])
    async with store.db.transaction() as tx:
        report = await reports.read(tx, store, report_id)
        instances = await studies.instances_of(tx, store, report.study_instance_uid)
        version = report.version(number)
        return _Job(
            store=store,
            sealer=await store.ring.patient(tx, report.patient_id),
            report=report,
            version=version,
            sources=[i for i in instances if i.origin is Origin.RECEIVED],
            made=[i for i in instances if i.origin not in _NOT_REJECTED],
            model=await models.find(tx, version.author.id),
            orders=await orders.of_study(tx, store, report.study_instance_uid),
            settings=settings,
            patient=await identities.patient(tx, store, report.patient_id),
        )


def is_encoded(version: ReportVersion) -> bool:
    """Tell whether a version becomes DICOM objects here."""
    return (
        version.signed
        or version.author.kind is AuthorKind.ALGORITHM
        or _is_withdrawal(version)
    )


def _is_withdrawal(version: ReportVersion) -> bool:
    return version.status is ReportStatus.ENTERED_IN_ERROR


def image_headers(sources: Sequence[StoredInstance]) -> list[Dataset]:
    """Return the headers of a study's images, of everything when it has no image."""
    headers = [_header(source) for source in sources]
    return [header for header in headers if "Rows" in header] or headers


def as_on_file(header: Dataset, patient: PatientIdentity) -> Dataset:
    """Return a header that names the patient as she is on file by now.

    The hospital corrects a name after the images were made (PUT Patient): what is
    written from then on has the right one, under the same Patient ID.
    """
    if str(header.get("PatientID", "")) != patient.patient_id or not patient.name:
        return header
    header.PatientName = patient.name
    if patient.birth_date is not None:
        header.PatientBirthDate = patient.birth_date.strftime("%Y%m%d")
    if patient.sex:
        header.PatientSex = patient.sex
    return header


def predecessor_of_version(report: Report, version: ReportVersion) -> Predecessor:
    """Return what a signed version replaces: the last signed one, else the AI's.

    RULE when there is neither, as a report always starts with a reading.
    """
    before = report.last_signed(before=version.number)
    if before is not None:
        uid = report.study_instance_uid
        return predecessor_of(uid, report.id, before.number, VERIFIED_SR)
    draft = earlier_draft(report, version)
    if draft is None:
        raise NodeError("a signed report without a reading", ErrorKind.RULE)
    return draft


def earlier_draft(report: Report, version: ReportVersion) -> Predecessor | None:
    """Return the algorithm's newest document before `version`, None if none is."""
    drafts = [
        v
        for v in report.versions
        if v.number < version.number and v.author.kind is AuthorKind.ALGORITHM
    ]
    if not drafts:
        return None
    uid = report.study_instance_uid
    return predecessor_of(uid, report.id, drafts[-1].number, AI_SR)


def _header(source: StoredInstance) -> Dataset:
    header = Dataset.from_json(json.loads(source.metadata))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(source.transfer_syntax_uid)
    return header


def _encode(job: _Job) -> list[_Result]:
    """Return the objects of a version, each durable already. Blocks."""
    if _is_withdrawal(job.version):
        objects = _rejection(job)
    elif job.version.signed:
        objects = _signed_report(job)
    else:
        objects = _draft(job)
    return [_keep(job, dataset, origin) for dataset, origin in objects]


def _draft(job: _Job) -> Iterator[tuple[Dataset, Origin]]:
    headers, version = job.headers, job.version
    heat_maps = list(_heat_maps(job, headers))
    for heat_map in heat_maps:
        yield heat_map, Origin.HEAT_MAP
    document = build_ai_sr(
        version,
        headers,
        heat_maps=heat_maps,
        weights_sha256=job.model.weights_sha256 if job.model else None,
        predecessor=earlier_draft(job.report, version),
        **job.known_as(),
    )
    yield document, Origin.AI_SR
    if job.settings.segmentation:
        for masks in build_segmentations(version, headers, **job.known_as()):
            yield masks, Origin.SEGMENTATION
    yield from _key_images(job, headers)


def _signed_report(job: _Job) -> Iterator[tuple[Dataset, Origin]]:
    headers = job.headers
    document = build_verified_sr(
        job.version,
        predecessor_of_version(job.report, job.version),
        headers,
        **job.known_as(),
    )
    yield document, Origin.VERIFIED_SR
    yield from _key_images(job, headers)


def _key_images(
    job: _Job, headers: Sequence[Dataset]
) -> Iterator[tuple[Dataset, Origin]]:
    if job.settings.key_images:
        chosen = build_key_images(job.version, headers, **job.known_as())
        if chosen is not None:
            yield chosen, Origin.KEY_IMAGES


def _rejection(job: _Job) -> Iterator[tuple[Dataset, Origin]]:
    withdrawn = [_header(instance) for instance in job.made]
    if withdrawn:
        note = build_rejection(job.version, withdrawn, **job.known_as())
        yield note, Origin.REJECTION
    if job.report.is_disowned and job.sources:
        images = [_header(source) for source in job.sources]
        note = build_wrong_patient(job.version, images, **job.known_as())
        yield note, Origin.REJECTION


async def _print(job: _Job) -> None:
    """Store a signed version as people read it: its page, and its PDF.

    Both in one commit, so that they are told of together. A report with a sign that
    the paper does not have is read on its page all the same.
    """
    figures = await asyncio.to_thread(
        figures_of, job.store, job.sealer, job.report, job.version, job.sources
    )
    page = await asyncio.to_thread(_page, job, figures)
    if job.settings.pdf == "none":
        await _store(job, [], page)
        return
    try:
        printed = await asyncio.to_thread(_pdf, job, figures)
    except NodeError:
        await _store(job, [], page)
        raise
    await _store(job, [printed], page)


def _page(job: _Job, figures: Mapping[str, Figure]) -> KeptPage:
    html = build_report_html(
        job.report,
        job.version,
        job.headers[0],
        figures,
        equipment=job.settings.equipment,
        dicomweb_url=job.settings.dicomweb_url,
        both_languages=job.settings.pdf == "both",
    )
    return pages.keep(job.store, job.report.id, job.version.number, html)


def _pdf(job: _Job, figures: Mapping[str, Figure]) -> _Result:
    header = job.headers[0]
    pdf = build_report_pdf(
        job.report,
        job.version,
        header,
        figures,
        equipment=job.settings.equipment,
        both_languages=job.settings.pdf == "both",
    )
    document = encapsulate_report(
        pdf, job.report, job.version, header, equipment=job.settings.equipment
    )
    return _keep(job, document, Origin.PDF)


def _heat_maps(job: _Job, headers: Sequence[Dataset]) -> Iterator[Dataset]:
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    explained = _heat_map_of_lesion(job.version.findings)
    for number, lesion in enumerate(job.version.findings.lesions, start=1):
        uid = explained.get(lesion.tracking_uid)
        if uid is None or lesion.image is None:
            continue
        png = read_overlay(job.store, job.sealer, uid)
        header = by_uid.get(lesion.image.sop_instance_uid)
        if png is None or header is None:
            # The result matters more than its picture, so the report goes without.
            log.warning("results.heat_map_missing", sop_instance_uid=uid)
            continue
        yield build_heat_map(
            decode_overlay(png),
            job.version,
            lesion,
            header,
            number=number,
            **job.known_as(),
        )


def _heat_map_of_lesion(findings: Findings) -> dict[str, str]:
    return {item.tracking_uid: item.sop_instance_uid for item in findings.heat_maps}


def _keep(job: _Job, dataset: Dataset, origin: Origin) -> _Result:
    add_requests(dataset, job.headers, job.orders)
    part10 = to_part10(dataset)
    header, frames = read_part10(part10)
    uid = str(dataset.SOPInstanceUID)
    kept = keep_object(job.store, uid, part10)
    described = describe(
        header,
        StoreRequest(
            message_id=0,
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=uid,
            abstract_syntax=str(dataset.SOPClassUID),
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            calling_ae=CALLING_AE,
            address="",
            association="",
        ),
        frames=frames,
        blob_name=kept.blob_name,
        size=kept.size,
        sha256=kept.sha256,
    )
    return _Result(replace(described, origin=origin), kept)


async def _store(
    job: _Job, results: Sequence[_Result], page: KeptPage | None = None
) -> None:
    """Add the objects to the study and defer their sending, all in one commit.

    With the page or the PDF goes the promise to tell of them. Nothing of a report that
    was withdrawn meanwhile is added but its rejection, which could not name it.
    Objects that no row refers to are removed, but only when that is certain: in a
    commit that broke off nobody knows what the database kept.
    """
    store, report = job.store, job.report
    names = [result.kept.blob_name for result in results]
    names += [page.blob_name] if page is not None else []
    used: set[str] = set()
    try:
        async with store.db.transaction() as tx:
            await studies.study(tx, report.study_instance_uid, for_update=True)
            newest = (await reports.read_for_update(tx, store, report.id)).current
            if not _is_withdrawal(newest) or _is_withdrawal(job.version):
                used = await _add(tx, job, results, page)
    except NodeError as error:
        if error.kind is not ErrorKind.UNAVAILABLE:
            await _remove(store, names)
        raise
    await _remove(store, [name for name in names if name not in used])


async def _add(
    tx: Transaction, job: _Job, results: Sequence[_Result], page: KeptPage | None
) -> set[str]:
    """Write the rows of what is not here yet; return the objects that they refer to."""
    store, report, number = job.store, job.report, job.version.number
    used, forms = set(), []
    for result in results:
        outcome = await store_result(
            store, tx, result.instance, blob_key=result.kept.key
        )
        if outcome is not Received.STORED:
            continue
        used.add(result.kept.blob_name)
        if result.instance.origin is Origin.PDF:
            forms.append("pdf")
        await route_result(
            store, tx, job.settings.routing, result.instance, report, job.version
        )
    if page is not None and await pages.insert(tx, store, report, number, page):
        used.add(page.blob_name)
        forms.append("page")
    if forms:
        await publish_document_later(tx, store, report, number, forms="+".join(forms))
    return used


async def _remove(store: Store, names: Sequence[str]) -> None:
    for name in names:
        await asyncio.to_thread(store.blobs.delete, name)
