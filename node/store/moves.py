"""Studies that were filed under the wrong woman, and the key of what is left of them.

What was received, read and reported of such a study names one woman and shows another.
With the key of either it could outlive her erasure; so it gets a key of its own, of a
subject who is nobody, and that is destroyed as soon as one of both is erased. The study
as it is filed anew names the right woman alone and is sealed with her key.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store import identities
from node.store.reports import report_id_for

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

_TABLE = "study_moves"


@dataclass(frozen=True)
class Move:
    """A study that is void, and what stands in its place; `by` is an account."""

    study_instance_uid: str
    filed_as: str
    from_patient: UUID
    to_patient: UUID
    order_id: UUID | None
    owner: UUID
    at: datetime
    by: str
    resealed: bool
    reason: str = field(repr=False)


async def add(
    tx: "Transaction",
    store: "Store",
    study_instance_uid: str,
    *,
    filed_as: str,
    from_patient: UUID,
    to_patient: UUID,
    order_id: UUID | None,
    by: str,
    reason: str,
) -> Move:
    """Note that a study is void; CONFLICT when it is already."""
    at, owner = store.clock(), await _nobody(tx, store)
    sealer = await store.ring.patient(tx, owner)
    written = await tx.fetchval(
        "insert into study_moves (study_instance_uid, filed_as, from_patient,"
        " to_patient, order_id, owner, at, by, reason)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " on conflict do nothing returning 1",
        study_instance_uid,
        filed_as,
        from_patient,
        to_patient,
        order_id,
        owner,
        at,
        by,
        sealer.seal(
            reason.encode(), table=_TABLE, row=study_instance_uid, column="reason"
        ),
    )
    if written is None:
        raise NodeError("this study was filed anew already", ErrorKind.CONFLICT)
    return Move(
        study_instance_uid,
        filed_as,
        from_patient,
        to_patient,
        order_id,
        owner,
        at,
        by,
        False,
        reason,
    )


async def _nobody(tx: "Transaction", store: "Store") -> UUID:
    """Make a subject who has a key and no name; nobody is ever found as her."""
    told = PatientIdentity(patient_id="", name="")
    return await identities.upsert_patient(
        tx, store, told, at=store.clock(), alone_in=f"void/{uuid4()}"
    )


async def of_study(
    tx: "Transaction", store: "Store", study_instance_uid: str
) -> Move | None:
    """Return where a void study is filed now; None when it is not void."""
    row = await tx.fetchrow(
        "select * from study_moves where study_instance_uid = $1", study_instance_uid
    )
    if row is None:
        return None
    sealer = await store.ring.patient(tx, row["owner"])
    reason = sealer.open(
        row["reason"], table=_TABLE, row=study_instance_uid, column="reason"
    )
    return Move(**{**dict(row), "reason": reason.decode()})


async def is_void(tx: "Transaction", study_instance_uid: str) -> bool:
    """Tell whether a study was filed under the wrong woman and stands for nothing."""
    return bool(
        await tx.fetchval(
            "select exists (select from study_moves where study_instance_uid = $1)",
            study_instance_uid,
        )
    )


async def named_by(tx: "Transaction", patient_id: UUID) -> list[UUID]:
    """Return the patients under whose names images of this one once stood."""
    rows = await tx.fetch(
        "select distinct from_patient from study_moves where to_patient = $1",
        patient_id,
    )
    return [row["from_patient"] for row in rows]


async def owners_of(tx: "Transaction", patient_id: UUID) -> list[UUID]:
    """Return the subjects whose keys go with a patient's.

    All void studies that name her, and all whose images are hers, also through
    several steps: a study may be filed wrongly twice.
    """
    rows = await tx.fetch(
        "with recursive hers (uid, owner) as ("
        " select study_instance_uid, owner from study_moves"
        "  where from_patient = $1 or to_patient = $1"
        " union select m.study_instance_uid, m.owner from study_moves m"
        "  join hers on m.filed_as = hers.uid"
        ") select distinct owner from hers",
        patient_id,
    )
    return [row["owner"] for row in rows]


async def reseal(tx: "Transaction", store: "Store", move: Move) -> None:
    """Give all that is kept of a void study to the key of nobody; again without harm.

    Its report, its versions and its resources too. The caller holds study and report.
    """
    old = await store.ring.patient(tx, move.from_patient)
    new = await store.ring.patient(tx, move.owner)
    uid, report_id = move.study_instance_uid, report_id_for(move.study_instance_uid)
    done = await tx.fetchval(
        "update study_moves set resealed = true"
        " where study_instance_uid = $1 and not resealed returning 1",
        uid,
    )
    if done is None:
        return
    seals = _Seals(tx, old, new)
    await seals.column("studies", "body", "study_instance_uid = $1", uid, _study)
    for column in ("metadata", "blob_key"):
        await seals.column(
            "instances", column, "study_instance_uid = $1", uid, _instance
        )
    of_study = "study_instance_uid = $1"
    of_its_instances = (
        "sop_instance_uid in"
        " (select sop_instance_uid from instances where study_instance_uid = $1)"
    )
    await seals.column("kept_version", "blob_key", of_its_instances, uid, _blob)
    await seals.column("machine_reports", "body", of_study, uid, _instance)
    await seals.column("order_decisions", "reason", of_study, uid, _study)
    of_report = "report_id = $1"
    for table, place in (
        ("report_version", _number),
        ("report_disclosure", _number),
        ("report_proposal", _generation),
        ("shadow_reading", _reading),
    ):
        await seals.column(table, "body", of_report, report_id, place)
    await seals.column("report_page", "blob_key", of_report, report_id, _number)
    focuses = await _reseal_resources(tx, seals, move, report_id)
    await _reseal_events(tx, seals, move, report_id, focuses)
    for statement in (
        "update studies set patient_id = $2, accession_blind = null"
        " where study_instance_uid = $1",
        "update report set patient_id = $2 where study_instance_uid = $1",
        "update shadow_reading set patient_id = $2 where study_instance_uid = $1",
    ):
        await tx.execute(statement, uid, move.owner)
    for table in ("lesion_vector", "case_outcome"):
        await tx.execute(f"delete from {table} where report_id = $1", report_id)  # noqa: S608


async def _reseal_resources(
    tx: "Transaction", seals: "_Seals", move: Move, report_id: UUID
) -> list[str]:
    """Give every version of the study's and the report's resources to the key."""
    rows = await tx.fetch(
        "select resource_type, resource_id from resources where patient_id = $1"
        " and ((resource_type = 'ImagingStudy' and resource_id = $2)"
        "  or resource_id like $3 || '%'"
        "  or (resource_type, resource_id) in (select resource_type, resource_id"
        "   from resource_references where target_id = $2 or target_id like $3 || '%'))"
        " for update",
        move.from_patient,
        move.study_instance_uid,
        str(report_id),
    )
    for row in rows:
        key = (row["resource_type"], row["resource_id"])
        await seals.column(
            "resource_versions",
            "body",
            "resource_type = $1 and resource_id = $2",
            key,
            lambda r: f"{r['resource_type']}/{r['resource_id']}/{r['version']}",
        )
        for table in ("resources", "resource_versions"):
            await tx.execute(
                f"update {table} set patient_id = $3"  # noqa: S608
                " where resource_type = $1 and resource_id = $2",
                *key,
                move.owner,
            )
    return [f"{row['resource_type']}/{row['resource_id']}" for row in rows]


async def _reseal_events(
    tx: "Transaction",
    seals: "_Seals",
    move: Move,
    report_id: UUID,
    focuses: list[str],
) -> None:
    handle = await tx.fetchval("select handle from report where id = $1", report_id)
    about = [*focuses, f"DiagnosticReport/{handle}"]
    await seals.column(
        "topic_events",
        "body",
        "focus = any($1) and patient_id = $2",
        (about, move.from_patient),
        lambda r: str(r["sealed_as"]),
        sealed_in="subscription_events",
    )
    await tx.execute(
        "update topic_events set patient_id = $3"
        " where focus = any($1) and patient_id = $2",
        about,
        move.from_patient,
        move.owner,
    )


class _Seals:
    """Opens bodies with one key and seals them, in their place, with another."""

    def __init__(self, tx: "Transaction", old: "Sealer", new: "Sealer") -> None:
        self._tx, self._old, self._new = tx, old, new

    async def column(
        self,
        table: str,
        column: str,
        where: str,
        told: object,
        row_of: "Callable[[asyncpg.Record], str]",
        *,
        sealed_in: str = "",
    ) -> None:
        arguments = told if isinstance(told, tuple) else (told,)
        rows = await self._tx.fetch(
            f"select ctid, * from {table} where {where}",  # noqa: S608
            *arguments,
        )
        for row in rows:
            place = {
                "table": sealed_in or table,
                "row": row_of(row),
                "column": column,
            }
            opened = self._old.open(row[column], **place)
            await self._tx.execute(
                f"update {table} set {column} = $1 where ctid = $2",  # noqa: S608
                self._new.seal(opened, **place),
                row["ctid"],
            )


def _study(row: "asyncpg.Record") -> str:
    return str(row["study_instance_uid"])


def _instance(row: "asyncpg.Record") -> str:
    return str(row["sop_instance_uid"])


def _blob(row: "asyncpg.Record") -> str:
    return str(row["blob_name"])


def _number(row: "asyncpg.Record") -> str:
    return f"{row['report_id']}/{row['number']}"


def _generation(row: "asyncpg.Record") -> str:
    return f"{row['report_id']}/{row['generation']}"


def _reading(row: "asyncpg.Record") -> str:
    return f"{row['report_id']}/{row['generation']}/{row['model_id']}"
