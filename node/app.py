"""Wires settings, store and the parts of the product into the processes of a node."""

import asyncio
import os
import signal
import socket
import ssl
import tomllib
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry

from config.settings import Coerce, Settings, SettingsError
from dicom_scp.receiving import coercion, tls
from dicom_scp.receiving.filing import file_anew
from dicom_scp.receiving.machine_sr import read_machine_report
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import ScpSettings, run_scp
from dicom_scp.receiving.storage import SYNTAXES, is_storage_class
from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import Equipment
from dicom_scp.sending.probe import ask_again, targets_of
from dicom_scp.sending.routing import RoutingTable, route_received
from dicom_scp.sending.scu import Destination
from dicom_scp.services import query, retrieve
from dicom_scp.services.commitment import (
    CommitmentSettings,
    commitment_service,
    report_commitment,
    request_commitment,
)
from dicom_scp.services.mpps import mpps_service
from dicom_scp.services.query import QuerySettings
from dicom_scp.services.retrieve import RetrieveSettings
from dicom_scp.services.service import Service
from dicom_scp.services.worklist import Stations, WorklistSettings, worklist_service
from dicom_scp.web import dicomweb, orders
from fhir.content.consents import publish_consent
from fhir.content.disowned import publish_disowned
from fhir.content.documents import publish_document
from fhir.content.links import publish_links
from fhir.content.mapping import Systems
from fhir.content.merged import publish_merge
from fhir.content.older import publish_left_out
from fhir.content.publish import (
    index_older,
    keep_site_current,
    publish_report,
    publish_study,
)
from fhir.content.site import Site
from fhir.export.writing import export_resources
from fhir.rest.server import route_group as fhir_routes
from fhir.security import registration
from fhir.security.assertions import Keys
from fhir.security.authorize import Desk
from fhir.security.sign_on import SignOn, SignOnSettings
from fhir.security.smart import Smart
from fhir.settings import FhirSettings
from fhir.subscriptions.delivery import Dispatcher, forget_told
from fhir.subscriptions.endpoints import (
    Endpoints,
    calling_tls,
    hook_session,
    read_endpoints,
)
from fhir.subscriptions.relay import ensure_relay_subscription, offer_binding
from fhir.subscriptions.topics import Topic, read_topics
from inference.models import ModelFolder, Shelf
from node.atna import Repository, SyslogFeed
from node.domain.access import Role
from node.domain.completion import CompletionRules, EvidenceKind
from node.domain.disclosure import TierText
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.domain.study import Duplicates
from node.http import HttpSettings, RouteGroup, make_app
from node.known import KNOWN_FOR_S
from node.outbound import (
    Outbound,
    bury_homeless,
    outbound_of,
    send_workers,
    senders_of,
)
from node.store import likeness
from node.store.exports import EXPORT_RESOURCES, sweep
from node.store.exports import LANE as EXPORT_LANE
from node.store.jobs import Jobs
from node.store.models import ModelRole
from node.store.store import Store, open_store
from node.worker import Handler, Periodic, Worker
from node.workflow.agreement import (
    DriftSettings,
    compare_report,
    compare_the_rest,
    watch_drift,
)
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
    CompletionSettings,
    close_due_studies,
)
from node.workflow.consent import PUBLISH_CONSENT
from node.workflow.intake import settle_abandoned
from node.workflow.merging import PUBLISH_MERGE
from node.workflow.moving import FILE_ANEW, PUBLISH_DISOWNED
from node.workflow.orders import PUBLISH_LINKS
from node.workflow.reporting import ASSESS_SHADOW, PUBLISH_DOCUMENT
from review_ui import agreement, launch, reconciliation, server
from wechat.relay.settings import RelaySettings

if TYPE_CHECKING:
    from inference.engine import EngineSettings
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
_CONFIG = Path(__file__).parents[1] / "config"
_WEIGHTS = Path(__file__).parents[1] / "inference" / "weights"


def utc_now() -> datetime:
    """Return the time; the one clock that everything else is given."""
    return datetime.now(UTC)


def product_version() -> str:
    """Return the version that CapabilityStatement and logs name."""
    try:
        return version_of("sononode")
    except PackageNotFoundError:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
        return str(tomllib.loads(text)["project"]["version"])


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


# --- what the parts are told --------------------------------------------------------


def equipment_of(settings: Settings) -> Equipment:
    """Return who writes our DICOM objects."""
    site = settings.site
    return Equipment.at_site(
        site.institution,
        settings.dicom.ae_title,
        site.language,
        site.timezone_offset,
        software_version=product_version(),
    )


