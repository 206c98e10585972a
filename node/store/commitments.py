"""Storage commitment on disk: what machines asked of us, what we asked of archives.

UIDs and AE titles only. A request of a machine has rounds: one that asks again under
the same Transaction UID has lost our answer and gets it anew. A delivery is one result
at one archive; it is found by the UID under which it went there, too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.errors import ErrorKind, NodeError
from node.store import studies

if TYPE_CHECKING:
    import asyncpg

    from node.store.blobs import BlobReader
    from node.store.database import Transaction
    from node.store.store import Store


@dataclass(frozen=True, order=True)
class Reference:
    """One item of Referenced SOP Sequence (0008,1199)."""

    sop_class_uid: str
    sop_instance_uid: str


# -- what machines ask of us -----------------------------------------------------------


@dataclass(frozen=True)
class CommitmentRequest:
    """An N-ACTION that was answered 0x0000: we owe its sender a report."""

    id: UUID
    calling_ae: str
    transaction_uid: str
    round: int
    asked_at: datetime
    reported_at: datetime | None


@dataclass(frozen=True)
class KeptInstance:
    """What is needed to prove that an instance is kept."""

    sop_instance_uid: str
    sop_class_uid: str
    blob_name: str
    size: int
    blob_key: bytes = field(repr=False)

    def open(self, store: "Store") -> "BlobReader":
        """Return the object's reader; NOT_FOUND when there is none."""
        return store.blobs.reader(
            self.blob_name,
            key=self.blob_key,
            associated_data=studies.associated_data(self.sop_instance_uid),
        )


async def open_request(
    tx: "Transaction",
    *,
    calling_ae: str,
    transaction_uid: str,
    references: Sequence[Reference],
    at: datetime,
) -> CommitmentRequest:
    """Keep what a machine asks for; the same again opens the next round.

    CONFLICT when the machine used this Transaction UID for another list.
    """
    wanted = sorted(set(references))
    digest = _digest(wanted)
    row = await tx.fetchrow(
        "insert into commitment_requests"
        " (request_id, calling_ae, transaction_uid, sha256, asked_at)"
        " values ($1, $2, $3, $4, $5) on conflict (calling_ae, transaction_uid)"
        " do update set round = commitment_requests.round + 1, asked_at = $5,"
        "  checked_at = null, reported_at = null"
        " where commitment_requests.sha256 = $4 returning *",
        uuid4(),
        calling_ae,
        transaction_uid,
        digest,
        at,
    )
    if row is None:
        raise NodeError(
            "Transaction UID was used for another list",
            ErrorKind.CONFLICT,
            expression="TransactionUID",
        )
    if row["round"] == 1:
        await tx.executemany(
            "insert into commitment_references"
            " (request_id, sop_instance_uid, sop_class_uid) values ($1, $2, $3)",
            [(row["request_id"], r.sop_instance_uid, r.sop_class_uid) for r in wanted],
        )
    return _request(row)


async def request(
    tx: "Transaction", request_id: UUID
) -> tuple[CommitmentRequest, list[Reference]]:
    """Return a request and its list; NOT_FOUND when there is none."""
    row = await tx.fetchrow(
        "select * from commitment_requests where request_id = $1", request_id
    )
    if row is None:
        raise NodeError(
            f"there is no commitment request {request_id}", ErrorKind.NOT_FOUND
        )
    references = await tx.fetch(
        "select sop_class_uid, sop_instance_uid from commitment_references"
        " where request_id = $1 order by sop_instance_uid, sop_class_uid",
        request_id,
    )
    return _request(row), [Reference(*reference) for reference in references]


async def kept_instances(
    tx: "Transaction", store: "Store", sop_instance_uids: Sequence[str]
) -> dict[str, KeptInstance]:
    """Return what is needed to open those instances that have a row.

    Those of an erased patient are not among them: nobody can open them any more.
    """
    rows = await tx.fetch(
        "select i.sop_instance_uid, i.sop_class_uid, i.blob_name, i.size, i.blob_key,"
        " s.patient_id from instances i join studies s using (study_instance_uid)"
        " where i.sop_instance_uid = any($1)",
        list(sop_instance_uids),
    )
    found = {}
    for row in rows:
        uid = row["sop_instance_uid"]
        try:
            sealer = await store.ring.patient(tx, row["patient_id"])
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            continue
        key = sealer.open(
            row["blob_key"], table="instances", row=uid, column="blob_key"
        )
        found[uid] = KeptInstance(
            uid, row["sop_class_uid"], row["blob_name"], row["size"], key
        )
    return found


