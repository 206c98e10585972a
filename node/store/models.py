"""Which models the node knows, which were chosen, and what the silent one said."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.serial import findings_from_json, findings_to_json

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

CHANNEL = "models"
"""NOTIFY channel of a new choice; the payload is its role."""


class ModelRole(StrEnum):
    """What a model does: the active one drafts, the shadow only records."""

    ACTIVE = "active"
    SHADOW = "shadow"


class Origin(StrEnum):
    """How a model came here: with the software, by a setting, by an engineer."""

    RELEASE = "release"
    SETTING = "setting"
    ADDED = "added"


@dataclass(frozen=True)
class KnownModel:
    """One model; `model_id` is the id of its FHIR Device.

    `record_sha256` is that of its record: thresholds count as much as weights.
    """

    model_id: str
    name: str
    version: str
    weights_sha256: str
    record_sha256: str
    origin: Origin
    added_at: datetime
    added_by: str

    @property
    def label(self) -> str:
        """Return how people call it."""
        return f"{self.name}-{self.version}"


@dataclass(frozen=True)
class Choice:
    """One choice that was made; `model_id` None means that nobody has the role."""

    sequence: int
    role: ModelRole
    model_id: str | None
    follows_release: bool
    undoes: bool
    at: datetime
    by: str
    reason: str


@dataclass(frozen=True)
class ModelState:
    """What the reading process made of `choice`: who serves, and what ails."""

    role: ModelRole
    choice: int
    serving: str | None
    trouble: str
    at: datetime


@dataclass(frozen=True)
class ShadowReading:
    """What a shadow said about one closing of a study."""

    report_id: UUID
    generation: int
    model_id: str
    patient_id: UUID
    study_instance_uid: str
    findings: Findings
    read_at: datetime


# --- models -------------------------------------------------------------------------


async def register(tx: "Transaction", model: KnownModel) -> KnownModel:
    """Add `model` unless it is known; return what is on file.

    CONFLICT when the same version has another record or other weights on file,
    unless both came with a release: only unreleased builds differ so.
    """
    await tx.execute(
        "insert into model (model_id, name, version, weights_sha256, record_sha256,"
        " origin, added_at, added_by) values ($1, $2, $3, $4, $5, $6, $7, $8)"
        " on conflict (model_id) do update set record_sha256 = excluded.record_sha256"
        " where model.origin = 'release' and excluded.origin = 'release'",
        model.model_id,
        model.name,
        model.version,
        model.weights_sha256,
        model.record_sha256,
        model.origin.value,
        model.added_at,
        model.added_by,
    )
    on_file = await read(tx, model.model_id)
    if on_file.record_sha256 != model.record_sha256:
        raise NodeError(
            f"{model.label} is on file with another record; give this one a version"
            " of its own",
            ErrorKind.CONFLICT,
        )
    return on_file


async def find(tx: "Transaction", model_id: str) -> KnownModel | None:
    """Return a model, or None when no such one was ever here."""
    row = await tx.fetchrow("select * from model where model_id = $1", model_id)
    return None if row is None else KnownModel(**(dict(row) | _origin(row["origin"])))


async def read(tx: "Transaction", model_id: str) -> KnownModel:
    """Return a model; NOT_FOUND when no such one was ever here."""
    found = await find(tx, model_id)
    if found is None:
        raise NodeError(f"there is no model {model_id}", ErrorKind.NOT_FOUND)
    return found


async def known(tx: "Transaction") -> list[KnownModel]:
    """Return every model, oldest first."""
    rows = await tx.fetch("select * from model order by added_at, model_id")
    return [KnownModel(**(dict(row) | _origin(row["origin"]))) for row in rows]


def _origin(text: str) -> dict[str, Origin]:
    return {"origin": Origin(text)}


# --- choices ------------------------------------------------------------------------


async def choose(
    tx: "Transaction",
    role: ModelRole,
    model_id: str | None,
    *,
    at: datetime,
    by: str,
    reason: str = "",
    follows_release: bool = False,
    undoes: bool = False,
) -> None:
    """Add a choice; the reading process is told when `tx` commits."""
    await tx.execute(
        "insert into model_choice (role, model_id, follows_release, undoes, at, by,"
        " reason) values ($1, $2, $3, $4, $5, $6, $7)",
        role.value,
        model_id,
        follows_release,
        undoes,
        at,
        by,
        reason,
    )


async def lock_choices(tx: "Transaction") -> None:
    """Let nobody else choose until `tx` ends; who looks is not held up."""
    await tx.execute("lock table model_choice in share row exclusive mode")


async def chosen(tx: "Transaction", role: ModelRole) -> Choice | None:
    """Return the choice that counts, or None when there never was one."""
    row = await tx.fetchrow(
        "select * from model_choice where role = $1 order by sequence desc limit 1",
        role.value,
    )
    return None if row is None else Choice(**(dict(row) | {"role": role}))


async def choices(tx: "Transaction", role: ModelRole) -> list[Choice]:
    """Return every choice of a role, oldest first."""
    rows = await tx.fetch(
        "select * from model_choice where role = $1 order by sequence", role.value
    )
    return [Choice(**(dict(row) | {"role": role})) for row in rows]


# --- what the reading process says ----------------------------------------------------


async def write_state(tx: "Transaction", state: ModelState) -> None:
    """Keep what the reading process made of a choice; `models list` shows it."""
    await tx.execute(
        "insert into model_state (role, choice, serving, trouble, at)"
        " values ($1, $2, $3, $4, $5) on conflict (role) do update set"
        " choice = excluded.choice, serving = excluded.serving,"
        " trouble = excluded.trouble, at = excluded.at",
        state.role.value,
        state.choice,
        state.serving,
        state.trouble,
        state.at,
    )


async def state(tx: "Transaction", role: ModelRole) -> ModelState | None:
    """Return what the reading process said last, or None when it never spoke."""
    row = await tx.fetchrow("select * from model_state where role = $1", role.value)
    return None if row is None else ModelState(**(dict(row) | {"role": role}))


# --- what the shadow said -------------------------------------------------------------


async def write_shadow_reading(
    tx: "Transaction", store: "Store", reading: ShadowReading
) -> None:
    """Keep what the shadow said; the first reading of a closing stays."""
    sealer = await store.ring.patient(tx, reading.patient_id)
    body = json.dumps(findings_to_json(reading.findings), ensure_ascii=False)
    await tx.execute(
        "insert into shadow_reading (report_id, generation, model_id, patient_id,"
        " study_instance_uid, body, read_at) values ($1, $2, $3, $4, $5, $6, $7)"
        " on conflict do nothing",
        reading.report_id,
        reading.generation,
        reading.model_id,
        reading.patient_id,
        reading.study_instance_uid,
        sealer.seal(
            body.encode(),
            **_place(reading.report_id, reading.generation, reading.model_id),
        ),
        reading.read_at,
    )


async def shadow_readings(
    tx: "Transaction", store: "Store", model_id: str
) -> list[ShadowReading]:
    """Return the newest reading of every report by a shadow, oldest report first.

    Those of an erased patient are gone with her key and left out.
    """
    rows = await tx.fetch(
        "select distinct on (report_id) * from shadow_reading where model_id = $1"
        " order by report_id, generation desc",
        model_id,
    )
    found = []
    for row in sorted(rows, key=lambda row: row["read_at"]):
        try:
            sealer = await store.ring.patient(tx, row["patient_id"])
        except NodeError as error:
            if error.kind is not ErrorKind.GONE:
                raise
            continue
        found.append(_opened(sealer, dict(row)))
    return found


async def shadows(tx: "Transaction") -> dict[str, int]:
    """Return how many readings each shadow has left, by model."""
    rows = await tx.fetch(
        "select model_id, count(*) as n from shadow_reading group by model_id"
    )
    return {row["model_id"]: row["n"] for row in rows}


def _opened(sealer: "Sealer", row: dict[str, Any]) -> ShadowReading:
    place = _place(row["report_id"], row["generation"], row["model_id"])
    body = sealer.open(row.pop("body"), **place)
    return ShadowReading(findings=findings_from_json(json.loads(body)), **row)


def _place(report_id: UUID, generation: int, model_id: str) -> dict[str, str]:
    return {
        "table": "shadow_reading",
        "row": f"{report_id}/{generation}/{model_id}",
        "column": "body",
    }
