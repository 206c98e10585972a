"""Bodies that were opened lately, and reading for many callers at once.

A newest version is read again and again: by every page that shows the worklist,
by every system that follows a notification. Its opened bytes are kept here, and
what they look like to those who see less. They never outlive the key that opened
them: what is erased is dropped at once, and used only while its key is at hand.
"""

# The only text put into a statement is a constant.
# ruff: noqa: S608

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.store.resources import COLUMNS, Stored, opened

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.keys import KeyRing, Sealer
    from node.store.store import Store

KEPT_BYTES = 64 << 20
# What an entry takes beside its bodies, roughly.
_ENTRY_BYTES = 1024
_BATCH = 200

Name = tuple[str, str]


@dataclass
class _Entry:
    stored: Stored
    sealer: "Sealer | None"
    size: int
    views: dict[str, bytes] = field(default_factory=dict)


class OpenedBodies:
    """The newest versions read lately, at most `limit` bytes; one event loop's.

    Only what was read outside of a writing transaction may be put here: a version
    that is rolled back has never been.
    """

    def __init__(self, ring: "KeyRing", limit: int = KEPT_BYTES) -> None:
        self._ring = ring
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Name, _Entry] = OrderedDict()
        ring.when_shredded(self._forget)

    @property
    def size(self) -> int:
        """Return how many bytes are held."""
        return self._size

    def version(self, name: Name) -> int | None:
        """Return which version of (type, id) is held, None when none is."""
        entry = self._entries.get(name)
        return entry.stored.version if entry and self._usable(entry) else None

    def find(self, name: Name, version: int) -> Stored | None:
        """Return this version of (type, id), or None."""
        entry = self._entries.get(name)
        if entry is None or entry.stored.version != version or not self._usable(entry):
            return None
        self._entries.move_to_end(name)
        return entry.stored

    def keep(self, stored: Stored) -> None:
        """Keep a newest version as it was read."""
        name = (stored.resource_type, stored.resource_id)
        held = self._entries.get(name)
        if held is not None and held.stored.version > stored.version:
            return
        sealer = None
        if stored.patient_id is not None:
            sealer = self._ring.patient_at_hand(stored.patient_id)
            if sealer is None:
                return  # erased in this moment, or not to be remembered yet
        self._drop(name)
        entry = _Entry(stored, sealer, len(stored.body) + _ENTRY_BYTES)
        self._entries[name] = entry
        self._grow(entry.size)

    def view(self, stored: Stored, key: str, make: Callable[[Stored], bytes]) -> bytes:
        """Return what `make` makes of a version, made once for each `key`."""
        entry = self._entries.get((stored.resource_type, stored.resource_id))
        if entry is None or entry.stored is not stored:
            return make(stored)
        body = entry.views.get(key)
        if body is None:
            body = entry.views[key] = make(stored)
            entry.size += len(body)
            self._grow(len(body))
        return body

    def _usable(self, entry: _Entry) -> bool:
        patient_id = entry.stored.patient_id
        if patient_id is None:
            return True
        return self._ring.patient_at_hand(patient_id) is entry.sealer

    def _grow(self, size: int) -> None:
        self._size += size
        while self._size > self._limit:
            _, oldest = self._entries.popitem(last=False)
            self._size -= oldest.size

    def _drop(self, name: Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._size -= entry.size

    def _forget(self, patient_id: UUID | None) -> None:
        for name, entry in list(self._entries.items()):
            if patient_id is None or entry.stored.patient_id == patient_id:
                self._drop(name)


# Left out are bodies that are held already.
_NEWEST = """
select r.resource_type, r.resource_id, r.version, r.last_updated, r.patient_id,
       v.method, v.body
from unnest($1::text[], $2::text[], $3::integer[]) as asked (type, id, held)
join resources r on r.resource_type = asked.type and r.resource_id = asked.id
left join resource_versions v
    on v.resource_type = asked.type and v.resource_id = asked.id
    and v.version = r.version and r.version is distinct from asked.held
"""


class NewestVersions:
    """Reads newest versions; what is asked during one query goes with the next.

    Whoever asks sees what was committed before she asked.
    """

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._asked: dict[Name, asyncio.Future[Stored]] = {}
        self._working: asyncio.Task[None] | None = None

    async def read(self, resource_type: str, resource_id: str) -> Stored:
        """Return the newest version; NOT_FOUND, or GONE when its key was shredded."""
        name = (resource_type, resource_id)
        answer = self._asked.get(name)
        if answer is None:
            answer = asyncio.get_running_loop().create_future()
            self._asked[name] = answer
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        # One caller that goes away takes the answer from nobody else.
        return await asyncio.shield(answer)

    async def _work(self) -> None:
        try:
            while self._asked:
                names = list(self._asked)[:_BATCH]
                answers = {name: self._asked.pop(name) for name in names}
                try:
                    await self._answer(answers)
                except Exception as error:
                    for answer in answers.values():
                        _fail(answer, error)
        finally:
            self._working = None

    async def _answer(self, answers: dict[Name, "asyncio.Future[Stored]"]) -> None:
        bodies = self._store.opened
        names = list(answers)
        async with self._store.db.reading(at_once=True) as tx:
            rows = await tx.fetch(
                _NEWEST,
                [name[0] for name in names],
                [name[1] for name in names],
                [bodies.version(name) for name in names],
            )
            for row in rows:
                name = (row["resource_type"], row["resource_id"])
                try:
                    stored = await self._open(tx, row)
                except Exception as error:  # this one's alone
                    _fail(answers[name], error)
                else:
                    if not answers[name].done():
                        answers[name].set_result(stored)
        for (kind, resource_id), answer in answers.items():
            if not answer.done():
                text = f"{kind}/{resource_id} is not known"
                _fail(answer, NodeError(text, ErrorKind.NOT_FOUND))

    async def _open(self, tx: "Transaction", row: "asyncpg.Record") -> Stored:
        bodies = self._store.opened
        name = (row["resource_type"], row["resource_id"])
        stored = bodies.find(name, row["version"])
        if stored is not None:
            return stored
        if row["body"] is None:  # dropped since it was left out: erased, or no room
            (row,) = await tx.fetch(
                f"select {COLUMNS} from resource_versions v where resource_type = $1"
                " and resource_id = $2 and version = $3",
                *name,
                row["version"],
            )
        stored = await opened(tx, self._store, row)
        bodies.keep(stored)
        return stored


def _fail(answer: "asyncio.Future[Stored]", error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # whoever asked may have gone


_BODIES = f"""
select {COLUMNS}
from unnest($1::text[], $2::text[], $3::integer[]) as asked (type, id, version)
join resource_versions v on v.resource_type = asked.type
    and v.resource_id = asked.id and v.version = asked.version
"""


async def load(
    tx: "Transaction",
    store: "Store",
    heads: Sequence["asyncpg.Record"],
    bodies: OpenedBodies | None,
) -> list[Stored]:
    """Return the versions that `heads` name, in their order, without erased ones.

    `bodies` is where to look first and to keep them; None within a transaction
    that writes.
    """
    found: dict[Name, Stored] = {}
    missing = []
    for head in heads:
        name = (head["resource_type"], head["resource_id"])
        stored = bodies.find(name, head["version"]) if bodies else None
        if stored is None:
            missing.append(head)
        else:
            found[name] = stored
    if missing:
        rows = await tx.fetch(
            _BODIES,
            [head["resource_type"] for head in missing],
            [head["resource_id"] for head in missing],
            [head["version"] for head in missing],
        )
        for row in rows:
            try:
                stored = await opened(tx, store, row)
            except NodeError as error:
                if error.kind is not ErrorKind.GONE:
                    raise
                continue
            found[stored.resource_type, stored.resource_id] = stored
            if bodies is not None:
                bodies.keep(stored)
    names = [(head["resource_type"], head["resource_id"]) for head in heads]
    return [found[name] for name in names if name in found]
