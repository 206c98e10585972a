"""Choosing the model that reads: history is kept, steps back never go forth."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store import audit, models
from node.store.erasure import shred_patient
from node.store.models import KnownModel, ModelRole, ModelState, Origin, ShadowReading
from node.store.store import Store
from node.workflow.models import (
    activate,
    add_model,
    adopt_release,
    choose_shadow,
    roll_back,
)
from tests.factories import NOW, make_findings


def make_model(version: str, **changes: object) -> KnownModel:
    model = KnownModel(
        model_id=f"model-{version}",
        name="tiny",
        version=version,
        weights_sha256=version[0] * 64,
        record_sha256=version[-1] * 64,
        origin=Origin.ADDED,
        added_at=NOW,
        added_by="command line",
    )
    return replace(model, **changes)  # type: ignore[arg-type]


ONE, TWO, THREE = (make_model(v) for v in ("1.0", "2.0", "3.0"))


@pytest.fixture
async def filled(store: Store) -> Store:
    for model in (ONE, TWO, THREE):
        await add_model(store, model)
    return store


async def active(store: Store, role: ModelRole = ModelRole.ACTIVE) -> str | None:
    async with store.db.transaction() as tx:
        choice = await models.chosen(tx, role)
    return choice.model_id if choice else None


async def use(store: Store, model: KnownModel) -> None:
    await activate(store, model, by="command line")


async def test_model_is_put_on_file_once_and_audited(store: Store) -> None:
    await add_model(store, ONE)
    await add_model(store, replace(ONE, added_by="somebody else"))
    async with store.db.transaction() as tx:
        assert await models.known(tx) == [ONE]
        (entry,) = await audit.entries(tx, entity="model/model-1.0")
    assert entry.action == "model-add"
    assert entry.detail["weights_sha256"] == "1" * 64


async def test_version_with_another_record_is_refused(store: Store) -> None:
    await add_model(store, ONE)
    with pytest.raises(NodeError, match="version of its own") as caught:
        await add_model(store, replace(ONE, record_sha256="f" * 64))
    assert caught.value.kind is ErrorKind.CONFLICT


async def test_release_reads_until_somebody_chooses(filled: Store) -> None:
    assert await adopt_release(filled, ONE)
    assert await adopt_release(filled, TWO)
    assert await active(filled) == "model-2.0"
    await use(filled, ONE)
    assert not await adopt_release(filled, THREE)
    assert await active(filled) == "model-1.0"
    await activate(filled, TWO, by="command line", follows_release=True)
    assert await adopt_release(filled, THREE)
    assert await active(filled) == "model-3.0"


async def test_adopting_a_release_again_changes_nothing(filled: Store) -> None:
    await adopt_release(filled, ONE)
    await adopt_release(filled, ONE)
    async with filled.db.transaction() as tx:
        assert len(await models.choices(tx, ModelRole.ACTIVE)) == 1
        assert len(await audit.entries(tx, entity="model/model-1.0")) == 2


async def test_steps_back_go_further_back_and_never_forth(filled: Store) -> None:
    for model in (ONE, TWO, THREE):
        await use(filled, model)
    assert (await roll_back(filled, by="command line")).version == "2.0"
    assert (await roll_back(filled, by="command line")).version == "1.0"
    with pytest.raises(NodeError) as caught:
        await roll_back(filled, by="command line")
    assert caught.value.kind is ErrorKind.RULE
    assert await active(filled) == "model-1.0"
    await use(filled, THREE)
    assert (await roll_back(filled, by="command line")).version == "1.0"


async def test_step_back_is_not_undone_by_the_next_start(filled: Store) -> None:
    await adopt_release(filled, ONE)
    await adopt_release(filled, TWO)
    await roll_back(filled, by="command line", reason="too many 4A")
    await adopt_release(filled, TWO)
    assert await active(filled) == "model-1.0"
    async with filled.db.transaction() as tx:
        *_, last = await audit.entries(tx, entity="model/model-1.0")
    assert (last.action, last.detail["reason"]) == ("model-rollback", "too many 4A")


async def test_choosing_the_active_model_again_is_refused(filled: Store) -> None:
    await use(filled, ONE)
    with pytest.raises(NodeError) as caught:
        await use(filled, ONE)
    assert caught.value.kind is ErrorKind.RULE


async def test_shadow_is_chosen_and_stopped(filled: Store) -> None:
    await use(filled, ONE)
    await choose_shadow(filled, TWO, by="command line")
    assert await active(filled, ModelRole.SHADOW) == "model-2.0"
    await choose_shadow(filled, None, by="command line")
    assert await active(filled, ModelRole.SHADOW) is None
    with pytest.raises(NodeError, match="already"):
        await choose_shadow(filled, None, by="command line")
    with pytest.raises(NodeError, match="active"):
        await choose_shadow(filled, ONE, by="command line")


async def test_shadow_that_becomes_active_is_no_shadow_any_more(filled: Store) -> None:
    await use(filled, ONE)
    await choose_shadow(filled, TWO, by="command line")
    await use(filled, TWO)
    assert await active(filled) == "model-2.0"
    assert await active(filled, ModelRole.SHADOW) is None


async def test_state_tells_what_serves_and_what_ails(filled: Store) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    state = ModelState(ModelRole.ACTIVE, 7, "model-1.0", "it is torn", at)
    async with filled.db.transaction() as tx:
        assert await models.state(tx, ModelRole.ACTIVE) is None
        await models.write_state(tx, replace(state, trouble=""))
        await models.write_state(tx, state)
        assert await models.state(tx, ModelRole.ACTIVE) == state


async def test_shadow_reading_is_sealed_and_goes_with_the_patients_key(
    filled: Store,
) -> None:
    findings = make_findings("4B")
    first = ShadowReading(
        uuid4(), 1, "model-2.0", uuid4(), "2.25.3001", findings, filled.clock()
    )
    async with filled.db.transaction() as tx:
        for generation in (1, 2):
            reading = replace(first, generation=generation)
            await models.write_shadow_reading(tx, filled, reading)
        assert await models.shadow_readings(tx, filled, "model-1.0") == []
        assert await models.shadow_readings(tx, filled, "model-2.0") == [
            replace(first, generation=2)
        ]
        body = await tx.fetchval("select body from shadow_reading limit 1")
    assert b'"4B"' not in body  # two letters alone are in ciphertext by chance
    await shred_patient(filled.db, filled.ring, first.patient_id)
    async with filled.db.transaction() as tx:
        assert await models.shadow_readings(tx, filled, "model-2.0") == []
        assert await models.shadows(tx) == {"model-2.0": 2}