async def note_check(
    tx: "Transaction",
    request_id: UUID,
    failures: Mapping[Reference, int],
    *,
    at: datetime,
) -> None:
    """Keep what a check found: the failure reasons, null for all the others."""
    await tx.execute(
        "update commitment_requests set checked_at = $2 where request_id = $1",
        request_id,
        at,
    )
    await tx.execute(
        "update commitment_references r set failure_reason = f.reason"
        " from commitment_references o left join unnest($2::text[], $3::text[],"
        "  $4::int[]) as f(uid, class, reason)"
        "  on f.uid = o.sop_instance_uid and f.class = o.sop_class_uid"
        " where r.request_id = $1 and o.request_id = $1"
        " and o.sop_instance_uid = r.sop_instance_uid"
        " and o.sop_class_uid = r.sop_class_uid",
        request_id,
        [reference.sop_instance_uid for reference in failures],
        [reference.sop_class_uid for reference in failures],
        list(failures.values()),
    )


async def note_reported(
    tx: "Transaction", asked: CommitmentRequest, *, at: datetime
) -> bool:
    """Note that the machine has taken the report of this round; False when it had."""
    noted = await tx.fetchval(
        "update commitment_requests set reported_at = $3 where request_id = $1"
        " and round = $2 and reported_at is null returning true",
        asked.id,
        asked.round,
        at,
    )
    return bool(noted)


async def overdue_reports(
    tx: "Transaction", before: datetime
) -> list[CommitmentRequest]:
    """Return the requests of before `before` whose report nobody has taken yet."""
    rows = await tx.fetch(
        "select * from commitment_requests where reported_at is null"
        " and asked_at < $1 order by asked_at",
        before,
    )
    return [_request(row) for row in rows]


def _digest(references: Sequence[Reference]) -> bytes:
    lines = (f"{r.sop_class_uid} {r.sop_instance_uid}\n" for r in references)
    return hashlib.sha256("".join(lines).encode()).digest()


def _request(row: "asyncpg.Record") -> CommitmentRequest:
    return CommitmentRequest(
        id=row["request_id"],
        calling_ae=row["calling_ae"],
        transaction_uid=row["transaction_uid"],
        round=row["round"],
        asked_at=row["asked_at"],
        reported_at=row["reported_at"],
    )


# -- what we ask of archives -----------------------------------------------------------


class DeliveryState(StrEnum):
    """How far a result has come at an archive."""

    SENT = "sent"  # it answered the C-STORE with success
    COMMITTED = "committed"  # it has committed itself to keep the object
    FAILED = "failed"  # it says that it does not, or never said anything


@dataclass(frozen=True)
class Delivery:
    """One result at one archive; `reason` says in words why it failed.

    `sent` is what the archive has: a document may go under a lesser class, with
    another UID. `transaction_uid` is the newest request that names it.
    """

    sop_instance_uid: str
    destination: str
    study_instance_uid: str
    sent: Reference
    state: DeliveryState
    awaited: bool
    sends: int
    requests: int
    transaction_uid: str | None
    reason: str | None

    def waits_for(self, transaction_uid: str) -> bool:
        """Tell whether what is said under this UID decides about it now."""
        newest = self.transaction_uid == transaction_uid
        return newest and self.state is DeliveryState.SENT


@dataclass(frozen=True)
class Asking:
    """A request to an archive, with everything that it names."""

    transaction_uid: str
    destination: str
    references: tuple[Reference, ...]


