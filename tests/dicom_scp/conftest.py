"""A storage SCP in the test's process."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dicom_scp.receiving.scp import ScpSettings, StorageScp
from dicom_scp.services.service import Service
from node.store.store import Store, open_store

StartScp = Callable[..., Awaitable[StorageScp]]

SETTINGS = ScpSettings(
    host="127.0.0.1",
    port=0,
    acse_timeout_s=30.0,
    network_timeout_s=30.0,
    tls_handshake_timeout_s=10.0,
    commit_timeout_s=30.0,
    grace_s=2.0,
    min_free_bytes=0,
)


@pytest.fixture
async def start_scp(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[StartScp]:
    """Return a starter of SCPs on the same database and objects as `store`."""
    monkeypatch.setattr("dicom_scp.receiving.scp.POLL_S", 0.01)  # many are stopped
    started: list[StorageScp] = []

    async def open_another() -> Store:
        return await open_store(
            store.db._dsn,
            store.ring._root_path,
            store.blobs._root,
            store.clock,
            pool_size=3,
        )

    async def start(
        *, services: Sequence[Service] = (), **changes: object
    ) -> StorageScp:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        scp = StorageScp(settings, open_another, services)
        await asyncio.to_thread(scp.start)
        started.append(scp)
        return scp

    yield start
    for scp in started:
        await asyncio.to_thread(scp.stop, grace_s=0)


@pytest.fixture(scope="session")
def tls_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost and its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return file
