"""How a caller sees a stored resource: masked, and as much of it as was asked for.

What does not depend on the request is made once for each version and kept with
it (`node.store.opened`): bytes that nobody has to change are never parsed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fhir.conformance.rules import rule_of
from fhir.content import concepts
from fhir.content.masked import MASKED_TYPES, for_doctor
from fhir.encoding.elements import elements_of
from fhir.encoding.wire import Json, as_list, parse, to_bytes
from fhir.security.scoping import sees
from node.domain.access import Identity
from node.domain.audit import note_shown
from node.domain.errors import ErrorKind, NodeError
from node.store.resources import Stored

if TYPE_CHECKING:
    from node.store.store import Store

_ALWAYS = frozenset({"resourceType", "id", "meta", "implicitRules"})
SUMMARIES = frozenset({"true", "text", "data", "count", "false"})


@dataclass(frozen=True)
class Subset:
    """The part of a resource that `_summary` or `_elements` asks for (3.1.1.5.8).

    `elements` is None when only a summary was asked.
    """

    summary: str = "false"
    elements: frozenset[str] | None = None

    def __bool__(self) -> bool:
        return self.elements is not None or self.summary in ("true", "text", "data")

    def of(self, resource: Json) -> Json:
        """Return the resource without the rest, labelled SUBSETTED."""
        kind = resource["resourceType"]
        if kind == "OperationOutcome":
            return resource
        kept = {
            key: value
            for key, value in resource.items()
            if key in _ALWAYS or self._keeps(kind, key.removeprefix("_"))
        }
        meta = kept.get("meta", {})
        tags = [*as_list(meta.get("tag")), concepts.SUBSETTED]
        return {**kept, "meta": {**meta, "tag": tags}}

    def _keeps(self, kind: str, key: str) -> bool:
        required, summary = _marked(kind)
        if self.elements is not None:
            return _is_one_of(key, (*required, *self.elements))
        if self.summary == "data":
            return key != "text"
        if self.summary == "text":
            return _is_one_of(key, (*required, "text"))
        return _is_one_of(key, (*required, *summary, "modifierExtension"))


@cache
def _marked(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the elements without which a resource is none, and those of a summary."""
    names = dict.fromkeys(e.choice or e.name for e in elements_of(kind).values())
    rules = [(name, rule_of(kind, name)) for name in names]
    required = tuple(name for name, rule in rules if rule.mandatory)
    return required, tuple(name for name, rule in rules if rule.summary)


def _is_one_of(key: str, names: Iterable[str]) -> bool:
    """Tell whether a key is one of the elements: `value` names valueQuantity too."""
    return any(
        key == name or (key.startswith(name) and key[len(name)].isupper())
        for name in names
    )


def read_subset(summary: str | None, elements: str | None) -> Subset:
    """Return what `_summary` and `_elements` ask; INVALID for a word that is none."""
    if summary is not None and summary not in SUMMARIES:
        raise NodeError(
            "_summary is one of true, text, data, count, false",
            ErrorKind.INVALID,
            expression="_summary",
        )
    if elements is None:
        return Subset(summary or "false")
    names = {name.strip() for name in elements.split(",")} - {""}
    if not names or not all(name.isalnum() and name.isascii() for name in names):
        raise NodeError(
            "_elements names top-level elements",
            ErrorKind.INVALID,
            expression="_elements",
        )
    return Subset("false", frozenset(names))


_WHOLE = Subset()


class View:
    """Shows stored resources to one caller, as bytes."""

    def __init__(
        self, store: "Store", identity: Identity, subset: Subset = _WHOLE
    ) -> None:
        self._store = store
        self._identity = identity
        self._subset = subset
        self._today = store.clock().date()

    def __call__(self, stored: Stored) -> bytes:
        """Return the resource as the caller sees it.

        Handlers ask before; nothing leaves that a token does not open all the same.
        """
        if not sees(self._identity, stored) and not sees(self._identity, stored, "s"):
            raise NodeError(
                f"{stored.resource_type}/{stored.resource_id} is not known",
                ErrorKind.NOT_FOUND,
            )
        kind, id_ = stored.resource_type, stored.resource_id
        note_shown(kind, id_, stored.version, stored.patient_id)
        body = self._masked(stored)
        return to_bytes(self._subset.of(parse(body))) if self._subset else body

    def narrowed(self, subset: Subset) -> "View":
        """Return what shows the same caller only a part of each resource."""
        return View(self._store, self._identity, subset)

    def _masked(self, stored: Stored) -> bytes:
        if self._identity.sees_identity or stored.resource_type not in MASKED_TYPES:
            return stored.body
        # A masked patient has an age, and that has a day.
        key = f"masked {self._today}"
        return self._store.opened.view(stored, key, self._mask)

    def _mask(self, stored: Stored) -> bytes:
        return to_bytes(for_doctor(parse(stored.body), self._today))