async def note_sent(
    tx: "Transaction",
    *,
    sop_instance_uid: str,
    destination: str,
    sent: Reference,
    awaited: bool,
    at: datetime,
) -> Delivery:
    """Note that an archive has answered with success; what was settled is open again.

    NOT_FOUND when the instance has no row.
    """
    row = await tx.fetchrow(
        "insert into deliveries (sop_instance_uid, destination, study_instance_uid,"
        " sent_class_uid, sent_instance_uid, state, awaited, sent_at)"
        " select sop_instance_uid, $2, study_instance_uid, $3, $4, 'sent', $5, $6"
        " from instances where sop_instance_uid = $1"
        " on conflict (sop_instance_uid, destination) do update set"
        "  sent_class_uid = $3, sent_instance_uid = $4, state = 'sent', awaited = $5,"
        "  sends = deliveries.sends + 1, requests = 0, transaction_uid = null,"
        "  reason = null, told = false, sent_at = $6, settled_at = null returning *",
        sop_instance_uid,
        destination,
        sent.sop_class_uid,
        sent.sop_instance_uid,
        awaited,
        at,
    )
    if row is None:
        raise NodeError(f"there is no instance {sop_instance_uid}", ErrorKind.NOT_FOUND)
    return _delivery(row)


async def delivery(
    tx: "Transaction", sop_instance_uid: str, destination: str
) -> Delivery | None:
    """Return how far a result has come at an archive, locked; None: not sent yet."""
    row = await tx.fetchrow(
        "select * from deliveries where sop_instance_uid = $1 and destination = $2"
        " for update",
        sop_instance_uid,
        destination,
    )
    return None if row is None else _delivery(row)


async def deliveries_of_study(
    tx: "Transaction", study_instance_uid: str
) -> list[Delivery]:
    """Return how far the results of a study have come, in the order they were sent."""
    rows = await tx.fetch(
        "select * from deliveries where study_instance_uid = $1"
        " order by sent_at, sop_instance_uid, destination",
        study_instance_uid,
    )
    return [_delivery(row) for row in rows]


async def open_transaction(
    tx: "Transaction",
    mine: Delivery,
    *,
    transaction_uid: str,
    limit: int,
    at: datetime,
) -> Asking | None:
    """Return what has to be asked so that `mine` is asked for; None when it was.

    That is its transaction when the archive has not accepted it yet, otherwise a
    new one for everything of the study that waits to be asked there.
    """
    if mine.transaction_uid is not None:
        accepted = await tx.fetchval(
            "select accepted_at from commitment_transactions"
            " where transaction_uid = $1",
            mine.transaction_uid,
        )
        if accepted is not None:
            return None
        return await _asking(tx, mine.transaction_uid, mine.destination)
    await tx.execute(
        "insert into commitment_transactions (transaction_uid, destination, made_at)"
        " values ($1, $2, $3)",
        transaction_uid,
        mine.destination,
        at,
    )
    await tx.execute(
        "with named as (update deliveries set transaction_uid = $1,"
        "  requests = requests + 1 where (sop_instance_uid, destination) in"
        "  (select sop_instance_uid, destination from deliveries"
        "   where destination = $2 and study_instance_uid = $3 and awaited"
        "   and state = 'sent' and transaction_uid is null"
        "   order by sop_instance_uid <> $4, sop_instance_uid limit $5"
        "   for update skip locked)"
        "  returning sent_instance_uid)"
        " insert into commitment_asked (transaction_uid, sent_instance_uid)"
        " select $1, sent_instance_uid from named on conflict do nothing",
        transaction_uid,
        mine.destination,
        mine.study_instance_uid,
        mine.sop_instance_uid,
        limit,
    )
    return await _asking(tx, transaction_uid, mine.destination)


async def note_accepted(
    tx: "Transaction", transaction_uid: str, *, at: datetime
) -> None:
    """Note that the archive took the request: its report is owed from now on."""
    await tx.execute(
        "update commitment_transactions set accepted_at = $2"
        " where transaction_uid = $1 and accepted_at is null",
        transaction_uid,
        at,
    )


async def note_answered(
    tx: "Transaction", transaction_uid: str, *, at: datetime
) -> str | None:
    """Note a report and return whose it is; None when we never asked for it."""
    destination: str | None = await tx.fetchval(
        "update commitment_transactions set answered_at = coalesce(answered_at, $2),"
        " accepted_at = coalesce(accepted_at, $2)"
        " where transaction_uid = $1 returning destination",
        transaction_uid,
        at,
    )
    return destination