def results_of(settings: Settings, routing: RoutingTable) -> ResultSettings:
    """Return which objects the node makes, and where they go."""
    chosen = settings.results
    return ResultSettings(
        equipment_of(settings),
        routing,
        key_images=chosen.key_images,
        segmentation=chosen.segmentation,
        pdf=chosen.pdf,
    )


def peers_of(settings: Settings) -> Peers:
    """Return the DICOM nodes around us; SettingsError names every fault."""
    faults: list[str] = []
    peers = [
        Peer(
            ae_title=peer.ae_title,
            name=peer.name,
            services=frozenset(map(ServiceName, peer.services)),
            addresses=tuple(map(ip_network, peer.addresses)),
            certificates=frozenset(peer.fingerprints),
            host=peer.host,
            port=peer.port,
            tls=peer.tls,
            sop_classes=_storage_classes(number, peer.sop_classes, faults),
            transfer_syntaxes=_syntaxes(number, peer.transfer_syntaxes, faults),
            coerce=tuple(_rules(number, peer.coerce, faults)),
            duplicates=Duplicates(peer.duplicates),
            max_associations=peer.maximum_associations,
            commitment_reply=peer.commitment_reply,
            move_to=tuple(peer.move_to),
        )
        for number, peer in enumerate(settings.dicom.peers, start=1)
    ]
    if faults:
        raise SettingsError(faults)
    allowed = settings.dicom.allowed_calling_aes
    if peers or allowed:  # otherwise everybody may call
        known = {*allowed, *(peer.ae_title for peer in peers)}
        peers += [p for p in reporting_archives(settings) if p.ae_title not in known]
    return Peers(peers, allowed_titles=allowed)


def reporting_archives(settings: Settings) -> list[Peer]:
    """Return the archives that we ask to commit themselves: they call to report."""
    pacs, services = settings.pacs, frozenset({ServiceName.COMMITMENT})
    asked = [pacs] if pacs.ae_title and pacs.commitment else []
    archives = [
        *((archive.ae_title, archive.host, archive.port) for archive in asked),
        *(
            (outlet.ae_title, outlet.host, outlet.port)
            for outlet in settings.routing.destinations
            if outlet.commitment
        ),
    ]
    return [
        Peer(title, services=services, host=host, port=port)
        for title, host, port in archives
    ]


def machines_of(settings: Settings) -> dict[str, Destination]:
    """Return where commitment reports go, by AE title of the machine.

    One that does not answer is soon let go: the next try comes by itself.
    """
    machines = [peer for peer in settings.dicom.peers if peer.host]
    secured = any(peer.tls for peer in machines)
    calling = calling_tls_of(settings) if secured else None
    return {
        peer.ae_title: Destination(
            peer.ae_title,
            peer.host,
            peer.port,
            calling_ae_title=settings.dicom.ae_title,
            tls=calling if peer.tls else None,
            connection_timeout_s=5.0,
            response_timeout_s=30.0,
        )
        for peer in machines
    }


def commitment_settings_of(settings: Settings) -> CommitmentSettings:
    """Return what storage commitment is told."""
    return CommitmentSettings(settings.dicom.ae_title, settings.commitment.grace_s)


def _storage_classes(
    number: int, uids: Sequence[str], faults: list[str]
) -> tuple[str, ...]:
    for uid in uids:
        if not is_storage_class(uid):
            name = f"dicom.peers[{number}].sop_classes"
            faults.append(f"{name}: {uid!r} is no SOP Class that can be stored")
    return tuple(uids)


def _syntaxes(number: int, uids: Sequence[str], faults: list[str]) -> tuple[str, ...]:
    for uid in uids:
        if uid not in SYNTAXES:
            name = f"dicom.peers[{number}].transfer_syntaxes"
            faults.append(
                f"{name}: {uid!r} is none that we store; docs/conformance-statement.md"
                " lists them"
            )
    return tuple(uids)


def _rules(
    number: int, tables: Sequence[Coerce], faults: list[str]
) -> Iterator[coercion.Rule]:
    for place, table in enumerate(tables, start=1):
        name = f"dicom.peers[{number}].coerce[{place}]"
        try:
            action = coercion.Action(table.action)
        except ValueError:
            known = ", ".join(coercion.Action)
            faults.append(f"{name}.action: {table.action!r} is none of {known}")
            continue
        rule = coercion.Rule(table.keyword, action, table.value, table.pattern)
        if fault := rule.fault():
            faults.append(f"{name}.{fault}")
        yield rule


