"""Numbered, checksummed SQL migrations, up only.

A file `NNNN_name.sql` runs once, in its own transaction. Several processes may
start at the same time: an advisory lock lets one of them work.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import structlog

from node.domain.errors import ErrorKind, NodeError
from node.store.database import Database

log = structlog.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_ADVISORY_LOCK = 0x736F6E6F_00000001  # "sono", 1

_LEDGER = """
create table if not exists schema_migrations (
    version integer primary key,
    name text not null,
    checksum bytea not null,
    applied_at timestamptz not null default now()
)
"""


@dataclass(frozen=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        return hashlib.sha256(self.sql.encode()).digest()


def read_migrations(directory: Path = MIGRATIONS) -> list[Migration]:
    """Return the migrations of `directory` in the order they apply."""
    found: dict[int, Migration] = {}
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path.name} is not named NNNN_name.sql")
        version = int(match[1])
        if version in found:
            raise ValueError(f"two migrations have the number {version}")
        found[version] = Migration(version, path.stem, path.read_text("utf-8"))
    return [found[version] for version in sorted(found)]


async def migrate(db: Database, directory: Path = MIGRATIONS) -> list[str]:
    """Bring the schema up to what this release knows; return what was applied.

    Raises NodeError SETTING, and changes nothing, when the database was written
    by a newer release or an applied migration differs from ours.
    """
    migrations = read_migrations(directory)
    async with db.connection() as connection:
        await connection.execute("select pg_advisory_lock($1)", _ADVISORY_LOCK)
        try:
            return await _apply(connection, migrations)
        finally:
            if not connection.is_closed():
                await connection.execute(
                    "select pg_advisory_unlock($1)", _ADVISORY_LOCK
                )


async def _apply(
    connection: "asyncpg.Connection[asyncpg.Record]", migrations: list[Migration]
) -> list[str]:
    await connection.execute(_LEDGER)
    rows = await connection.fetch("select version, checksum from schema_migrations")
    applied = {row["version"]: row["checksum"] for row in rows}
    _refuse_what_we_do_not_know(applied, migrations)
    done = []
    for migration in migrations:
        if migration.version in applied:
            continue
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "insert into schema_migrations (version, name, checksum)"
                " values ($1, $2, $3)",
                migration.version,
                migration.name,
                migration.checksum,
            )
        log.info("migrate.applied", migration=migration.name)
        done.append(migration.name)
    return done


def _refuse_what_we_do_not_know(
    applied: dict[int, bytes], migrations: list[Migration]
) -> None:
    known = {migration.version: migration for migration in migrations}
    newest_known = max(known, default=0)
    newest_applied = max(applied, default=0)
    if newest_applied > newest_known:
        raise NodeError(
            f"database.url: the schema is version {newest_applied}, this release "
            f"knows {newest_known}; install the newer release or restore a backup",
            ErrorKind.SETTING,
        )
    for version, checksum in applied.items():
        migration = known.get(version)
        if migration is None or migration.checksum != checksum:
            raise NodeError(
                f"database.url: migration {version:04d} was applied in another form; "
                "this database belongs to a different build of the node",
                ErrorKind.SETTING,
            )
