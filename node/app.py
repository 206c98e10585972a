"""Wires settings, store and the parts of the product into the processes of a node."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from config.settings import Settings
from dicom_scp.receiving.filing import file_anew
from dicom_scp.receiving.machine_sr import read_machine_report
from dicom_scp.receiving.scp import run_scp
from dicom_scp.results.encode_report import encode_report
from dicom_scp.sending.probe import ask_again, targets_of
from dicom_scp.sending.routing import route_received
from dicom_scp.services.commitment import report_commitment, request_commitment
from dicom_scp.web import dicomweb, orders
from fhir.content.consents import publish_consent
from fhir.content.disowned import publish_disowned
from fhir.content.documents import publish_document
from fhir.content.links import publish_links
from fhir.content.merged import publish_merge
from fhir.content.older import publish_left_out
from fhir.content.publish import (
    index_older,
    keep_site_current,
    publish_report,
    publish_study,
)
from fhir.export.writing import export_resources
from fhir.rest.server import route_group as fhir_routes
from fhir.security import registration
from fhir.security.assertions import Keys
from fhir.security.authorize import Desk
from fhir.security.sign_on import SignOn
from fhir.security.smart import Smart
from fhir.settings import FhirSettings
from fhir.subscriptions.delivery import Dispatcher, forget_told
from fhir.subscriptions.endpoints import hook_session
from fhir.subscriptions.relay import ensure_relay_subscription, offer_binding
from inference.models import ModelFolder
from node.atna import SyslogFeed
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.http import RouteGroup, make_app
from node.outbound import (
    Outbound,
    bury_homeless,
    outbound_of,
    send_workers,
    senders_of,
)
from node.parts import (
    audit_source,
    calling_tls_of,
    commitment_settings_of,
    completion_settings_of,
    drift_settings_of,
    engine_settings_of,
    fhir_settings_of,
    hook_tls_of,
    http_settings_of,
    machines_of,
    pinned_model,
    product_version,
    relay_settings_of,
    repository_of,
    results_of,
    scp_settings_of,
    services_of,
    shelf_of,
    sign_on_settings_of,
    site_offset,
    utc_now,
)
from node.repositories import bury_unwanted, repositories_of, repository_workers
from node.store.exports import EXPORT_RESOURCES, sweep
from node.store.exports import LANE as EXPORT_LANE
from node.store.identities import note_likeness_of_older
from node.store.jobs import Jobs
from node.store.models import ModelRole
from node.store.store import Store, open_store
from node.worker import Handler, Periodic, Worker
from node.workflow.agreement import (
    compare_report,
    compare_the_rest,
    watch_drift,
)
from node.workflow.auditing import CHECK_TRAIL, check_trail
from node.workflow.commitment import (
    LANE,
    REDELIVER_INSTANCE,
    REPORT_COMMITMENT,
    REQUEST_COMMITMENT,
    ask_for_missing_reports,
    redeliver_instance,
)
from node.workflow.completion import (
    ASSESS_STUDY,
    PUBLISH_STUDY,
    close_due_studies,
)
from node.workflow.consent import PUBLISH_CONSENT
from node.workflow.intake import settle_abandoned
from node.workflow.merging import PUBLISH_MERGE
from node.workflow.moving import FILE_ANEW, PUBLISH_DISOWNED
from node.workflow.orders import PUBLISH_LINKS
from node.workflow.reporting import ASSESS_SHADOW, PUBLISH_DOCUMENT
from review_ui import agreement, auditing, launch, reconciliation, server

if TYPE_CHECKING:
    from inference.loaded import Serving

COMPLETION_EVERY_S = 0.5
COMMITMENT_EVERY_S = 60.0
ROUTING_EVERY_S = 1.0
PROBING_EVERY_S = 60.0
EXPORTS_EVERY_S = 60.0
HOUSEKEEPING_EVERY_S = 3600.0
AUDIT_FEED_EVERY_S = 1.0
AGREEMENT_EVERY_S = 60.0
KEEP_DONE_JOBS = timedelta(days=7)
_FEWEST_READINGS, _MOST_READINGS = 2, 8


async def store_of(settings: Settings) -> Store:
    """Return the opened store of this installation."""
    return await open_store(
        settings.database.url,
        settings.keys.root_file,
        settings.data / settings.storage.objects,
        utc_now,
        pool_size=settings.database.pool_size,
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Store]:
    """Yield the store and close it."""
    store = await store_of(settings)
    try:
        yield store
    finally:
        await store.close()


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def settle() -> None:
    """Take what was loaded out of the garbage collector's sight.

    It would look through all of it again and again, a tenth of a second each time, in
    the middle of whatever is asked just then.
    """
    gc.collect()
    gc.freeze()


# --- roles ------------------------------------------------------------------------


def run_scp_role(settings: Settings) -> None:
    """Receive instances until SIGTERM; torch is never imported here."""
    run_scp(
        scp_settings_of(settings),
        partial(store_of, settings),
        services_of(settings),
    )


def run_web_role(settings: Settings) -> None:
    """Serve the review page, FHIR, DICOMweb and health until SIGTERM."""
    uvloop.run(_web(settings))


async def _web(settings: Settings) -> None:
    stop = stop_event()
    async with opened(settings) as store, aiohttp.ClientSession() as session:
        registry = CollectorRegistry()
        metrics = agreement.AgreementMetrics(registry, drift_settings_of(settings))
        app = make_app(
            store,
            http_settings_of(settings),
            route_groups_of(store, settings, session),
            registry=registry,
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=10.0)
        await runner.setup()
        http = settings.http
        settle()
        try:
            await web.TCPSite(runner, http.host, http.port).start()
        except OSError as error:
            await runner.cleanup()
            raise NodeError(
                f"http.port: {http.port} cannot be used ({error.strerror})",
                ErrorKind.SETTING,
            ) from None
        measuring = asyncio.create_task(
            metrics.keep_fresh(store, every_s=AGREEMENT_EVERY_S)
        )
        await stop.wait()
        measuring.cancel()
        with suppress(asyncio.CancelledError):
            await measuring
        await runner.cleanup()


def route_groups_of(
    store: Store, settings: Settings, session: aiohttp.ClientSession
) -> list[RouteGroup]:
    """Return all that the web role serves; `session` calls other systems."""
    fhir_settings = fhir_settings_of(settings)
    review = server.ReviewSettings(
        secure=settings.http.secure_cookies,
        texts=fhir_settings.texts,
        department_phone=settings.site.department_phone,
        local_logins=settings.auth.local_logins,
        sign_on=bool(settings.auth.oidc.issuer),
    )
    key_hosts = frozenset(settings.fhir.key_hosts)
    throttle = server.throttle_of(store, review)
    keys = Keys(session, store.clock, key_hosts)
    desk = Desk(
        store,
        settings.http.base_url,
        throttle,
        secure=settings.http.secure_cookies,
        local_logins=review.local_logins,
        sign_on=review.sign_on,
    )
    smart = Smart(store, settings.http.base_url, keys, desk)
    return [
        fhir_routes(store, fhir_settings, product_version()),
        *smart.route_groups(),
        registration.route_group(store, key_hosts),
        *sign_on_groups(store, settings, session, desk),
        launch.route_group(
            settings.http.base_url,
            [
                launch.Ehr(one.iss, one.client_id, one.scope, frozenset(one.hosts))
                for one in settings.fhir.ehrs
            ],
            session,
            secure=settings.http.secure_cookies,
        ),
        RouteGroup(
            prefix=dicomweb.PREFIX,
            routes=dicomweb.routes(store, base_url=settings.http.base_url),
            render_error=dicomweb.render_error,
            admits=lambda scopes: scopes.opens_whole("ImagingStudy", "r"),
            describe=dicomweb.describe,
        ),
        orders.route_group(site_offset(settings)),
        *server.routes(store, review, throttle=throttle, grants=smart.grants),
        agreement.route_group(drift_settings_of(settings)),
        reconciliation.route_group(),
        auditing.route_group(),
    ]


def sign_on_groups(
    store: Store, settings: Settings, session: aiohttp.ClientSession, desk: Desk
) -> list[RouteGroup]:
    """Return what lets people in by the hospital's sign-on, if it has one."""
    if not settings.auth.oidc.issuer:
        return []
    door = SignOn(
        store,
        settings.http.base_url,
        sign_on_settings_of(settings),
        session,
        secure=settings.http.secure_cookies,
        consent=desk.welcome,
    )
    return [door.route_group()]


