"""All that a handler needs to keep something: rows, keys, objects, jobs, the clock."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from node.store.blobs import BlobStore
from node.store.database import Database
from node.store.jobs import Jobs
from node.store.keys import KeyRing
from node.store.opened import OpenedBodies

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Store:
    """The opened store of one process."""

    db: Database
    ring: KeyRing
    blobs: BlobStore
    jobs: Jobs
    clock: Clock
    opened: OpenedBodies = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "opened", OpenedBodies(self.ring))

    async def close(self) -> None:
        """Give the database connections back."""
        await self.db.close()


async def open_store(
    dsn: str,
    root_key_file: Path,
    blob_directory: Path,
    clock: Clock,
    *,
    pool_size: int = 10,
) -> Store:
    """Return the store of a migrated database; SETTING or UNAVAILABLE say what ails."""
    database = await Database.connect(dsn, max_size=pool_size)
    try:
        ring = await KeyRing.open(database, root_key_file)
        await ring.forget_shredded()
    except BaseException:
        await database.close()
        raise
    return Store(
        db=database,
        ring=ring,
        blobs=BlobStore(blob_directory),
        jobs=Jobs(database, ring, clock),
        clock=clock,
    )
