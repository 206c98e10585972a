"""$validate: would the node take this, and what is wrong with it (FHIR R4 operation).

Answers 200 with every problem in one OperationOutcome, and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from fhir.conformance.profiles import BY_URL, departures
from fhir.conformance.validation import parse_resource, problems
from fhir.content.masked import is_masked
from fhir.encoding.formats import read_body
from fhir.encoding.outcome import Issue, Refused, outcome
from fhir.encoding.wire import Json, as_list
from fhir.rest.exchange import ONE, TYPE, Asked, answered
from fhir.security.access import PERMITS, Interaction
from node.domain.errors import NodeError
from node.http import identity

_R4 = "http://hl7.org/fhir/StructureDefinition/"
_NOTHING_WRONG = Issue("informational", "nothing is wrong", severity="information")
_MODES = {
    "create": Interaction.CREATE,
    "update": Interaction.UPDATE,
    "delete": None,  # nothing is ever deleted
}


@dataclass(frozen=True)
class _Call:
    """What a call asks: the resource, what is to be done with it, and by what."""

    resource: Json | None
    mode: str | None
    profiles: tuple[str, ...]


class Validation:
    """The handler of Type/$validate and Type/id/$validate."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the operation."""
        return [
            web.post(f"{TYPE}/$validate", self.validate),
            web.post(f"{ONE}/$validate", self.validate),
        ]

    async def validate(self, request: web.Request) -> web.Response:
        """Answer what is wrong with a resource; Parameters or the resource alone."""
        named = request.match_info
        kind, resource_id = named["type"], named.get("id")
        Asked(identity(request), request.method, kind, resource_id or "").allowed(
            Interaction.VALIDATE
        )
        asked = _read(parse_resource(await read_body(request)), request)
        found = _of_mode(asked, kind, resource_id)
        if asked.resource is not None:
            found += _of_resource(asked.resource, kind, asked.profiles)
        return answered(outcome(found or [_NOTHING_WRONG]))


def _read(body: Json, request: web.Request) -> _Call:
    query = request.query
    mode, profiles = query.get("mode"), list(query.getall("profile", []))
    resource: Json | None = body
    if body["resourceType"] == "Parameters":
        resource = None
        for one in as_list(body.get("parameter")):
            if not isinstance(one, dict):
                continue
            match one.get("name"):
                case "resource" if isinstance(one.get("resource"), dict):
                    resource = one["resource"]
                case "mode":
                    mode = str(one.get("valueCode"))
                case "profile":
                    told = one.get("valueUri", one.get("valueCanonical"))
                    profiles.append(str(told))
    if mode is not None and mode not in _MODES:
        raise Refused([Issue("value", "create, update or delete", "mode")], 400)
    if resource is None and mode != "delete":
        raise Refused([Issue("required", "a resource is needed", "resource")], 400)
    return _Call(resource, mode, tuple(profiles))


def _of_mode(asked: _Call, kind: str, resource_id: str | None) -> list[Issue]:
    """Return why what is to be done would not be done, whatever the resource says."""
    found: list[Issue] = []
    if asked.mode is None:
        return found
    interaction = _MODES[asked.mode]
    if interaction is None or interaction not in PERMITS[kind]:
        message = f"{asked.mode} is not offered for {kind}"
        found.append(Issue("not-supported", message, "mode"))
    if asked.mode == "update" and asked.resource is not None:
        told = asked.resource.get("id")
        if told is None or (resource_id is not None and told != resource_id):
            message = "an update names the id of what it updates"
            found.append(Issue("invalid", message, f"{kind}.id"))
    return found


def _of_resource(resource: Json, kind: str, profiles: Sequence[str]) -> list[Issue]:
    if resource.get("resourceType") != kind:
        message = f"the resource is not a {kind}, as the address says"
        return [Issue("invalid", message, "resourceType")]
    try:
        found = problems(resource, thorough=True)
    except NodeError as error:
        return [Issue("structure", error.message, error.expression)]
    shapely = not any(issue.code == "structure" for issue in found)
    if shapely and is_masked(resource):
        message = "a masked copy cannot replace the original"
        found.append(Issue("business-rule", message, f"{kind}.meta"))
    for url in profiles:
        profile = BY_URL.get(url)
        if profile is None and url != f"{_R4}{kind}":
            message = "this profile is not known here, and was not judged by"
            found.append(Issue("not-found", message, "profile"))
        elif profile is not None and profile.type != kind:
            message = f"{profile.id} is a profile of {profile.type}"
            found.append(Issue("invalid", message, "profile"))
        elif profile is not None and shapely:
            told = departures(resource, profile, kind, whole=True)
            found += [issue for issue in told if issue not in found]
    return found
