"""The audit trail on disk: append-only and hash-chained.

Entries are found by time, actor, action, entity and patient; each of these has an
index that ends in (at, sequence), so that a page is as quick among ten million.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.audit import (
    GENESIS,
    AuditEntry,
    Outcome,
    canonical_text,
    chain_hash,
    note_act,
)
from node.domain.audit_codes import patients_of
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

END = 2**63 - 1  # behind every entry
# So many entries are verified in one transaction, in about a second.
PIECE = 20_000
_DETAIL = json.JSONEncoder(ensure_ascii=False, sort_keys=True)
# An access waits until its entry is committed, not until the disk has it: a process
# that is killed loses nothing, a machine without power its last half second of reads
# (docs/decisions). What writes commits durably, and everything before it with it.
_APPEND = (
    "select set_config('synchronous_commit', 'off', true),"
    " audit_append_all($1, $2, $3, $4, $5, $6, $7, $8)"
)


@dataclass(frozen=True)
class Recorded:
    """An entry as it lies in the chain."""

    sequence: int
    entry: AuditEntry
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class Anchor:
    """A place in the chain that is known from elsewhere: an entry and its hash."""

    sequence: int = 0
    hash: bytes = GENESIS


@dataclass(frozen=True)
class Sought:
    """Which entries are asked for; what is None, or no patient, is not asked.

    `actors` did it; `programs` did it too, or somebody through one of them.
    `entities` are compared whole, and with a "/" at the end as a beginning.
    `since` is the first moment, `until` the first one too late.
    """

    since: datetime | None = None
    until: datetime | None = None
    actors: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    outcomes: tuple[str, ...] | None = None
    entities: tuple[str, ...] | None = None
    patients: tuple[UUID, ...] = ()
    sequences: tuple[int, ...] | None = None
    programs: tuple[str, ...] | None = None


async def record(tx: "Transaction", entry: AuditEntry) -> None:
    """Append `entry` to the chain; it becomes durable with `tx`.

    From here until `tx` ends nobody else can append: record last. Whose study or
    report it is about is added, so that her trail tells it.
    """
    entry = await _with_patient(tx, entry)
    await tx.execute(
        "select audit_append($1, $2, $3, $4, $5, $6, $7, $8)", *arguments(entry)
    )
    note_act(entry)


async def record_all(tx: "Transaction", entries: Sequence[AuditEntry]) -> None:
    """Append entries that name their patients, as `record` does, at once."""
    if entries:
        columns = zip(*map(arguments, entries), strict=True)
        await tx.execute(
            "select audit_append_all($1, $2, $3, $4, $5, $6, $7, $8)",
            *map(list, columns),
        )


_WHOSE = {
    "study": "select patient_id from studies where study_instance_uid = $1",
    "instance": "select s.patient_id from instances i join studies s"
    " using (study_instance_uid) where i.sop_instance_uid = $1",
    "report": "select patient_id from report where id = $1",
}


async def _with_patient(tx: "Transaction", entry: AuditEntry) -> AuditEntry:
    kind, _, rest = entry.entity.partition("/")
    query = _WHOSE.get(kind)
    if query is None or patients_of(entry):
        return entry
    named: str | UUID = rest.partition("/")[0]
    if kind == "report":
        try:
            named = UUID(str(named))
        except ValueError:
            return entry
    patient_id = await tx.fetchval(query, named)
    if patient_id is None:
        return entry
    return replace(entry, detail={**entry.detail, "patient": str(patient_id)})


async def append(connection: "Transaction", entries: Sequence[AuditEntry]) -> None:
    """Append entries in one transaction of their own, under one hold of the chain."""
    columns = zip(*map(arguments, entries), strict=True)
    await connection.fetchrow(_APPEND, *map(list, columns))


def arguments(entry: AuditEntry) -> tuple[object, ...]:
    """Return what the SQL function `audit_append` takes for `entry`."""
    entry = replace(entry, at=entry.at.astimezone(UTC))  # as it will be read back
    return (
        entry.at,
        entry.actor,
        entry.role,
        entry.action,
        entry.entity,
        entry.outcome.value,
        _DETAIL.encode(dict(entry.detail)),
        canonical_text(entry),
    )


async def verify(tx: "Transaction") -> int:
    """Recompute the chain; return its length; INTEGRITY names the first bad entry."""
    return (await verify_from(tx, Anchor())).sequence


async def verify_newest(tx: "Transaction", count: int) -> int:
    """Recompute the newest entries alone; return how many there are in all."""
    row = await tx.fetchrow(
        "select sequence, hash from audit_entries"
        " where sequence = (select max(sequence) - $1 from audit_entries)",
        count,
    )
    anchor = Anchor() if row is None else Anchor(row["sequence"], bytes(row["hash"]))
    return (await verify_from(tx, anchor)).sequence


async def verify_from(tx: "Transaction", anchor: Anchor, *, until: int = END) -> Anchor:
    """Recompute the chain from `anchor` on; return its head, or that of entry `until`.

    INTEGRITY names the first entry that does not follow from those before it, or
    tells that the index of patients does not say what the entries say.
    """
    last = anchor
    rows = tx.cursor(
        "select * from audit_entries where sequence > $1 and sequence <= $2"
        " order by sequence",
        anchor.sequence,
        until,
        prefetch=1000,
    )
    async for row in rows:
        last = follow(last, _recorded(row))
    if anchor.sequence and last.sequence == anchor.sequence:
        await _require_anchor(tx, anchor)
    astray = await tx.fetchval(_ASTRAY, anchor.sequence, until)
    if astray is not None:
        raise NodeError(
            f"the index of patients does not fit audit entry {astray}",
            ErrorKind.INTEGRITY,
        )
    return last


async def verify_piece(tx: "Transaction", anchor: Anchor, last: int) -> Anchor:
    """Recompute the next `PIECE` entries, to `last` at most; return the place reached.

    As `verify_from`; INTEGRITY too when entries up to `last` are no longer there.
    """
    until = min(anchor.sequence + PIECE, last)
    reached = await verify_from(tx, anchor, until=until)
    if reached.sequence < until:
        raise NodeError(
            f"audit entries after {reached.sequence} are gone", ErrorKind.INTEGRITY
        )
    return reached


def follow(last: Anchor, recorded: Recorded) -> Anchor:
    """Return where the chain stands after an entry; INTEGRITY if it does not follow."""
    expected = chain_hash(last.hash, recorded.entry)
    if (
        recorded.sequence != last.sequence + 1
        or recorded.previous_hash != last.hash
        or recorded.hash != expected
    ):
        raise NodeError(
            f"audit entry {recorded.sequence} or one before it was changed",
            ErrorKind.INTEGRITY,
        )
    return Anchor(recorded.sequence, expected)


# What the entries say of patients and what the index says, each without the other.
_ASTRAY = """
with told as (
    select patient, at, sequence
    from audit_entries, unnest(audit_patients_of(entity, detail)) as patient
    where sequence > $1 and sequence <= $2
), kept as (
    select patient_id, at, sequence from audit_patients
    where sequence > $1 and sequence <= $2
)
select min(sequence) from (
    (table told except table kept) union all (table kept except table told)
) as astray
"""


async def _require_anchor(tx: "Transaction", anchor: Anchor) -> None:
    """Raise INTEGRITY unless the last entry is the one that the anchor names."""
    found = await tx.fetchval(
        "select hash from audit_entries where sequence = $1", anchor.sequence
    )
    if found is None or bytes(found) != anchor.hash:
        raise NodeError(
            f"audit entry {anchor.sequence} is not the one that was kept",
            ErrorKind.INTEGRITY,
        )


async def entries(tx: "Transaction", *, entity: str) -> list[AuditEntry]:
    """Return what was recorded about `entity`, oldest first."""
    rows = await tx.fetch(
        'select * from audit_entries where entity collate "C" = $1 order by sequence',
        entity,
    )
    return [_entry(row) for row in rows]


async def head(tx: "Transaction") -> Anchor:
    """Return the last entry's place; whoever keeps it can prove what came before."""
    row = await tx.fetchrow(
        "select sequence, hash from audit_entries order by sequence desc limit 1"
    )
    return Anchor() if row is None else Anchor(row["sequence"], bytes(row["hash"]))