def calling_tls_of(settings: Settings) -> tls.FollowedContext:
    """Return how we speak TLS when we call; one for all whom we call.

    NodeError SETTING when a file cannot be used.
    """
    dicom = settings.dicom
    own = dicom.tls_calling_certificate
    return tls.client_context(
        trusted=_below_data(settings, dicom.tls_trusted),
        certificate=_below_data(settings, own or dicom.tls_certificate),
        key=_below_data(settings, dicom.tls_calling_key if own else dicom.tls_key),
        check_names=dicom.tls_check_names,
    )


def worklist_settings_of(settings: Settings) -> WorklistSettings:
    """Return what the worklist is told."""
    told = settings.worklist
    return WorklistSettings(
        stations=Stations(told.stations),
        in_progress=told.in_progress,
        past_days=told.past_days,
        maximum_answers=told.maximum_answers,
        offset=site_offset(settings),
        character_sets={
            peer.ae_title: peer.charset for peer in settings.dicom.peers if peer.charset
        },
    )


def query_settings_of(settings: Settings) -> QuerySettings:
    """Return how far the searches of peers may go."""
    told = settings.query
    return QuerySettings(
        ae_title=settings.dicom.ae_title,
        maximum_matches=told.maximum_matches,
        maximum_opened=told.maximum_opened,
        relational=told.relational,
        rejected_too=told.show_rejected,
        character_sets={
            peer.ae_title: peer.charset for peer in settings.dicom.peers if peer.charset
        },
    )


def retrieve_settings_of(settings: Settings) -> RetrieveSettings:
    """Return whereto peers may have instances sent."""
    return RetrieveSettings(
        ae_title=settings.dicom.ae_title,
        destinations=machines_of(settings),
        relational=settings.query.relational,
        rejected_too=settings.query.show_rejected,
    )


def site_offset(settings: Settings) -> timedelta:
    """Return how far the site's clock is ahead of UTC."""
    told = settings.site.timezone_offset
    ahead = timedelta(hours=int(told[1:3]), minutes=int(told[3:5]))
    return -ahead if told.startswith("-") else ahead


def services_of(settings: Settings) -> list[Service]:
    """Return what the node offers to DICOM peers beside Verification and Storage."""
    return [
        commitment_service(commitment_settings_of(settings)),
        worklist_service(worklist_settings_of(settings)),
        query.service(query_settings_of(settings)),
        retrieve.service(retrieve_settings_of(settings)),
        mpps_service(),
    ]


def completion_settings_of(settings: Settings) -> CompletionSettings:
    """Return when a study counts as complete, machine by machine where it is told."""
    default = settings.completion
    return CompletionSettings(
        quiet_period_s=default.quiet_period_s,
        quiet_after_release_s=default.quiet_after_release_s,
        missing_wait_s=default.missing_wait_s,
        stale_step_s=default.stale_step_s,
        by_ae={
            peer.ae_title: CompletionRules(
                trusted=frozenset(map(EvidenceKind, peer.completion)),
                quiet_period_s=_or(peer.quiet_period_s, default.quiet_period_s),
                quiet_after_release_s=_or(
                    peer.quiet_after_release_s, default.quiet_after_release_s
                ),
                missing_wait_s=default.missing_wait_s,
                stale_s=default.stale_step_s,
            )
            for peer in settings.dicom.peers
        },
    )


def _or(own: float | None, default: float) -> float:
    return default if own is None else own


def patient_texts() -> dict[str, TierText]:
    """Return what patients read for each category, from `config/advice.*.toml`."""
    zh = tomllib.loads((_CONFIG / "advice.zh-CN.toml").read_text("utf-8"))
    en = tomllib.loads((_CONFIG / "advice.en.toml").read_text("utf-8"))
    return {
        key: TierText(
            zh[key]["text"], en[key]["text"], zh[key]["advice"], en[key]["advice"]
        )
        for key in zh
    }


def topics_of(settings: Settings) -> dict[str, Topic]:
    """Return what can be subscribed to, from files of the site or of the release."""
    folder = _below_data(settings, settings.fhir.topics) or _CONFIG / "topics"
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))}
    if not files:
        raise NodeError(
            f"fhir.topics: {folder} has no topic; remove the setting to have those of"
            " the release",
            ErrorKind.SETTING,
        )
    return read_topics(files)


def endpoints_of(settings: Settings) -> Endpoints:
    """Return whom a Subscription may call."""
    return read_endpoints(settings.fhir.hook_hosts, settings.fhir.hook_networks)


