"""Signed reports in numbers: what doctors kept and changed, drawn from a seed."""

import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from node.domain.agreement import (
    FIELDS,
    LESION,
    OVERALL_CATEGORY,
    PRESENT,
    SUSPICION_SCALE,
    Comparison,
    FieldKind,
    kind_of,
    labels_of,
)
from node.store import agreement
from node.store.agreement import ComparedReport
from node.store.store import Store

MODEL, MODEL_NAME = "model-995426c8099b", "sononode-breast 0.1.0+sha256.995426c8099b"
KEPT: Mapping[str, float] = {
    "overall_category": 0.72,
    "assessment_category": 0.7,
    "lesion": 0.94,
    "shape": 0.83,
    "orientation": 0.92,
    "margin": 0.6,
    "lesion_boundary": 0.8,
    "calcifications": 0.93,
    "echo_pattern": 0.87,
    "posterior_features": 0.74,
}


def compared_reports(
    count: int,
    *,
    ends: datetime,
    seed: int,
    kept: Mapping[str, float] = KEPT,
    machines: tuple[str, ...] = ("GE LOGIQ E9", "Mindray Resona 7"),
    model: tuple[str, str] = (MODEL, MODEL_NAME),
    every: timedelta = timedelta(hours=9),
) -> Iterator[ComparedReport]:
    """Yield `count` reports, the last one signed at `ends`."""
    rng = random.Random(seed)
    for number in range(count):
        yield ComparedReport(
            report_id=UUID(int=rng.getrandbits(128), version=4),
            model=model[0],
            model_name=model[1],
            machine=rng.choice(machines),
            version=2,
            signed_at=ends - every * (count - 1 - number),
            comparisons=tuple(_report(rng, kept)),
        )


def _report(rng: random.Random, kept: Mapping[str, float]) -> Iterator[Comparison]:
    seen = PRESENT if rng.random() < kept[LESION] else None
    for field in FIELDS:
        if field == LESION:
            yield Comparison(1, field, PRESENT, seen, True)
        elif field == OVERALL_CATEGORY or seen:
            ai, signed = _values(rng, field, kept[field])
            lesion = 0 if field == OVERALL_CATEGORY else 1
            yield Comparison(lesion, field, ai, signed, True)


def _values(
    rng: random.Random, field: str, kept: float
) -> tuple[str | None, str | None]:
    values = labels_of(field)
    if kind_of(field) is FieldKind.CATEGORY:
        values = SUSPICION_SCALE[1:]
    place = int(rng.triangular(0, len(values), len(values) / 3))
    said = values[place]
    if field in {"calcifications", "posterior_features"} and rng.random() < 0.35:
        return None, said if rng.random() < 0.5 else None
    if rng.random() < kept:
        return said, said
    # Doctors are seldom far from what they changed.
    return said, values[place - 1] if place else values[1]


async def record_all(store: Store, compared: Iterator[ComparedReport]) -> None:
    """Write the reports as the job does, in one transaction."""
    async with store.db.transaction() as tx:
        for report in compared:
            await agreement.record(tx, report)
