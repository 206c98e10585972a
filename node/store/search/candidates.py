"""Which resources a search tries: those that an index lists, and where they stand.

Every row of the indexes of tokens, references and dates carries the sort date and the
last update of its resource. So what lists candidates is walked in order where the index
has that order, or sorted without looking a resource up.
"""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

from collections.abc import Sequence

from node.store.resources import blind
from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Chained,
    Criterion,
    Has,
    IdIs,
    ReferredBy,
    RefersTo,
    TokenIs,
    Within,
)
from node.store.search.predicates import Predicates, constant

# Up to how many candidates it is quicker to sort them than to try others in order.
FEW = 3000
# How many are followed to tell how many they lead to.
_FOLLOWED = 100
_KEYS = "resource_id, sort_date, last_updated"
_NOBODY = f"select {_KEYS} from resources where false"


def listed(criterion: Criterion) -> bool:
    """Tell whether an index lists the candidates for a criterion."""
    match criterion:
        case IdIs() | RefersTo():
            return True
        case TokenIs(_, values, _, negated):
            return not negated and all(value is not None for _, value in values)
        case Has(_, kind):
            return kind == "token"
        case Within(_, prefix):
            return prefix != "ne"
        case Chained(_, _, inner) | ReferredBy(_, _, inner):
            return listed(inner)
        case AnyOf(alternatives):
            return all(any(map(listed, together)) for together in alternatives)


def points(criterion: Criterion) -> bool:
    """Tell whether a criterion names somebody or something, and not a kind."""
    match criterion:
        case IdIs() | RefersTo():
            return True
        case TokenIs(_, _, identifying):
            return identifying
        case Chained(_, _, inner) | ReferredBy(_, _, inner):
            return points(inner)
        case AnyOf(alternatives):
            return all(any(map(points, together)) for together in alternatives)
    return False


def whole(criterion: Criterion) -> bool:
    """Tell whether the candidates for a criterion are listed however many they are.

    Through references only as many are followed as are few.
    """
    match criterion:
        case Chained() | ReferredBy():
            return False
        case AnyOf(alternatives):
            return all(whole(_fewest(together)) for together in alternatives)
    return True


def exact(criterion: Criterion) -> bool:
    """Tell whether all that is listed for a criterion meets it."""
    match criterion:
        case Within(parameter, _, _, _, sorts):
            return parameter == LAST_UPDATED or not sorts
        case Chained(_, _, inner) | ReferredBy(_, _, inner):
            return exact(inner)
        case AnyOf(alternatives):
            return all(len(one) == 1 and exact(one[0]) for one in alternatives)
    return True


def walkable(criterion: Criterion, key: str) -> bool:
    """Tell whether an index lists the candidates in the order of a sort key."""
    match criterion:
        case TokenIs(_, values):
            one = len(values) == 1 and listed(criterion)
            return one and key in ("happened", "updated")
        case RefersTo(_, targets):
            one = len(targets) == 1 and targets[0][0] is not None
            return one and key == "happened"
    return False


def in_order(criterion: Criterion, key: str) -> bool:
    """Tell whether the candidates for a criterion are listed by a sort key."""
    if isinstance(criterion, Within):
        along = "happened" if criterion.sorts else "updated"
        return key == along and (criterion.sorts or criterion.parameter == LAST_UPDATED)
    return walkable(criterion, key)


def everything(resource_type: str) -> str:
    """Return what lists all resources of a type."""
    return (
        f"select {_KEYS} from resources where resource_type = {constant(resource_type)}"
    )


def listing(
    sql: Predicates,
    resource_type: str,
    criterion: Criterion,
    same: Sequence[Within] = (),
    led: int = FEW + 1,
) -> str:
    """Return what lists the candidates for a criterion, some perhaps more than once.

    `same` are all criteria for the date that it asks for: the begin and end of a walk.
    No more than `led` are followed to what they refer to, or are referred to by.
    """
    match criterion:
        case IdIs(ids):
            wanted = f"resource_id = any({sql.bind(list(ids))})"
            return f"{everything(resource_type)} and {wanted}"
        case TokenIs():
            return _tokens(sql, resource_type, criterion)
        case RefersTo():
            return _references(sql, resource_type, criterion)
        case Has(parameter):
            return _of_index("resource_tokens", resource_type, parameter)
        case Within():
            return _dates(sql, resource_type, same or (criterion,))
        case Chained(parameter, target_type, inner):
            return (
                "select x.resource_id, x.sort_date, x.last_updated"
                f" from ({_capped(listing(sql, target_type, inner), led)}) t"
                " join resource_references x on x.target_id = t.resource_id"
                f" and x.target_type = {constant(target_type)}"
                f" and x.resource_type = {constant(resource_type)}"
                f" and x.parameter = {constant(parameter)}"
            )
        case ReferredBy(source_type, parameter, inner):
            its_type = constant(resource_type)
            return (
                "select r.resource_id, r.sort_date, r.last_updated"
                f" from ({_capped(listing(sql, source_type, inner), led)}) t"
                f" join resource_references x on x.resource_type ="
                f" {constant(source_type)} and x.resource_id = t.resource_id"
                f" and x.parameter = {constant(parameter)}"
                f" and x.target_type = {its_type}"
                f" join resources r on r.resource_type = {its_type}"
                " and r.resource_id = x.target_id"
            )
        case AnyOf(alternatives):
            parts = [listing(sql, resource_type, _fewest(a)) for a in alternatives]
            return " union all ".join(f"({part})" for part in parts) or _NOBODY


