"""Criteria as SQL: what is true of the rows `r` of the resources that meet them."""

# Clauses are put together from constants; every value is a bound argument.
# ruff: noqa: S608

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from node.store.resources import NEVER, blind
from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Chained,
    Criterion,
    Has,
    IdIs,
    Query,
    ReferredBy,
    RefersTo,
    TokenIs,
    Within,
)

if TYPE_CHECKING:
    from node.store.store import Store

# The coarsest date is a year; nearly all are a day or a moment.
LONGEST_DATE = timedelta(days=367)
_NAME = re.compile(r"[A-Za-z_][A-Za-z_:-]{0,63}")
# How an indexed interval i compares with the asked one q, as `earliest` and
# `latest` of both; FHIR R4 3.1.1.5.6 with half-open intervals.
_COMPARISONS = {
    # The middle term follows from the others and lets the planner know how few.
    "eq": "{i}.earliest >= {lo} and {i}.earliest < {hi} and {i}.latest <= {hi}",
    "ne": "not ({i}.earliest >= {lo} and {i}.latest <= {hi})",
    "gt": "{i}.latest > {hi}",
    "lt": "{i}.earliest < {lo}",
    "ge": "({i}.latest > {hi} or {i}.earliest >= {lo})",
    "le": "({i}.earliest < {lo} or {i}.earliest < {hi} and {i}.latest <= {hi})",
    "sa": "{i}.earliest >= {hi}",
    "eb": "{i}.latest <= {lo}",
}
_INSTANT_COMPARISONS = {
    "eq": "{i} >= {lo} and {i} < {hi}",
    "ne": "not ({i} >= {lo} and {i} < {hi})",
    "gt": "{i} >= {hi}",
    "lt": "{i} < {lo}",
    "ge": "{i} >= {lo}",
    "le": "{i} < {hi}",
    "sa": "{i} >= {hi}",
    "eb": "{i} < {lo}",
}
# The same of a date that is the sort key {s}, so that a walk along it begins and ends
# where something can be found and few rows have to be looked up. {inside} asks the
# index for the comparison itself; no date reaches beyond a moment from before {far}.
_SORTED_COMPARISONS = {
    "eq": "{s} >= {lo} and {s} < {hi} and {inside}",
    "ne": "{inside}",
    "gt": "{s} > {far} and ({s} >= {hi} or {inside})",
    "lt": "{s} < {lo} and {s} > {never}",
    "ge": "{s} > {far} and ({s} >= {lo} or {inside})",
    "le": "{s} < {hi} and {s} > {never} and ({s} < {lo} or {inside})",
    "sa": "{s} >= {hi}",
    "eb": "{s} < {lo} and {s} > {never} and {inside}",
}
# What of it the sort key alone can tell.
_BOUNDS = {
    "eq": "{s} >= {lo} and {s} < {hi}",
    "ne": "true",
    "gt": "{s} > {far}",
    "lt": "{s} < {lo} and {s} > {never}",
    "ge": "{s} > {far}",
    "le": "{s} < {hi} and {s} > {never}",
    "sa": "{s} >= {hi}",
    "eb": "{s} < {lo} and {s} > {never}",
}
_TABLES = {
    "token": "resource_tokens",
    "reference": "resource_references",
    "date": "resource_dates",
}


def condition(store: "Store", criteria: Sequence[Criterion]) -> tuple[str, list[Any]]:
    """Return what is true of the rows `r` of resources that meet all criteria.

    With it come its arguments, the first of their statement.
    """
    sql = Predicates(store)
    clauses = [sql.clause(criterion, "r") for criterion in criteria]
    return " and ".join(clauses) or "true", sql.arguments