async def following(tx: "Transaction", after: int, limit: int) -> list[Recorded]:
    """Return the next entries in the order of the chain."""
    rows = await tx.fetch(
        "select * from audit_entries where sequence > $1 order by sequence limit $2",
        after,
        limit,
    )
    return [_recorded(row) for row in rows]


async def each(
    tx: "Transaction", first: int = 1, last: int | None = None
) -> AsyncIterator[Recorded]:
    """Yield the entries from `first` to `last` in the order of the chain."""
    rows = tx.cursor(
        "select * from audit_entries where sequence >= $1"
        " and ($2::bigint is null or sequence <= $2) order by sequence",
        first,
        last,
        prefetch=1000,
    )
    async for row in rows:
        yield _recorded(row)


# One step of the index for each action, however many entries there are.
_ACTIONS = """
with recursive known as (
    (select action from audit_entries order by action limit 1)
    union all
    select (select action from audit_entries e where e.action > k.action
            order by action limit 1)
    from known k where k.action is not null
)
select action from known where action is not null
"""


_ACTORS = _ACTIONS.replace("action", "actor")


async def actions(tx: "Transaction") -> list[str]:
    """Return every action that the trail holds."""
    return [row["action"] for row in await tx.fetch(_ACTIONS)]


async def actors(tx: "Transaction") -> list[str]:
    """Return whoever did something: ids of people and programs, AE titles."""
    return [row["actor"] for row in await tx.fetch(_ACTORS)]


Position = tuple[datetime, int]


