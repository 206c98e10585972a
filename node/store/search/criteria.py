"""What a search asks: criteria, sort keys and the place where a page begins.

Nothing here knows FHIR: parameters are names, values are tokens, intervals and
references.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

LAST_UPDATED = "_lastUpdated"
PREFIXES = frozenset(("eq", "ne", "gt", "lt", "ge", "le", "sa", "eb"))
# "happened", "updated", "id", or the name of a date that every resource of the type
# has in the index.
SortKey = str


@dataclass(frozen=True)
class TokenIs:
    """Has one of `values` (system or None for any, code or None for any)."""

    parameter: str
    values: tuple[tuple[str | None, str | None], ...]
    identifying: bool = False
    negated: bool = False


@dataclass(frozen=True)
class RefersTo:
    """Refers to one of `targets` (type or None for any, id)."""

    parameter: str
    targets: tuple[tuple[str | None, str], ...]


@dataclass(frozen=True)
class Chained:
    """Refers to a resource that itself meets `criterion` (one level of chaining)."""

    parameter: str
    target_type: str
    criterion: "Criterion"


@dataclass(frozen=True)
class ReferredBy:
    """Is referred to, through `parameter`, by one that meets `criterion` (_has)."""

    source_type: str
    parameter: str
    criterion: "Criterion"


@dataclass(frozen=True)
class Within:
    """Has a date that compares by `prefix` (FHIR R4 3.1.1.5.6) with an interval.

    The parameter `_lastUpdated` is the time of the newest version. `sorts` tells
    that the date is also the one that the type is sorted by; a resource has one of it.
    """

    parameter: str
    prefix: str
    earliest: datetime
    latest: datetime
    sorts: bool = False


@dataclass(frozen=True)
class IdIs:
    """Is one of `ids`."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Has:
    """Has any value for a parameter (modifier :missing=false)."""

    parameter: str
    kind: Literal["token", "reference", "date"]


@dataclass(frozen=True)
class AnyOf:
    """Meets all criteria of at least one alternative; none at all: is nothing."""

    alternatives: "tuple[tuple[Criterion, ...], ...]"


Criterion = TokenIs | RefersTo | Chained | ReferredBy | Within | IdIs | Has | AnyOf


@dataclass(frozen=True)
class Order:
    """One sort key, descending or not."""

    key: SortKey
    descending: bool = False


@dataclass(frozen=True)
class Position:
    """The sort keys of the resource beside which a page begins.

    `backward` asks for the page before it.
    """

    keys: tuple[datetime | str, ...]
    backward: bool = False


@dataclass(frozen=True)
class Query:
    """A search; `order` always ends with the id, which makes it total."""

    resource_type: str
    criteria: tuple[Criterion, ...] = ()
    order: tuple[Order, ...] = (Order("updated", descending=True),)
    count: int = 50
    beside: Position | None = None

    @property
    def total_order(self) -> tuple[Order, ...]:
        """Return the sort keys up to the one that no two resources share."""
        kept: list[Order] = []
        for one in (*self.order, Order("id", self.order[0].descending)):
            kept.append(one)
            if one.key == "id":
                break
        return tuple(kept)


def overlaps(asked: Within, earliest: datetime, latest: datetime) -> bool:
    """Tell whether an interval compares as asked, without the index."""
    lo, hi = asked.earliest, asked.latest
    if asked.parameter == LAST_UPDATED:
        return {
            "eq": lo <= earliest < hi,
            "ne": not lo <= earliest < hi,
            "gt": earliest >= hi,
            "lt": earliest < lo,
            "ge": earliest >= lo,
            "le": earliest < hi,
            "sa": earliest >= hi,
            "eb": earliest < lo,
        }[asked.prefix]
    return {
        "eq": lo <= earliest and latest <= hi,
        "ne": not (lo <= earliest and latest <= hi),
        "gt": latest > hi,
        "lt": earliest < lo,
        "ge": latest > hi or earliest >= lo,
        "le": earliest < lo or (earliest < hi and latest <= hi),
        "sa": earliest >= hi,
        "eb": latest <= lo,
    }[asked.prefix]
