"""Certificates of a hospital that exists only in tests."""

import datetime
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """Issues certificates; `file` is its own, for those who trust it."""

    folder: Path
    name: str = "Hospital"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.file = self.folder / f"{self.name}.pem"
        self.file.write_bytes(_pem(self._make(self.name, self.key, days=99, ca=True)))

    def issue(self, name: str, *, days: float = 99, host: str = "") -> tuple[Path, str]:
        """Write certificate and key into one file; return it and the fingerprint."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._make(name, key, days=days, ca=False, host=host)
        file = self.folder / f"{name}.pem"
        content = _pem(certificate) + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        # A new file in the place of the old one, as those who renew it write it.
        fresh = file.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.rename(file)
        return file, certificate.fingerprint(hashes.SHA256()).hex()

    def _make(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: float,
        ca: bool,
        host: str = "",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        local = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        return (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host)] if host else local),
                False,
            )
            .sign(self.key, hashes.SHA256())
        )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