def run_worker_role(settings: Settings) -> None:
    """Do every job but the reading, and close studies, until SIGTERM."""
    uvloop.run(_worker(settings))


async def _worker(settings: Settings) -> None:
    fhir_settings = fhir_settings_of(settings)
    completion = completion_settings_of(settings)
    outbound = outbound_of(settings, partial(calling_tls_of, settings))
    repositories = repositories_of(settings)
    async with (
        opened(settings) as store,
        aiohttp.ClientSession() as session,
        hook_session(fhir_settings.endpoints) as hooks,
    ):
        senders = senders_of(outbound, session)
        await bury_homeless(store, outbound.names)
        await bury_unwanted(store, repositories)
        await ensure_relay_subscription(store, fhir_settings)
        dispatcher = Dispatcher(
            store, fhir_settings, hooks, session, hook_tls_of(settings)
        )
        worker = Worker(
            store.jobs,
            _worker_handlers(store, settings, fhir_settings, outbound, session),
            periodic=[
                *feeding(store, settings),
                Periodic(
                    "close studies",
                    COMPLETION_EVERY_S,
                    partial(close_due_studies, store, completion),
                ),
                Periodic(
                    "ask archives what they take",
                    PROBING_EVERY_S,
                    partial(
                        ask_again,
                        store,
                        targets_of(outbound.dimse, outbound.stow, session),
                    ),
                ),
                Periodic(
                    "route what was received",
                    ROUTING_EVERY_S,
                    partial(route_received, store, outbound.table),
                ),
                Periodic(
                    "forget done jobs",
                    HOUSEKEEPING_EVERY_S,
                    lambda: store.jobs.forget_done(store.clock() - KEEP_DONE_JOBS),
                ),
                Periodic(
                    "keep the site's resources current",
                    HOUSEKEEPING_EVERY_S,
                    partial(keep_site_current, store, fhir_settings),
                ),
                Periodic(
                    "forget what was told long ago",
                    HOUSEKEEPING_EVERY_S,
                    partial(forget_told, store),
                ),
                Periodic(
                    "publish what releases before left out",
                    HOUSEKEEPING_EVERY_S,
                    partial(publish_left_out, store),
                ),
                Periodic(
                    "index older resources",
                    HOUSEKEEPING_EVERY_S,
                    partial(index_older, store),
                ),
                Periodic(
                    "note who is like whom",
                    HOUSEKEEPING_EVERY_S,
                    partial(note_likeness_of_older, store),
                ),
                Periodic(
                    "settle abandoned objects",
                    HOUSEKEEPING_EVERY_S,
                    partial(settle_abandoned, store),
                ),
                Periodic(
                    "compare what was left out",
                    HOUSEKEEPING_EVERY_S,
                    partial(compare_the_rest, store),
                ),
                Periodic(
                    "watch agreement",
                    AGREEMENT_EVERY_S,
                    partial(watch_drift, store, drift_settings_of(settings)),
                ),
            ],
        )
        settle()
        await _work_until_told(
            worker,
            dispatcher,
            *send_workers(store, outbound, senders),
            *repository_workers(store, fhir_settings, repositories, session),
            commitment_worker(store, settings, outbound),
            export_worker(store, fhir_settings),
        )
        for sender in senders.values():
            await sender.close()


