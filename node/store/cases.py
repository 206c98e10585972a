"""Confirmed cases of the site's own archive: found by likeness, and how they ended.

A case is one lesion of a report that a physician has signed. Its vector is what the
network saw in the crop around it, so only vectors of the same model compare. Where
PostgreSQL has pgvector an index answers; elsewhere the newest cases are compared one
by one, which costs the same for any archive and overlooks older ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.outcome import CaseOutcome, Method, RecordedOutcome
from node.domain.report import Report
from node.store import merges

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction

DIMENSIONS = 128
SCANNED_WITHOUT_INDEX = 5_000
_CANDIDATES = 24
"""Neighbours looked at: one patient with many examinations is one case."""

Vector = Sequence[float]


@dataclass(frozen=True)
class ConfirmedCase:
    """One lesion that a physician stands behind.

    `case_id` is random: it leads to the case and tells nothing of it.
    """

    case_id: UUID
    report_id: UUID
    tracking_uid: str


@dataclass(frozen=True)
class SimilarCase:
    """A confirmed case with its likeness: the cosine of both vectors, at most 1."""

    case: ConfirmedCase
    similarity: float


async def write_vectors(
    tx: "Transaction",
    report: Report,
    *,
    model_sha: str,
    vectors: Mapping[str, Vector],
    at: datetime,
) -> None:
    """Keep the vectors of one model's draft by tracking UID, instead of earlier ones.

    Nobody finds them before a physician has signed (`follow`).
    """
    await tx.execute(
        "delete from lesion_vector where report_id = $1 and model_sha = $2",
        report.id,
        model_sha,
    )
    kind = await _column_type(tx)
    await tx.executemany(
        "insert into lesion_vector"  # noqa: S608
        " (report_id, tracking_uid, model_sha, patient_id, written_at, vector)"
        f" values ($1, $2, $3, $4, $5, $6::text::{kind})",
        [
            (report.id, uid, model_sha, report.patient_id, at, _text(values, kind))
            for uid, values in vectors.items()
        ],
    )


async def follow(tx: "Transaction", report: Report) -> None:
    """Let cases be found, or not any more, as the report's newest version says."""
    version = report.current
    lesions = version.findings.lesions if version.signed else ()
    await tx.execute(
        "update lesion_vector set confirmed = tracking_uid = any($2::text[])"
        " where report_id = $1 and confirmed <> (tracking_uid = any($2::text[]))",
        report.id,
        [lesion.tracking_uid for lesion in lesions],
    )


async def similar(
    tx: "Transaction", report_id: UUID, tracking_uid: str, *, limit: int = 3
) -> list[SimilarCase] | None:
    """Return the confirmed cases most like a lesion, at most one per patient.

    The patient's own are left out: they are not independent of her. None when the
    lesion has no vector, because a physician drew it or no model that keeps vectors
    has read it.
    """
    own = await tx.fetchrow(
        "select model_sha, patient_id, vector::text as vector from lesion_vector"
        " where report_id = $1 and tracking_uid = $2 order by written_at desc limit 1",
        report_id,
        tracking_uid,
    )
    if own is None:
        return None
    kind = await _column_type(tx)
    if kind == "vector":
        # A filter may leave the index too few: it then goes on instead of giving up.
        await tx.execute("set local hnsw.iterative_scan = strict_order")
    rows = await tx.fetch(
        _BY_INDEX if kind == "vector" else _ONE_BY_ONE,
        own["vector"],
        own["model_sha"],
        list(await merges.rows_of(tx, own["patient_id"])),
        _CANDIDATES,
    )
    nearest: dict[UUID, asyncpg.Record] = {}
    for row in rows:
        nearest.setdefault(row["patient_id"], row)
    return [
        SimilarCase(_case(row), min(1.0, row["similarity"]))
        for row in list(nearest.values())[:limit]
    ]


_BY_INDEX = """
select case_id, report_id, tracking_uid, patient_id,
       1 - (vector <=> $1::text::vector) as similarity
from lesion_vector
where confirmed and model_sha = $2 and patient_id <> all($3::uuid[])
order by vector <=> $1::text::vector limit $4
"""

# Vectors have length 1 when they are written, so the inner product is the cosine.
_ONE_BY_ONE = f"""
select case_id, report_id, tracking_uid, patient_id, similarity
from (
    select * from lesion_vector
    where confirmed and model_sha = $2 and patient_id <> all($3::uuid[])
    order by written_at desc limit {SCANNED_WITHOUT_INDEX}
) as newest,
lateral (
    select sum(a * b)::float8 as similarity
    from unnest(newest.vector, $1::text::real[]) as pair (a, b)
) as product
order by similarity desc limit $4
"""  # noqa: S608


async def confirmed_case(tx: "Transaction", case_id: UUID) -> ConfirmedCase:
    """Return a case that may be shown; NOT_FOUND when it is not confirmed."""
    row = await tx.fetchrow(
        "select case_id, report_id, tracking_uid from lesion_vector"
        " where case_id = $1 and confirmed",
        case_id,
    )
    if row is None:
        raise NodeError("there is no such confirmed case", ErrorKind.NOT_FOUND)
    return _case(row)


async def record_outcome(
    tx: "Transaction", report: Report, outcome: RecordedOutcome
) -> None:
    """Write how a case ended; earlier entries stay."""
    await tx.execute(
        "insert into case_outcome (report_id, patient_id, tracking_uid, outcome,"
        " method, recorded_at, recorded_by) values ($1, $2, $3, $4, $5, $6, $7)",
        report.id,
        report.patient_id,
        outcome.tracking_uid,
        outcome.outcome,
        outcome.method,
        outcome.at,
        outcome.by,
    )


async def outcomes(tx: "Transaction", report_id: UUID) -> list[RecordedOutcome]:
    """Return what was recorded of a report's cases, oldest first."""
    rows = await tx.fetch(
        "select * from case_outcome where report_id = $1 order by sequence", report_id
    )
    return [
        RecordedOutcome(
            tracking_uid=row["tracking_uid"],
            outcome=CaseOutcome(row["outcome"]) if row["outcome"] else None,
            method=Method(row["method"]) if row["method"] else None,
            at=row["recorded_at"],
            by=row["recorded_by"],
        )
        for row in rows
    ]


async def forget_patient(tx: "Transaction", patient_id: UUID) -> None:
    """Delete what is kept of a patient's cases; her reports are unreadable by then."""
    await tx.execute("delete from lesion_vector where patient_id = $1", patient_id)
    await tx.execute("delete from case_outcome where patient_id = $1", patient_id)


async def _column_type(tx: "Transaction") -> str:
    """Return `vector` where pgvector holds the vectors, else `real[]`."""
    kind = await tx.fetchval(
        "select atttypid::regtype::text from pg_attribute"
        " where attrelid = 'lesion_vector'::regclass and attname = 'vector'"
    )
    return "vector" if kind == "vector" else "real[]"


def _text(values: Vector, kind: str) -> str:
    """Return a vector of length 1 in the words of its column."""
    if len(values) != DIMENSIONS:
        raise NodeError(f"a vector has {DIMENSIONS} values", ErrorKind.INVALID)
    norm = sum(value * value for value in values) ** 0.5
    if not 0 < norm < float("inf"):
        raise NodeError("a vector has a direction", ErrorKind.INVALID)
    body = ",".join(repr(float(value) / norm) for value in values)
    return f"[{body}]" if kind == "vector" else f"{{{body}}}"


def _case(row: "asyncpg.Record") -> ConfirmedCase:
    return ConfirmedCase(row["case_id"], row["report_id"], row["tracking_uid"])
