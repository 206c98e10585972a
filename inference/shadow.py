"""The job `assess_shadow`: a model reads along, and nobody sees what it says.

It runs behind every reading that somebody waits for. What it says is kept sealed for
`python -m node models compare`; no report, resource, object or message shows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog

from inference.author import author_of
from inference.reading import read_stored, tracking_uids
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Origin
from node.store import reports, studies
from node.store.models import ModelRole, ShadowReading, write_shadow_reading

if TYPE_CHECKING:
    from inference.assess import StudyReading
    from inference.loaded import LoadedModels
    from node.domain.study import StudyRecord
    from node.store.store import Store

log = structlog.get_logger(__name__)

LIMIT_S = 300.0
"""How long one study may take; the active model ends its process when stuck."""


async def assess_shadow(
    store: Store, loaded: LoadedModels, payload: Mapping[str, Any]
) -> None:
    """Let the shadow read a study that has been read, and keep what it says.

    Whatever it cannot do is logged and over: its failures must not reach those who
    work with the report. Only a database that is away is waited for.
    """
    uid, generation = payload["study_instance_uid"], int(payload["generation"])
    if loaded.serving(ModelRole.SHADOW) is None:
        await loaded.follow()  # chosen a moment ago
    if loaded.serving(ModelRole.SHADOW) is None:
        return
    async with store.db.transaction() as tx:
        study = await studies.study(tx, uid)
        if study is None or study.generation != generation:
            return
        stored = await studies.instances_of(tx, store, uid, Origin.RECEIVED)
        report = await reports.read(tx, store, reports.report_id_for(uid))
    try:
        async with loaded.reading(ModelRole.SHADOW) as reader, asyncio.timeout(LIMIT_S):
            reading = await asyncio.to_thread(
                read_stored,
                store,
                stored,
                reader,
                tracking_uids(report.id, report),
            )
    except Exception as error:
        if isinstance(error, NodeError) and error.kind is ErrorKind.UNAVAILABLE:
            raise
        log.exception("shadow.failed", study_instance_uid=uid)
        return
    await _keep(store, study, reading)


async def _keep(store: Store, study: StudyRecord, reading: StudyReading) -> None:
    model = reading.model
    model_id = author_of(model.name, model.version, model.weights_sha256).id
    async with store.db.transaction() as tx:
        await write_shadow_reading(
            tx,
            store,
            ShadowReading(
                report_id=reports.report_id_for(study.study_instance_uid),
                generation=study.generation,
                model_id=model_id,
                patient_id=study.patient_id,
                study_instance_uid=study.study_instance_uid,
                findings=reading.findings,
                read_at=store.clock(),
            ),
        )
    log.info("shadow.read", study_instance_uid=study.study_instance_uid, model=model_id)
