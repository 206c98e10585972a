"""Asks a DICOM node, step by step, whether we can work with it, and says what to mend.

Name, connection, certificate, association, echo, classes, transfer syntaxes, storage
commitment; for DICOMweb the URL and the credentials. The first step that fails ends the
probe, as nothing behind it can be known. Nothing is stored at the other side.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
from cryptography import x509
from pydicom.uid import (
    JPEG2000,
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pynetdicom.presentation import PresentationContext, build_context

from dicom_scp.results.sr import SR_CLASSES
from dicom_scp.sending.scu import associate
from dicom_scp.sending.stow import HTTP_OUTCOMES
from node.domain.errors import NodeError
from node.store import routes
from node.store.routes import ProbeAnswer

if TYPE_CHECKING:
    from pynetdicom.association import Association

    from dicom_scp.sending.scu import Destination
    from dicom_scp.sending.stow import StowDestination
    from node.store.store import Store

FRESH: Final = timedelta(days=1)
DOUBTED: Final = timedelta(minutes=10)
SOON: Final = timedelta(days=30)
CONNECT_S: Final = 5.0
VERIFICATION: Final = "1.2.840.10008.1.1"
PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
IMAGES: Final = (str(UltrasoundImageStorage), str(UltrasoundMultiFrameImageStorage))
_HEAT_MAPS: Final = str(SecondaryCaptureImageStorage)
_OTHERS: Final = tuple(
    map(
        str,
        (
            SegmentationStorage,
            KeyObjectSelectionDocumentStorage,
            EncapsulatedPDFStorage,
        ),
    )
)
_NATIVE: Final = tuple(map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)))
_COMPRESSED: Final = tuple(
    map(
        str,
        (JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000Lossless, JPEG2000, RLELossless),
    )
)


@dataclass(frozen=True)
class Finding:
    """What one step found, and when it is not well what has to be changed."""

    step: str
    well: bool
    told: str


@dataclass(frozen=True)
class Probe:
    """All that was found. `accepted` has every class asked for, refused ones empty."""

    findings: tuple[Finding, ...]
    accepted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    commitment: bool = False

    @property
    def well(self) -> bool:
        """Tell whether nothing has to be changed."""
        return all(finding.well for finding in self.findings)


class _Stopped(Exception):
    """A step failed; those behind it are not tried."""


class _Steps:
    """The findings so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def well(self, step: str, told: str) -> None:
        self.findings.append(Finding(step, True, told))

    def ill(self, step: str, told: str) -> None:
        self.findings.append(Finding(step, False, told))

    def stop(self, step: str, told: str) -> _Stopped:
        self.ill(step, told)
        return _Stopped()


# --- C-STORE archives ---------------------------------------------------------------


def probe_archive(destination: Destination, *, now: datetime) -> Probe:
    """Ask an archive that takes C-STORE. Blocks."""
    steps = _Steps()
    accepted: dict[str, tuple[str, ...]] = {}
    commitment = False
    with suppress(_Stopped):
        check_connection(steps, destination.host, destination.port)
        if destination.tls is not None:
            check_certificate(
                steps, destination.host, destination.port, destination.tls, now
            )
        association = _associated(steps, destination, _archive_contexts())
        try:
            _echo(steps, association)
            accepted = _accepted(association)
            commitment = bool(accepted.pop(PUSH_MODEL))
            _classes(steps, destination, accepted)
            _commitment(steps, destination, commitment)
        finally:
            if association.is_established:
                association.release()
    return Probe(tuple(steps.findings), accepted, commitment)


def probe_machine(destination: Destination, *, now: datetime) -> tuple[Finding, ...]:
    """Find out whether we reach a machine, as for commitment reports. Blocks.

    Many machines listen for reports only and offer no Verification: the connection
    is what counts.
    """
    steps = _Steps()
    contexts = [build_context(uid, list(_NATIVE)) for uid in (VERIFICATION, PUSH_MODEL)]
    with suppress(_Stopped):
        check_connection(steps, destination.host, destination.port)
        if destination.tls is not None:
            check_certificate(
                steps, destination.host, destination.port, destination.tls, now
            )
        association = _associated(steps, destination, contexts)
        try:
            _echo(steps, association)
        finally:
            if association.is_established:
                association.release()
    return tuple(steps.findings)


