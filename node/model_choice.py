"""What the command line does with models: finds, adds, lists and compares them."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.settings import Settings
from inference.models import ModelFolder, read_folder, verify_folder
from node.administration import ADMINISTRATOR
from node.app import load_model
from node.domain.agreement import FieldAgreement, Pair, compare, summarise
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Findings, Lesion
from node.domain.lexicon import CATEGORIES
from node.domain.report import AuthorKind, Report
from node.parts import pinned_model, shelf_of
from node.store import models as store_models
from node.store import reports
from node.store.database import Transaction
from node.store.models import KnownModel, ModelRole, ModelState, Origin
from node.store.store import Store
from node.workflow import models as choosing

RELEASE = "release"
"""What is typed for the model that ships with the software."""

_PATIENCE_S = 120.0
_LOOK_S = 0.2


# --- what is asked for ----------------------------------------------------------------


async def activate(store: Store, settings: Settings, name: str, reason: str) -> str:
    """Let a model read from the next study on; return what came of it."""
    _require_free_choice(settings)
    model = await find(store, settings, name)
    shelf_of(settings).find(model)
    await choosing.activate(
        store,
        model,
        by=ADMINISTRATOR,
        reason=reason,
        follows_release=name == RELEASE,
    )
    return await _what_came_of_it(store, ModelRole.ACTIVE, model)


async def roll_back(store: Store, settings: Settings, reason: str) -> str:
    """Let the model read that read before; return what came of it."""
    _require_free_choice(settings)
    model = await choosing.roll_back(store, by=ADMINISTRATOR, reason=reason)
    return await _what_came_of_it(store, ModelRole.ACTIVE, model)


async def shadow(store: Store, settings: Settings, name: str, reason: str) -> str:
    """Let a model read along unseen; return what came of it."""
    model = await find(store, settings, name)
    shelf_of(settings).find(model)
    await choosing.choose_shadow(store, model, by=ADMINISTRATOR, reason=reason)
    return await _what_came_of_it(store, ModelRole.SHADOW, model)


async def stop_shadow(store: Store, reason: str) -> None:
    """Let no model read along any more."""
    await choosing.choose_shadow(store, None, by=ADMINISTRATOR, reason=reason)


def _require_free_choice(settings: Settings) -> None:
    """Raise SETTING while a setting says which model reads."""
    pinned = settings.inference.weights
    if pinned:
        raise NodeError(
            f"inference.weights: names {pinned}, which alone reads; leave it empty to"
            " choose the model with this command",
            ErrorKind.SETTING,
        )


# --- what there is --------------------------------------------------------------------


async def rows(store: Store, settings: Settings) -> list[tuple[str, ...]]:
    """Return (model, weights, what it does, where it came from) of every model."""
    async with store.db.transaction(readonly=True) as tx:
        known = await store_models.known(tx)
        active, shadow_ = await _states(tx)
        wanted = {role: await store_models.chosen(tx, role) for role in ModelRole}
        left = await store_models.shadows(tx)
    pinned = pinned_model(settings)
    pinned_id = _model_id(pinned) if pinned else None
    lines: list[tuple[str, ...]] = []
    for model in known:
        does = []
        for role, state in ((ModelRole.ACTIVE, active), (ModelRole.SHADOW, shadow_)):
            choice = wanted[role]
            chosen_id = choice.model_id if choice else None
            if role is ModelRole.ACTIVE and pinned is not None:
                chosen_id = pinned_id
            serves = state is not None and state.serving == model.model_id
            if chosen_id == model.model_id or serves:
                does.append(_does(role, chosen_id == model.model_id, serves))
        if left.get(model.model_id):
            does.append(f"{left[model.model_id]} shadow readings")
        day = model.added_at.date().isoformat()
        short = model.weights_sha256[:12]
        came = f"{model.origin.value} {day}"
        lines.append((model.label, short, ", ".join(does), came))
    return lines


async def troubles(store: Store) -> list[str]:
    """Return a line for each role that does not serve what was chosen."""
    async with store.db.transaction(readonly=True) as tx:
        states = [state for state in await _states(tx) if state and state.trouble]
        return [await _trouble(tx, state) for state in states]


async def _states(tx: Transaction) -> list[ModelState | None]:
    return [await store_models.state(tx, role) for role in ModelRole]


async def _trouble(tx: Transaction, state: ModelState) -> str:
    if state.serving is None:
        on = "nothing is read" if state.role is ModelRole.ACTIVE else "no shadow reads"
    else:
        on = f"{(await store_models.read(tx, state.serving)).label} goes on"
    return f"{state.trouble}; {on}"


def _does(role: ModelRole, chosen: bool, serves: bool) -> str:
    word = "reads" if role is ModelRole.ACTIVE else "reads along"
    if chosen and serves:
        return word
    return f"{word}, not chosen" if serves else f"chosen: {word} when loaded"


def _model_id(path: Path) -> str | None:
    try:
        return read_folder(path).model_id
    except NodeError:
        return None


async def find(store: Store, settings: Settings, name: str) -> KnownModel:
    """Return the model that somebody means; NOT_FOUND or INVALID say what is amiss."""
    if name == RELEASE:
        folder = await asyncio.to_thread(verify_folder, shelf_of(settings).release)
        return await _register(store, settings, folder, Origin.RELEASE)
    async with store.db.transaction(readonly=True) as tx:
        known = await store_models.known(tx)
    found = [m for m in known if name in (m.label, m.version, m.model_id)] or [
        m for m in known if len(name) >= 6 and m.weights_sha256.startswith(name)
    ]
    if not found:
        raise NodeError(
            f"{name}: there is no such model; see `models list`", ErrorKind.NOT_FOUND
        )
    if len(found) > 1:
        ids = ", ".join(m.model_id for m in found)
        raise NodeError(f"{name}: could be {ids}", ErrorKind.INVALID)
    return found[0]


async def add_model(store: Store, settings: Settings, folder: Path) -> KnownModel:
    """Check a folder, try its model, and put it on shelf and file."""
    checked = await asyncio.to_thread(verify_folder, folder)
    await asyncio.to_thread(_try, settings, checked)
    return await _register(store, settings, checked, Origin.ADDED)


def _try(settings: Settings, folder: ModelFolder) -> None:
    from inference.loaded import load_and_try

    load = lambda folder, role: load_model(settings, folder, role)  # noqa: E731
    load_and_try(folder, ModelRole.SHADOW, load).close()


async def _register(
    store: Store, settings: Settings, folder: ModelFolder, origin: Origin
) -> KnownModel:
    kept = await asyncio.to_thread(
        shelf_of(settings).keep, folder, release=origin is Origin.RELEASE
    )
    model = kept.known(origin, at=store.clock(), by=ADMINISTRATOR)
    return await choosing.add_model(store, model)


async def _what_came_of_it(store: Store, role: ModelRole, model: KnownModel) -> str:
    """Wait until the reading process has taken up the choice; return what it says."""
    async with store.db.transaction(readonly=True) as tx:
        choice = await store_models.chosen(tx, role)
    newest = choice.sequence if choice else 0
    for _ in range(int(_PATIENCE_S / _LOOK_S)):
        async with store.db.transaction(readonly=True) as tx:
            state = await store_models.state(tx, role)
            if state is not None and state.choice >= newest:
                if state.trouble:
                    raise NodeError(await _trouble(tx, state), ErrorKind.INTEGRITY)
                word = "reads" if role is ModelRole.ACTIVE else "reads along"
                return f"{model.label}: {word} from now on"
        await asyncio.sleep(_LOOK_S)
    return f"{model.label}: chosen; no reading process has taken it up yet"


# --- how they compare -----------------------------------------------------------------


@dataclass(frozen=True)
class ShadowComparison:
    """How far one shadow agrees with another reader of the same studies.

    `apart`: mean and largest difference of the probabilities, of those that have
    one on both sides.
    """

    shadow: str
    other: str
    studies: int
    fields: Sequence[FieldAgreement]
    apart: tuple[float, float] | None


async def comparisons(
    store: Store, settings: Settings, name: str
) -> list[ShadowComparison]:
    """Return how one shadow, or each, agrees with active models and with doctors."""
    wanted = (await find(store, settings, name)).model_id if name else None
    found = []
    async with store.db.transaction(readonly=True) as tx:
        labels = {m.model_id: m.label for m in await store_models.known(tx)}
        for model_id in await store_models.shadows(tx):
            if wanted in (None, model_id):
                found.append((model_id, await _pairs(tx, store, model_id)))
    return [
        _compared(labels[model_id], labels.get(other, other), pairs)
        for model_id, by_other in found
        for other, pairs in sorted(by_other.items())
    ]


async def _pairs(
    tx: Transaction, store: Store, model_id: str
) -> dict[str, list[tuple[Findings, Findings]]]:
    """Return (shadow's findings, the other's), by who the other is."""
    pairs: dict[str, list[tuple[Findings, Findings]]] = {}
    for reading in await store_models.shadow_readings(tx, store, model_id):
        report = await reports.read(tx, store, reading.report_id)
        for other, findings in _other_readings(report):
            if other != model_id:
                pairs.setdefault(other, []).append((reading.findings, findings))
    return pairs


def _other_readings(report: Report) -> Iterable[tuple[str, Findings]]:
    drafts = [v for v in report.versions if v.author.kind is AuthorKind.ALGORITHM]
    if drafts:
        yield drafts[-1].author.id, drafts[-1].findings
    signed = report.last_signed()
    if signed is not None:
        yield "signed reports", signed.findings


def _compared(
    shadow: str, other: str, pairs: Sequence[tuple[Findings, Findings]]
) -> ShadowComparison:
    cells: dict[str, Counter[Pair]] = {}
    apart = []
    for mine, others in pairs:
        one, two = _worst_only(mine), _worst_only(others)
        for row in compare(one, two):
            cells.setdefault(row.field, Counter())[row.ai, row.signed] += 1
        chances = [f.lesions[0].probability for f in (one, two) if f.lesions]
        if len(chances) == 2 and None not in chances:
            apart.append(abs(float(chances[0] or 0) - float(chances[1] or 0)))
    return ShadowComparison(
        shadow,
        other,
        len(pairs),
        [summarise(field, counted) for field, counted in cells.items()],
        (sum(apart) / len(apart), max(apart)) if apart else None,
    )


def _worst_only(findings: Findings) -> Findings:
    """Return `findings` with the most suspicious lesion alone, named alike in all.

    Readers number and name lesions each in their own way; the one that decides
    about the patient is what can be compared.
    """
    if not findings.lesions:
        return findings
    worst = max(findings.lesions, key=_suspicion)
    return replace(findings, lesions=(replace(worst, tracking_uid="worst"),))


def _suspicion(lesion: Lesion) -> tuple[int, float]:
    rank = CATEGORIES[lesion.category].rank if lesion.category else -1
    return rank, float(lesion.probability or 0)
