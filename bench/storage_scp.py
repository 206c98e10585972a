"""Our storage SCP alone, to be measured: `python -m bench.storage_scp DIR PORT`."""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from dicom_scp.scp import ScpSettings, run_scp
from node.store.database import Database
from node.store.keys import create_root_key
from node.store.migrate import migrate
from node.store.postgres import EmbeddedPostgres
from node.store.store import Store, open_store


def main(folder: Path, port: int) -> None:
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

        run_scp(ScpSettings(host="127.0.0.1", port=port, min_free_bytes=0), opened)
    finally:
        server.stop()


async def _migrate(dsn: str) -> None:
    database = await Database.connect(dsn)
    await migrate(database)
    await database.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
