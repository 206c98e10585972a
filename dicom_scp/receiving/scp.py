"""The DICOM node that modalities talk to: C-ECHO and C-STORE, in a process of its own.

No torch and no web server live here: a machine that only receives stays small, and
nothing else can keep it from receiving.
"""

import errno
import gc
import logging
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import PresentationContext

from dicom_scp.receiving.callers import CallLog
from dicom_scp.receiving.completion import OpenAssociations
from dicom_scp.receiving.intake import (
    IMPLEMENTATION_UID,
    IMPLEMENTATION_VERSION,
    Intake,
    IntakeSettings,
    OpenStore,
    StoreThread,
)
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.storage import storage_contexts, verification_context
from dicom_scp.receiving.tls import (
    FollowedContext,
    fingerprint_shown,
    server_context,
    why_refused,
)
from dicom_scp.receiving.upper_layer import Acceptor, Limits, Listener
from dicom_scp.services.service import Service, dispatchers, own_requests
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.workflow.completion import end_lost_associations
from node.workflow.intake import (
    MODALITY_ROLE,
    forget_unfinished_versions,
    settle_abandoned,
)

log = structlog.get_logger(__name__)

# A-ASSOCIATE-RJ: result, source, diagnostic (PS3.8 9.3.4). Who comes under a title that
# is not its own is told the same as who comes under an unknown one: the answer must not
# tell which titles there are. The audit trail has the reason.
CALLING_AE_UNKNOWN: Final = (1, 1, 3)
CALLED_AE_UNKNOWN: Final = (1, 1, 7)
LIMIT_EXCEEDED: Final = (2, 3, 2)
POLL_S = 0.1  # how soon a listener notices that it shall stop


@dataclass(frozen=True)
class Rejection:
    """The answer to an A-ASSOCIATE-RQ, and for the audit trail why."""

    answer: tuple[int, int, int]
    reason: str


# The conformance statement is generated from this table.
NOT_CALLED = Rejection(CALLED_AE_UNKNOWN, "called AE title not recognized")
UNKNOWN_CALLER = Rejection(CALLING_AE_UNKNOWN, "calling AE title not recognized")
WRONG_ADDRESS = Rejection(CALLING_AE_UNKNOWN, "not an address of this AE title")
NO_CERTIFICATE = Rejection(CALLING_AE_UNKNOWN, "no certificate of this AE title")
WRONG_CERTIFICATE = Rejection(CALLING_AE_UNKNOWN, "another than its certificate")
TOO_MANY = Rejection(LIMIT_EXCEEDED, "too many associations")
TOO_MANY_OF_PEER = Rejection(LIMIT_EXCEEDED, "too many associations of this AE title")
REJECTIONS: Final = (
    NOT_CALLED,
    UNKNOWN_CALLER,
    WRONG_ADDRESS,
    NO_CERTIFICATE,
    WRONG_CERTIFICATE,
    TOO_MANY,
    TOO_MANY_OF_PEER,
)


@dataclass(frozen=True)
class ScpSettings:
    """How this process listens. Seconds and bytes; `*_tls*` files are PEM.

    Without any peer every calling AE title is let in to store, which suits a
    demonstration and no hospital. `process` names this process among the others
    on the same database and stays the same when it is started again. TLS is
    spoken on `tls_port` when a certificate is set; with `tls_client_ca` peers
    show one too, all of them or (`tls_client_required` false) those who have one.
    """

    ae_title: str = "SONONODE"
    host: str = "0.0.0.0"  # noqa: S104  modalities are on another machine
    port: int = 11112
    tls_port: int = 2762
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_client_required: bool = True
    peers: Peers = field(default_factory=Peers)
    process: str = "scp"
    max_associations: int = 64
    connections_per_address: int = 32
    max_pdu: int = 131_072
    acse_timeout_s: float = 10.0
    network_timeout_s: float = 60.0
    tls_handshake_timeout_s: float = 5.0
    commit_timeout_s: float = 30.0
    grace_s: float = 20.0
    max_instance_bytes: int = 8 << 30
    min_free_bytes: int = 256 << 20


