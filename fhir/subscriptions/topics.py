"""What can be subscribed to: SubscriptionTopics, read from the site's files.

A file is an R5 SubscriptionTopic of which R4 has no resource: its triggers are
search parameters (`queryCriteria`), its filters (`canFilterBy`) too, and both are
held against a resource by the code that searches. What a file asks and the node
cannot do is a fault at the start, not a notification that never comes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from fhir.content import concepts
from fhir.encoding.wire import Json, as_list, extension, parse
from fhir.search.matching import decidable, meets
from fhir.search.parameters import PARAMETERS, criterion, parameter
from node.domain.errors import ErrorKind, NodeError
from node.followed import Followed
from node.store.resources import Index, Stored
from node.store.search.criteria import Criterion

# For whom the bodies are made: `patient` gets the masked report of her phone.
AUDIENCE = f"{concepts.BASE}/StructureDefinition/topic-audience"
_DEFINITIONS = "http://hl7.org/fhir/StructureDefinition/"
# Whose changes are told (`fhir.subscriptions.events`).
KINDS = frozenset({"DiagnosticReport", "ImagingStudy", "Patient", "ServiceRequest"})
# What may be told along: of no failed work, no trail, no file and no subscriber.
_TOLD_ALONG = PARAMETERS.keys() - {"AuditEvent", "Binary", "Subscription", "Task"}
# A version of a resource and what it is found by.
Indexed = tuple[Stored, Index]
_INTERACTIONS = frozenset({"create", "update"})
_OUTCOMES = ("test-passes", "test-fails")
_KNOWN = {
    "": "resourceType url version title status description extension resourceTrigger"
    " canFilterBy notificationShape",
    "resourceTrigger": "description resource supportedInteraction queryCriteria",
    "queryCriteria": "previous current resultForCreate requireBoth",
    "canFilterBy": "description resource filterParameter modifier",
    "notificationShape": "resource include revInclude",
}


@dataclass(frozen=True)
class Trigger:
    """One way in which an event of a topic comes about.

    `previous` and `current` are what the version before and the new one must meet;
    None: not asked. `created` is the answer of `previous` where there was none.
    """

    interactions: frozenset[str]
    current: tuple[Criterion, ...] | None = None
    previous: tuple[Criterion, ...] | None = None
    created: bool = True
    both: bool = False

    def fires(self, now: Indexed, before: Indexed | None) -> bool:
        """Tell whether a new version (after none, or after `before`) is an event."""
        if ("create" if before is None else "update") not in self.interactions:
            return False
        answers = []
        if self.current is not None:
            answers.append(meets(*now, self.current))
        if self.previous is not None:
            answers.append(
                self.created if before is None else meets(*before, self.previous)
            )
        if not answers:
            return True
        return all(answers) if self.both else any(answers)


@dataclass(frozen=True)
class Topic:
    """A SubscriptionTopic; `masked` ones carry the patient's masked report.

    `filters` are the search parameters that a subscriber may narrow it by, with
    the modifiers that are taken. `along` are the paths by which other resources are
    told along, `include=...` from the focus and `revInclude=...` to it.
    """

    url: str
    title: str
    kind: str
    triggers: tuple[Trigger, ...]
    filters: Mapping[str, frozenset[str]] = field(default_factory=dict)
    masked: bool = False
    along: tuple[str, ...] = ()

    @property
    def looks_back(self) -> bool:
        """Tell whether a trigger asks for the version before."""
        return any(trigger.previous is not None for trigger in self.triggers)

    def fires(self, now: Indexed, before: Indexed | None) -> bool:
        """Tell whether a new version is an event of this topic."""
        return any(one.fires(now, before) for one in self.triggers)

    def filter(self, text: str) -> Criterion:
        """Return what one filter `name=value` asks; INVALID when it is not offered."""
        name, found, value = text.partition("=")
        bare, _, modifier = name.partition(":")
        if not found or not value or bare not in self.filters:
            offered = ", ".join(sorted(self.filters)) or "nothing"
            raise NodeError(f"this topic is filtered by {offered}", ErrorKind.INVALID)
        if modifier and modifier not in self.filters[bare]:
            raise NodeError(
                f"{bare} is filtered without this modifier", ErrorKind.INVALID
            )
        return criterion(self.kind, name, value, sees_identity=True)


def read_filters(text: str) -> list[str]:
    """Return the filters `name=value` of one backport-filter-criteria.

    `DiagnosticReport?status=final&patient=Patient/1`, `DiagnosticReport.status=final`
    and `status=final` say the same; the topic knows the type.
    """
    head, separator, query = text.strip().partition("?")
    if not separator or "=" in head:
        query = text.strip()
    pairs = parse_qsl(query, keep_blank_values=True)
    return [f"{name.rpartition('.')[2]}={value}" for name, value in pairs] or [text]


def filtered_type(text: str) -> str | None:
    """Return the resource type that a backport-filter-criteria names, if any."""
    head = text.strip().partition("=")[0]
    if "?" in head:
        return head.partition("?")[0]
    return head.partition(".")[0] if "." in head else None


# --- files ----------------------------------------------------------------------------


class FollowedTopics(Mapping[str, Topic]):
    """The topics of a folder by their address, as its files are now."""

    def __init__(self, followed: Followed[dict[str, Topic]]) -> None:
        self._followed = followed

    def __getitem__(self, url: str) -> Topic:
        return self._followed.current()[url]

    def __iter__(self) -> Iterator[str]:
        return iter(self._followed.current())

    def __len__(self) -> int:
        return len(self._followed.current())


class _Fault(Exception):
    """Something is wrong with an element of a file."""

    def __init__(self, element: str, words: str) -> None:
        super().__init__(element, words)
        self.element, self.words = element, words


def read_topics(files: Mapping[str, bytes]) -> dict[str, Topic]:
    """Return the topics of files (name, content) by their address.

    SETTING names the file and the element at fault.
    """
    topics: dict[str, Topic] = {}
    for name, content in sorted(files.items()):
        try:
            topic = _topic(parse(content))
            if topic.url in topics:
                raise _Fault("url", "another file has it already")
        except _Fault as fault:
            message = f"{name}: {fault.element}: {fault.words}"
            raise NodeError(message, ErrorKind.SETTING) from None
        except NodeError as error:
            raise NodeError(f"{name}: {error.message}", ErrorKind.SETTING) from None
        topics[topic.url] = topic
    return topics


def _topic(told: Json) -> Topic:
    _require_known(told, "", "")
    if told.get("resourceType") != "SubscriptionTopic":
        raise _Fault("resourceType", "must be SubscriptionTopic")
    if told.get("status") != "active":
        raise _Fault("status", "must be active; remove the file to switch it off")
    triggers = list(_parts(told, "resourceTrigger"))
    if not triggers:
        raise _Fault("resourceTrigger", "is missing")
    kinds = {_kind(trigger, place) for place, trigger in triggers}
    if len(kinds) > 1:
        raise _Fault("resourceTrigger", "all triggers of a topic have one resource")
    kind = kinds.pop()
    along: list[str] = []
    for place, shape in _parts(told, "notificationShape"):
        if _kind(shape, place) != kind:
            raise _Fault(f"{place}.resource", f"must be {kind}, as in the trigger")
        along += _along(shape, place, kind)
    masked = _audience(told)
    filters = dict(
        _filter(part, place, kind) for place, part in _parts(told, "canFilterBy")
    )
    if masked and (kind != "DiagnosticReport" or filters or along):
        raise _Fault(
            "extension", "what patients see is DiagnosticReport, unfiltered and alone"
        )
    return Topic(
        url=_text(told, "url"),
        title=_text(told, "title"),
        kind=kind,
        triggers=tuple(_trigger(part, place, kind) for place, part in triggers),
        filters=filters,
        masked=masked,
        along=tuple(dict.fromkeys(along)),
    )


def _along(shape: Json, place: str, kind: str) -> Iterator[str]:
    """Return the paths of a shape, as `Topic.along` has them."""
    for direction in ("include", "revInclude"):
        for number, told in enumerate(as_list(shape.get(direction))):
            source, _, name = str(told).partition(":")
            found = parameter(source, name) if source in _TOLD_ALONG else None
            forward = direction == "include"
            leads = found is not None and found.kind == "reference"
            if forward:
                leads = leads and source == kind
            else:
                leads = leads and found is not None and kind in found.targets
            if not leads:
                words = f"is no {direction} of {kind} here: Type:parameter"
                raise _Fault(f"{place}.{direction}[{number}]", words)
            yield f"{direction}={source}:{name}"


def _audience(told: Json) -> bool:
    found = as_list(told.get("extension"))
    audience = extension(told, AUDIENCE)
    if len(found) != (audience is not None):
        raise _Fault("extension", f"only {AUDIENCE} is known")
    if audience is None:
        return False
    if audience.get("valueCode") != "patient":
        raise _Fault("extension[0].valueCode", "must be patient")
    return True


def _trigger(told: Json, place: str, kind: str) -> Trigger:
    asked = as_list(told.get("supportedInteraction")) or sorted(_INTERACTIONS)
    if not set(asked) <= _INTERACTIONS:
        known = " and ".join(sorted(_INTERACTIONS))
        raise _Fault(f"{place}.supportedInteraction", f"only {known} happen here")
    criteria = told.get("queryCriteria", {})
    where = f"{place}.queryCriteria"
    if not isinstance(criteria, dict):
        raise _Fault(where, "must be an object")
    _require_known(criteria, "queryCriteria", where)
    created = criteria.get("resultForCreate", _OUTCOMES[0])
    if created not in _OUTCOMES:
        raise _Fault(f"{where}.resultForCreate", f"is {' or '.join(_OUTCOMES)}")
    both = criteria.get("requireBoth", False)
    if not isinstance(both, bool):
        raise _Fault(f"{where}.requireBoth", "is true or false")
    return Trigger(
        frozenset(asked),
        _criteria(criteria, "current", where, kind),
        _criteria(criteria, "previous", where, kind),
        created == _OUTCOMES[0],
        both,
    )


def _criteria(
    told: Json, name: str, place: str, kind: str
) -> tuple[Criterion, ...] | None:
    text = told.get(name)
    if text is None:
        return None
    pairs = parse_qsl(str(text), keep_blank_values=True)
    try:
        found = tuple(criterion(kind, n, v, sees_identity=True) for n, v in pairs)
    except NodeError as error:
        raise _Fault(f"{place}.{name}", error.message) from None
    if not found or not all(map(decidable, found)):
        raise _Fault(f"{place}.{name}", "cannot be asked of one resource")
    return found


def _filter(told: Json, place: str, kind: str) -> tuple[str, frozenset[str]]:
    if "resource" in told and _kind(told, place) != kind:
        raise _Fault(f"{place}.resource", f"must be {kind}, as in the trigger")
    name = _text(told, "filterParameter", place)
    found = parameter(kind, name)
    if name != "_id" and found is None:
        raise _Fault(f"{place}.filterParameter", f"{name} does not search {kind} here")
    if found is not None and (
        found.identifying or found.kind not in ("token", "reference", "uri")
    ):
        raise _Fault(f"{place}.filterParameter", f"{name} cannot filter")
    modifiers = frozenset(map(str, as_list(told.get("modifier"))))
    if not modifiers <= {"not", "missing"}:
        raise _Fault(f"{place}.modifier", "is not or missing")
    return name, modifiers


def _parts(told: Json, name: str) -> Iterator[tuple[str, Json]]:
    for number, part in enumerate(as_list(told.get(name))):
        place = f"{name}[{number}]"
        if not isinstance(part, dict):
            raise _Fault(place, "must be an object")
        _require_known(part, name, place)
        yield place, part


def _require_known(told: Json, kind: str, place: str) -> None:
    for name in told:
        if name not in _KNOWN[kind].split():
            element = f"{place}.{name}" if place else name
            raise _Fault(element, "the node does nothing with this element")


def _kind(told: Json, place: str) -> str:
    kind = _text(told, "resource", place).removeprefix(_DEFINITIONS)
    if kind not in KINDS:
        raise _Fault(f"{place}.resource", f"is one of {', '.join(sorted(KINDS))}")
    return kind


def _text(told: Json, name: str, place: str = "") -> str:
    value: Any = told.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _Fault(f"{place}.{name}" if place else name, "is missing")
    return value
