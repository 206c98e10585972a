"""The models in memory: what was chosen is loaded, tried, and then takes its place.

The choice is a row (`node.store.models`). A model that is chosen is loaded beside the
one that reads; only when it has answered does it take over, between two studies. One
that cannot be used changes nothing: the old one goes on, and the state says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from inference.assess import ImageToRead, Reader
from inference.models import ModelFolder, Shelf, read_folder, verify_folder
from inference.record import Network
from inference.select import ImageHeader
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import UltrasoundRegion
from node.store import models
from node.store.models import KnownModel, ModelRole, ModelState, Origin
from node.workflow.models import RELEASE, adopt_release, trail_of

if TYPE_CHECKING:
    from node.store.store import Store

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 2.0
TRY_AGAIN_S = 30.0
"""A choice that could not be loaded is tried again: somebody may restore its files."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A loaded model and how to let go of it; `close` may block."""

    reader: Reader
    network: Network
    close: Callable[[], object] = lambda: None


Load = Callable[[ModelFolder, ModelRole], Serving]
"""Loads the model in a verified folder; blocks; NodeError says why it cannot."""


@dataclass(slots=True)
class _Held:
    """A model in memory; `readings` under way keep it there after it was replaced."""

    model: KnownModel
    serving: Serving
    readings: int = 0
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What should serve a role: `choice` tells one wish from the next."""

    choice: int
    model: KnownModel
    find: Callable[[], ModelFolder]


class LoadedModels:
    """The active model and the shadow of one reading process.

    `pinned` is the folder that a setting names: it alone is active then, whatever
    was chosen.
    """

    def __init__(
        self, store: Store, shelf: Shelf, load: Load, *, pinned: Path | None = None
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._load = load
        self._pinned = pinned
        self._held: dict[ModelRole, _Held] = {}
        self._told: dict[ModelRole, ModelState] = {}
        self._tried: dict[ModelRole | None, tuple[int, float]] = {}
        self._adopted = False
        self._kept = False
        self._release_trouble = ""
        self._active = asyncio.Event()
        self._following = asyncio.Lock()

    def serving(self, role: ModelRole) -> KnownModel | None:
        """Return the model in memory that has `role`, or None."""
        held = self._held.get(role)
        return held.model if held else None

    @asynccontextmanager
    async def reading(self, role: ModelRole) -> AsyncIterator[Reader]:
        """Yield the model of `role`, the same to the end of the block.

        UNAVAILABLE when there is none in memory.
        """
        held = self._held.get(role)
        if held is None:
            raise NodeError(f"no {role} model is loaded", ErrorKind.UNAVAILABLE)
        held.readings += 1
        try:
            yield held.serving.reader
        finally:
            held.readings -= 1
            await self._let_go(held)

    async def follow(self) -> None:
        """Look once at what was chosen and load it; a faulty model is told of."""
        async with self._following:
            if not self._adopted:
                await self._adopt_release()
            await self._settle(ModelRole.ACTIVE)
            await self._settle(ModelRole.SHADOW)
            if not self._kept:
                await self._keep_release()

    async def keep_following(self) -> None:
        """Follow every choice soon after it was made, until cancelled."""
        woken = asyncio.Event()
        await self._store.db.listen(models.CHANNEL, lambda _role: woken.set())
        while True:
            woken.clear()
            try:
                await self.follow()
            except NodeError as error:
                # PostgreSQL is away: what is loaded goes on.
                log.warning("models.follow", error=error.message)
            except Exception:
                log.exception("models.follow")
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await woken.wait()
            except TimeoutError:
                pass

    async def until_active(self) -> None:
        """Return once there is a model to read with."""
        await self._active.wait()

    async def close(self) -> None:
        """Let go of every model."""
        for role in ModelRole:
            await self._replace(role, None)

    # --- the model of the release -----------------------------------------------------

    async def _adopt_release(self) -> None:
        """Put the model that came with the software on file, verified."""
        if not self._may_try(None, 0):
            return
        self._tried[None] = 0, asyncio.get_running_loop().time()
        try:
            folder = await asyncio.to_thread(verify_folder, self._shelf.release)
            model = folder.known(Origin.RELEASE, at=self._store.clock(), by=RELEASE)
            if self._pinned is None:
                await adopt_release(self._store, model)
        except NodeError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise
            log.error("models.release", error=error.message)
            self._release_trouble = error.message
        else:
            self._adopted = True

    async def _keep_release(self) -> None:
        """Put the model of the release on the shelf, for a step back to it one day."""
        if not self._adopted:
            return
        self._kept = True
        try:
            folder = await asyncio.to_thread(verify_folder, self._shelf.release)
            await asyncio.to_thread(self._shelf.keep, folder, release=True)
        except NodeError as error:
            # Tried again at the next start: it reads all the same.
            log.error("models.keep", error=error.message)

    # --- following ----------------------------------------------------------------

    async def _settle(self, role: ModelRole) -> None:
        """Bring `role` to what is wanted, or tell why it stays as it is."""
        try:
            wanted = await self._wanted(role)
        except NodeError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise
            await self._tell(role, 0, error.message)
            return
        if wanted is None:
            await self._replace(role, None)
            ails = self._release_trouble if role is ModelRole.ACTIVE else ""
            await self._tell(role, 0, ails)
            return
        held = self._held.get(role)
        if held is not None and held.model.model_id == wanted.model.model_id:
            await self._tell(role, wanted.choice, "")
        elif self._may_try(role, wanted.choice):
            await self._try(role, wanted)

    async def _wanted(self, role: ModelRole) -> _Wanted | None:
        if role is ModelRole.ACTIVE and self._pinned is not None:
            return await self._pinned_model(self._pinned)
        async with self._store.db.transaction(readonly=True) as tx:
            choice = await models.chosen(tx, role)
            if choice is None or choice.model_id is None:
                return None
            model = await models.read(tx, choice.model_id)
        return _Wanted(choice.sequence, model, partial(self._shelf.find, model))

    async def _pinned_model(self, path: Path) -> _Wanted:
        folder = await asyncio.to_thread(read_folder, path)
        at = self._store.clock()
        model = folder.known(Origin.SETTING, at=at, by="inference.weights")
        return _Wanted(0, model, partial(read_folder, path))

    def _may_try(self, role: ModelRole | None, choice: int) -> bool:
        tried, at = self._tried.get(role, (None, 0.0))
        return tried != choice or asyncio.get_running_loop().time() - at > TRY_AGAIN_S

    async def _try(self, role: ModelRole, wanted: _Wanted) -> None:
        self._tried[role] = wanted.choice, asyncio.get_running_loop().time()
        try:
            await self._load_model(role, wanted.model, wanted.find)
        except NodeError as error:
            if error.kind is ErrorKind.UNAVAILABLE:
                raise
            log.error("models.refused", role=role, error=error.message)
            if role is ModelRole.ACTIVE and self._pinned is None:
                await self._fall_back(wanted.choice)
            await self._tell(role, wanted.choice, error.message)
        else:
            await self._tell(role, wanted.choice, "")

    async def _fall_back(self, choice: int) -> None:
        """After a start: read with the last model before `choice` that can be used."""
        if ModelRole.ACTIVE in self._held:
            return
        for model in await self._models_before(choice):
            find = partial(self._shelf.find, model)
            try:
                await self._load_model(ModelRole.ACTIVE, model, find)
            except NodeError as error:
                if error.kind is ErrorKind.UNAVAILABLE:
                    raise
                log.error("models.refused", role="active", error=error.message)
            else:
                return

    async def _models_before(self, choice: int) -> list[KnownModel]:
        async with self._store.db.transaction(readonly=True) as tx:
            made = await models.choices(tx, ModelRole.ACTIVE)
            trail = trail_of([c for c in made if c.sequence <= choice])
            return [await models.read(tx, id_) for id_ in reversed(trail[:-1])]

    async def _load_model(
        self, role: ModelRole, model: KnownModel, find: Callable[[], ModelFolder]
    ) -> None:
        serving = await asyncio.to_thread(self._load_and_try, role, model, find)
        try:
            async with self._store.db.transaction() as tx:
                await models.register(tx, model)
        except BaseException:
            await asyncio.to_thread(serving.close)
            raise
        await self._replace(role, _Held(model, serving))
        log.info("models.serving", role=role, model=model.label)

    def _load_and_try(
        self, role: ModelRole, model: KnownModel, find: Callable[[], ModelFolder]
    ) -> Serving:
        return load_and_try(verify_folder(find().path), role, self._load)

    # --- taking over --------------------------------------------------------------

    async def _replace(self, role: ModelRole, held: _Held | None) -> None:
        before = self._held.pop(role, None)
        if held is not None:
            self._held[role] = held
            if role is ModelRole.ACTIVE:
                self._active.set()
        if before is not None:
            before.replaced = True
            await self._let_go(before)

    async def _let_go(self, held: _Held) -> None:
        if held.replaced and not held.readings:
            await asyncio.to_thread(held.serving.close)

    async def _tell(self, role: ModelRole, choice: int, trouble: str) -> None:
        model = self.serving(role)
        state = ModelState(
            role,
            choice,
            model.model_id if model else None,
            trouble,
            self._store.clock(),
        )
        told = self._told.get(role)
        if told is not None and _same(told, state):
            return
        async with self._store.db.transaction() as tx:
            await models.write_state(tx, state)
        self._told[role] = state


def _same(one: ModelState, other: ModelState) -> bool:
    return (one.choice, one.serving, one.trouble) == (
        other.choice,
        other.serving,
        other.trouble,
    )


def load_and_try(folder: ModelFolder, role: ModelRole, load: Load) -> Serving:
    """Return the model in a verified folder once it has read an image. Blocks.

    INTEGRITY in one line for whatever is wrong with it: weights of other shapes,
    an answer that is no number, another model than the folder said.
    """
    try:
        serving = load(folder, role)
    except NodeError as error:
        if error.kind is not ErrorKind.UNAVAILABLE:
            raise
        # Not the database, which is waited for: the engine cannot run this model.
        raise NodeError(
            f"{folder.label}: {error.message}", ErrorKind.UNSUPPORTED
        ) from error
    except Exception as error:
        # Libraries tell of wrong shapes and types in many ways and lines.
        log.warning("models.load_failed", model=folder.label, exc_info=True)
        raise NodeError(
            f"{folder.label}: its weights do not fit the network"
            f" ({type(error).__name__})",
            ErrorKind.INTEGRITY,
        ) from None
    try:
        _try_reading(folder, serving)
    except BaseException:
        serving.close()
        raise
    return serving


def _try_reading(folder: ModelFolder, serving: Serving) -> None:
    """Raise INTEGRITY unless the model reads a picture as the one it says it is."""
    identity = serving.reader.identity
    said = (identity.name, identity.version, identity.weights_sha256)
    if said != (folder.name, folder.version, folder.weights_sha256):
        raise NodeError(
            f"{folder.label}: another model was loaded from it", ErrorKind.INTEGRITY
        )
    try:
        answer = serving.network(_test_windows(folder.side))
        heads = (answer.malignancy, answer.lesion, answer.birads, answer.margin)
        numbers = (*heads, *answer.choices.values(), answer.mask)
        finite = all(np.isfinite(values).all() for values in numbers)
        if finite:
            serving.reader.read_study(_TEST_STUDY, tracking_uid=lambda _: "2.25.1")
    except Exception as error:
        log.warning("models.test_failed", model=folder.label, exc_info=True)
        raise NodeError(
            f"{folder.label}: it cannot read a test image ({type(error).__name__})",
            ErrorKind.INTEGRITY,
        ) from None
    if not finite:
        raise NodeError(
            f"{folder.label}: its answer to a test image is no number",
            ErrorKind.INTEGRITY,
        )


def _test_windows(side: int) -> NDArray[np.float32]:
    """Return two windows as the network takes them: float32 (2, 1, side, side)."""
    windows = np.random.default_rng(2).random((2, 1, side, side), dtype=np.float32)
    return windows - np.float32(0.5)


def _test_frames(indices: Sequence[int]) -> NDArray[np.uint8]:
    """Return speckle with a dark oval in it: uint8 (frames, rows, columns, 3)."""
    grains = np.random.default_rng(1).rayleigh(45, (75, 100))
    speckle = np.kron(grains, np.ones((4, 4)))  # noise alone would be refused
    rows, columns = np.ogrid[:300, :400]
    oval = ((rows - 150) / 40) ** 2 + ((columns - 200) / 60) ** 2 < 1
    grey = np.where(oval, speckle / 4, speckle).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[None, :, :, None], 3, axis=3)[[0] * len(indices)]


_TEST_STUDY = (
    ImageToRead(
        ImageHeader(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.6.1",
            sop_instance_uid="2.25.0",
            rows=300,
            columns=400,
            regions=(UltrasoundRegion(0, 0, 399, 299, 1, 1, 3, 3, 0.02, 0.02),),
            body_part_examined="BREAST",
        ),
        _test_frames,
    ),
)
