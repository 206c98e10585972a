"""What our terminology answers: $expand, $lookup, $validate-code (FHIR R4 4.8, 4.9).

Our value sets are listed whole and small, so an expansion is the list itself.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from aiohttp import hdrs, web

from fhir.conformance.terminology import (
    CODE_SYSTEMS,
    VALUE_SETS,
    ZH,
    Code,
    ValueSet,
    concept_of,
    heading,
)
from fhir.conformance.validation import read_resource
from fhir.encoding.formats import read_body
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, as_list, instant
from fhir.rest.exchange import PREFIX, Asked, answered
from fhir.security.access import Interaction
from node.domain.errors import ErrorKind, NodeError
from node.http import identity

_ID = "{id:[A-Za-z0-9.-]{1,64}}"
Asking = Mapping[str, Any]
Answer = Callable[[Asking, str | None], Json]


class Terminology:
    """The handlers of the operations; what they answer is the same for everybody."""

    def __init__(self, version: str, at: Callable[[], datetime]) -> None:
        self._version = version
        self._at = at

    def routes(self) -> list[web.RouteDef]:
        """Return the routes: each operation by GET and by POST of Parameters."""
        offered = (
            ("ValueSet", "expand", self.expand, True),
            ("ValueSet", "validate-code", self.validate_code, True),
            ("CodeSystem", "lookup", self.lookup, False),
        )
        routes = []
        for kind, name, answer, on_one in offered:
            handler = _over_http(kind, answer)
            places = [f"{PREFIX}/{kind}/${name}"]
            if on_one:
                places.append(f"{PREFIX}/{kind}/{_ID}/${name}")
            for place in places:
                routes += [web.get(place, handler), web.post(place, handler)]
        return routes

    def expand(self, asking: Asking, resource_id: str | None) -> Json:
        """Return a ValueSet with its codes, those whose text holds `filter`."""
        value_set = _value_set(asking, resource_id)
        text = str(asking.get("filter", "")).casefold()
        codes = [code for code in value_set.codes if _holds(code, text)]
        start, count = (
            _number(asking, "offset", 0),
            _number(asking, "count", len(codes)),
        )
        head = heading(value_set.id, value_set.url, value_set.words, self._version)
        shown = codes[start : start + count]
        language = _language(asking)
        expansion: Json = {
            "timestamp": instant(self._at()),
            "total": len(codes),
            "offset": start,
        }
        if shown:
            expansion["contains"] = [_contained(code, language) for code in shown]
        return {"resourceType": "ValueSet", **head, "expansion": expansion}

    def validate_code(self, asking: Asking, resource_id: str | None) -> Json:
        """Return whether a code, or any of a CodeableConcept, is in a ValueSet."""
        value_set = _value_set(asking, resource_id)
        asked = _codings(asking)
        known = [
            code
            for system, told, _ in asked
            for code in value_set.codes
            if told == code.code and system in (None, code.system)
        ]
        if not known:
            return _parameters(result=False, message=f"not in {value_set.url}")
        code = known[0]
        displays = {_display(code, None), code.words.en, code.words.zh}
        wrong = [told for _, _, told in asked if told and told not in displays]
        shown = _display(code, _language(asking))
        if wrong:
            message = "the code is in the value set, under another display"
            return _parameters(result=False, message=message, display=shown)
        return _parameters(result=True, display=shown)

    def lookup(self, asking: Asking, _id: str | None) -> Json:
        """Return what a code of our systems is called, in both languages."""
        asked = _codings(asking)
        if len(asked) != 1 or asked[0][0] is None:
            raise _invalid("system and code, or one coding", "code")
        system, told, _ = asked[0]
        for one in CODE_SYSTEMS.values():
            for code in one.codes if one.url == system else ():
                if code.code == told:
                    return self._told(one.words.en, code, _language(asking))
        raise NodeError("this code is not known here", ErrorKind.NOT_FOUND)

    def _told(self, name: str, code: Code, language: str | None) -> Json:
        answer = _parameters(
            name=name, version=self._version, display=_display(code, language)
        )
        for designation in concept_of(code)["designation"]:
            part = [
                {"name": "language", "valueCode": designation["language"]},
                {"name": "value", "valueString": designation["value"]},
            ]
            answer["parameter"].append({"name": "designation", "part": part})
        return answer


def _over_http(
    kind: str, answer: Answer
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handled(request: web.Request) -> web.Response:
        resource_id = request.match_info.get("id")
        asked = Asked(identity(request), request.method, kind, resource_id or "")
        asked.allowed(Interaction.READ)
        asking: dict[str, Any] = dict(request.query)
        if request.method == hdrs.METH_POST:
            body = read_resource(await read_body(request), "Parameters")
            asking |= {
                one["name"]: value
                for one in as_list(body.get("parameter"))
                for key, value in one.items()
                if key.startswith("value")
            }
        return answered(answer(asking, resource_id))

    return handled


def _value_set(asking: Asking, resource_id: str | None) -> ValueSet:
    url = str(asking.get("url", "")).partition("|")[0]
    if resource_id is None and not url:
        raise _invalid("which value set is meant", "url")
    for one in VALUE_SETS.values():
        if resource_id == one.id or (resource_id is None and url == one.url):
            return one
    raise NodeError("this value set is not known here", ErrorKind.NOT_FOUND)


def _codings(asking: Asking) -> list[tuple[str | None, str, str | None]]:
    """Return (system, code, display) of everything that was asked about."""
    concept, coding = asking.get("codeableConcept"), asking.get("coding")
    if isinstance(concept, dict):
        given = as_list(concept.get("coding"))
    elif isinstance(coding, dict):
        given = [coding]
    elif "code" in asking:
        given = [{k: asking[k] for k in ("system", "code", "display") if k in asking}]
    else:
        raise _invalid("a code, a coding or a codeableConcept", "code")
    return [
        (one.get("system"), str(one.get("code")), one.get("display")) for one in given
    ]


def _number(asking: Asking, name: str, default: int) -> int:
    told = str(asking.get(name, default))
    if not told.isdecimal() or len(told) > 9:
        raise _invalid(f"{name} is a number", name)
    return int(told)


def _invalid(message: str, expression: str) -> Refused:
    return Refused([Issue("invalid", message, expression)], 400)


def _language(asking: Asking) -> str | None:
    told = asking.get("displayLanguage")
    return None if told is None else str(told)


def _display(code: Code, language: str | None) -> str:
    if language is None:
        return code.display
    wanted = language.partition("-")[0].lower()
    return code.words.zh if wanted == ZH.partition("-")[0] else code.words.en


def _holds(code: Code, text: str) -> bool:
    told = (code.display, code.words.en, code.words.zh, code.code)
    return any(text in one.casefold() for one in told)


def _contained(code: Code, language: str | None) -> Json:
    return {
        "system": code.system,
        **concept_of(code),
        "display": _display(code, language),
    }


def _parameters(**told: bool | str) -> Json:
    parts: list[Json] = []
    for name, value in told.items():
        kind = "valueBoolean" if isinstance(value, bool) else "valueString"
        parts.append({"name": name, kind: value})
    return {"resourceType": "Parameters", "parameter": parts}
