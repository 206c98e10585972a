"""The model that reads changes without a restart, and never for one that is faulty."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dicom_scp.results.encode_report import ResultSettings, encode_report
from dicom_scp.results.sr import Equipment, to_part10
from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import Patient, View, build_instance
from dicom_scp.simulation.simulator import GE_LIKE
from fhir.content.publish import publish_report
from fhir.encoding.wire import parse
from inference import loaded as loaded_module
from inference.assess import Reader
from inference.loaded import LoadedModels, Serving
from inference.models import ModelFolder, Shelf, verify_folder
from inference.reading import ReadingSettings, assess_study
from inference.shadow import assess_shadow
from node.domain.errors import ErrorKind, NodeError
from node.store import models, reports, resources
from node.store.associations import EndedHow, end_associations
from node.store.models import KnownModel, ModelRole, ModelState, Origin
from node.store.store import Store
from node.worker import Handler
from node.workflow.completion import CompletionSettings, close_due_studies
from node.workflow.models import activate, add_model, choose_shadow, roll_back
from tests.factories import NOW
from tests.fhir.rig import make_settings
from tests.inference.records import RECORD
from tests.inference.tiny_models import load_tiny, make_model
from tests.intake import receive_object

ACTIVE, SHADOW = ModelRole.ACTIVE, ModelRole.SHADOW


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sound models and two that are not; tests copy what they change."""
    folder = tmp_path_factory.mktemp("models")
    sound = ("1.0", "2.0", "3.0")
    made = {v: make_model(folder / v, v, v.encode() * 1000) for v in sound}
    made["no number"] = make_model(folder / "nan", "4.0", b"nan")
    made["other shapes"] = make_model(folder / "shapes", "5.0", b"shapes")
    return made


@dataclass
class Rig:
    """One reading process, with the model `1.0` as that of the release."""

    store: Store
    shelf: Shelf
    folders: dict[str, Path]
    closed: list[str] = field(default_factory=list)
    loaded: LoadedModels = field(init=False)

    def start(self, pinned: Path | None = None) -> None:
        """Begin as a process does that has nothing in memory."""
        self.loaded = LoadedModels(self.store, self.shelf, self.load, pinned=pinned)

    def load(self, folder: ModelFolder, role: ModelRole) -> Serving:
        serving = load_tiny(folder)
        return replace(serving, close=lambda: self.closed.append(folder.version))

    async def add(self, name: str) -> KnownModel:
        kept = self.shelf.keep(verify_folder(self.folders[name]))
        model = kept.known(Origin.ADDED, at=NOW, by="me")
        return await add_model(self.store, model)

    async def use(self, name: str) -> KnownModel:
        model = await self.add(name)
        await activate(self.store, model, by="me")
        await self.loaded.follow()
        return model

    def version(self, role: ModelRole = ACTIVE) -> str | None:
        model = self.loaded.serving(role)
        return model.version if model else None

    async def state(self, role: ModelRole = ACTIVE) -> ModelState:
        async with self.store.db.transaction() as tx:
            state = await models.state(tx, role)
        assert state is not None
        return state


@pytest.fixture
async def rig(
    store: Store, tmp_path: Path, folders: dict[str, Path]
) -> AsyncIterator[Rig]:
    release = tmp_path / "release"
    copy(folders["1.0"], release)
    made = Rig(store, Shelf(tmp_path / "models", release), folders)
    made.start()
    yield made
    await made.loaded.close()


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def flip_a_bit(folder: Path) -> None:
    file = folder / RECORD.weights
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    file.write_bytes(content)


# --- switching --------------------------------------------------------------------


async def test_release_reads_at_first_and_a_choice_takes_over(rig: Rig) -> None:
    await rig.loaded.follow()
    assert rig.version() == "1.0"
    await rig.use("2.0")
    assert rig.version() == "2.0"
    assert rig.closed == ["1.0"]
    await roll_back(rig.store, by="me")
    await rig.loaded.follow()
    assert rig.version() == "1.0"
    assert (await rig.state()).trouble == ""


async def test_reading_under_way_ends_with_the_model_it_began_with(rig: Rig) -> None:
    await rig.loaded.follow()
    async with rig.loaded.reading(ACTIVE) as reader:
        await rig.use("2.0")
        assert rig.version() == "2.0"
        assert reader.identity.version == "1.0"
        assert rig.closed == []
    assert rig.closed == ["1.0"]


async def test_choice_is_noticed_without_being_told(rig: Rig) -> None:
    following = asyncio.create_task(rig.loaded.keep_following())
    await asyncio.wait_for(rig.loaded.until_active(), 60)
    model = await rig.add("2.0")
    await activate(rig.store, model, by="me")
    async with asyncio.timeout(60):
        while rig.version() != "2.0":
            await asyncio.sleep(0.01)
    following.cancel()


async def test_model_of_an_earlier_release_can_be_taken_back(rig: Rig) -> None:
    await rig.loaded.follow()
    for file in rig.shelf.release.iterdir():
        file.unlink()
    rig.shelf.release.rmdir()
    copy(rig.folders["3.0"], rig.shelf.release)
    rig.start()
    await rig.loaded.follow()
    assert rig.version() == "3.0"
    await roll_back(rig.store, by="me")
    await rig.loaded.follow()
    assert rig.version() == "1.0"