def check_connection(steps: _Steps, host: str, port: int) -> None:
    """Find out whether somebody listens there."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        raise steps.stop(
            "name",
            f"no name service knows {host}: write the IP address, or mend the name",
        ) from None
    where = f"{address} port {port}"
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            steps.well("connection", f"somebody listens at {where}")
    except ConnectionRefusedError:
        raise steps.stop(
            "connection",
            f"refused: that machine is on, but nothing listens at {where}; compare the"
            " port with the archive's own settings, and see whether it runs",
        ) from None
    except TimeoutError:
        raise steps.stop(
            "connection",
            f"no answer from {where} within {CONNECT_S:g} s: a firewall drops it, or"
            " the address is another one; ask for TCP from this machine to there",
        ) from None
    except OSError as error:
        raise steps.stop(
            "connection", f"{where} cannot be reached ({error.strerror}): see routing"
        ) from None


def check_certificate(
    steps: _Steps, host: str, port: int, tls: Any, now: datetime
) -> None:
    """Shake hands over TLS; say whose certificate it is and until when it holds."""
    try:
        with (
            closing(socket.create_connection((host, port), timeout=CONNECT_S)) as plain,
            tls.wrap_socket(plain, server_hostname=host) as secured,
        ):
            version = secured.version()
            shown = secured.getpeercert(binary_form=True)
    except ssl.SSLCertVerificationError as error:
        raise steps.stop(
            "certificate",
            f"not trusted: {error.verify_message}. It shows {_shown(host, port)};"
            " put the authority that signed it into the trusted file, or have it"
            f" made out to {host}",
        ) from None
    except ssl.SSLError as error:
        raise steps.stop(
            "certificate",
            f"no TLS with this port ({error.reason or 'broken off'}): it may speak"
            " without TLS (tls = false), on another port, or older than TLS 1.2",
        ) from None
    except OSError:
        raise steps.stop(
            "certificate",
            "it hangs up or is silent during the TLS handshake: this port may speak"
            " without TLS (tls = false)",
        ) from None
    certificate = x509.load_der_x509_certificate(shown)
    until = certificate.not_valid_after_utc
    told = f"{version}, {_words_of(certificate)}"
    if until - now < SOON:
        steps.ill("certificate", f"{told}: have it renewed before it ends")
    else:
        steps.well("certificate", told)


def _shown(host: str, port: int) -> str:
    """Return in words the certificate that we do not trust."""
    with suppress(OSError, ValueError):
        pem = ssl.get_server_certificate((host, port), timeout=CONNECT_S)
        return _words_of(x509.load_pem_x509_certificate(pem.encode()))
    return "none that could be read"


def _words_of(certificate: x509.Certificate) -> str:
    names: list[str] = []
    with suppress(x509.ExtensionNotFound):
        extension = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        names = [str(name.value) for name in extension.value]
    made_out = ", ".join(names) or certificate.subject.rfc4514_string()
    return (
        f"certificate of {made_out} by {certificate.issuer.rfc4514_string()}"
        f" until {certificate.not_valid_after_utc:%Y-%m-%d}"
    )


def _archive_contexts() -> list[PresentationContext]:
    native = (VERIFICATION, *SR_CLASSES, _HEAT_MAPS, *_OTHERS, *IMAGES, PUSH_MODEL)
    contexts = [build_context(c, s) for c in native for s in _NATIVE]
    return contexts + [build_context(c, s) for c in IMAGES for s in _COMPRESSED]


def _associated(
    steps: _Steps, destination: Destination, contexts: list[PresentationContext]
) -> Association:
    try:
        association = associate(destination, contexts)
    except NodeError as error:
        told = error.message.removeprefix(f"{destination} ")
        if told.startswith("does not answer"):
            told = (
                "it takes the connection but answers no association: the port may be"
                " another service, or want TLS"
                if destination.tls is None
                else "it ends the connection after the TLS handshake: it may want a"
                " certificate of ours (dicom.tls_calling_certificate)"
            )
        raise steps.stop("association", told) from None
    steps.well(
        "association",
        f"{destination.ae_title} accepts us as {destination.calling_ae_title}",
    )
    return association


def _echo(steps: _Steps, association: Association) -> None:
    try:
        status = association.send_c_echo().get("Status")
    except (ValueError, RuntimeError):
        steps.well("echo", "it does not offer Verification; that is no hindrance")
        return
    if status == 0x0000:
        steps.well("echo", "answered")
    elif status is None:
        raise steps.stop("echo", "not answered: it hangs or went away; look there")
    else:
        steps.ill("echo", f"answered with status {status:04X}: look into its log")


def _accepted(association: Association) -> dict[str, tuple[str, ...]]:
    asked = association.requestor.requested_contexts
    accepted: dict[str, tuple[str, ...]] = {str(c.abstract_syntax): () for c in asked}
    for context in association.accepted_contexts:
        uid, syntax = str(context.abstract_syntax), str(context.transfer_syntax[0])
        accepted[uid] = (*accepted[uid], syntax)
    return accepted


def _classes(
    steps: _Steps, destination: Destination, accepted: Mapping[str, tuple[str, ...]]
) -> None:
    documents = [c for c in destination.sr_sop_classes if accepted.get(c)]
    if not documents:
        steps.ill(
            "reports",
            "it takes no Structured Report: have "
            + " or ".join(_names(destination.sr_sop_classes))
            + " Storage switched on there",
        )
    else:
        best = documents[0]
        told = f"go as {_name(best)}"
        if best != destination.sr_sop_classes[0]:
            told += f"; it does not take {_name(destination.sr_sop_classes[0])}"
        steps.well("reports", told)
    if accepted[_HEAT_MAPS]:
        steps.well("heat maps", f"go as {_name(_HEAT_MAPS)}")
    else:
        steps.ill("heat maps", f"it does not take {_name(_HEAT_MAPS)}: switch it on")
    refused = [c for c in _OTHERS if not accepted[c]]
    taken = [c for c in _OTHERS if accepted[c]]
    told = f"it takes {_listed(taken)}" if taken else ""
    if refused:
        told = f"{told}; not {_listed(refused)}" if told else f"not {_listed(refused)}"
    steps.well("other results", told)
    for uid in IMAGES:
        syntaxes = accepted[uid]
        told = f"{_name(uid)}: " + (_listed(syntaxes) if syntaxes else "not taken")
        steps.well("images", told)


def _commitment(steps: _Steps, destination: Destination, offered: bool) -> None:
    if offered:
        steps.well("storage commitment", "offered")
    elif destination.commitment:
        steps.ill(
            "storage commitment",
            "not offered: have it switched on there, or set commitment = false",
        )
    else:
        steps.well("storage commitment", "not offered, and not asked for")


def _name(uid: str) -> str:
    return UID(uid).name.removesuffix(" Storage")


def _names(uids: Iterable[str]) -> list[str]:
    return [_name(uid) for uid in uids]


def _listed(uids: Iterable[str]) -> str:
    return ", ".join(_names(uids))


# --- DICOMweb archives --------------------------------------------------------------


async def probe_stow(
    destination: StowDestination, session: aiohttp.ClientSession, *, now: datetime
) -> Probe:
    """Ask a DICOMweb archive, with a store request that holds nothing."""
    steps = _Steps()
    parts = urlsplit(destination.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with suppress(_Stopped):
        host = parts.hostname or ""
        await asyncio.to_thread(check_connection, steps, host, port)
        if parts.scheme == "https":
            make = destination.tls or ssl.create_default_context
            context = make()
            await asyncio.to_thread(check_certificate, steps, host, port, context, now)
        await _empty_request(steps, destination, session)
    return Probe(tuple(steps.findings))


async def _empty_request(
    steps: _Steps, destination: StowDestination, session: aiohttp.ClientSession
) -> None:
    boundary = "nothing"
    headers = {
        "Content-Type": 'multipart/related; type="application/dicom";'
        f" boundary={boundary}",
        "Accept": "application/dicom+json",
    }
    try:
        if authorization := destination.authorize():
            headers["Authorization"] = authorization
    except NodeError as error:
        raise steps.stop("credentials", error.message) from None
    try:
        async with session.post(
            f"{destination.url.rstrip('/')}/studies",
            data=f"--{boundary}--\r\n".encode(),
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=destination.response_timeout_s),
            ssl=True if destination.tls is None else destination.tls(),
        ) as response:
            status = response.status
            elsewhere = response.headers.get("Location", "")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise steps.stop(
            "service", f"no answer to HTTP ({type(error).__name__}): look there"
        ) from None
    if 300 <= status < 400:
        host = urlsplit(elsewhere).netloc or "another path"
        raise steps.stop(
            "service", f"it sends us to {host} ({status}): set url to the last place"
        )
    if status in (401, 403, 404, 405):
        step = "credentials" if status in (401, 403) else "service"
        raise steps.stop(step, f"it {HTTP_OUTCOMES[status][1]} (HTTP {status})")
    if status >= 500:
        raise steps.stop("service", f"it fails itself (HTTP {status}): see its log")
    steps.well("service", f"takes store requests as {_who(headers)}")
    steps.well("reports", "DICOMweb tells no classes: the first refusal teaches us")


def _who(headers: Mapping[str, str]) -> str:
    kind, _, _ = headers.get("Authorization", "nobody in particular").partition(" ")
    return {"Bearer": "the bearer of our token", "Basic": "our user"}.get(
        kind, "nobody in particular"
    )


# --- what is remembered -------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A destination to be asked: its name, its address in words, and how."""

    name: str
    address: str
    ask: Callable[[datetime], Awaitable[Probe]]


