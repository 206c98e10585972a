"""Which report repositories the settings name, and who sends to them."""

import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import aiohttp

from config.settings import ReportRepository, Settings
from dicom_scp.receiving.tls import client_context
from dicom_scp.sending.stow import bearer_of
from fhir.multimedia.owed import STORE_REPORT
from fhir.multimedia.storing import Repository, store_report
from fhir.settings import FhirSettings
from node.store.jobs import Jobs
from node.store.store import Store
from node.worker import Worker

_AT_ONCE = 2


def repositories_of(settings: Settings) -> dict[str, Repository]:
    """Return the repositories by name; NodeError SETTING for a file of no use."""
    return {one.name: _repository(settings, one) for one in settings.fhir.repositories}


def _repository(settings: Settings, told: ReportRepository) -> Repository:
    def file(path: str) -> Path | None:
        return settings.data / path if path else None

    tls: Callable[[], ssl.SSLContext] | None = None
    if told.url.startswith("https:") and (told.trusted or told.certificate):
        tls = client_context(
            trusted=file(told.trusted),
            certificate=file(told.certificate),
            key=file(told.key),
        ).current
    token = file(told.token_file)
    return Repository(
        told.name,
        told.url,
        xml=told.format == "xml",
        search_patient=told.patient == "number",
        authorize=bearer_of(token) if token is not None else _nobody,
        tls=tls,
    )


def _nobody() -> str:
    return ""


def repository_workers(
    store: Store,
    fhir_settings: FhirSettings,
    repositories: Mapping[str, Repository],
    session: aiohttp.ClientSession,
) -> list[Worker]:
    """Return one worker for each repository, so that none waits for another."""
    send = partial(store_report, store, fhir_settings, repositories, session)
    return [
        Worker(
            Jobs(store.db, store.ring, store.clock),
            {STORE_REPORT: send},
            width=_AT_ONCE,
            lane=name,
        )
        for name in repositories
    ]


async def bury_unwanted(store: Store, repositories: Mapping[str, Repository]) -> None:
    """Show what waits for a repository that the settings no longer have."""
    async with store.db.transaction() as tx:
        await store.jobs.bury_lanes(
            tx,
            STORE_REPORT,
            list(repositories),
            "the settings no longer have this repository; put it back and replay",
        )
