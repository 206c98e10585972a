"""Choosing which model reads: each verb one transaction, each audited."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, models
from node.store.models import Choice, KnownModel, ModelRole

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

RELEASE = "release"
"""Who chooses when the software itself brings another model."""


async def add_model(store: "Store", model: KnownModel) -> KnownModel:
    """Put a model on file; it reads nothing until it is chosen."""
    async with store.db.transaction() as tx:
        if await models.find(tx, model.model_id) is not None:
            return await models.register(tx, model)
        on_file = await models.register(tx, model)
        await _record(store, tx, model.added_by, "model-add", on_file)
    return on_file


async def adopt_release(store: "Store", model: KnownModel) -> bool:
    """Put the model of this release on file; let it read unless somebody chose.

    Returns whether it reads. An engineer's choice stands until she chooses the
    release again.
    """
    async with store.db.transaction() as tx:
        await models.lock_choices(tx)
        on_file = await models.register(tx, model)
        current = await models.chosen(tx, ModelRole.ACTIVE)
        if current is not None:
            if current.model_id == model.model_id:
                return True
            if not current.follows_release:
                return False
        told = "it came with this release"
        await _let_read(store, tx, on_file, by=RELEASE, reason=told, follows=True)
        await _record(store, tx, RELEASE, "model-activate", on_file)
    return True


async def activate(
    store: "Store",
    model: KnownModel,
    *,
    by: str,
    reason: str = "",
    follows_release: bool = False,
) -> None:
    """Let `model` read from the next study on. RULE when it does already."""
    async with store.db.transaction() as tx:
        await models.lock_choices(tx)
        current = await models.chosen(tx, ModelRole.ACTIVE)
        if current is not None and (current.model_id, current.follows_release) == (
            model.model_id,
            follows_release,
        ):
            raise NodeError(f"{model.label} is the active model", ErrorKind.RULE)
        await _let_read(store, tx, model, by=by, reason=reason, follows=follows_release)
        await _record(store, tx, by, "model-activate", model, reason)


async def roll_back(store: "Store", *, by: str, reason: str = "") -> KnownModel:
    """Let the model read that read before the present one; return it.

    RULE when there is none. A second step goes further back, never forth.
    """
    async with store.db.transaction() as tx:
        await models.lock_choices(tx)
        before = before_present(await models.choices(tx, ModelRole.ACTIVE))
        if before is None:
            raise NodeError("no other model has read here before", ErrorKind.RULE)
        model = await models.read(tx, before)
        await _let_read(store, tx, model, by=by, reason=reason, undoes=True)
        await _record(store, tx, by, "model-rollback", model, reason)
    return model


async def choose_shadow(
    store: "Store", model: KnownModel | None, *, by: str, reason: str = ""
) -> None:
    """Let `model` read along unseen, or nobody. RULE when that is so already."""
    async with store.db.transaction() as tx:
        await models.lock_choices(tx)
        active = await models.chosen(tx, ModelRole.ACTIVE)
        shadow = await models.chosen(tx, ModelRole.SHADOW)
        wanted = model.model_id if model else None
        if model and active and active.model_id == wanted:
            raise NodeError(f"{model.label} is the active model", ErrorKind.RULE)
        if wanted == (shadow.model_id if shadow else None):
            told = f"{model.label} is the shadow" if model else "there is no shadow"
            raise NodeError(f"{told} already", ErrorKind.RULE)
        await models.choose(
            tx, ModelRole.SHADOW, wanted, at=store.clock(), by=by, reason=reason
        )
        action = "model-shadow" if model else "model-stop-shadow"
        await _record(store, tx, by, action, model, reason)


def before_present(choices: Sequence[Choice]) -> str | None:
    """Return the model that read before the present one, or None.

    A step back takes the model away that it left: it is not "before" any more.
    """
    trail = trail_of(choices)
    return trail[-2] if len(trail) > 1 else None


def trail_of(choices: Sequence[Choice]) -> list[str]:
    """Return the models that read one after the other, steps back taken away."""
    trail: list[str] = []
    for choice in choices:
        if choice.undoes and len(trail) > 1:
            trail.pop()
        if choice.model_id and trail[-1:] != [choice.model_id]:
            trail.append(choice.model_id)
    return trail


async def _let_read(
    store: "Store",
    tx: "Transaction",
    model: KnownModel,
    *,
    by: str,
    reason: str,
    follows: bool = False,
    undoes: bool = False,
) -> None:
    """Note who reads from now on; a shadow of the same model ends."""
    await models.choose(
        tx,
        ModelRole.ACTIVE,
        model.model_id,
        at=store.clock(),
        by=by,
        reason=reason,
        follows_release=follows,
        undoes=undoes,
    )
    shadow = await models.chosen(tx, ModelRole.SHADOW)
    if shadow is not None and shadow.model_id == model.model_id:
        await models.choose(
            tx,
            ModelRole.SHADOW,
            None,
            at=store.clock(),
            by=by,
            reason="it is the active model",
        )


async def _record(
    store: "Store",
    tx: "Transaction",
    by: str,
    action: str,
    model: KnownModel | None,
    reason: str = "",
) -> None:
    detail = {"reason": reason} if reason else {}
    if model is not None:
        detail |= {"model": model.label, "weights_sha256": model.weights_sha256}
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=by,
            role="administrator" if by != RELEASE else "device",
            action=action,
            entity=f"model/{model.model_id}" if model else "model",
            detail=detail,
        ),
    )
