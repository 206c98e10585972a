"""What `python -m node models` does, beside a process that reads."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from inference.loaded import LoadedModels
from inference.models import Shelf
from node import administration, model_choice
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings
from node.domain.report import Author, AuthorKind, Conclusions, ReportStatus
from node.model_choice import (
    activate,
    add_model,
    comparisons,
    find,
    roll_back,
    rows,
    shadow,
    stop_shadow,
    troubles,
)
from node.store import models
from node.store.models import KnownModel, ShadowReading
from node.store.store import Store
from node.workflow.models import add_model as put_on_file
from node.workflow.reporting import draft_report, revise_report
from tests.factories import DOCTOR, make_findings, make_lesion, make_patient
from tests.fhir.rig import receive_study
from tests.inference.records import RECORD
from tests.inference.tiny_models import load_tiny, make_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"SONONODE_DATA": str(tmp_path / "data")})


@pytest.fixture
async def process(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LoadedModels]:
    """A process that reads with tiny models; `1.0` came with the release."""
    release = make_model(tmp_path / "release", "1.0", b"1.0")
    shelf = Shelf(settings.data / "models", release)
    monkeypatch.setattr(model_choice, "shelf_of", lambda _: shelf)
    monkeypatch.setattr(
        model_choice, "load_model", lambda _, folder, role: load_tiny(folder)
    )
    monkeypatch.setattr(model_choice, "_LOOK_S", 0.01)
    loaded = LoadedModels(store, shelf, lambda folder, _: load_tiny(folder))
    following = asyncio.create_task(loaded.keep_following())
    async with asyncio.timeout(60):
        await loaded.until_active()
    yield loaded
    following.cancel()
    await loaded.close()


async def added(
    store: Store, settings: Settings, tmp_path: Path, version: str = "2.0"
) -> KnownModel:
    folder = make_model(tmp_path / version, version, version.encode())
    return await add_model(store, settings, folder)


async def does(store: Store, settings: Settings) -> dict[str, str]:
    return {label: what for label, _, what, _ in await rows(store, settings)}


async def test_model_is_added_chosen_and_taken_back(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    await added(store, settings, tmp_path)
    assert await does(store, settings) == {"tiny-1.0": "reads", "tiny-2.0": ""}
    told = await activate(store, settings, "2.0", "better on dense breasts")
    assert told == "tiny-2.0: reads from now on"
    assert await does(store, settings) == {"tiny-1.0": "", "tiny-2.0": "reads"}
    assert await roll_back(store, settings, "") == "tiny-1.0: reads from now on"
    told = await activate(store, settings, "release", "")
    assert told == "tiny-1.0: reads from now on"


async def test_shadow_is_chosen_and_stopped(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    await added(store, settings, tmp_path)
    told = await shadow(store, settings, "tiny-2.0", "")
    assert told == "tiny-2.0: reads along from now on"
    assert (await does(store, settings))["tiny-2.0"] == "reads along"
    await stop_shadow(store, "")
    await process.follow()
    assert (await does(store, settings))["tiny-2.0"] == ""


async def test_damaged_model_is_refused_and_told_of_everywhere(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    model = await added(store, settings, tmp_path)
    (settings.data / "models" / model.label / RECORD.weights).write_bytes(b"2.1")
    with pytest.raises(NodeError) as caught:
        await activate(store, settings, "2.0", "")
    line = caught.value.message
    assert "has SHA-256" in line
    assert line.endswith("; tiny-1.0 goes on")
    assert await troubles(store) == [line]
    assert await does(store, settings) == {
        "tiny-1.0": "reads, not chosen",
        "tiny-2.0": "chosen: reads when loaded",
    }
    (settings.data).mkdir(exist_ok=True)
    found = await administration.examine(store, settings)
    (finding,) = [f for f in found if f.what == "active model"]
    assert (finding.well, finding.told) == (False, line)


async def test_what_cannot_read_is_not_added(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    for name, weights in (("nan", b"nan"), ("other", b"shapes")):
        folder = make_model(tmp_path / name, "4.0", weights)
        with pytest.raises(NodeError) as caught:
            await add_model(store, settings, folder)
        assert caught.value.kind is ErrorKind.INTEGRITY
    assert list(await does(store, settings)) == ["tiny-1.0"]
    shelf = settings.data / "models"
    assert [f.name for f in shelf.iterdir()] == ["tiny-1.0"]


async def test_pinned_model_leaves_nothing_to_choose(
    store: Store, settings: Settings
) -> None:
    pinned = replace(settings, inference=replace(settings.inference, weights="mine"))
    for attempt in (activate(store, pinned, "2.0", ""), roll_back(store, pinned, "")):
        with pytest.raises(
            NodeError, match=r"inference\.weights: names mine"
        ) as caught:
            await attempt
        assert caught.value.kind is ErrorKind.SETTING


async def test_model_is_found_by_whatever_names_it_alone(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    model = await added(store, settings, tmp_path)
    names = ("tiny-2.0", "2.0", model.model_id, model.weights_sha256[:12])
    for name in names:
        assert await find(store, settings, name) == model
    with pytest.raises(NodeError) as caught:
        await find(store, settings, "9.9")
    assert caught.value.kind is ErrorKind.NOT_FOUND
    twin = replace(model, model_id="model-2.0-twin", name="other", record_sha256="0")
    await put_on_file(store, twin)
    with pytest.raises(NodeError, match="could be") as caught:
        await find(store, settings, "2.0")
    assert caught.value.kind is ErrorKind.INVALID


# --- comparing --------------------------------------------------------------------


async def read_by(
    store: Store, number: int, ai: Findings, silent: Findings, model: KnownModel
) -> None:
    """Let the active model draft, a doctor sign as drafted, and a shadow read along."""
    uid = f"2.25.{9000 + number}"
    patient = make_patient(patient_id=f"M-{number}", id_number=None)
    await receive_study(store, patient, study_uid=uid)
    active = (await find_all(store))["tiny-1.0"]
    author = Author(AuthorKind.ALGORITHM, active.model_id, "tiny 1.0")
    async with store.db.transaction() as tx:
        report = await draft_report(store, tx, uid, ai, author=author)
        await revise_report(
            store,
            tx,
            report.id,
            ReportStatus.FINAL,
            ai,
            Conclusions(),
            author=DOCTOR,
        )
        reading = ShadowReading(
            report.id, 1, model.model_id, report.patient_id, uid, silent, store.clock()
        )
        await models.write_shadow_reading(tx, store, reading)


async def find_all(store: Store) -> dict[str, KnownModel]:
    async with store.db.transaction() as tx:
        return {model.label: model for model in await models.known(tx)}


async def test_shadow_is_compared_with_active_model_and_doctors(
    store: Store, settings: Settings, process: LoadedModels, tmp_path: Path
) -> None:
    model = await added(store, settings, tmp_path)
    assert await comparisons(store, settings, "") == []
    for number in range(3):
        # The shadow counts the worst lesion second and names it otherwise.
        mild = make_lesion(tracking_uid="2.25.1", category="2", probability=None)
        worst = make_lesion(tracking_uid="2.25.2", category="4C" if number else "3")
        silent = Findings(lesions=(mild, worst), category=worst.category)
        await read_by(store, number, make_findings("4C"), silent, model)
    active, signed = await comparisons(store, settings, "2.0")
    assert (active.shadow, active.other, active.studies) == ("tiny-2.0", "tiny-1.0", 3)
    assert (signed.other, signed.studies) == ("signed reports", 3)
    fields = {field.field: field for field in active.fields}
    assert fields["overall_category"].compared == 3
    assert fields["overall_category"].agreed == 2
    assert fields["assessment_category"].agreed == 2
    assert fields["shape"].agreed == 3
    assert active.apart == (0.0, 0.0)