async def deliveries_asked(tx: "Transaction", transaction_uid: str) -> list[Delivery]:
    """Return, locked, the deliveries that a transaction asked for."""
    rows = await tx.fetch(
        "select d.* from commitment_asked a join commitment_transactions t"
        " using (transaction_uid) join deliveries d on d.destination = t.destination"
        " and d.sent_instance_uid = a.sent_instance_uid"
        " where a.transaction_uid = $1 order by d.sop_instance_uid for update of d",
        transaction_uid,
    )
    return [_delivery(row) for row in rows]


async def settle(
    tx: "Transaction",
    settled: Delivery,
    state: DeliveryState,
    *,
    at: datetime,
    reason: str | None = None,
) -> None:
    """Note what became of a delivery."""
    await tx.execute(
        "update deliveries set state = $3, reason = $4, settled_at = $5"
        " where sop_instance_uid = $1 and destination = $2 and state <> $3",
        settled.sop_instance_uid,
        settled.destination,
        state.value,
        reason,
        at,
    )


async def reopen(tx: "Transaction", again: Delivery) -> None:
    """Let a delivery be asked for anew."""
    await tx.execute(
        "update deliveries set state = 'sent', transaction_uid = null, reason = null,"
        " settled_at = null where sop_instance_uid = $1 and destination = $2",
        again.sop_instance_uid,
        again.destination,
    )


async def note_told(tx: "Transaction", failed: Delivery) -> bool:
    """Note that people are told of a failure; False when they were before."""
    told = await tx.fetchval(
        "update deliveries set told = true where sop_instance_uid = $1"
        " and destination = $2 and not told returning true",
        failed.sop_instance_uid,
        failed.destination,
    )
    return bool(told)


async def forget_tries(tx: "Transaction", again: Delivery) -> None:
    """Let a delivery that has failed be tried as often as a new one."""
    await tx.execute(
        "update deliveries set sends = 0, requests = 0, told = false"
        " where sop_instance_uid = $1 and destination = $2",
        again.sop_instance_uid,
        again.destination,
    )


async def give_up_unanswered(
    tx: "Transaction", accepted_before: datetime, *, at: datetime
) -> list[Delivery]:
    """Return, locked, what archives never told us about although they promised to."""
    rows = await tx.fetch(
        "with silent as (update commitment_transactions set given_up_at = $2"
        "  where answered_at is null and given_up_at is null and accepted_at < $1"
        "  returning transaction_uid)"
        " select d.* from deliveries d join silent using (transaction_uid)"
        " where d.state = 'sent' order by d.sop_instance_uid for update of d",
        accepted_before,
        at,
    )
    return [_delivery(row) for row in rows]


async def delivery_counts(tx: "Transaction") -> dict[tuple[str, str], int]:
    """Return how many deliveries there are by (destination, state).

    The state `waiting` stands for: sent, and the archive has yet to commit itself.
    """
    rows = await tx.fetch(
        "select destination, case when state = 'sent' and awaited then 'waiting'"
        " else state end as state, count(*) as n from deliveries group by 1, 2"
    )
    return {(row["destination"], row["state"]): row["n"] for row in rows}


async def _asking(tx: "Transaction", transaction_uid: str, destination: str) -> Asking:
    rows = await tx.fetch(
        "select sent_class_uid, sent_instance_uid from deliveries"
        " where transaction_uid = $1 order by sent_instance_uid",
        transaction_uid,
    )
    return Asking(
        transaction_uid, destination, tuple(Reference(row[0], row[1]) for row in rows)
    )


def _delivery(row: "asyncpg.Record") -> Delivery:
    return Delivery(
        sop_instance_uid=row["sop_instance_uid"],
        destination=row["destination"],
        study_instance_uid=row["study_instance_uid"],
        sent=Reference(row["sent_class_uid"], row["sent_instance_uid"]),
        state=DeliveryState(row["state"]),
        awaited=row["awaited"],
        sends=row["sends"],
        requests=row["requests"],
        transaction_uid=row["transaction_uid"],
        reason=row["reason"],
    )