# --- what is faulty ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no number", "no number"),
        ("other shapes", "do not fit the network"),
        ("2.0", "has SHA-256"),
    ],
)
async def test_model_that_cannot_be_used_changes_nothing(
    rig: Rig, name: str, told: str
) -> None:
    await rig.loaded.follow()
    model = await rig.add(name)
    if name == "2.0":
        flip_a_bit(rig.shelf.root / model.label)
    await activate(rig.store, model, by="me")
    await rig.loaded.follow()
    assert rig.version() == "1.0"
    state = await rig.state()
    assert told in state.trouble
    assert "\n" not in state.trouble
    assert state.serving is not None
    assert state.serving.startswith("model-1.0-")


async def test_truncated_weights_are_read_once_they_are_restored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.loaded.follow()
    model = await rig.add("2.0")
    file = rig.shelf.root / model.label / RECORD.weights
    os.truncate(file, 1000)
    await activate(rig.store, model, by="me")
    await rig.loaded.follow()
    assert rig.version() == "1.0"
    file.write_bytes((rig.folders["2.0"] / RECORD.weights).read_bytes())
    await rig.loaded.follow()
    assert rig.version() == "1.0"  # not at every look
    monkeypatch.setattr(loaded_module, "TRY_AGAIN_S", -1.0)
    await rig.loaded.follow()
    assert rig.version() == "2.0"
    assert (await rig.state()).trouble == ""


async def test_start_with_a_damaged_choice_reads_with_the_one_before(rig: Rig) -> None:
    await rig.loaded.follow()
    model = await rig.use("2.0")
    flip_a_bit(rig.shelf.root / model.label)
    rig.start()
    await rig.loaded.follow()
    assert rig.version() == "1.0"
    assert "SHA-256" in (await rig.state()).trouble


