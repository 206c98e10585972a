"""Our storage SCP alone: `python -m bench.storage_scp DIR PORT TLS_PORT`."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dicom_scp.receiving.scp import ScpSettings, run_scp
from node.store.database import Database
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.store import Store, open_store


def main(folder: Path, port: int, tls_port: int) -> None:
    """Serve until SIGTERM, durably: fsync of objects and rows is on."""
    server = EmbeddedPostgres(folder / "pg")
    server.start()
    try:
        dsn = server.create_database("node")
        asyncio.run(_migrate(dsn))
        key = folder / "root.key"
        create_root_key(key)

        async def opened() -> Store:
            return await open_store(
                dsn, key, folder / "objects", lambda: datetime.now(UTC)
            )

        settings = ScpSettings(
            host="127.0.0.1",
            port=port,
            tls_port=tls_port,
            tls_certificate=_certificate(folder),
            min_free_bytes=0,
        )
        run_scp(settings, opened)
    finally:
        server.stop()


def _certificate(folder: Path) -> Path:
    """Return a file with a certificate for localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def _migrate(dsn: str) -> None:
    database = await Database.connect(dsn)
    await migrate(database)
    await database.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
