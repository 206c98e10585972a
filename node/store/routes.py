"""What has to be routed, what was routed where, and what destinations said.

UIDs and names of destinations only: nothing here is sealed, nothing names a patient.
Whether a delivery has failed for good is known by its job, and read from there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.study import Origin

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction


class Waiting(StrEnum):
    """What an instance waits for before rules are asked about it."""

    ARRIVAL = "arrival"
    COMPLETE = "complete"


class DeliveryState(StrEnum):
    """How far a delivery is."""

    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"  # its job is among the dead letters


@dataclass(frozen=True)
class Unrouted:
    """A received instance that the rules have not been asked about."""

    sop_instance_uid: str
    study_instance_uid: str
    sop_class_uid: str
    modality: str
    calling_ae: str
    patient_id: UUID


@dataclass(frozen=True)
class Delivery:
    """One instance on its way to one destination, and how far it is.

    `sent_as` is the UID under which it went last; `times` counts the sendings that
    were begun. `at` is when the state began, `error` what the last try said.
    """

    sop_instance_uid: str
    destination: str
    study_instance_uid: str
    state: DeliveryState
    rule: str
    job_id: UUID | None
    queued_at: datetime
    at: datetime
    sent_as: str | None
    times: int
    error: str


@dataclass(frozen=True)
class Backlog:
    """What waits for one destination: how much, since when, and what the last try said.

    `failed` counts what is given up until somebody has it done again.
    """

    destination: str
    waiting: int
    failed: int
    sent: int
    since: datetime | None
    error: str


@dataclass(frozen=True)
class ProbeAnswer:
    """What a destination said the last time that it was asked.

    `accepted` maps SOP Class UIDs to transfer syntaxes. `target` names the address
    that was asked.
    """

    destination: str
    target: str
    at: datetime
    well: bool
    stale: bool
    findings: tuple[tuple[str, bool, str], ...]
    accepted: Mapping[str, Sequence[str]]
    commitment: bool


# -- what has to be routed -------------------------------------------------------------


async def be_the_router(tx: "Transaction") -> bool:
    """Return whether this transaction is the one that routes what has arrived now."""
    return bool(
        await tx.fetchval(
            "select pg_try_advisory_xact_lock(hashtext('sononode routing'))"
        )
    )


async def unrouted(
    tx: "Transaction",
    waiting: Waiting,
    *,
    study_instance_uid: str | None = None,
    limit: int | None = None,
) -> list[Unrouted]:
    """Return, locked and as they came, instances whose moment has come.

    That of COMPLETE has come when the study is open no longer.
    """
    rows = await tx.fetch(
        "select u.*, i.sop_class_uid, i.modality, i.calling_ae, s.patient_id"
        " from unrouted_instances u join instances i using (sop_instance_uid)"
        " join studies s on s.study_instance_uid = u.study_instance_uid"
        " where waits_for = $1 and ($1 = 'arrival' or s.status <> 'receiving')"
        " and ($2::text is null or u.study_instance_uid = $2)"
        " order by u.sequence limit $3 for update of u",
        waiting.value,
        study_instance_uid,
        limit,
    )
    return [
        Unrouted(
            row["sop_instance_uid"],
            row["study_instance_uid"],
            row["sop_class_uid"],
            row["modality"],
            row["calling_ae"],
            row["patient_id"],
        )
        for row in rows
    ]


async def asked(
    tx: "Transaction", sop_instance_uids: Sequence[str], *, then: Waiting | None
) -> None:
    """Note that the rules were asked; `then` is what the instances wait for now."""
    if then is None:
        await tx.execute(
            "delete from unrouted_instances where sop_instance_uid = any($1)",
            list(sop_instance_uids),
        )
        return
    await tx.execute(
        "update unrouted_instances set waits_for = $2 where sop_instance_uid = any($1)",
        list(sop_instance_uids),
        then.value,
    )


async def senders_of(tx: "Transaction", study_instance_uid: str) -> frozenset[str]:
    """Return the titles of the machines that sent a study."""
    rows = await tx.fetch(
        "select distinct calling_ae from instances where study_instance_uid = $1"
        " and origin = $2",
        study_instance_uid,
        Origin.RECEIVED.value,
    )
    return frozenset(row["calling_ae"] for row in rows)


async def holders_of_results(
    tx: "Transaction", study_instance_uid: str, *, images_too: bool = False
) -> list[str]:
    """Return the destinations that get, or got, what the node made of a study.

    With `images_too` also those that have only what machines sent.
    """
    rows = await tx.fetch(
        "select distinct destination from routed_instances r"
        " join instances i using (sop_instance_uid)"
        " where r.study_instance_uid = $1 and ($3 or i.origin <> $2)"
        " order by destination",
        study_instance_uid,
        Origin.RECEIVED.value,
        images_too,
    )
    return [row["destination"] for row in rows]


# -- deliveries ------------------------------------------------------------------------


async def queue(
    tx: "Transaction",
    sop_instance_uid: str,
    destination: str,
    *,
    study_instance_uid: str,
    rule: str,
    at: datetime,
) -> bool:
    """Note that an instance goes to a destination; False when it was so already."""
    made = await tx.fetchval(
        "insert into routed_instances (sop_instance_uid, destination,"
        " study_instance_uid, state, rule, queued_at, at)"
        " values ($1, $2, $3, 'queued', $4, $5, $5) on conflict do nothing returning 1",
        sop_instance_uid,
        destination,
        study_instance_uid,
        rule,
        at,
    )
    return made is not None


async def note_job(
    tx: "Transaction", sop_instance_uid: str, destination: str, job_id: UUID
) -> None:
    """Note which job does a delivery."""
    await tx.execute(
        "update routed_instances set job_id = $3"
        " where sop_instance_uid = $1 and destination = $2",
        sop_instance_uid,
        destination,
        job_id,
    )


async def delivery(
    tx: "Transaction", sop_instance_uid: str, destination: str
) -> Delivery | None:
    """Return one delivery, locked until `tx` ends, or None."""
    await tx.execute(
        "select 1 from routed_instances where sop_instance_uid = $1"
        " and destination = $2 for update",
        sop_instance_uid,
        destination,
    )
    rows = await tx.fetch(
        "select * from deliveries_now where sop_instance_uid = $1 and destination = $2",
        sop_instance_uid,
        destination,
    )
    return _delivery(rows[0]) if rows else None


async def begin(
    tx: "Transaction", sop_instance_uid: str, destination: str, *, at: datetime
) -> None:
    """Note, before the first byte leaves, that a sending begins."""
    await tx.execute(
        "update routed_instances set state = 'sending', times = times + 1, at = $3"
        " where sop_instance_uid = $1 and destination = $2",
        sop_instance_uid,
        destination,
        at,
    )


async def end(
    tx: "Transaction",
    sop_instance_uid: str,
    destination: str,
    *,
    at: datetime,
    sent_as: str,
) -> None:
    """Note that an instance has arrived, and under which UID."""
    await tx.execute(
        "update routed_instances set state = 'sent', sent_as = $4, error = null,"
        " at = $3 where sop_instance_uid = $1 and destination = $2",
        sop_instance_uid,
        destination,
        at,
        sent_as,
    )


async def fail(
    tx: "Transaction",
    sop_instance_uid: str,
    destination: str,
    *,
    at: datetime,
    error: str,
    surely: bool,
) -> None:
    """Note what went wrong; `surely` when the instance has certainly not arrived."""
    await tx.execute(
        "update routed_instances set error = $4, at = $3,"
        " state = case when $5 then 'queued' else state end"
        " where sop_instance_uid = $1 and destination = $2 and state <> 'sent'",
        sop_instance_uid,
        destination,
        at,
        error[:500],
        surely,
    )


async def reopen(
    tx: "Transaction",
    sop_instance_uid: str,
    destination: str,
    *,
    job_id: UUID,
    at: datetime,
) -> None:
    """Note that a delivery is to be made again."""
    await tx.execute(
        "update routed_instances set state = 'queued', job_id = $4, at = $3"
        " where sop_instance_uid = $1 and destination = $2",
        sop_instance_uid,
        destination,
        at,
        job_id,
    )


async def deliveries(
    tx: "Transaction",
    *,
    destination: str | None = None,
    study_instance_uid: str | None = None,
    state: DeliveryState | None = None,
    limit: int = 200,
) -> list[Delivery]:
    """Return deliveries as they were queued, of those asked for."""
    rows = await tx.fetch(
        "select * from deliveries_now where ($1::text is null or destination = $1)"
        " and ($2::text is null or study_instance_uid = $2)"
        " and ($3::text is null or now_state = $3)"
        " order by queued_at, sequence limit $4",
        destination,
        study_instance_uid,
        state.value if state else None,
        limit,
    )
    return [_delivery(row) for row in rows]


async def backlogs(tx: "Transaction") -> list[Backlog]:
    """Return what waits for each destination that anything was ever queued for."""
    rows = await tx.fetch(
        "select destination,"
        " count(*) filter (where now_state in ('queued', 'sending')) as waiting,"
        " count(*) filter (where now_state = 'failed') as failed,"
        " count(*) filter (where now_state = 'sent') as sent,"
        " min(queued_at) filter (where now_state <> 'sent') as since,"
        " (array_agg(told order by at desc)"
        "  filter (where now_state <> 'sent' and told <> ''))[1] as error"
        " from deliveries_now group by destination order by destination"
    )
    return [
        Backlog(
            row["destination"],
            row["waiting"],
            row["failed"],
            row["sent"],
            row["since"],
            row["error"] or "",
        )
        for row in rows
    ]


def _delivery(row: "asyncpg.Record") -> Delivery:
    return Delivery(
        row["sop_instance_uid"],
        row["destination"],
        row["study_instance_uid"],
        DeliveryState(row["now_state"]),
        row["rule"],
        row["job_id"],
        row["queued_at"],
        row["at"],
        row["sent_as"],
        row["times"],
        row["told"],
    )


# -- what destinations said ------------------------------------------------------------


async def remember_probe(tx: "Transaction", answer: ProbeAnswer) -> None:
    """Keep what a destination said, in place of what it said before."""
    await tx.execute(
        "insert into destination_probes (destination, target, at, well, stale,"
        " findings, accepted, commitment) values ($1, $2, $3, $4, $5, $6, $7, $8)"
        " on conflict (destination) do update set target = excluded.target,"
        " at = excluded.at, well = excluded.well, stale = excluded.stale,"
        " findings = excluded.findings, accepted = excluded.accepted,"
        " commitment = excluded.commitment",
        answer.destination,
        answer.target,
        answer.at,
        answer.well,
        answer.stale,
        json.dumps(answer.findings),
        json.dumps({uid: list(syntaxes) for uid, syntaxes in answer.accepted.items()}),
        answer.commitment,
    )


async def probe_answer(tx: "Transaction", destination: str) -> ProbeAnswer | None:
    """Return what a destination said the last time that it was asked, or None."""
    row = await tx.fetchrow(
        "select * from destination_probes where destination = $1", destination
    )
    if row is None:
        return None
    return ProbeAnswer(
        row["destination"],
        row["target"],
        row["at"],
        row["well"],
        row["stale"],
        tuple((what, well, told) for what, well, told in json.loads(row["findings"])),
        json.loads(row["accepted"]),
        row["commitment"],
    )


async def doubt_probe(tx: "Transaction", destination: str) -> None:
    """Note that what a destination said is no longer so: ask it anew."""
    await tx.execute(
        "update destination_probes set stale = true where destination = $1", destination
    )