class StorageScp:
    """The SCP on its ports: Verification, Storage and `services`."""

    def __init__(
        self,
        settings: ScpSettings,
        open_store: OpenStore,
        services: Sequence[Service] = (),
    ) -> None:
        self.settings = settings
        self.services = services
        self._thread = StoreThread(open_store)
        self._intake = Intake(
            self._thread,
            IntakeSettings(
                ae_title=settings.ae_title,
                peers=settings.peers,
                process=settings.process,
                max_instance_bytes=settings.max_instance_bytes,
                min_free_bytes=settings.min_free_bytes,
                commit_timeout_s=settings.commit_timeout_s,
            ),
            feeds=lambda association: self.associations.feeds(association),
        )
        self.associations = OpenAssociations(self._intake.association_ended)
        self._calls = CallLog(self._thread.later, lambda: self._intake.store)
        self._listeners: list[Listener] = []

    @property
    def ports(self) -> list[int]:
        """Return the ports it listens on: plain, then TLS."""
        return [listener.server_address[1] for listener in self._listeners]

    def start(self) -> None:
        """Open the store and the ports.

        Raises NodeError SETTING when a port is taken or a certificate unusable;
        then nothing is left half started.
        """
        quiet_pynetdicom()
        tls = tls_context(self.settings)
        self._thread.start()
        try:
            lost = self._thread.call(
                end_lost_associations(self._intake.store, self.settings.process)
            )
            if lost:
                log.warning("dicom.interrupted_studies", studies=len(lost))
            self._thread.call(
                forget_unfinished_versions(self._intake.store, self.settings.process)
            )
            # After that: what is not noted now will never be.
            self._thread.call(settle_abandoned(self._intake.store))
            self._listen(self.settings.port, "dicom.port", None)
            if tls is not None:
                self._listen(self.settings.tls_port, "dicom.tls_port", tls)
        except BaseException:
            self.stop(grace_s=0)
            raise
        log.info("dicom.listening", ae_title=self.settings.ae_title, ports=self.ports)

    def stop(self, *, grace_s: float | None = None) -> None:
        """Accept nobody, let open associations finish for `grace_s`, and end."""
        for listener in self._listeners:
            listener.shutdown()
        grace = self.settings.grace_s if grace_s is None else grace_s
        end = time.monotonic() + grace
        while len(self.associations) and time.monotonic() < end:
            time.sleep(0.02)
        for acceptor in self.associations.acceptors():
            acceptor.abort(block=False)
            acceptor.cut()
            acceptor.join(2)
        self._listeners.clear()
        self._thread.stop()

    def _listen(self, port: int, setting: str, tls: FollowedContext | None) -> None:
        settings = self.settings
        try:
            listener = Listener(
                application_entity(settings),
                (settings.host, port),
                settings.ae_title,
                supported_contexts(),
                tls,
                evt_handlers=[
                    *dispatchers(self.services, self._thread),
                    (evt.EVT_C_ECHO, lambda _event: 0x0000),
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_ESTABLISHED, self._established),
                ],
                limits=limits(settings),
                open_sink=self._intake.open_sink,
                name_of_association=self.associations.new_name,
                association_ended=self.associations.over,
                is_known_address=self.settings.peers.has_address,
                connection_failed=self._connection_failed,
                own_requests=own_requests(self.services, self._thread),
            )
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else str(error)
            raise NodeError(
                f"{setting}: {settings.host}:{port} {reason}", ErrorKind.SETTING
            ) from error
        self._listeners.append(listener)
        listener.ae._servers.append(listener)
        threading.Thread(
            target=listener.serve_forever,
            kwargs={"poll_interval": POLL_S},
            name=f"listener-{port}",
            daemon=True,
        ).start()

    def _requested(self, event: Any) -> None:
        """Decide about an A-ASSOCIATE-RQ; a rejection is audited."""
        acceptor: Acceptor = event.assoc
        request = acceptor.requestor.primitive
        if request is None or not hasattr(request, "calling_ae_title"):
            acceptor.kill()  # it aborted before it had asked for anything
            acceptor.is_aborted = True
            return
        calling = str(request.calling_ae_title).strip()
        called = str(request.called_ae_title).strip()
        peer = self.settings.peers.caller(calling)
        rejection = self._rejection(acceptor, peer, called)
        if peer is not None and rejection is None:
            acceptor.peer = peer
            acceptor.acceptor.supported_contexts = contexts_for(
                peer, self.services, receives=_received_by(acceptor)
            )
            return
        refused = rejection or UNKNOWN_CALLER
        acceptor.acse.send_reject(*refused.answer)
        log.warning("dicom.association_rejected", reason=refused.reason)
        detail = {
            "address": acceptor.address,
            "reason": refused.reason,
            "answer": ",".join(map(str, refused.answer)),
        }
        if refused is WRONG_CERTIFICATE:
            detail["certificate"] = _certificate_of(acceptor)
        self._audit_refusal(_printable(calling), detail)
        self._calls.rejected(
            acceptor, _printable(calling), _printable(called), refused.reason
        )
        acceptor.kill()

    def _rejection(
        self, acceptor: Acceptor, peer: Peer | None, called: str
    ) -> Rejection | None:
        settings = self.settings
        if called != settings.ae_title:
            return NOT_CALLED
        if peer is None:
            return UNKNOWN_CALLER
        if not peer.calls_from(acceptor.address):
            return WRONG_ADDRESS
        if peer.certificates:
            shown = _certificate_of(acceptor)
            if shown not in peer.certificates:
                return WRONG_CERTIFICATE if shown else NO_CERTIFICATE
        if len(self.associations) >= settings.max_associations:
            return TOO_MANY
        if peer.max_associations and (
            self.associations.of_peer(peer) >= peer.max_associations
        ):
            return TOO_MANY_OF_PEER
        return None

    def _connection_failed(self, address: str, error: Exception) -> None:
        """Audit a TLS handshake that was refused for what the caller showed."""
        reason = why_refused(error)
        if reason is not None:
            self._audit_refusal(
                "", {"address": address, "reason": f"TLS handshake: {reason}"}
            )

    def _audit_refusal(self, actor: str, detail: Mapping[str, str]) -> None:
        self._intake.audit(
            AuditEntry(
                at=self._intake.store.clock(),
                actor=actor or "unknown",
                role=MODALITY_ROLE,
                action="associate",
                entity=f"ae/{self.settings.ae_title}",
                outcome=Outcome.REFUSED,
                detail=detail,
            )
        )

    def _established(self, event: Any) -> None:
        self.associations.established(event.assoc)
        self._calls.accepted(event.assoc)


