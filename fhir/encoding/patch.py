"""Patches: a few changes to a resource instead of the whole (FHIR R4 3.1.0.7).

Here a patch becomes the resource that it asks for; what then happens is what
happens to a PUT of that resource. Two languages are spoken: JSON Patch
(RFC 6902) and FHIRPath Patch, of FHIRPath as much as names one element.
Numbers keep the digits that they were written with.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fhir.encoding.elements import (
    RESOURCE,
    XHTML,
    Element,
    Part,
    elements_of,
    parts_of,
    set_parts,
)
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, check_depth, parse_value
from node.domain.errors import ErrorKind

MAX_OPERATIONS = 500
# `copy` doubles what it copies: thirty of them would fill the memory.
_MAX_COPIED = 10_000
_LONGEST_PATH = 1000

Patch = Callable[[Json], Json]


def read_json_patch(raw: bytes) -> Patch:
    """Return the JSON Patch in `raw`; Refused (400) when it is none."""
    operations = parse_value(raw)
    if not isinstance(operations, list) or not operations:
        raise _malformed("a JSON Patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise _malformed(f"{MAX_OPERATIONS} operations at most")
    steps = [_read_operation(item, i) for i, item in enumerate(operations)]

    def patched(resource: Json) -> Json:
        return _same_resource(resource, _JsonPatch(resource).carry_out(steps))

    return patched


def read_fhirpath_patch(parameters: Json) -> Patch:
    """Return the FHIRPath Patch that a Parameters resource says (FHIR R4 3.1.0.7.2)."""
    told = as_list(parameters.get("parameter"))
    if not 0 < len(told) <= MAX_OPERATIONS:
        raise _malformed(f"1 to {MAX_OPERATIONS} operations", "Parameters.parameter")
    steps = [
        _read_change(item, f"Parameters.parameter[{i}]") for i, item in enumerate(told)
    ]

    def patched(resource: Json) -> Json:
        changed = _copy(resource)
        for step in steps:
            step.apply(changed)
        return _same_resource(resource, changed)

    return patched


def read_patch_of_entry(resource: Json, where: str) -> Patch:
    """Return the patch that an entry of a transaction carries (FHIR R4 3.1.0.11.2)."""
    if resource["resourceType"] == "Parameters":
        return read_fhirpath_patch(resource)
    if (
        resource["resourceType"] == "Binary"
        and resource.get("contentType") == "application/json-patch+json"
    ):
        try:
            return read_json_patch(base64.b64decode(resource.get("data", "")))
        except binascii.Error:
            raise _malformed("not base64", f"{where}.data") from None
    raise _malformed(
        "a patch is Parameters, or a Binary of application/json-patch+json", where
    )


def _same_resource(before: Json, after: Any) -> Json:
    """Return a patched resource; what it is and who it is no patch may change."""
    kind = before["resourceType"]
    for name in ("resourceType", "id"):
        if not isinstance(after, dict) or after.get(name) != before.get(name):
            message = f"a patch cannot change {name}"
            issue = Issue("business-rule", message, f"{kind}.{name}")
            raise Refused([issue], 422, ErrorKind.RULE)
    check_depth(after)
    resource: Json = after
    return resource


def _malformed(message: str, expression: str | None = None) -> Refused:
    return Refused([Issue("structure", message, expression)], 400)


def _unfit(message: str, expression: str | None) -> Refused:
    return Refused([Issue("processing", message, expression)], 422, ErrorKind.RULE)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


# --- JSON Patch -------------------------------------------------------------------

_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "add": ("value",),
    "remove": (),
    "replace": ("value",),
    "move": ("from",),
    "copy": ("from",),
    "test": ("value",),
}
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class _Step:
    """One operation of a JSON Patch; `at` names it to whoever sent it."""

    verb: str
    path: tuple[str, ...]
    source: tuple[str, ...]
    value: Any
    at: str


def _read_operation(item: Any, index: int) -> _Step:
    at = f"operation {index + 1}"
    verb = item.get("op") if isinstance(item, dict) else None
    if not isinstance(verb, str) or verb not in _MEMBERS:
        raise _malformed(f"{at}: op is one of {', '.join(_MEMBERS)}")
    for name in ("path", *_MEMBERS[verb]):
        if name not in item:
            raise _malformed(f"{at}: {verb} needs {name}")
    path, source = (_tokens(item.get(name, ""), at) for name in ("path", "from"))
    if verb == "move" and path[: len(source)] == source and path != source:
        raise _malformed(f"{at}: nothing can be moved into itself")
    return _Step(verb, path, source, item.get("value"), f"{at} ({verb})")


def _tokens(pointer: Any, at: str) -> tuple[str, ...]:
    """Return the reference tokens of a JSON Pointer (RFC 6901)."""
    if not isinstance(pointer, str) or not _POINTER.fullmatch(pointer):
        raise _malformed(f"{at}: not a JSON Pointer")
    tokens = pointer.split("/")[1:]
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


class _JsonPatch:
    """Carries operations out on a copy of a resource."""

    def __init__(self, resource: Json) -> None:
        # One level up, so that the pointer to the whole needs no rule of its own.
        self._root: Json = {"": _copy(resource)}
        self._kind = str(resource["resourceType"])
        self._copied = 0
        self._emptied: list[tuple[str, ...]] = []

    def carry_out(self, steps: Sequence[_Step]) -> Any:
        for step in steps:
            self._carry_out(step)
        for tokens in self._emptied:
            self._clear(tokens)
        return self._root.get("")

    def _carry_out(self, step: _Step) -> None:
        match step.verb:
            case "add":
                self._add(step, _copy(step.value))
            case "remove":
                self._remove(step, step.path)
            case "replace":
                holder, key = self._existing(step, step.path)
                holder[key] = _copy(step.value)
            case "move":
                self._add(step, self._remove(step, step.source))
            case "copy":
                holder, key = self._existing(step, step.source)
                self._copied += _size(holder[key])
                if self._copied > _MAX_COPIED:
                    raise _unfit(f"{step.at}: copies too much", None)
                self._add(step, _copy(holder[key]))
            case "test":
                holder, key = self._existing(step, step.path)
                if not _equal(holder[key], step.value):
                    message = f"{step.at}: the element has another value"
                    issue = Issue("conflict", message, self._expression(step.path))
                    raise Refused([issue], 409, ErrorKind.CONFLICT)

    def _add(self, step: _Step, value: Any) -> None:
        check_depth(value)
        holder = self._holder(step, step.path)
        key = step.path[-1] if step.path else ""
        if isinstance(holder, dict):
            holder[key] = value
            return
        last = len(holder)
        index = last if key == "-" else self._index(step, key)
        if index > last:
            raise _unfit(f"{step.at}: beyond the list", self._expression(step.path))
        holder.insert(index, value)

    def _remove(self, step: _Step, path: tuple[str, ...]) -> Any:
        holder, key = self._existing(step, path)
        value = holder.pop(key)
        if not holder:
            self._emptied.append(path[:-1])
        return value

    def _clear(self, tokens: tuple[str, ...]) -> None:
        """Take away what a removal has left empty: FHIR has no empty lists."""
        while tokens:
            try:
                holder, key = self._reach(tokens)
                if holder[key] not in ([], {}):
                    return
            except (LookupError, TypeError, ValueError):
                return  # a later operation has changed what is around it
            holder.pop(key)
            tokens = tokens[:-1]
            if holder:
                return

    def _reach(self, tokens: tuple[str, ...]) -> tuple[Any, Any]:
        holder: Any = self._root
        key: Any = ""
        for token in tokens:
            holder = holder[key]
            key = int(token) if isinstance(holder, list) else token
        return holder, key

    def _holder(self, step: _Step, path: tuple[str, ...]) -> Any:
        """Return the object or list in which the last token of a path counts."""
        holder: Any = self._root
        for number, token in enumerate(("", *path)[:-1] if path else ()):
            below: Any = None
            if isinstance(holder, dict):
                below = holder.get(token)
            elif self._index(step, token) < len(holder):
                below = holder[int(token)]
            if not isinstance(below, dict | list):
                raise self._missing(step, path[:number])
            holder = below
        return holder

    def _existing(self, step: _Step, path: tuple[str, ...]) -> tuple[Any, Any]:
        holder = self._holder(step, path)
        key: Any = path[-1] if path else ""
        if isinstance(holder, list):
            key = self._index(step, key)
            if key < len(holder):
                return holder, key
        elif key in holder:
            return holder, key
        raise self._missing(step, path)

    def _index(self, step: _Step, token: str) -> int:
        if not _INDEX.fullmatch(token):
            raise _unfit(f"{step.at}: a list has numbers", self._expression(step.path))
        return int(token)

    def _missing(self, step: _Step, path: tuple[str, ...]) -> Refused:
        return _unfit(f"{step.at}: there is no such element", self._expression(path))

    def _expression(self, path: tuple[str, ...]) -> str:
        """Return the FHIRPath of a pointer, as far as it can be one."""
        text = self._kind
        for token in path:
            if _INDEX.fullmatch(token):
                text += f"[{token}]"
            elif re.fullmatch(r"_?[A-Za-z][A-Za-z0-9]{0,63}", token):
                text += f".{token.removeprefix('_')}"
            else:
                break
        return text


def _size(value: Any) -> int:
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        size += 1
        if isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return size


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are equal (RFC 6902 4.6): 1.0 is 1, true is not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _equal(one[key], other[key]) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    numbers = isinstance(one, int | Decimal) and isinstance(other, int | Decimal)
    same: bool = one == other
    return same and (numbers or type(one) is type(other))


# --- FHIRPath Patch ---------------------------------------------------------------

# What of FHIRPath is understood: names, an index, and a filter by one text.
_STEP = re.compile(
    r"\.(?P<name>[A-Za-z][A-Za-z0-9]*)(?![A-Za-z0-9(])"
    r"|\[(?P<index>0|[1-9][0-9]{0,8})\]"
    r"|\.where\(\s*(?P<key>[A-Za-z][A-Za-z0-9]*)\s*=\s*"
    r"(?:'(?P<single>[^'\\]*)'|\"(?P<double>[^\"\\]*)\")\s*\)"
)
_VERBS: Mapping[str, frozenset[str]] = {
    verb: frozenset(parts.split())
    for verb, parts in {
        "add": "name value",
        "insert": "value index",
        "delete": "",
        "replace": "value",
        "move": "source destination",
    }.items()
}
_NUMBERS = frozenset({"decimal", "integer", "positiveInt", "unsignedInt"})
_OPEN_TYPE = "Parameters.parameter"


@dataclass
class _Node:
    """One element in a resource: repetition `index` of `element` of `holder`.

    `choices` is what it could be as well. The resource itself has no element.
    """

    value: Any
    type: str
    holder: Json
    element: Element | None = None
    index: int = 0
    choices: Sequence[Element] = ()


@dataclass(frozen=True)
class _Change:
    """One operation of a FHIRPath Patch and where it stands in the Parameters."""

    verb: str
    path: str
    where: str
    name: str = ""
    value: Json | None = None
    index: int = 0
    source: int = 0
    destination: int = 0

    def apply(self, resource: Json) -> None:
        """Change `resource` as this operation says."""
        match self.verb:
            case "add":
                self._add(self._one(self._find(resource, self._steps())))
            case "insert":
                holder, element, parts = self._list(resource)
                self._within(self.index, len(parts))
                parts.insert(self.index, self._part(element, self._told))
                set_parts(holder, element, parts)
            case "move":
                holder, element, parts = self._list(resource)
                self._within(self.source, len(parts) - 1)
                self._within(self.destination, len(parts) - 1)
                parts.insert(self.destination, parts.pop(self.source))
                set_parts(holder, element, parts)
            case "replace":
                self._replace(self._one(self._find(resource, self._steps())))
            case "delete":
                found = self._find(resource, self._steps())
                if found:
                    self._delete(self._one(found))

    @property
    def _told(self) -> Json:
        assert self.value is not None  # noqa: S101 - _read_change has seen to it
        return self.value

    def _refused(self, message: str) -> Refused:
        return _unfit(f"{self.verb}: {message}", self.where)

    @property
    def _kind(self) -> str:
        return re.split(r"[^A-Za-z]", self.path, maxsplit=1)[0]

    def _steps(self) -> list[Mapping[str, str | None]]:
        """Return the steps of the path; Refused when it says what we do not know."""
        found: list[Mapping[str, str | None]] = []
        at = len(self._kind)
        while at < len(self.path):
            step = _STEP.match(self.path, at)
            if step is None:
                raise self._refused(
                    "of FHIRPath this is understood: Type.element[0].element"
                    " and .where(element = 'text')"
                )
            found.append(step.groupdict())
            at = step.end()
        return found

    def _find(
        self, resource: Json, steps: Sequence[Mapping[str, str | None]]
    ) -> list[_Node]:
        kind = resource["resourceType"]
        if self._kind != kind:
            raise self._refused(f"the path begins with {kind}")
        nodes = [_Node(resource, kind, resource)]
        for step in steps:
            if step["name"] is not None:
                nodes = [
                    c for node in nodes for c in self._children(node, step["name"])
                ]
            elif step["index"] is not None:
                index = int(step["index"])
                nodes = nodes[index : index + 1]
            else:
                text = step["single"] if step["single"] is not None else step["double"]
                key = str(step["key"])
                nodes = [
                    node
                    for node in nodes
                    if isinstance(node.value, dict) and node.value.get(key) == text
                ]
        return nodes

    def _elements(self, type_name: str, name: str) -> list[Element]:
        """Return what a name means in a type: one element, or those of a choice."""
        known = elements_of(type_name)
        if name in known and known[name].choice is None:
            return [known[name]]
        found = [e for e in known.values() if e.choice == name]
        if not found:
            raise self._refused(f"{type_name} has no element {name[:64]}")
        return found

    def _children(self, node: _Node, name: str) -> list[_Node]:
        if not isinstance(node.value, dict) or node.type[0].islower():
            raise self._refused(f"nothing below {node.type} is reached by a patch")
        choices = self._elements(node.type, name)
        return [
            _Node(part[0], self._type(one, part[0]), node.value, one, index, choices)
            for one in choices
            for index, part in enumerate(parts_of(node.value, one))
        ]

    def _type(self, element: Element, value: Any) -> str:
        if element.type == RESOURCE:
            return str(value["resourceType"])
        return element.type

    def _one(self, nodes: Sequence[_Node]) -> _Node:
        if len(nodes) != 1:
            count = "no element" if not nodes else f"{len(nodes)} elements"
            raise self._refused(f"the path finds {count} instead of one")
        return nodes[0]

    def _list(self, resource: Json) -> tuple[Json, Element, list[Part]]:
        """Return where the list stands that the path names, and what is in it."""
        *before, last = self._steps() or [{"name": None}]
        if last["name"] is None:
            raise self._refused("the path names a list as a whole")
        node = self._one(self._find(resource, before))
        if not isinstance(node.value, dict) or node.type[0].islower():
            raise self._refused(f"nothing below {node.type} is reached by a patch")
        element = self._elements(node.type, last["name"])[0]
        if not element.repeats:
            raise self._refused(f"{element.name} does not repeat")
        return node.value, element, parts_of(node.value, element)

    def _within(self, index: int, last: int) -> None:
        if not 0 <= index <= last:
            raise self._refused("beyond the list")

    def _add(self, node: _Node) -> None:
        if not isinstance(node.value, dict) or node.type[0].islower():
            raise self._refused(f"nothing below {node.type} is reached by a patch")
        choices = self._elements(node.type, self.name)
        element = self._fitting(choices, self._told)
        parts = parts_of(node.value, element)
        if not element.repeats and any(parts_of(node.value, e) for e in choices):
            raise self._refused(f"there is a {self.name} already: replace it")
        parts.append(self._part(element, self._told))
        set_parts(node.value, element, parts)

    def _replace(self, node: _Node) -> None:
        if node.element is None:
            raise self._refused("a resource is replaced by PUT")
        element = self._fitting(node.choices, self._told)
        parts = parts_of(node.holder, node.element)
        parts[node.index] = self._part(element, self._told)
        set_parts(node.holder, node.element, [])
        set_parts(node.holder, element, parts)

    def _delete(self, node: _Node) -> None:
        if node.element is None:
            raise self._refused("a resource is not deleted by a patch")
        parts = parts_of(node.holder, node.element)
        del parts[node.index]
        set_parts(node.holder, node.element, parts)

    def _fitting(self, choices: Sequence[Element], told: Json) -> Element:
        """Return the one of a choice that has the type of a value."""
        if choices[0].choice is None:
            return choices[0]
        key = _value_key(told)
        for element in choices:
            if key is not None and element.name == f"{element.choice}{key[5:]}":
                return element
        raise self._refused(f"{choices[0].choice}[x] has no such type")

    def _part(self, element: Element, told: Json) -> Part:
        """Return what a value parameter holds, as a repetition of `element`."""
        key = _value_key(told)
        if key is None:
            return self._composed(element, told), None
        sent = elements_of(_OPEN_TYPE)[key]
        value, extra = told.get(key), told.get(f"_{key}")
        fits = sent.type == element.type
        if element.primitive and element.type != XHTML:
            fits = sent.primitive and _shape(sent.type) == _shape(element.type)
        # The url of an extension can be said, but it carries nothing itself.
        told_of_it = element.attribute and extra is not None
        if not fits or element.type == RESOURCE or told_of_it:
            raise self._refused(f"{element.name} is of another type")
        return _copy(value), _copy(extra)

    def _composed(self, element: Element, told: Json) -> Json:
        """Return a value without a type of its own, made from its parts."""
        parts = as_list(told.get("part"))
        if not parts or element.primitive or element.type == RESOURCE:
            raise self._refused(f"{element.name} needs a value of its type")
        made: Json = {}
        for part in parts:
            choices = self._elements(element.type, str(part.get("name")))
            inner = self._fitting(choices, part)
            known = parts_of(made, inner)
            if known and not inner.repeats:
                raise self._refused(f"{inner.name} comes twice")
            set_parts(made, inner, [*known, self._part(inner, part)])
        return made


def _shape(kind: str) -> str:
    """Return how JSON writes a primitive type."""
    if kind == "boolean":
        return "boolean"
    return "number" if kind in _NUMBERS else "string"


def _value_key(told: Json) -> str | None:
    keys = (key.removeprefix("_") for key in told)
    return next((key for key in keys if key.startswith("value")), None)


def _read_change(item: Json, where: str) -> _Change:
    if item.get("name") != "operation":
        raise _malformed("a FHIRPath Patch has operations only", f"{where}.name")
    told: dict[str, Json] = {}
    for index, part in enumerate(as_list(item.get("part"))):
        name = str(part.get("name"))
        if name in told:
            raise _malformed(f"{name[:64]} twice", f"{where}.part[{index}]")
        told[name] = part
    verb = _text(told.pop("type", {}))
    if verb is None or verb not in _VERBS:
        raise _malformed(f"type is one of {', '.join(_VERBS)}", where)
    path = _text(told.pop("path", {}))
    if path is None or len(path) > _LONGEST_PATH:
        raise _malformed("path is needed", where)
    if told.keys() != _VERBS[verb]:
        needed = ", ".join(sorted({"path", *_VERBS[verb]}))
        raise _malformed(f"{verb} takes {needed}", where)
    numbers = {
        name: _whole(told[name], where)
        for name in ("index", "source", "destination")
        if name in told
    }
    name = _text(told.get("name", {})) or ""
    return _Change(verb, path, where, name, told.get("value"), **numbers)


def _text(part: Json) -> str | None:
    key = _value_key(part)
    value = part.get(key) if key else None
    return value if isinstance(value, str) else None


def _whole(part: Json, where: str) -> int:
    value = part.get("valueInteger")
    if not isinstance(value, int) or isinstance(value, bool):
        raise _malformed("an index is a valueInteger", where)
    return value
