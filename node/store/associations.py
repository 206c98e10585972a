"""Which associations still feed a study, and how the last of them ended.

A study may close when nobody sends any more; a transfer that broke off is remembered
until its sender has sent the rest.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction


class EndedHow(StrEnum):
    """How the last association that fed a study ended."""

    RELEASED = "released"
    ABORTED = "aborted"
    LOST = "lost"  # the receiving process itself was killed


async def hold_open(
    tx: "Transaction",
    *,
    association: str,
    study_instance_uid: str,
    process: str,
    at: datetime,
) -> None:
    """Note that an association feeds a study."""
    await tx.execute(
        "insert into open_associations"
        " (association, study_instance_uid, process, touched_at)"
        " values ($1, $2, $3, $4) on conflict (association, study_instance_uid)"
        " do update set touched_at = excluded.touched_at",
        association,
        study_instance_uid,
        process,
        at,
    )


async def hold_open_by_repeat(
    tx: "Transaction",
    *,
    association: str,
    study_instance_uid: str,
    calling_ae: str,
    process: str,
    at: datetime,
) -> None:
    """Note that an association repeats what is here of a study that is still open.

    A machine that was cut off sends all again: its orderly end then counts, even
    if nothing of what it sent was new.
    """
    await tx.execute(
        "insert into open_associations"
        " (association, study_instance_uid, process, touched_at, calling_ae)"
        " select $1, study_instance_uid, $3, $4, $5 from studies"
        " where study_instance_uid = $2 and status = 'receiving'"
        " on conflict (association, study_instance_uid)"
        " do update set touched_at = excluded.touched_at",
        association,
        study_instance_uid,
        process,
        at,
        calling_ae,
    )


async def end_associations(
    tx: "Transaction",
    *,
    how: EndedHow,
    at: datetime,
    association: str | None = None,
    process: str | None = None,
) -> list[str]:
    """Forget one association, or all of a process; return the open studies they fed.

    A transfer that broke off is made good only by one of the same sender that
    began later and was released: it had its chance to send the rest.
    """
    gone = await tx.fetch(
        "delete from open_associations a where ($1::text is null or association = $1)"
        " and ($2::text is null or process = $2)"
        " returning study_instance_uid as study, overlapped,"
        # Who held it open: its row says so, or what came over it.
        " coalesce(a.calling_ae, (select i.calling_ae from instances i"
        "  where i.study_instance_uid = a.study_instance_uid"
        "  and i.association = a.association limit 1)) as sender",
        association,
        process,
    )
    if not gone:
        return []
    rows = await tx.fetch(
        "update studies set ended_at = $2, ended_how = $3"
        " where study_instance_uid = any($1) and status = 'receiving'"
        " returning study_instance_uid",
        sorted({row["study"] for row in gone}),
        at,
        how.value,
    )
    still_open = {row["study_instance_uid"] for row in rows}
    ends = [row for row in gone if row["study"] in still_open and row["sender"]]
    if how is EndedHow.RELEASED:
        await _mend_transfers(tx, [row for row in ends if not row["overlapped"]])
    else:
        await _break_transfers(tx, ends, how, at)
    return sorted(still_open)


async def _mend_transfers(tx: "Transaction", ends: "Sequence[asyncpg.Record]") -> None:
    await tx.execute(
        "delete from broken_transfers b using unnest($1::text[], $2::text[]) e(s, ae)"
        " where b.study_instance_uid = e.s and b.calling_ae = e.ae",
        [row["study"] for row in ends],
        [row["sender"] for row in ends],
    )


async def _break_transfers(
    tx: "Transaction", ends: "Sequence[asyncpg.Record]", how: EndedHow, at: datetime
) -> None:
    pairs = sorted({(row["study"], row["sender"]) for row in ends})
    uids, senders = [study for study, _ in pairs], [sender for _, sender in pairs]
    await tx.execute(
        "insert into broken_transfers (study_instance_uid, calling_ae, how, at)"
        " select s, ae, $3, $4 from unnest($1::text[], $2::text[]) e(s, ae)"
        " on conflict (study_instance_uid, calling_ae)"
        " do update set how = excluded.how, at = excluded.at",
        uids,
        senders,
        how.value,
        at,
    )
    await tx.execute(
        "update open_associations a set overlapped = true"
        " from unnest($1::text[], $2::text[]) e(s, ae)"
        " where a.study_instance_uid = e.s and (a.calling_ae = e.ae or exists"
        "  (select from instances i where i.study_instance_uid = e.s"
        "  and i.association = a.association and i.calling_ae = e.ae))",
        uids,
        senders,
    )