async def test_first_start_without_any_model_waits_and_says_why(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_bit(rig.shelf.release)
    await rig.loaded.follow()
    assert rig.version() is None
    assert "SHA-256" in (await rig.state()).trouble
    with pytest.raises(NodeError) as caught:
        async with rig.loaded.reading(ACTIVE):
            pass
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    file = rig.shelf.release / RECORD.weights
    file.write_bytes((rig.folders["1.0"] / RECORD.weights).read_bytes())
    monkeypatch.setattr(loaded_module, "TRY_AGAIN_S", -1.0)
    await rig.loaded.follow()
    await rig.loaded.until_active()
    assert rig.version() == "1.0"
    assert (await rig.state()).trouble == ""


async def test_model_that_a_setting_names_reads_whatever_was_chosen(rig: Rig) -> None:
    await rig.loaded.follow()
    await rig.use("2.0")
    rig.start(pinned=rig.folders["3.0"])
    await rig.loaded.follow()
    assert rig.version() == "3.0"
    async with rig.store.db.transaction() as tx:
        known = await models.known(tx)
    assert {m.origin for m in known if m.version == "3.0"} == {Origin.SETTING}


# --- the shadow -------------------------------------------------------------------

LESION = PhantomLesion(
    22, 16, 12, 10, shape="irregular", margin=("angular",), assessment_category="4B"
)
STUDY = "2.25.8001"
UNTOUCHED = "jobs", "shadow_reading", "model_state"


async def close_study(store: Store) -> None:
    """Take in a study of one simulated image and close it as silence does."""
    phantom = build_phantom((LESION,), seed=3)
    dataset = build_instance(
        View(frames=(phantom.pixels,), mm_per_pixel=phantom.mm_per_pixel),
        Patient("Qin^Yu=秦^玉", "M-000008", "19790412", "000000197904120008"),
        GE_LIKE,
        at=NOW,
        uids=(STUDY, f"{STUDY}.1", f"{STUDY}.1.1"),
        accession_number="M26110001",
        description="Breast US",
    )
    await receive_object(store, dataset, to_part10(dataset))
    async with store.db.transaction() as tx:
        await end_associations(tx, how=EndedHow.RELEASED, at=store.clock())
    await close_due_studies(store, CompletionSettings(0.0, 0.0))


async def do_jobs(
    store: Store, handlers: Mapping[str, Handler], behind: Sequence[str] = ()
) -> list[str]:
    """Do what is due of these kinds; return the kinds in the order of doing."""
    done = []
    while job := await store.jobs.claim(list(handlers), "test", behind=behind):
        await handlers[job.kind](job.payload)
        await store.jobs.done(job)
        done.append(job.kind)
    return done


def visible_handlers(rig: Rig) -> dict[str, Handler]:
    async def read_study(payload: Mapping[str, Any]) -> None:
        async with rig.loaded.reading(ACTIVE) as reader:
            await assess_study(rig.store, payload, reader, ReadingSettings())

    equipment = Equipment.at_site(
        "示范医院", "SONONODE", "zh-CN", "+0800", software_version="1.2.3"
    )
    settings = make_settings("http://127.0.0.1/fhir")
    return {
        "assess_study": read_study,
        "publish_report": partial(publish_report, rig.store, settings),
        "encode_report": lambda payload: encode_report(
            rig.store, payload, ResultSettings(equipment)
        ),
    }


def shadow_handlers(rig: Rig) -> dict[str, Handler]:
    return {"assess_shadow": partial(assess_shadow, rig.store, rig.loaded)}


async def everything(store: Store) -> dict[str, list[str]]:
    """Return every row of every table but those that may change unseen."""
    async with store.db.transaction() as tx:
        names = await tx.fetch(
            "select table_name as name from information_schema.tables"
            " where table_schema = 'public' and table_type = 'BASE TABLE'"
        )
        return {
            name: sorted(str(row) for row in await tx.fetch(f"select * from {name}"))
            for (name,) in names
            if name not in UNTOUCHED
        }


def objects(store: Store, folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


async def shadowed(rig: Rig) -> KnownModel:
    """Let `2.0` read along and take in one study."""
    await rig.loaded.follow()
    model = await rig.add("2.0")
    await choose_shadow(rig.store, model, by="me")
    await rig.loaded.follow()
    await close_study(rig.store)
    return model


async def test_shadow_reads_and_changes_nothing_that_anybody_sees(
    rig: Rig, tmp_path: Path
) -> None:
    model = await shadowed(rig)
    done = await do_jobs(rig.store, visible_handlers(rig))
    assert sorted(done) == ["assess_study", "encode_report", "publish_report"]
    before = await everything(rig.store), objects(rig.store, tmp_path / "objects")
    assert before[0]["report_version"]
    assert before[1]
    assert await do_jobs(rig.store, shadow_handlers(rig)) == ["assess_shadow"]
    after = await everything(rig.store), objects(rig.store, tmp_path / "objects")
    assert after == before
    async with rig.store.db.transaction() as tx:
        (reading,) = await models.shadow_readings(tx, rig.store, model.model_id)
        report = await reports.read(tx, rig.store, reading.report_id)
        waiting = await rig.store.jobs.counts(tx)
        device = await resources.read(tx, rig.store, "Device", report.current.author.id)
        assert await resources.find(tx, rig.store, "Device", model.model_id) is None
    assert waiting == {}
    assert reading.findings.lesions
    assert report.current.author.display.startswith("tiny 1.0+sha256.")
    assert {"1.0"} < {v["value"] for v in parse(device.body)["version"]}


async def test_shadow_waits_behind_every_visible_reading(rig: Rig) -> None:
    await shadowed(rig)
    shadow = {"assess_shadow"}
    await do_jobs(rig.store, visible_handlers(rig))
    async with rig.store.db.transaction() as tx:
        await rig.store.jobs.defer(tx, "assess_study", {})
    behind = ("assess_study",)
    assert await rig.store.jobs.claim(list(shadow), "test", behind=behind) is None
    visible = await rig.store.jobs.claim(["assess_study"], "test")
    assert visible is not None
    assert await rig.store.jobs.claim(list(shadow), "test", behind=behind) is None
    await rig.store.jobs.done(visible)
    assert await do_jobs(rig.store, shadow_handlers(rig), behind) == ["assess_shadow"]


async def test_failing_shadow_is_logged_and_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = await shadowed(rig)
    await do_jobs(rig.store, visible_handlers(rig))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("an image of Qin^Yu")

    monkeypatch.setattr(Reader, "read_study", fail)
    await do_jobs(rig.store, shadow_handlers(rig))
    async with rig.store.db.transaction() as tx:
        assert await models.shadow_readings(tx, rig.store, model.model_id) == []
        assert await rig.store.jobs.dead(tx) == []


async def test_study_is_not_read_along_once_the_shadow_was_stopped(rig: Rig) -> None:
    model = await shadowed(rig)
    await do_jobs(rig.store, visible_handlers(rig))
    await choose_shadow(rig.store, None, by="me")
    await rig.loaded.follow()
    assert rig.version(SHADOW) is None
    assert rig.closed == ["2.0"]
    await do_jobs(rig.store, shadow_handlers(rig))
    async with rig.store.db.transaction() as tx:
        assert await models.shadow_readings(tx, rig.store, model.model_id) == []


async def test_reports_of_two_models_each_keep_their_device(rig: Rig) -> None:
    await rig.loaded.follow()
    await close_study(rig.store)
    handlers = visible_handlers(rig)
    await do_jobs(rig.store, {"assess_study": handlers["assess_study"]})
    await rig.use("2.0")  # before the draft of 1.0 was published
    await do_jobs(rig.store, handlers)
    async with rig.store.db.transaction() as tx:
        report = await reports.read(tx, rig.store, reports.report_id_for(STUDY))
        device = await resources.read(tx, rig.store, "Device", report.current.author.id)
        (known, _) = await models.known(tx)
    versions = {v["value"] for v in parse(device.body)["version"]}
    assert versions == {"1.0", known.weights_sha256}