def number(
    sql: Predicates, resource_type: str, criterion: Criterion, bounds: Sequence[Within]
) -> str:
    """Return what counts the candidates for a criterion as far as they are few."""
    match criterion:
        case ReferredBy(source_type, _, inner):
            return number(sql, source_type, inner, ())
        case Chained(_, target_type, inner):
            # To follow all takes as long as the search: some tell how many it will be.
            first = number(sql, target_type, inner, ())
            some = _count(listing(sql, resource_type, criterion, led=_FOLLOWED))
            return (
                f"(select case when n > {FEW} then n else"
                f" {some} * greatest(n, {_FOLLOWED}) / {_FOLLOWED} end"
                f" from (select {first} as n offset 0) led)"
            )
        case AnyOf(alternatives):
            parts = [
                number(sql, resource_type, _fewest(a), bounds) for a in alternatives
            ]
            return f"({' + '.join(parts) or '0'})"
        case TokenIs() | RefersTo() if bounds:
            within = " and ".join(sql.bound(one, "l") for one in bounds)
            listed_ = listing(sql, resource_type, criterion)
            return _count(f"select 1 from ({listed_}) l where {within}")
    return _count(listing(sql, resource_type, criterion, bounds))


def _count(select: str) -> str:
    return f"(select count(*) from ({_capped(select, FEW + 1)}) c)"


def _capped(select: str, at_most: int) -> str:
    return f"select * from ({select}) f limit {at_most}"


def _fewest(together: Sequence[Criterion]) -> Criterion:
    """Return which of some criteria is likely to leave the fewest candidates."""
    kinds = (IdIs, RefersTo, Chained, ReferredBy, AnyOf, TokenIs, Within, Has)
    return min(filter(listed, together), key=lambda one: kinds.index(type(one)))


def _of_index(table: str, resource_type: str, parameter: str) -> str:
    return (
        f"select {_KEYS} from {table} where resource_type = {constant(resource_type)}"
        f" and parameter = {constant(parameter)}"
    )


def _tokens(sql: Predicates, resource_type: str, wanted: TokenIs) -> str:
    parts = []
    for system, value in wanted.values:
        part = _of_index("resource_tokens", resource_type, wanted.parameter)
        stored = blind(sql.store, wanted.parameter, value or "", wanted.identifying)
        part += f" and value = {sql.bind(stored)}"
        if system is not None:
            part += f" and system = {sql.bind(system)}"
        parts.append(part)
    return " union all ".join(parts) or _NOBODY


def _references(sql: Predicates, resource_type: str, wanted: RefersTo) -> str:
    by_type: dict[str | None, list[str]] = {}
    for target_type, target_id in wanted.targets:
        by_type.setdefault(target_type, []).append(target_id)
    parts = []
    for target_type, ids in by_type.items():
        part = _of_index("resource_references", resource_type, wanted.parameter)
        if len(ids) == 1:
            part += f" and target_id = {sql.bind(ids[0])}"
        else:
            part += f" and target_id = any({sql.bind(ids)})"
        if target_type is not None:
            part += f" and target_type = {sql.bind(target_type)}"
        parts.append(part)
    return " union all ".join(parts) or _NOBODY


def _dates(sql: Predicates, resource_type: str, wanted: Sequence[Within]) -> str:
    if wanted[0].sorts or wanted[0].parameter == LAST_UPDATED:
        within = " and ".join(sql.bound(one, "resources") for one in wanted)
        return f"{everything(resource_type)} and {within}"
    within = " and ".join(sql.dated(one, "resource_dates") for one in wanted)
    indexed = _of_index("resource_dates", resource_type, wanted[0].parameter)
    return f"{indexed} and {within}"