def hook_tls_of(settings: Settings) -> ssl.SSLContext | None:
    """Return how hooks are called by https; None: as the system does."""
    names = ("hook_certificate", "hook_key", "hook_trusted")
    paths = (_below_data(settings, getattr(settings.fhir, name)) for name in names)
    certificate, key, trusted = (str(path or "") for path in paths)
    return calling_tls(certificate, key, trusted)


def require_hooks(settings: Settings) -> None:
    """Raise SETTING for what is wrong with topics or with whom they may be told."""
    topics_of(settings)
    endpoints_of(settings)
    hook_tls_of(settings)
    _secret_of(settings, "hook_secret_file")


def fhir_settings_of(settings: Settings) -> FhirSettings:
    """Return what the FHIR side is told."""
    base = settings.http.base_url
    relay = settings.relay
    return FhirSettings(
        base_url=f"{base}/fhir",
        systems=Systems(
            mrn=settings.fhir.patient_id_system or f"{base}/mrn",
            accession=settings.fhir.accession_system or f"{base}/accession",
            ae_title=f"{base}/ae-title",
        ),
        site=Site(
            institution=settings.site.institution,
            department=settings.site.department,
            root_url=base,
            phone=settings.site.department_phone,
            language=settings.site.language,
            identifier_system=settings.fhir.organization_system,
            identifier=settings.fhir.organization_id,
            version=product_version(),
        ),
        texts=patient_texts(),
        department_phone=settings.site.department_phone,
        page_size=settings.fhir.page_size,
        topics=topics_of(settings),
        endpoints=endpoints_of(settings),
        hook_secret=_secret_of(settings, "hook_secret_file"),
        offset=site_offset(settings),
        export_keep=timedelta(hours=settings.fhir.export_keep_h),
        exports_at_once=settings.fhir.exports_at_once,
        relay_url=relay.url if relay.enabled else "",
        relay_secret=_hook_secret(settings) if relay.enabled else b"",
    )


def drift_settings_of(settings: Settings) -> DriftSettings:
    """Return when agreement of AI and doctors counts as changed."""
    chosen = settings.inference
    return DriftSettings(chosen.agreement_window, chosen.drift_alpha)


def shelf_of(settings: Settings) -> Shelf:
    """Return where the models of this installation lie."""
    return Shelf(settings.data / "models", _WEIGHTS)


def pinned_model(settings: Settings) -> Path | None:
    """Return the folder of the one model that a setting allows to read, if any."""
    return _below_data(settings, settings.inference.weights)


def _below_data(settings: Settings, path: str) -> Path | None:
    """Return a path as settings mean it: relative ones lie under the data folder."""
    return settings.data / path if path else None


def _secret_of(settings: Settings, name: str) -> bytes:
    """Return the secret in a file of [fhir], empty where none is set."""
    path = _below_data(settings, getattr(settings.fhir, name))
    if path is None:
        return b""
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise NodeError(
            f"fhir.{name}: {path} cannot be read ({error.strerror})",
            ErrorKind.SETTING,
        ) from None


def _hook_secret(settings: Settings) -> bytes:
    path = settings.relay.hook_secret_file
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise NodeError(
            f"relay.hook_secret_file: {path} cannot be read ({error.strerror});"
            " write the same secret for node and relay, or set relay.enabled = false",
            ErrorKind.SETTING,
        ) from None


# --- roles ------------------------------------------------------------------------


def run_scp_role(settings: Settings) -> None:
    """Receive instances until SIGTERM; torch is never imported here."""
    run_scp(
        scp_settings_of(settings),
        partial(store_of, settings),
        services_of(settings),
    )


def scp_settings_of(settings: Settings) -> ScpSettings:
    """Return how the node listens; SettingsError for what is wrong with a peer."""
    dicom = settings.dicom
    return ScpSettings(
        ae_title=dicom.ae_title,
        host=dicom.host,
        port=dicom.port,
        tls_port=dicom.tls_port,
        tls_certificate=_below_data(settings, dicom.tls_certificate),
        tls_key=_below_data(settings, dicom.tls_key),
        tls_client_ca=_below_data(settings, dicom.tls_client_ca),
        tls_client_required=dicom.tls_client_certificates == "required",
        peers=peers_of(settings),
        max_associations=dicom.maximum_associations,
        connections_per_address=dicom.maximum_associations_per_host,
        max_pdu=dicom.maximum_pdu_size,
        acse_timeout_s=dicom.association_timeout_s,
        network_timeout_s=dicom.network_timeout_s,
        grace_s=dicom.shutdown_grace_s,
        min_free_bytes=settings.storage.minimum_free_mb << 20,
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
            _http_settings(settings),
            route_groups_of(store, settings, session),
            registry=registry,
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=10.0)
        await runner.setup()
        http = settings.http
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


