"""Whether one version of a resource meets criteria, by itself and without the index.

A search asks the index, which knows what is newest. What is at hand already, or
shown as it was, is held against scopes and filters here.
"""

import unicodedata
from collections.abc import Iterable

from node.domain.errors import ErrorKind, NodeError
from node.store.resources import Index, Stored
from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Criterion,
    Has,
    IdIs,
    RefersTo,
    TokenIs,
    Within,
    overlaps,
)


def decidable(asked: Criterion) -> bool:
    """Tell whether a criterion can be decided by the resource alone."""
    if isinstance(asked, AnyOf):
        return all(decidable(one) for some in asked.alternatives for one in some)
    return isinstance(asked, Has | IdIs | RefersTo | TokenIs | Within)


def meets(stored: Stored, index: Index, criteria: Iterable[Criterion]) -> bool:
    """Tell whether a version, found by `index`, meets all of decidable criteria."""
    return all(_meets(stored, index, asked) for asked in criteria)


def _meets(stored: Stored, index: Index, asked: Criterion) -> bool:
    match asked:
        case AnyOf(alternatives):
            return any(
                all(_meets(stored, index, one) for one in together)
                for together in alternatives
            )
        case IdIs(ids):
            return stored.resource_id in ids
        case TokenIs():
            return _has_token(index, asked) is not asked.negated
        case RefersTo(name, targets):
            return any(
                (kind is None or kind == r.target_type) and r.target_id == wanted
                for r in index.references
                if r.parameter == name
                for kind, wanted in targets
            )
        case Within():
            if asked.parameter == LAST_UPDATED:
                at = stored.last_updated
                return overlaps(asked, at, at)
            return any(
                overlaps(asked, d.earliest, d.latest)
                for d in index.dates
                if d.parameter == asked.parameter
            )
        case Has(name, kind):
            held = {
                "token": [t.parameter for t in index.tokens],
                "reference": [r.parameter for r in index.references],
                "date": [d.parameter for d in index.dates],
            }
            return name in held[kind]
    raise NodeError("a resource alone does not decide this", ErrorKind.FORBIDDEN)


def _has_token(index: Index, asked: TokenIs) -> bool:
    form = _folded if asked.identifying else str
    return any(
        (system is None or system == token.system)
        and (code is None or form(code) == form(token.value))
        for token in index.tokens
        if token.parameter == asked.parameter
        for system, code in asked.values
    )


def _folded(text: str) -> str:
    """Return `text` as blind indexes compare it (`KeyRing.blind`)."""
    return unicodedata.normalize("NFKC", text).casefold().strip()
