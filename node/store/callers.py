"""Who called the DICOM port lately: titles and addresses, nothing of patients."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

ACCEPTED = "accepted"
MOST = 1000
"""Rows that are kept: whoever scans ports must not fill the table."""


@dataclass(frozen=True)
class Call:
    """An association that was asked for; `outcome` is ACCEPTED or why it was not."""

    calling_ae: str
    address: str
    outcome: str
    called_ae: str
    refused_classes: tuple[str, ...]
    at: datetime


async def note(tx: "Transaction", call: Call) -> None:
    """Keep the last call of each title, address and outcome, of the latest ones."""
    await tx.execute(
        "insert into callers (calling_ae, address, outcome, called_ae,"
        " refused_classes, first_at, last_at) values ($1, $2, $3, $4, $5, $6, $6)"
        " on conflict (calling_ae, address, outcome) do update set"
        " called_ae = excluded.called_ae, refused_classes = excluded.refused_classes,"
        " last_at = greatest(callers.last_at, excluded.last_at)",
        call.calling_ae,
        call.address,
        call.outcome,
        call.called_ae,
        list(call.refused_classes),
        call.at,
    )
    await tx.execute(
        "delete from callers where last_at < (select last_at from callers"
        " order by last_at desc offset $1 limit 1)",
        MOST,
    )


async def of_title(tx: "Transaction", calling_ae: str) -> list[Call]:
    """Return the calls under a title, the latest first."""
    rows = await tx.fetch(
        "select * from callers where calling_ae = $1 order by last_at desc", calling_ae
    )
    return [_call(row) for row in rows]


async def since(tx: "Transaction", at: datetime) -> list[Call]:
    """Return the calls since then, the latest first."""
    rows = await tx.fetch(
        "select * from callers where last_at >= $1 order by last_at desc limit 100", at
    )
    return [_call(row) for row in rows]


def _call(row: "asyncpg.Record") -> Call:
    return Call(
        calling_ae=row["calling_ae"],
        address=row["address"],
        outcome=row["outcome"],
        called_ae=row["called_ae"],
        refused_classes=tuple(row["refused_classes"]),
        at=row["last_at"],
    )