def _http_settings(settings: Settings) -> HttpSettings:
    return HttpSettings(
        secure=settings.http.secure_cookies,
        max_body_bytes=settings.http.maximum_body_mb << 20,
        data_directory=settings.data,
        min_free_bytes=settings.storage.minimum_free_mb << 20,
        known_for_s=KNOWN_FOR_S,
    )


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


def sign_on_settings_of(settings: Settings) -> SignOnSettings:
    """Return how the hospital's sign-on is reached; SETTING names a missing file."""
    oidc = settings.auth.oidc
    return SignOnSettings(
        oidc.issuer,
        oidc.client_id,
        {word: Role(role) for word, role in oidc.role_of.items()},
        oidc.scope,
        oidc.username_claim,
        oidc.display_claim,
        oidc.role_claim,
        secret=_credential(settings, "client_secret_file", oidc.client_secret_file),
        private_key=_credential(settings, "private_key_file", oidc.private_key_file),
        hosts=frozenset(oidc.hosts),
    )


def _credential(settings: Settings, key: str, name: str) -> str | None:
    if not name:
        return None
    path = settings.data / name
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise NodeError(
            f"auth.oidc.{key}: {path} cannot be read", ErrorKind.SETTING
        ) from None


def run_worker_role(settings: Settings) -> None:
    """Do every job but the reading, and close studies, until SIGTERM."""
    uvloop.run(_worker(settings))


async def _worker(settings: Settings) -> None:
    fhir_settings = fhir_settings_of(settings)
    completion = completion_settings_of(settings)
    outbound = outbound_of(settings, partial(calling_tls_of, settings))
    async with (
        opened(settings) as store,
        aiohttp.ClientSession() as session,
        hook_session(fhir_settings.endpoints, hook_tls_of(settings)) as hooks,
    ):
        senders = senders_of(outbound, session)
        await bury_homeless(store, outbound.names)
        await ensure_relay_subscription(store, fhir_settings)
        dispatcher = Dispatcher(store, fhir_settings, hooks, session)
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
                    partial(likeness.index_older, store),
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
        await _work_until_told(
            worker,
            dispatcher,
            *send_workers(store, outbound, senders),
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


def repository_of(settings: Settings) -> Repository | None:
    """Return the ATNA repository of `audit.syslog`, None where none is set."""
    told = settings.audit.syslog
    if not told.host:
        return None
    return Repository.of_files(
        told.host,
        told.port,
        trusted=_below_data(settings, told.ca),
        certificate=_below_data(settings, told.certificate),
        key=_below_data(settings, told.key),
        needs_receipt=told.needs_receipt,
    )


def audit_source(settings: Settings) -> str:
    """Return what the node is called in audit messages."""
    return f"sononode {settings.dicom.ae_title} {settings.http.base_url}"


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


def engine_settings_of(settings: Settings) -> "EngineSettings":
    """Return how this installation runs its network."""
    from inference.engine import EngineSettings

    chosen = settings.inference
    return EngineSettings(
        exports=settings.data / chosen.exports,
        kind=chosen.engine,
        threads=chosen.threads,
        stuck_after_s=chosen.stuck_after_s,
    )


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


def relay_settings_of(settings: Settings) -> RelaySettings:
    """Return what the relay is told; its secrets come from files."""
    relay, wechat = settings.relay, settings.wechat
    try:
        secret = wechat.app_secret_file.read_text("utf-8").strip()
    except OSError:
        secret = ""  # no Mini Program yet: reports wait at the relay, nothing is pushed
    return RelaySettings(
        dsn=relay.database_url,
        hook_secret=_hook_secret(settings),
        key_file=relay.key_file,
        app_id=wechat.app_id,
        app_secret=secret,
        template_id=wechat.template_id,
        department_phone=settings.site.department_phone,
        host=relay.host,
        port=relay.port,
        wechat_base_url=wechat.api_url,
        page=wechat.mini_program_page,
    )


ROLES: Mapping[str, Callable[[Settings], None]] = {
    "scp": run_scp_role,
    "web": run_web_role,
    "worker": run_worker_role,
    "inference": run_inference_role,
    "relay": run_relay_role,
}
