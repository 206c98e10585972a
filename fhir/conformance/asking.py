"""What a profile or an extension can ask beyond R4 (FHIR R4 5.1): rows, demands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fhir.conformance.terminology import Words
from fhir.content import concepts
from fhir.encoding.wire import Json
from node.domain.lexicon import Concept

STRUCTURE = f"{concepts.BASE}/StructureDefinition"


@dataclass(frozen=True)
class Row:
    """What a profile asks of one element beyond R4.

    `path` is below the type, a choice with `[x]`. `types` are those left of a
    choice, `targets` of a reference; `value_set` is one of ours, and required unless
    `open`. `pattern` is what the value has to hold at least.
    """

    path: str
    words: Words
    min: int | None = None
    max: str | None = None
    types: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    value_set: str | None = None
    open: bool = False
    pattern: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Demand:
    """What a profile asks of a whole resource where no row of one element can say it.

    `element` is the one at fault where it does not hold; `expression` the same in
    FHIRPath, for the snapshot.
    """

    key: str
    words: Words
    element: str
    holds: Callable[[Json], bool]
    expression: str


@dataclass(frozen=True)
class Profile:
    """A profile of a resource type, and the extensions of ours that it has.

    With a `code` it is the profile of those of the type that say so in `coded_in`.
    Those that are `sent` come from other systems too: theirs are held against it,
    but claim no more than their senders say.
    """

    id: str
    type: str
    words: Words
    rows: tuple[Row, ...]
    extensions: tuple[str, ...] = ()
    code: Concept | None = None
    coded_in: str = "code"
    demands: tuple[Demand, ...] = ()
    sent: bool = False

    @property
    def url(self) -> str:
        return f"{STRUCTURE}/{self.id}"


@dataclass(frozen=True)
class Part:
    """One value of a complex extension, under its name."""

    name: str
    type: str
    words: Words
    min: int = 1
    value_set: str | None = None


@dataclass(frozen=True)
class Extending:
    """An extension: a value of `type`, or `parts`; `on` is where it may stand."""

    id: str
    on: tuple[str, ...]
    words: Words
    type: str = ""
    value_set: str | None = None
    parts: tuple[Part, ...] = ()
    max: str = "1"

    @property
    def url(self) -> str:
        return f"{STRUCTURE}/{self.id}"
