"""The job `encode_report`: what a report version says, as instances of its study."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import structlog
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_scp.heatmap import build_heat_map, decode_overlay
from dicom_scp.intake import describe
from dicom_scp.sr import (
    AI_SR,
    VERIFIED_SR,
    Equipment,
    Predecessor,
    build_ai_sr,
    build_verified_sr,
    predecessor_of,
    to_part10,
)
from dicom_scp.upper_layer import StoreRequest
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.report import AuthorKind, Report, ReportVersion
from node.domain.study import Origin, ReceivedInstance
from node.imaging import read_part10
from node.store import models, reports, studies
from node.store.overlays import read_overlay
from node.workflow.intake import KeptObject, Received, keep_object, store_result

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.models import KnownModel
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

CALLING_AE: Final = "SONONODE"


@dataclass(frozen=True)
class ResultSettings:
    """Who writes, and to which configured destinations (their AE titles) it goes."""

    equipment: Equipment
    destinations: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Result:
    """A finished object: its rows, and the blob that already holds it."""

    instance: ReceivedInstance
    kept: KeptObject = field(repr=False)


async def encode_report(
    store: Store, payload: Mapping[str, Any], settings: ResultSettings
) -> None:
    """Write the DICOM objects of one report version and ask for their delivery.

    The algorithm's version gives heat maps and its SR, a signed one the verified
    SR; a physician's draft and a withdrawal give none here. Runs again without
    harm: the UIDs follow from the version, what is stored already stays.
    """
    report_id, number = UUID(payload["report_id"]), int(payload["version"])
    async with store.db.transaction() as tx:
        report = await reports.read(tx, store, report_id)
        sources = await studies.instances_of(
            tx, store, report.study_instance_uid, Origin.RECEIVED
        )
        sealer = await store.ring.patient(tx, report.patient_id)
        version = report.version(number)
        model = await models.find(tx, version.author.id)
    if not is_encoded(version):
        return
    results = await asyncio.to_thread(
        _encode, store, sealer, report, version, sources, settings.equipment, model
    )
    await _store(store, report, results, settings)


def is_encoded(version: ReportVersion) -> bool:
    """Tell whether a version becomes DICOM objects here."""
    return version.signed or version.author.kind is AuthorKind.ALGORITHM


def image_headers(sources: Sequence[StoredInstance]) -> list[Dataset]:
    """Return the headers of a study's images, of everything when it has no image."""
    headers = [_header(source) for source in sources]
    return [header for header in headers if "Rows" in header] or headers


def predecessor_of_version(report: Report, version: ReportVersion) -> Predecessor:
    """Return what a signed version replaces: the last signed one, else the AI's.

    RULE when there is neither, as a report always starts with a reading.
    """
    before = report.last_signed(before=version.number)
    kind = VERIFIED_SR
    if before is None:
        kind = AI_SR
        drafts = [
            v
            for v in report.versions
            if v.number < version.number and v.author.kind is AuthorKind.ALGORITHM
        ]
        if not drafts:
            raise NodeError("a signed report without a reading", ErrorKind.RULE)
        before = drafts[-1]
    return predecessor_of(report.study_instance_uid, report.id, before.number, kind)


def _header(source: StoredInstance) -> Dataset:
    header = Dataset.from_json(json.loads(source.metadata))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = UID(source.transfer_syntax_uid)
    return header


def _encode(
    store: Store,
    sealer: Sealer,
    report: Report,
    version: ReportVersion,
    sources: Sequence[StoredInstance],
    equipment: Equipment,
    model: KnownModel | None,
) -> list[_Result]:
    """Return the objects of a version, each durable already. Blocks."""
    headers = image_headers(sources)
    if version.signed:
        document = build_verified_sr(
            version,
            predecessor_of_version(report, version),
            headers,
            report_id=report.id,
            equipment=equipment,
        )
        return [_keep(store, document, Origin.VERIFIED_SR)]
    heat_maps = list(_heat_maps(store, sealer, report, version, headers, equipment))
    document = build_ai_sr(
        version,
        headers,
        report_id=report.id,
        equipment=equipment,
        heat_maps=heat_maps,
        weights_sha256=model.weights_sha256 if model else None,
    )
    return [
        *(_keep(store, heat_map, Origin.HEAT_MAP) for heat_map in heat_maps),
        _keep(store, document, Origin.AI_SR),
    ]


def _heat_maps(
    store: Store,
    sealer: Sealer,
    report: Report,
    version: ReportVersion,
    headers: Sequence[Dataset],
    equipment: Equipment,
) -> Iterator[Dataset]:
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    explained = _heat_map_of_lesion(version.findings)
    for number, lesion in enumerate(version.findings.lesions, start=1):
        uid = explained.get(lesion.tracking_uid)
        if uid is None or lesion.image is None:
            continue
        png = read_overlay(store, sealer, uid)
        header = by_uid.get(lesion.image.sop_instance_uid)
        if png is None or header is None:
            # The result matters more than its picture, so the report goes without.
            log.warning("results.heat_map_missing", sop_instance_uid=uid)
            continue
        yield build_heat_map(
            decode_overlay(png),
            version,
            lesion,
            header,
            report_id=report.id,
            equipment=equipment,
            number=number,
        )


def _heat_map_of_lesion(findings: Findings) -> dict[str, str]:
    return {item.tracking_uid: item.sop_instance_uid for item in findings.heat_maps}


def _keep(store: Store, dataset: Dataset, origin: Origin) -> _Result:
    part10 = to_part10(dataset)
    header, frames = read_part10(part10)
    uid = str(dataset.SOPInstanceUID)
    kept = keep_object(store, uid, part10)
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
    store: Store,
    report: Report,
    results: Sequence[_Result],
    settings: ResultSettings,
) -> None:
    """Add the objects to the study and defer their sending, all in one commit.

    Objects that no row refers to are removed, but only when that is certain: in
    a commit that broke off nobody knows what the database kept.
    """
    unused = []
    try:
        async with store.db.transaction() as tx:
            for result in results:
                outcome = await store_result(
                    store, tx, result.instance, blob_key=result.kept.key
                )
                if outcome is Received.DUPLICATE:
                    unused.append(result.kept.blob_name)
                    continue
                for destination in settings.destinations:
                    await _defer_send(store, tx, report, result.instance, destination)
    except NodeError as error:
        if error.kind is not ErrorKind.UNAVAILABLE:
            await _remove(store, [result.kept.blob_name for result in results])
        raise
    await _remove(store, unused)


async def _remove(store: Store, names: Sequence[str]) -> None:
    for name in names:
        await asyncio.to_thread(store.blobs.delete, name)


async def _defer_send(
    store: Store,
    tx: Transaction,
    report: Report,
    instance: ReceivedInstance,
    destination: str,
) -> None:
    await store.jobs.defer(
        tx,
        "send_instance",
        {
            "sop_instance_uid": instance.sop_instance_uid,
            "destination": destination,
        },
        key=f"{instance.sop_instance_uid}/{destination}",
        patient_id=report.patient_id,
    )
