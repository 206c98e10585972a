"""FHIR XML, to and from the JSON that is stored (FHIR R4 2.6.2), losing nothing.

What is stored is JSON; XML is another way to say the same. Decimals keep their
digits, ids and extensions of primitives their place, narrative its very text.
`fhir.encoding.elements` says which element comes when. The parser is expat with every
door shut: no document type, hence no entities, no comments, no processing
instructions; a depth limit; the size is limited where the body is read.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any
from xml.parsers import expat

from fhir.encoding.elements import (
    RESOURCE,
    XHTML,
    Element,
    Part,
    elements_of,
    is_resource,
    parts_of,
    set_parts,
)
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import MAX_DEPTH, Json, Number, check_depth, integer
from node.domain.errors import ErrorKind, NodeError

NAMESPACE = "http://hl7.org/fhir"
_XHTML_NAMESPACE = "http://www.w3.org/1999/xhtml"
_SCHEMA_LOCATION = "http://www.w3.org/2001/XMLSchema-instance schemaLocation"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_INTEGERS = frozenset({"integer", "positiveInt", "unsignedInt"})
# FHIR R4 decimal and integer: what JSON calls a number.
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
# What no XML can hold; only texts from before such were refused have them.
_NO_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        '"': "&quot;",
        # A parser turns these into blanks inside an attribute.
        "\t": "&#9;",
        "\n": "&#10;",
        "\r": "&#13;",
    }
)


# --- JSON to XML ------------------------------------------------------------------


def to_xml(resource: Json, *, pretty: bool = False) -> bytes:
    """Return a resource as an XML document; INTEGRITY when it is not R4."""
    writer = _Writer("\n" if pretty else "")
    try:
        writer.resource(resource, 0, f' xmlns="{NAMESPACE}"')
    except KeyError as error:
        raise NodeError(
            f"{error.args[0]} has no place in the XML of R4", ErrorKind.INTEGRITY
        ) from None
    end = "\n" if pretty else ""
    return f"{_DECLARATION}{''.join(writer.text).lstrip()}{end}".encode()


class _Writer:
    def __init__(self, line: str) -> None:
        self._line = line
        self.text: list[str] = []

    def _put(self, depth: int, text: str) -> None:
        self.text.append(f"{self._line}{'  ' * depth}{text}" if self._line else text)

    def resource(self, resource: Json, depth: int, attributes: str = "") -> None:
        kind = resource["resourceType"]
        if len(resource) == 1:
            self._put(depth, f"<{kind}{attributes}/>")
            return
        self._put(depth, f"<{kind}{attributes}>")
        self._content(resource, kind, depth + 1)
        self._put(depth, f"</{kind}>")

    def _content(self, value: Json, type_name: str, depth: int) -> None:
        known = elements_of(type_name)
        named = {known[key.removeprefix("_")] for key in value}
        for element in sorted(named, key=lambda element: element.place):
            if not element.attribute:
                for part in parts_of(value, element):
                    self._element(element, part, depth)

    def _element(self, element: Element, part: Part, depth: int) -> None:
        value, extra = part
        if element.type == XHTML:
            self._put(depth, _whole(value))
        elif element.type == RESOURCE:
            self._put(depth, f"<{element.name}>")
            self.resource(value, depth + 1)
            self._put(depth, f"</{element.name}>")
        elif element.primitive:
            told = "" if value is None else f' value="{_escaped(value)}"'
            self._tag(element.name, extra or {}, "Element", told, depth)
        else:
            self._tag(element.name, value, element.type, "", depth)

    def _tag(
        self, name: str, value: Json, type_name: str, told: str, depth: int
    ) -> None:
        known = elements_of(type_name)
        own = [k for k in value if not k.startswith("_") and known[k].attribute]
        attributes = "".join(f' {key}="{_escaped(value[key])}"' for key in own)
        if len(own) == len(value):
            self._put(depth, f"<{name}{attributes}{told}/>")
            return
        self._put(depth, f"<{name}{attributes}{told}>")
        self._content(value, type_name, depth + 1)
        self._put(depth, f"</{name}>")


def _escaped(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Decimal):
        return format(value, "f")
    return _NO_CHARACTER.sub("\ufffd", str(value)).translate(_ESCAPES)


def _whole(div: str) -> str:
    """Return a narrative as it is; a broken one must not break the document."""
    parser = expat.ParserCreate("utf-8")
    try:
        parser.Parse(div.encode(), True)
    except (expat.ExpatError, UnicodeEncodeError):
        raise NodeError("a narrative is not XHTML", ErrorKind.INTEGRITY) from None
    return div


# --- XML to JSON ------------------------------------------------------------------


def from_xml(raw: bytes) -> Json:
    """Return the resource in `raw` as JSON; Refused (400) when it is no FHIR XML.

    Elements must stand in the order of their definition (FHIR R4 2.6.2). Whether
    the resource makes sense is for `fhir.conformance.validation` to say.
    """
    return _Reader(raw).read()


@dataclass
class _Open:
    """An element whose end has not come yet.

    `holds` is its type: of a primitive `Element`, of what holds a resource
    `RESOURCE`, of a resource its name.
    """

    element: Element | None
    holds: str
    path: str
    value: Any = None
    json: Json = field(default_factory=dict)
    parts: dict[str, tuple[Element, list[Part]]] = field(default_factory=dict)
    place: int = -1

    @property
    def primitive(self) -> bool:
        return self.element is not None and self.element.primitive


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._open: list[_Open] = []
        self._resource: Json | None = None
        # Inside a narrative: how deep, where it began, whether it holds anything.
        self._div_depth = 0
        self._div_start = 0
        self._div_empty = True
        self._prefixes: set[str] = set()
        parser = expat.ParserCreate("utf-8", namespace_separator=" ")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.CommentHandler = self._refuse_comment
        parser.ProcessingInstructionHandler = self._refuse_instruction
        parser.StartNamespaceDeclHandler = self._prefix
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        self._parser = parser

    def read(self) -> Json:
        try:
            self._raw.decode("utf-8")  # expat would take UTF-16 by its mark
            self._parser.Parse(self._raw, True)
        except UnicodeDecodeError:
            raise self._refused("send UTF-8") from None
        except expat.ExpatError as error:
            words = expat.ErrorString(error.code)
            message = f"the body is not XML: {words} at line {error.lineno}"
            raise Refused([Issue("structure", message)], 400) from None
        if self._resource is None:
            raise self._refused("the body is empty")
        check_depth(self._resource)
        return self._resource

    def _refused(self, message: str, expression: str | None = None) -> Refused:
        if expression is None and self._open:
            expression = self._open[-1].path
        line = self._parser.CurrentLineNumber
        issue = Issue("structure", f"{message} (line {line})", expression)
        return Refused([issue], 400)

    def _declaration(self, _: str, encoding: str | None, __: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "utf8"):
            raise self._refused("send UTF-8")

    def _refuse_doctype(self, *_: Any) -> None:
        raise self._refused("a document type has no place in FHIR")

    def _refuse_comment(self, _: str) -> None:
        raise self._refused("a comment would be lost: send none")

    def _refuse_instruction(self, *_: str) -> None:
        raise self._refused("a processing instruction has no place in FHIR")

    def _prefix(self, prefix: str | None, uri: str) -> None:
        if prefix is not None and uri == _XHTML_NAMESPACE and not self._div_depth:
            self._prefixes.add(prefix)

    def _characters(self, text: str) -> None:
        if self._div_depth:
            self._div_empty = False
        elif text.strip(" \t\r\n"):
            raise self._refused("text between the elements: values are attributes")

    def _start(self, full: str, attributes: dict[str, str]) -> None:
        if self._div_depth:
            self._div_depth += 1
            self._div_empty = False
            if self._div_depth + len(self._open) > MAX_DEPTH:
                raise self._refused("nested too deeply")
            return
        if len(self._open) >= MAX_DEPTH:
            raise self._refused("nested too deeply")
        namespace, _, name = full.rpartition(" ")
        if not self._open or self._open[-1].holds == RESOURCE:
            self._start_resource(namespace, name, attributes)
            return
        holder = self._open[-1]
        element = elements_of(holder.holds).get(name)
        if element is None or element.attribute:
            raise self._refused(f"no element {name[:64]} here")
        expected = _XHTML_NAMESPACE if element.type == XHTML else NAMESPACE
        if namespace != expected:
            raise self._refused(f"{name[:64]} is not in the namespace {expected}")
        path = self._in_place(holder, element)
        if element.type == XHTML:
            self._div_depth, self._div_empty = 1, True
            self._div_start = self._parser.CurrentByteIndex
            self._open.append(_Open(element, XHTML, path))
            return
        holds = "Element" if element.primitive else element.type
        opened = _Open(element, holds, path)
        self._attributes(opened, attributes)
        self._open.append(opened)

    def _start_resource(
        self, namespace: str, name: str, attributes: dict[str, str]
    ) -> None:
        if namespace != NAMESPACE:
            raise self._refused(f"the namespace of a resource is {NAMESPACE}")
        if not is_resource(name):
            raise self._refused("not a resource of R4")
        if not self._open:
            attributes.pop(_SCHEMA_LOCATION, None)
        elif self._open[-1].json:
            raise self._refused("one resource at a time")
        if attributes:
            raise self._refused("a resource has no attributes")
        path = self._open[-1].path if self._open else name
        self._open.append(_Open(None, name, path, json={"resourceType": name}))

    def _in_place(self, holder: _Open, element: Element) -> str:
        """Return the path of an element that comes now; Refused when it may not."""
        if element.place < holder.place:
            raise self._refused(f"{element.name} comes too late: mind the order")
        if element.place == holder.place:
            if element.name not in holder.parts:
                raise self._refused(f"more than one {element.choice}[x]")
            if not element.repeats:
                raise self._refused(f"{element.name} comes twice")
        holder.place = element.place
        number = len(holder.parts.setdefault(element.name, (element, []))[1])
        index = f"[{number}]" if element.repeats else ""
        return f"{holder.path}.{element.name}{index}"

    def _attributes(self, opened: _Open, attributes: dict[str, str]) -> None:
        assert opened.element is not None  # noqa: S101 - resources have none
        for name, text in attributes.items():
            if opened.primitive and name == "value":
                opened.value = self._value(opened, text)
                continue
            known = elements_of(opened.holds).get(name)
            if opened.holds == RESOURCE or known is None or not known.attribute:
                raise self._refused(f"no attribute {name[-64:]} here", opened.path)
            opened.json[name] = text

    def _value(self, opened: _Open, text: str) -> Any:
        assert opened.element is not None  # noqa: S101 - resources have none
        kind = opened.element.type
        if kind == "boolean":
            if text in ("true", "false"):
                return text == "true"
        elif kind == "decimal":
            if _DECIMAL.fullmatch(text):
                try:
                    return Number(text)
                except InvalidOperation:
                    pass
        elif kind in _INTEGERS:
            if _INTEGER.fullmatch(text):
                return integer(text)
        else:
            return text
        raise self._refused(f"not a {kind}", opened.path)

    def _end(self, _: str) -> None:
        if self._div_depth:
            self._div_depth -= 1
            if self._div_depth:
                return
            self._open[-1].value = self._narrative()
        closed = self._open.pop()
        for element, parts in closed.parts.values():
            set_parts(closed.json, element, parts)
        if closed.element is None:
            self._end_resource(closed)
            return
        if closed.value is None and not closed.json:
            raise self._refused("an element without a value", closed.path)
        part: Part = (closed.json, None)
        if closed.primitive:
            part = (closed.value, closed.json or None)
        self._open[-1].parts[closed.element.name][1].append(part)

    def _end_resource(self, closed: _Open) -> None:
        if self._open:
            self._open[-1].json = closed.json
        else:
            self._resource = closed.json

    def _narrative(self) -> str:
        """Return the narrative that ends here, in the very words it was sent in."""
        end = self._parser.CurrentByteIndex
        if not (self._div_empty and self._raw[end - 2 : end] == b"/>"):
            end = self._raw.index(b">", end) + 1
        text = self._raw[self._div_start : end].decode("utf-8")
        # Taken out of the document it must bring its own prefix along.
        prefix, _, rest = text[1:].partition(":div")
        if prefix in self._prefixes and f"xmlns:{prefix}" not in text:
            return f'<{prefix}:div xmlns:{prefix}="{_XHTML_NAMESPACE}"{rest}'
        return text
