"""Which elements a FHIR R4 type has, in which order and of which type.

JSON says neither; XML needs both (FHIR R4 2.6.2), and a FHIRPath Patch has to
know which element repeats and which is a choice. The table beside this module
is written from the definitions that HL7 publishes as hl7.fhir.r4.core 4.0.1,
never by hand:

    python -m fhir.encoding.elements DIRECTORY_OF_THE_UNPACKED_PACKAGE
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fhir.encoding.wire import Json, as_list

_TABLE = Path(__file__).with_name("elements.txt")
# Any resource may stand here; XHTML in place; attributes of an XML element.
RESOURCE = "Resource"
XHTML = "xhtml"


@dataclass(frozen=True)
class Element:
    """One element of a type, under the name that it has in an instance.

    `choice` is the name without its type for a choice: `value` of
    `valueQuantity`. `place` orders the elements of a type.
    """

    name: str
    type: str
    repeats: bool
    attribute: bool
    choice: str | None
    place: int

    @property
    def primitive(self) -> bool:
        """Tell whether its value is a JSON string, number or boolean."""
        return self.type[0].islower()


@cache
def elements_of(type_name: str) -> Mapping[str, Element]:
    """Return the elements of a type by name, those that it inherits first.

    A backbone element is a type of its own: `Patient.contact`. Raises KeyError
    for what is no type of R4.
    """
    base, own = _lines()[type_name]
    known = dict(elements_of(base)) if base else {}
    for text in own.split():
        for element in _read(text, len(known)):
            known[element.name] = element
    return known


def has_type(name: str) -> bool:
    """Tell whether R4 has a resource or data type of this name."""
    return name in _lines()


def base_of(type_name: str) -> str:
    """Return the type that a type inherits from, empty for one that does not."""
    return _lines()[type_name][0] if type_name in _lines() else ""


def is_resource(name: str) -> bool:
    """Tell whether R4 has a resource type of this name."""
    known = name in _lines() and "." not in name
    return known and "resourceType" in elements_of(name)


@cache
def _lines() -> Mapping[str, tuple[str, str]]:
    read = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        head, _, own = line.partition(" = ")
        name, _, base = head.partition(" < ")
        read[name] = (base, own)
    return read


def _read(text: str, place: int) -> Iterator[Element]:
    """Yield what one word of the table says: `name*:Type`, `value[x]:A|b`."""
    name, _, types = text.partition(":")
    repeats, attribute = name.endswith("*"), name.startswith("@")
    name = name.strip("@*")
    choice = name.removesuffix("[x]") if name.endswith("[x]") else None
    for kind in types.split("|"):
        full = name if choice is None else f"{choice}{kind[0].upper()}{kind[1:]}"
        yield Element(full, kind, repeats, attribute, choice, place)


# A repetition of an element: its value, and for a primitive its id and extensions
# (FHIR R4 2.6.1.1: they stand apart in JSON, `birthDate` and `_birthDate`).
Part = tuple[Any, Json | None]


def parts_of(holder: Json, element: Element) -> list[Part]:
    """Return the repetitions of an element of `holder`, none when it is absent."""
    values = as_list(holder.get(element.name))
    if not element.primitive:
        return [(value, None) for value in values]
    return list(zip_longest(values, as_list(holder.get(f"_{element.name}"))))


def set_parts(holder: Json, element: Element, parts: Sequence[Part]) -> None:
    """Make `parts` the repetitions of an element; without any it is absent."""
    holder.pop(element.name, None)
    holder.pop(f"_{element.name}", None)
    values = [value for value, _ in parts]
    extras = [extra for _, extra in parts]
    if any(value is not None for value in values):
        holder[element.name] = values if element.repeats else values[0]
    if any(extras):
        holder[f"_{element.name}"] = extras if element.repeats else extras[0]


# --- writing the table --------------------------------------------------------------

_FHIRPATH = "http://hl7.org/fhirpath/System."


def table_of(definitions: Path) -> str:
    """Return the table of every data type and resource that R4 defines."""
    lines: list[str] = []
    for path in definitions.glob("StructureDefinition-*.json"):
        definition = json.loads(path.read_text(encoding="utf-8"))
        kind, derivation = definition["kind"], definition.get("derivation")
        if kind in ("complex-type", "resource") and derivation != "constraint":
            lines += _definition(definition)
    return "\n".join(sorted(lines)) + "\n"


def _definition(definition: dict[str, Any]) -> Iterator[str]:
    top = definition["type"]
    base = definition.get("baseDefinition", "").rpartition("/")[2]
    own: dict[str, list[str]] = {top: []}
    bases = {top: base}
    for element in definition["snapshot"]["element"][1:]:
        path = element["path"]
        parent, _, name = path.rpartition(".")
        if element["base"]["path"] != path:
            continue  # it stands with the type that it comes from
        word, types = _word(element, name)
        if types in ("BackboneElement", "Element") and _has_parts(definition, path):
            own[path], bases[path] = [], types
            types = path
        own[parent].append(f"{word}:{types}")
    if definition["kind"] == "resource" and not base:
        own[top].insert(0, "@resourceType:code")
    for name, words in own.items():
        head = f"{name} < {bases[name]}" if bases[name] else name
        yield f"{head} = {' '.join(words)}"


def _word(element: dict[str, Any], name: str) -> tuple[str, str]:
    repeats = "*" if element["max"] != "1" else ""
    attribute = "@" if "xmlAttr" in element.get("representation", []) else ""
    if "contentReference" in element:
        return f"{attribute}{name}{repeats}", element["contentReference"].strip("#")
    types = "|".join(_type(told) for told in element["type"])
    return f"{attribute}{name}{repeats}", types


def _type(told: dict[str, Any]) -> str:
    code = str(told["code"])
    if not code.startswith(_FHIRPATH):
        return code
    for extension in told.get("extension", []):
        if extension["url"].endswith("structuredefinition-fhir-type"):
            return re.sub("^http.*/", "", str(extension["valueUrl"]))
    return "string"


def _has_parts(definition: dict[str, Any], path: str) -> bool:
    return any(
        element["path"].startswith(f"{path}.")
        and element["base"]["path"].startswith(f"{path}.")
        for element in definition["snapshot"]["element"]
    )


if __name__ == "__main__":
    _TABLE.write_text(table_of(Path(sys.argv[1])), encoding="utf-8")