def targets_of(
    dimse: Mapping[str, Destination],
    stow: Mapping[str, StowDestination],
    session: aiohttp.ClientSession,
) -> list[Target]:
    """Return all that can be asked."""

    def archive(destination: Destination) -> Callable[[datetime], Awaitable[Probe]]:
        return lambda now: asyncio.to_thread(probe_archive, destination, now=now)

    def web(destination: StowDestination) -> Callable[[datetime], Awaitable[Probe]]:
        return lambda now: probe_stow(destination, session, now=now)

    return [
        *(Target(name, str(one), archive(one)) for name, one in dimse.items()),
        *(Target(name, str(one), web(one)) for name, one in stow.items()),
    ]


async def ask(target: Target, store: Store | None) -> Probe:
    """Ask a destination now, and remember what it said where there is a store."""
    if store is None:
        return await target.ask(datetime.now(UTC))
    at = store.clock()
    probe = await target.ask(at)
    answer = ProbeAnswer(
        target.name,
        target.address,
        at,
        probe.well,
        False,
        tuple((f.step, f.well, f.told) for f in probe.findings),
        probe.accepted,
        probe.commitment,
    )
    async with store.db.transaction() as tx:
        await routes.remember_probe(tx, answer)
    return probe


async def ask_again(store: Store, targets: Iterable[Target]) -> int:
    """Ask those whose answer is a day old, or in doubt; return how many."""
    count = 0
    for target in targets:
        async with store.db.connection() as connection:
            answer = await routes.probe_answer(connection, target.name)
        if answer is not None and answer.target == target.address:
            limit = FRESH if answer.well and not answer.stale else DOUBTED
            if store.clock() - answer.at < limit:
                continue
        await ask(target, store)
        count += 1
    return count