def feeding(store: Store, settings: Settings) -> list[Periodic]:
    """Return what sends the audit trail to the hospital's repository, if it has one."""
    repository = repository_of(settings)
    if repository is None:
        return []
    repository.check()
    feed = SyslogFeed(store, repository, audit_source(settings), socket.getfqdn())
    return [Periodic("send the audit trail", AUDIT_FEED_EVERY_S, feed.send)]


def commitment_worker(store: Store, settings: Settings, outbound: Outbound) -> Worker:
    """Return who reports to machines and asks archives: it waits for them alone."""
    told = settings.commitment
    archives = {
        name: replace(archive, commitment_wait_s=told.reply_wait_s)
        for name, archive in outbound.dimse.items()
    }
    report = partial(
        report_commitment,
        store,
        settings=commitment_settings_of(settings),
        addresses=machines_of(settings),
    )
    return Worker(
        Jobs(store.db, store.ring, store.clock),
        {
            REPORT_COMMITMENT: report,
            REQUEST_COMMITMENT: partial(
                request_commitment, store, destinations=archives
            ),
            REDELIVER_INSTANCE: partial(redeliver_instance, store),
        },
        periodic=[
            Periodic(
                "ask for missing commitment reports",
                COMMITMENT_EVERY_S,
                partial(
                    ask_for_missing_reports, store, patience_s=told.patience_h * 3600
                ),
            )
        ],
        lane=LANE,
    )


def export_worker(store: Store, settings: FhirSettings) -> Worker:
    """Return who writes bulk exports, one file at a time: no report waits for them."""
    return Worker(
        Jobs(store.db, store.ring, store.clock),
        {EXPORT_RESOURCES: partial(export_resources, store, settings)},
        periodic=[
            Periodic(
                "remove old exports",
                EXPORTS_EVERY_S,
                partial(sweep, store, settings.export_keep),
            )
        ],
        width=1,
        lane=EXPORT_LANE,
    )


