"""What the settings of an installation mean for each of its parts.

Parts get values of their own kinds and know no configuration; here is where one
becomes the other, and where what does not fit is told with the setting and the mend.
"""

import ssl
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import Coerce, Settings, SettingsError
from dicom_scp.receiving import coercion, tls
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.scp import ScpSettings
from dicom_scp.receiving.storage import SYNTAXES, is_storage_class
from dicom_scp.results.encode_report import ResultSettings
from dicom_scp.results.sr import Equipment
from dicom_scp.sending.routing import RoutingTable
from dicom_scp.sending.scu import Destination
from dicom_scp.services import query, retrieve
from dicom_scp.services.commitment import CommitmentSettings, commitment_service
from dicom_scp.services.mpps import mpps_service
from dicom_scp.services.query import QuerySettings
from dicom_scp.services.retrieve import RetrieveSettings
from dicom_scp.services.service import Service
from dicom_scp.services.worklist import Stations, WorklistSettings, worklist_service
from fhir.content.mapping import Systems
from fhir.content.site import Site
from fhir.security.provider import SignOnSettings
from fhir.settings import FhirSettings
from fhir.subscriptions.endpoints import (
    Endpoints,
    calling_tls,
    read_endpoints,
)
from fhir.subscriptions.topics import FollowedTopics, Topic, read_topics
from inference.models import Shelf
from node.atna import Repository
from node.domain.access import Role
from node.domain.completion import CompletionRules, EvidenceKind
from node.domain.disclosure import TierText
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import Duplicates
from node.followed import Followed
from node.http import HttpSettings
from node.known import KNOWN_FOR_S
from node.workflow.agreement import DriftSettings
from node.workflow.completion import CompletionSettings
from wechat.relay.settings import RelaySettings

if TYPE_CHECKING:
    from inference.engine import EngineSettings

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


def http_settings_of(settings: Settings) -> HttpSettings:
    return HttpSettings(
        secure=settings.http.secure_cookies,
        max_body_bytes=settings.http.maximum_body_mb << 20,
        data_directory=settings.data,
        min_free_bytes=settings.storage.minimum_free_mb << 20,
        known_for_s=KNOWN_FOR_S,
    )


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
        dicomweb_url=f"{settings.http.base_url}/dicom-web",
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


def topics_of(settings: Settings) -> Mapping[str, Topic]:
    """Return what can be subscribed to, from files of the site or of the release.

    They are followed: a topic that is added, changed or removed counts at once.
    """
    folder = _below_data(settings, settings.fhir.topics) or _CONFIG / "topics"

    def files() -> list[Path]:
        return sorted(folder.glob("*.json"))

    def read() -> dict[str, Topic]:
        try:
            found = {path.name: path.read_bytes() for path in files()}
        except OSError as error:
            raise NodeError(
                f"fhir.topics: {error.strerror}", ErrorKind.SETTING
            ) from None
        if not found:
            raise NodeError(
                f"fhir.topics: {folder} has no topic; remove the setting to have those"
                " of the release",
                ErrorKind.SETTING,
            )
        return read_topics(found)

    return FollowedTopics(Followed("fhir.topics", files, read, every_s=1.0))


def endpoints_of(settings: Settings) -> Endpoints:
    """Return whom a Subscription may call."""
    return read_endpoints(settings.fhir.hook_hosts, settings.fhir.hook_networks)


def hook_tls_of(settings: Settings) -> Callable[[], ssl.SSLContext | None]:
    """Return how hooks are called by https, as the files are now; None: as usual."""
    names = ("hook_certificate", "hook_key", "hook_trusted")
    paths = [_below_data(settings, getattr(settings.fhir, name)) for name in names]
    certificate, key, trusted = (str(path or "") for path in paths)
    return Followed(
        "fhir.hook_certificates",
        lambda: [path for path in paths if path is not None],
        lambda: calling_tls(certificate, key, trusted),
    ).current


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
        hook_secret_overlap=timedelta(hours=settings.fhir.hook_secret_overlap_h),
        offset=site_offset(settings),
        export_keep=timedelta(hours=settings.fhir.export_keep_h),
        exports_at_once=settings.fhir.exports_at_once,
        repositories=tuple(one.name for one in settings.fhir.repositories),
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
    return b"" if path is None else _read_secret(f"fhir.{name}", path)


def _hook_secret(settings: Settings) -> bytes:
    mend = "; write the same secret for node and relay, or set relay.enabled = false"
    path = settings.relay.hook_secret_file
    return _read_secret("relay.hook_secret_file", path, mend)


def _read_secret(setting: str, path: Path, mend: str = "") -> bytes:
    try:
        return path.read_bytes().strip()
    except OSError as error:
        raise NodeError(
            f"{setting}: {path} cannot be read ({error.strerror}){mend}",
            ErrorKind.SETTING,
        ) from None
