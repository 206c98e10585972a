"""The job `assess_study`: a closed study becomes the algorithm's draft of a report."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from PIL import Image
from pydicom.dataset import Dataset

from inference.assess import HeatMapPicture, ImageToRead, Reader, StudyReading
from inference.author import author_of
from inference.images import image_to_read
from inference.place import Place
from inference.select import WITHOUT_PICTURE
from node.domain import lexicon
from node.domain.completion import Verdict, words_of
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import STUDY_INCOMPLETE, Findings, HeatMap, NotRead
from node.domain.report import Report, ReportStatus
from node.domain.study import Origin, StudyStatus
from node.domain.uids import heat_map_uid, result_uid
from node.imaging import StoredImage
from node.store import cases, completion, reports, studies
from node.store.overlays import write_overlay
from node.workflow.reporting import draft_report, propose_reading

if TYPE_CHECKING:
    from node.store.keys import Sealer
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ReadingSettings:
    """What an installation may set about readings: the status a draft gets."""

    status: ReportStatus = ReportStatus.PARTIAL


async def assess_study(
    store: Store,
    payload: Mapping[str, Any],
    reader: Reader,
    settings: ReadingSettings,
) -> None:
    """Read a closed study and draft its report; runs again without harm.

    A reading of a study that has grown meanwhile is dropped: its next closing has
    asked for another. Where a physician has worked on the report the reading is kept
    beside hers.
    """
    uid, generation = payload["study_instance_uid"], int(payload["generation"])
    async with store.db.transaction() as tx:
        study = await studies.study(tx, uid)
        if study is None:
            raise NodeError(f"there is no study {uid}", ErrorKind.NOT_FOUND)
        if (study.status, study.generation) != (StudyStatus.CLOSED, generation):
            return
        stored = await studies.instances_of(tx, store, uid, Origin.RECEIVED)
        sealer = await store.ring.patient(tx, study.patient_id)
        report_id = reports.report_id_for(uid)
        number = 1 + await reports.version_count(tx, report_id)
        earlier = await reports.read(tx, store, report_id) if number > 1 else None
    reading = await asyncio.to_thread(
        read_stored, store, stored, reader, tracking_uids(report_id, earlier)
    )
    maps = await asyncio.to_thread(
        _keep_overlays, store, sealer, report_id, number, reading
    )
    await _draft(store, uid, generation, number, reading, maps, settings)
    log.info(
        "study.read",
        study_instance_uid=uid,
        frames=reading.frames_read,
        not_read=len(reading.findings.not_read),
    )


def tracking_uids(report_id: UUID, earlier: Report | None) -> Callable[[Place], str]:
    """Return what names a lesion by its place, the same in every version.

    A lesion that an earlier version found at a place keeps its UID, whatever that
    was made from.
    """
    known: dict[Place, str] = {}
    for version in earlier.versions if earlier is not None else ():
        for lesion in version.findings.lesions:
            place = Place(
                lesion.laterality, lesion.clock, lesion.distance_from_nipple_mm
            )
            known.setdefault(place, lesion.tracking_uid)
    taken = set(known.values())

    def tracking_uid(place: Place) -> str:
        if place in known:
            return known[place]
        uid = result_uid(report_id, 0, f"lesion/{place.key}")
        if uid in taken:  # by a lesion elsewhere, named before places counted
            uid = result_uid(report_id, 0, f"lesion/{place.key}/other")
        return uid

    return tracking_uid


def read_stored(
    store: Store,
    stored: Sequence[StoredInstance],
    reader: Reader,
    tracking_uid: Callable[[Place], str],
) -> StudyReading:
    """Return what `reader` says about stored instances. Blocks."""
    images = [
        _image(store, instance)
        for instance in stored
        if instance.sop_class_uid not in WITHOUT_PICTURE
    ]
    return reader.read_study(images, tracking_uid=tracking_uid)


def _image(store: Store, instance: StoredInstance) -> ImageToRead:
    """Return an instance to read; a frame costs no more where there are thousands."""
    header = Dataset.from_json(json.loads(instance.metadata))

    def open_pixels() -> StoredImage:
        return StoredImage(
            studies.open_blob(store, instance),
            header=header,
            frames=instance.frame_table,
            transfer_syntax_uid=instance.transfer_syntax_uid,
        )

    return image_to_read(header, instance.transfer_syntax_uid, open_pixels)


def _keep_overlays(
    store: Store,
    sealer: Sealer,
    report_id: UUID,
    number: int,
    reading: StudyReading,
) -> tuple[HeatMap, ...]:
    """Keep the heat maps where the writer of DICOM objects finds them."""
    maps = []
    for picture in reading.heat_maps:
        sop_instance_uid = heat_map_uid(report_id, number, picture.tracking_uid)
        write_overlay(store, sealer, sop_instance_uid, _png(picture))
        maps.append(HeatMap(picture.tracking_uid, sop_instance_uid))
    return tuple(maps)


def _png(picture: HeatMapPicture) -> bytes:
    file = BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG")
    return file.getvalue()


async def _draft(
    store: Store,
    uid: str,
    generation: int,
    number: int,
    reading: StudyReading,
    maps: tuple[HeatMap, ...],
    settings: ReadingSettings,
) -> None:
    """Write the draft and mark the study read, in one transaction."""
    model = reading.model
    category = reading.findings.category
    async with store.db.transaction() as tx:
        if not await studies.mark_study(
            tx, uid, StudyStatus.READ, generation=generation
        ):
            return  # late images: the next closing asks for another reading
        findings = with_what_is_missing(
            reading.findings, await completion.verdict_on(tx, uid)
        )
        author = author_of(model.name, model.version, model.weights_sha256)
        followup = lexicon.FOLLOWUP_FOR_CATEGORY[category] if category else None
        if await propose_reading(
            store, tx, uid, findings, author=author, followup=followup
        ):
            return
        report = await draft_report(
            store,
            tx,
            uid,
            replace(findings, heat_maps=maps),
            author=author,
            status=settings.status,
            followup=followup,
        )
        if report.current.number != number:
            raise NodeError("the report changed meanwhile", ErrorKind.CONFLICT)
        await cases.write_vectors(
            tx,
            report,
            model_sha=model.weights_sha256,
            vectors=reading.vectors,
            at=store.clock(),
        )


def with_what_is_missing(findings: Findings, verdict: Verdict | None) -> Findings:
    """Return the findings with a note when images may be missing: nobody read those."""
    if verdict is None or not verdict.incomplete:
        return findings
    words = words_of(verdict)
    missing = verdict.missing[0] if verdict.missing else ""
    note = NotRead(missing, STUDY_INCOMPLETE, words.zh, words.en)
    return replace(findings, not_read=(*findings.not_read, note))