def _worker_handlers(
    store: Store,
    settings: Settings,
    fhir_settings: FhirSettings,
    outbound: Outbound,
    session: aiohttp.ClientSession,
) -> Mapping[str, Handler]:
    results = results_of(settings, outbound.table)
    return {
        "publish_report": partial(publish_report, store, fhir_settings),
        "encode_report": lambda payload: encode_report(store, payload, results),
        "read_machine_report": partial(read_machine_report, store),
        PUBLISH_STUDY: partial(publish_study, store, fhir_settings),
        PUBLISH_CONSENT: partial(publish_consent, store),
        PUBLISH_DOCUMENT: partial(publish_document, store, fhir_settings),
        PUBLISH_LINKS: partial(publish_links, store, fhir_settings),
        PUBLISH_DISOWNED: partial(publish_disowned, store, fhir_settings),
        PUBLISH_MERGE: partial(publish_merge, store, fhir_settings),
        FILE_ANEW: partial(file_anew, store, system=settings.dicom.ae_title),
        "compare_report": partial(compare_report, store),
        CHECK_TRAIL: partial(check_trail, store),
        "offer_binding": partial(offer_binding, store, fhir_settings, session),
    }


def run_inference_role(settings: Settings) -> None:
    """Read closed studies until SIGTERM; torch is imported only when it reads."""
    uvloop.run(_inference(settings))


async def _inference(settings: Settings) -> None:
    from inference.loaded import LoadedModels
    from inference.reading import ReadingSettings, assess_study
    from inference.shadow import assess_shadow

    reading = ReadingSettings(ReportStatus(settings.fhir.ai_report_status))
    async with opened(settings) as store:
        loaded = LoadedModels(
            store,
            shelf_of(settings),
            partial(load_model, settings),
            pinned=pinned_model(settings),
        )

        async def read_study(job: Mapping[str, Any]) -> None:
            async with loaded.reading(ModelRole.ACTIVE) as reader:
                await assess_study(store, job, reader, reading)

        workers = [
            Worker(
                store.jobs,
                {ASSESS_STUDY: read_study},
                width=_readings_at_once(settings),
            ),
            # Never in the way of a reading that somebody waits for.
            Worker(
                Jobs(store.db, store.ring, store.clock),
                {ASSESS_SHADOW: partial(assess_shadow, store, loaded)},
                width=1,
                behind=(ASSESS_STUDY,),
            ),
        ]
        following = asyncio.create_task(loaded.keep_following())
        # Without a model jobs wait: a claimed one would end as failed work.
        await _work_until_told(*workers, after=loaded.until_active())
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await loaded.close()


def _readings_at_once(settings: Settings) -> int:
    """Return how many studies are read at once, so that decoding fills the gaps.

    No more are claimed: the rest stay in the table, for other workers too.
    """
    cores = settings.inference.threads or len(os.sched_getaffinity(0))
    return min(max(cores, _FEWEST_READINGS), _MOST_READINGS)


def load_model(settings: Settings, folder: ModelFolder, role: ModelRole) -> "Serving":
    """Load the model in a verified folder into this process. Blocks."""
    from inference.assess import Reader
    from inference.engine import open_model
    from inference.loaded import Serving
    from inference.unfamiliar import read_familiarity

    chosen = settings.inference
    running = engine_settings_of(settings)
    if role is ModelRole.SHADOW:
        # It leaves the cores to the readings that somebody waits for, and a batch of
        # it that does not end is no reason to end them.
        running = replace(running, threads=1)
        engine, record = open_model(running, folder.path, on_stuck=lambda: None)
    else:
        engine, record = open_model(running, folder.path)
    reader = Reader(
        engine,
        record,
        read_simulated=chosen.read_simulated,
        cine_frames=chosen.cine_frames,
        familiarity=read_familiarity(folder.path, record),
    )
    return Serving(reader, engine, engine.close)


async def _work_until_told(
    *workers: Worker | Dispatcher, after: Coroutine[Any, Any, object] | None = None
) -> None:
    """Run `workers`, once `after` has ended if given, until SIGTERM or SIGINT."""
    stop = stop_event()
    stopping = asyncio.create_task(stop.wait())
    if after is not None:
        awaited = asyncio.create_task(after)
        await asyncio.wait({awaited, stopping}, return_when=asyncio.FIRST_COMPLETED)
        awaited.cancel()
    if not stopping.done():
        working = {asyncio.create_task(worker.run()) for worker in workers}
        await asyncio.wait({*working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for worker in workers:
            worker.stop()
        await asyncio.gather(*working)
    stopping.cancel()


def run_relay_role(settings: Settings) -> None:
    """Serve the patient channel until SIGTERM."""
    from wechat.relay.server import run

    uvloop.run(run(relay_settings_of(settings)))


ROLES: Mapping[str, Callable[[Settings], None]] = {
    "scp": run_scp_role,
    "web": run_web_role,
    "worker": run_worker_role,
    "inference": run_inference_role,
    "relay": run_relay_role,
}