@dataclass
class Predicates:
    """Collects arguments while criteria become one WHERE clause.

    `one_by_one` keeps the planner from asking about all resources at once: a page
    needs twenty, and what it takes for rare may be what nearly all have.
    """

    store: "Store"
    long_dates: Mapping[Within, datetime] = field(default_factory=dict)
    one_by_one: bool = False
    arguments: list[Any] = field(default_factory=list)

    def bind(self, value: Any) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    def where(self, query: Query) -> str:
        """Return what is true of the rows `r` that a search finds."""
        clauses = [f"r.resource_type = {constant(query.resource_type)}"]
        clauses += [self.clause(c, "r") for c in query.criteria]
        return " and ".join(clauses)

    def clause(self, criterion: Criterion, row: str) -> str:
        """Return what is true of the rows `row` that meet a criterion."""
        match criterion:
            case IdIs(ids):
                return f"{row}.resource_id = any({self.bind(list(ids))})"
            case TokenIs():
                return self._token(criterion, row)
            case RefersTo():
                return self._refers(criterion, row)
            case Within():
                return self._within(criterion, row)
            case Has(parameter, kind):
                return self._exists(_TABLES[kind], row, parameter, "true")
            case AnyOf(alternatives):
                parts = [
                    " and ".join(self.clause(one, row) for one in together) or "true"
                    for together in alternatives
                ]
                return f"({' or '.join(f'({p})' for p in parts) or 'false'})"
            case ReferredBy(source_type, parameter, inner):
                return (
                    "exists (select 1 from resource_references h join resources t"
                    f" on t.resource_type = {constant(source_type)}"
                    " and t.resource_id = h.resource_id"
                    f" where h.resource_type = {constant(source_type)}"
                    f" and h.parameter = {constant(parameter)}"
                    f" and h.target_type = {row}.resource_type"
                    f" and h.target_id = {row}.resource_id"
                    f" and {self.clause(inner, 't')}{self._fence(row)})"
                )
            case Chained(parameter, target_type, inner):
                its_type = constant(target_type)
                condition = f"x.target_type = {its_type} and "
                of_index = isinstance(inner, TokenIs) and not inner.negated
                if of_index or isinstance(inner, RefersTo):
                    # What has a row in the index is there: nobody has to look.
                    condition += self.clause(inner, "x")
                else:
                    condition += (
                        f"exists (select 1 from resources t where {its_type}"
                        " = t.resource_type and t.resource_id = x.target_id"
                        f" and {self.clause(inner, 't')})"
                    )
                return self._exists("resource_references", row, parameter, condition)

    def _exists(self, table: str, row: str, parameter: str, condition: str) -> str:
        """Return that a resource has such a row in the index.

        The resource is a row of `resources`, or what the reference `x` refers to.
        """
        x, of = _indexed(row), "target" if row == "x" else "resource"
        return (
            f"exists (select 1 from {table} {x}"
            f" where {x}.resource_type = {row}.{of}_type"
            f" and {x}.resource_id = {row}.{of}_id"
            f" and {x}.parameter = {constant(parameter)} and ({condition})"
            f"{self._fence(row)})"
        )

    def _fence(self, row: str) -> str:
        return " offset 0" if self.one_by_one and row == "d" else ""

    def bound(self, wanted: Within, row: str) -> str:
        """Return what is true of the sort keys of rows that can meet a comparison.

        For `_lastUpdated` it is the comparison itself.
        """
        if wanted.parameter == LAST_UPDATED:
            return self._within(wanted, row)
        template = _BOUNDS[wanted.prefix]
        return f"({self._compare(template, wanted, s=f'{row}.sort_date')})"

    def dated(self, wanted: Within, row: str) -> str:
        """Return what is true of rows of dates that compare as asked."""
        around = _SORTED_COMPARISONS[wanted.prefix]
        inside = ""
        if "{inside}" in around:
            inside = self._compare(_COMPARISONS[wanted.prefix], wanted, i=row)
        return self._compare(around, wanted, s=f"{row}.earliest", inside=inside)

    def _token(self, wanted: TokenIs, row: str) -> str:
        x = _indexed(row)
        alternatives = []
        for system, value in wanted.values:
            parts = []
            if value is not None:
                stored = blind(self.store, wanted.parameter, value, wanted.identifying)
                parts.append(f"{x}.value = {self.bind(stored)}")
            if system is not None:
                parts.append(f"{x}.system = {self.bind(system)}")
            alternatives.append(" and ".join(parts) or "true")
        condition = " or ".join(f"({a})" for a in alternatives) or "false"
        inside = self._exists("resource_tokens", row, wanted.parameter, condition)
        return f"not {inside}" if wanted.negated else inside

    def _refers(self, wanted: RefersTo, row: str) -> str:
        x = _indexed(row)
        by_type: dict[str | None, list[str]] = {}
        for target_type, target_id in wanted.targets:
            by_type.setdefault(target_type, []).append(target_id)
        alternatives = []
        for target_type, ids in by_type.items():
            if len(ids) == 1:
                part = f"{x}.target_id = {self.bind(ids[0])}"
            else:  # of a woman's rows, or of all whom a chain finds
                part = f"{x}.target_id = any({self.bind(ids)})"
            if target_type is not None:
                part += f" and {x}.target_type = {self.bind(target_type)}"
            alternatives.append(f"({part})")
        condition = " or ".join(alternatives) or "false"
        return self._exists("resource_references", row, wanted.parameter, condition)

    def _within(self, wanted: Within, row: str) -> str:
        if wanted.parameter == LAST_UPDATED:
            template = _INSTANT_COMPARISONS[wanted.prefix]
            return f"({self._compare(template, wanted, i=f'{row}.last_updated')})"
        x = _indexed(row)
        template = _COMPARISONS[wanted.prefix]
        if not wanted.sorts:
            condition = self._compare(template, wanted, i=x)
            return self._exists("resource_dates", row, wanted.parameter, condition)
        around = _SORTED_COMPARISONS[wanted.prefix]
        inside = ""
        if "{inside}" in around:
            condition = self._compare(template, wanted, i=x)
            inside = self._exists("resource_dates", row, wanted.parameter, condition)
        sort_date = f"{row}.sort_date"
        return f"({self._compare(around, wanted, s=sort_date, inside=inside)})"

    def _compare(self, template: str, wanted: Within, **names: str) -> str:
        """Fill in a comparison; PostgreSQL refuses an argument that is not used."""
        for name, value in (
            ("lo", wanted.earliest),
            ("hi", wanted.latest),
            ("never", NEVER),
            ("far", self.long_dates.get(wanted) or before(wanted, LONGEST_DATE)),
        ):
            if f"{{{name}}}" in template:
                names[name] = self.bind(value)
        return template.format(**names)


def before(wanted: Within, reach: timedelta) -> datetime:
    """Return what the beginning of any date that reaches into `wanted` is after."""
    earliest = datetime.min.replace(tzinfo=wanted.earliest.tzinfo)
    enough = wanted.earliest - earliest > reach
    return wanted.earliest - reach if enough else earliest


def _indexed(row: str) -> str:
    """Return what the index of a row is called: `y` beside a reference `x`."""
    return "x" if row in ("r", "d") else "y"


def constant(name: str) -> str:
    """Return a name of our own tables as an SQL literal, for the planner to see."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of a type or parameter")
    return f"'{name}'"