def run_scp(
    settings: ScpSettings, open_store: OpenStore, services: Sequence[Service] = ()
) -> None:
    """Serve until SIGTERM or SIGINT; then finish open associations and return."""
    scp = StorageScp(settings, open_store, services)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    scp.start()
    # What is loaded now stays: no collection has to walk through it again.
    gc.collect()
    gc.freeze()
    try:
        while not ended.wait(1.0):  # a bare wait() would keep Python from the signal
            pass
    finally:
        scp.stop()


def supported_contexts() -> list[PresentationContext]:
    """Return what everybody may negotiate who may store."""
    return [verification_context(), *storage_contexts()]


def contexts_for(
    peer: Peer,
    services: Sequence[Service] = (),
    *,
    receives: Collection[str] = (),
) -> list[PresentationContext]:
    """Return what `peer` may negotiate: copies, for negotiation writes into them.

    `receives` are the storage classes for which it offers to be the SCP, to get
    instances by C-GET (PS3.7 D.3.3.4).
    """
    may_store = ServiceName.STORE in peer.services
    may_get = ServiceName.RETRIEVE in peer.services
    stored = []
    for context in storage_contexts(peer.transfer_syntaxes, peer.sop_classes):
        if may_get and context.abstract_syntax in receives:
            context.scu_role, context.scp_role = may_store, True
            stored.append(context)
        elif may_store:
            stored.append(context)
    offered = [
        deepcopy(context)
        for service in services
        if service.name in peer.services
        for context in service.contexts
    ]
    return [verification_context(), *stored, *offered]


def application_entity(settings: ScpSettings) -> ApplicationEntity:
    """Return the AE that pynetdicom wants; the limits are ours."""
    entity = ApplicationEntity(settings.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION
    entity.maximum_pdu_size = settings.max_pdu
    entity.acse_timeout = settings.acse_timeout_s
    entity.network_timeout = settings.network_timeout_s
    entity.maximum_associations = 1 << 20
    return entity


def limits(settings: ScpSettings) -> Limits:
    """Return what one peer may ask for."""
    return Limits(
        acse_timeout_s=settings.acse_timeout_s,
        network_timeout_s=settings.network_timeout_s,
        tls_handshake_timeout_s=settings.tls_handshake_timeout_s,
        max_pdu=settings.max_pdu,
        connections_per_address=settings.connections_per_address,
        connections=8 * settings.max_associations,
        reserved_connections=2 * settings.max_associations,
    )


def tls_context(settings: ScpSettings) -> FollowedContext | None:
    """Return the server side of TLS, or None without a certificate."""
    if settings.tls_certificate is None:
        return None
    return server_context(
        settings.tls_certificate,
        settings.tls_key,
        client_ca=settings.tls_client_ca,
        client_required=settings.tls_client_required,
    )


def quiet_pynetdicom() -> None:
    """Keep the library's own log out of ours: its lines may quote what peers sent."""
    logger = logging.getLogger("pynetdicom")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False


def _received_by(acceptor: Acceptor) -> set[str]:
    """Return the SOP Classes of which the caller offers to be the SCP."""
    roles = acceptor.requestor.role_selection
    return {str(uid) for uid, role in roles.items() if role.scp_role}


def _certificate_of(acceptor: Acceptor) -> str:
    connection = acceptor.dul.socket
    return "" if connection is None else fingerprint_shown(connection.socket)


def _printable(title: str) -> str:
    return "".join(c for c in title if c.isprintable())[:16]
