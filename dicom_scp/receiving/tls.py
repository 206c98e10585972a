"""TLS for DIMSE, both ways: BCP 195 profile (PS3.15 B.12, RFC 9325).

TLS 1.2 and 1.3 with forward secrecy and authenticated encryption, nothing older.
Certificates are followed: a renewed file counts from the next connection on, without a
restart; one that cannot be used changes nothing but the log and what `doctor` says.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from socket import socket
from typing import Any, Final, Protocol

from cryptography import x509

from node.domain.errors import ErrorKind, NodeError
from node.followed import Followed

# RFC 9325 4.2.1, for TLS 1.2; those of TLS 1.3 are all of this kind.
CIPHERS: Final = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
    )
)


class WrapsSockets(Protocol):
    """What a connection needs of an `ssl.SSLContext`."""

    def wrap_socket(self, sock: socket, **options: Any) -> ssl.SSLSocket:
        """Return `sock` as a TLS socket."""
        ...


class FollowedContext:
    """A TLS context that is made anew when its files change; for every thread."""

    def __init__(self, files: Sequence[Path], make: Callable[[], ssl.SSLContext]):
        """Make the first context; raises NodeError SETTING when that fails."""
        self._followed = Followed("dicom.certificates", lambda: files, make)

    def wrap_socket(self, sock: socket, **options: Any) -> ssl.SSLSocket:
        """Return `sock` as a TLS socket under the present certificates."""
        return self.current().wrap_socket(sock, **options)

    def current(self) -> ssl.SSLContext:
        """Return the context of the newest files that could be used."""
        return self._followed.current()


def server_context(
    certificate: Path,
    key: Path | None,
    *,
    client_ca: Path | None = None,
    client_required: bool = True,
) -> FollowedContext:
    """Return the side that is called.

    With `client_ca` callers show a certificate that it vouches for: all of them, or
    only those who have one. Raises NodeError SETTING naming the setting at fault.
    """

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER)
        # Every connection proves its certificate anew: none is remembered.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        _load_certificate(context, "dicom.tls_certificate", certificate, key)
        if client_ca is not None:
            _load_trusted(context, "dicom.tls_client_ca", client_ca)
            required = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
            context.verify_mode = required
        return context

    return FollowedContext(_present(certificate, key, client_ca), make)


def client_context(
    *,
    trusted: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    check_names: bool = True,
) -> FollowedContext:
    """Return the calling side, for every association that we ask for.

    `trusted` holds the authorities, or the very certificates, of those we call; None:
    the authorities of the system. `certificate` is shown to who asks for one.
    `check_names=False` lets a trusted certificate stand under any host name, as
    machines without DNS need. Raises NodeError SETTING naming the setting at fault.
    """

    def make() -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = check_names
        if trusted is None:
            context.load_default_certs()
        else:
            _load_trusted(context, "dicom.tls_trusted", trusted)
        if certificate is not None:
            setting = "dicom.tls_calling_certificate"
            _load_certificate(context, setting, certificate, key)
        return context

    return FollowedContext(_present(trusted, certificate, key), make)


def fingerprint_shown(connection: socket | None) -> str:
    """Return the SHA-256 of the peer's certificate in hex; "" when it showed none."""
    if not isinstance(connection, ssl.SSLSocket):
        return ""
    shown = connection.getpeercert(binary_form=True)
    return hashlib.sha256(shown).hexdigest() if shown else ""


def first_expiry(file: Path) -> datetime:
    """Return when the first certificate of a PEM file expires; NodeError SETTING."""
    try:
        certificates = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        raise NodeError(
            f"{file}: no certificate ({type(error).__name__})", ErrorKind.SETTING
        ) from None
    return min(one.not_valid_after_utc for one in certificates)


def why_refused(error: Exception) -> str | None:
    """Return what a failed handshake says about the caller; None when nothing.

    That somebody hung up or spoke something else than TLS is noise of the network.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return "a certificate that is not trusted here"
    return _REFUSALS.get(getattr(error, "reason", None) or "")


_REFUSALS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate",
    "UNSUPPORTED_PROTOCOL": "a version of TLS before 1.2",
    "NO_SHARED_CIPHER": "no cipher of the BCP 195 profile",
}


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    # One machine's own certificate may be trusted without the authority above it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_certificate(
    context: ssl.SSLContext, setting: str, certificate: Path, key: Path | None
) -> None:
    try:
        # Without a password for it OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise _unusable(setting, error) from None


def _load_trusted(context: ssl.SSLContext, setting: str, file: Path) -> None:
    try:
        context.load_verify_locations(file)
    except (OSError, ValueError) as error:
        raise _unusable(setting, error) from None


def _unusable(setting: str, error: Exception) -> NodeError:
    told = getattr(error, "reason", None) or type(error).__name__
    return NodeError(f"{setting}: cannot be used ({told})", ErrorKind.SETTING)


def _present(*files: Path | None) -> list[Path]:
    return [file for file in files if file is not None]