async def search(
    tx: "Transaction",
    sought: Sought,
    *,
    limit: int,
    after: Position | None = None,
) -> list[Recorded]:
    """Return entries, the newest first, from behind the position `after`."""
    if sought.programs is None:
        return await _search(tx, sought, limit, after)
    # Each way has its index: neither is walked for what only the other finds.
    actors = sought.programs
    if sought.actors is not None:
        actors = tuple(one for one in actors if one in sought.actors)
    by_itself = replace(sought, programs=None, actors=actors)
    found = [
        *await _search(tx, by_itself, limit, after),
        *await _search(tx, sought, limit, after),
    ]
    alone = {one.sequence: one for one in found}
    newest = sorted(alone.values(), key=_position, reverse=True)
    return newest[:limit]


def _position(recorded: Recorded) -> Position:
    return recorded.entry.at, recorded.sequence


async def _search(
    tx: "Transaction", sought: Sought, limit: int, after: Position | None
) -> list[Recorded]:
    asked = _Asked("p" if sought.patients else "e")
    source = "audit_entries e"
    if len(sought.patients) == 1:
        source = "audit_patients p join audit_entries e using (sequence)"
        asked.that("p.patient_id = {}", sought.patients[0])
    elif sought.patients:
        # Where two of them stand in one entry it is found once.
        asked.values.append(list(sought.patients))
        source = (
            "(select distinct at, sequence from audit_patients"
            " where patient_id = any($1::uuid[])) p join audit_entries e"
            " using (sequence)"
        )
    _narrow(asked, sought)
    place = asked.place
    if after is not None:
        asked.values += after
        count = len(asked.values)
        asked.clauses.append(
            f"({place}.at, {place}.sequence) < (${count - 1}, ${count})"
        )
    asked.values.append(limit)
    rows = await tx.fetch(
        f"select e.* from {source} where {' and '.join(asked.clauses) or 'true'}"
        f" order by {place}.at desc, {place}.sequence desc"
        f" limit ${len(asked.values)}",
        *asked.values,
    )
    return [_recorded(row) for row in rows]


@dataclass
class _Asked:
    """Clauses with their values; `place` is the table whose order is searched."""

    place: str
    clauses: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def that(self, clause: str, value: object) -> None:
        self.values.append(value)
        self.clauses.append(clause.format(f"${len(self.values)}"))


def _narrow(asked: _Asked, sought: Sought) -> None:
    if sought.since is not None:
        asked.that(f"{asked.place}.at >= {{}}", sought.since)
    if sought.until is not None:
        asked.that(f"{asked.place}.at < {{}}", sought.until)
    for column, wanted in (
        ("e.actor", sought.actors),
        ("e.action", sought.actions),
        ("e.outcome", sought.outcomes),
    ):
        if wanted is not None and len(wanted) == 1:
            asked.that(f"{column} = {{}}", wanted[0])
        elif wanted is not None:
            asked.that(f"{column} = any({{}}::text[])", list(wanted))
    if sought.programs is not None:
        # The words of the index.
        asked.clauses.append('e.detail like \'%"client": "%\'')
        if len(sought.programs) == 1:
            asked.that("audit_client_of(e.detail) = {}", sought.programs[0])
        else:
            asked.that("audit_client_of(e.detail) = any({}::text[])", sought.programs)
    # What was not served is rare, what failed rarer: each has an index of its own.
    for common in (Outcome.SUCCESS.value, Outcome.REFUSED.value):
        if sought.outcomes is None or common in sought.outcomes:
            break
        asked.clauses.append(f"e.outcome <> '{common}'")
    if sought.entities is not None:
        _narrow_entities(asked, sought.entities)
    if sought.sequences is not None:
        asked.that("e.sequence = any({}::bigint[])", list(sought.sequences))


def _narrow_entities(asked: _Asked, entities: Sequence[str]) -> None:
    outer, asked.clauses = asked.clauses, []
    whole = [one for one in entities if not one.endswith("/")]
    if len(whole) == 1:
        asked.that('e.entity collate "C" = {}', whole[0])
    elif whole:
        asked.that('e.entity collate "C" = any({}::text[])', whole)
    for beginning in entities:
        if beginning.endswith("/"):
            # What begins so lies before the same with the sign that follows "/".
            asked.values += [beginning, f"{beginning[:-1]}0"]
            first, last = len(asked.values) - 1, len(asked.values)
            asked.clauses.append(
                f'(e.entity collate "C" >= ${first} and e.entity collate "C" < ${last})'
            )
    outer.append(f"({' or '.join(asked.clauses) or 'false'})")
    asked.clauses = outer


def _recorded(row: "asyncpg.Record") -> Recorded:
    return Recorded(
        row["sequence"],
        _entry(row),
        bytes(row["previous_hash"]),
        bytes(row["hash"]),
    )


def _entry(row: "asyncpg.Record") -> AuditEntry:
    return AuditEntry(
        at=row["at"],
        actor=row["actor"],
        role=row["role"],
        action=row["action"],
        entity=row["entity"],
        outcome=Outcome(row["outcome"]),
        detail=json.loads(row["detail"]),
    )
