"""$validate: would the node take this, and what is wrong with it (FHIR R4 operation).

Answers 200 with every problem in one OperationOutcome, and writes nothing. With a
mode it also tells what the write itself would be refused for (`fhir.rest.rehearsal`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from fhir.conformance.profiles import departures, profile_named
from fhir.conformance.validation import parse_resource, problems
from fhir.content.masked import is_masked
from fhir.encoding.formats import read_body
from fhir.encoding.outcome import ISSUE_CODE, Issue, Refused, outcome
from fhir.encoding.wire import Json, as_list, parse
from fhir.rest.exchange import ONE, TYPE, Answers, Asked, answered, require_seen
from fhir.rest.rehearsal import Rehearsal
from fhir.rest.writing import Writing, why_kept
from fhir.security.access import PERMITS, Interaction
from fhir.settings import FhirSettings
from node.domain.audit import noting
from node.domain.errors import NodeError
from node.http import identity
from node.store import resources

if TYPE_CHECKING:
    from node.store.store import Store

_R4 = "http://hl7.org/fhir/StructureDefinition/"
_NOTHING_WRONG = Issue("informational", "nothing is wrong", severity="information")
_WRITES = {"create": Interaction.CREATE, "update": Interaction.UPDATE}
# FHIR R4 resource-validation-mode.
_MODES = (*_WRITES, "delete", "profile")


@dataclass(frozen=True)
class _Call:
    """What a call asks: the resource, what is to be done with it, and by what."""

    resource: Json | None
    mode: str | None
    profiles: tuple[str, ...]


class Validation:
    """The handler of Type/$validate and Type/id/$validate."""

    def __init__(
        self, store: "Store", settings: FhirSettings, writing: Writing
    ) -> None:
        self._store = store
        self._answers = Answers(store, settings)
        self._rehearsal = Rehearsal(store, settings)
        self._verbs = {"create": writing.create, "update": writing.update}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the operation."""
        return [
            web.post(f"{TYPE}/$validate", self.validate),
            web.post(f"{ONE}/$validate", self.validate),
            web.get(f"{ONE}/$validate", self.validate),
        ]

    async def validate(self, request: web.Request) -> web.Response:
        """Answer what is wrong with a resource; Parameters or the resource alone."""
        named = request.match_info
        kind, resource_id = named["type"], named.get("id", "")
        asked = Asked(
            identity(request),
            request.method,
            kind,
            resource_id,
            headers=request.headers,
        )
        asked.allowed(Interaction.VALIDATE)
        body = None
        if request.method == hdrs.METH_POST:
            body = parse_resource(await read_body(request))
        call = _read(body, request)
        found = _of_mode(asked, call)
        resource = call.resource
        if call.mode == "profile" and not found:
            resource = await self._stored(asked)
        if resource is not None:
            found += _of_resource(resource, kind, call.profiles)
        verb = self._verbs.get(call.mode or "")
        if verb is not None and call.resource is not None and not found:
            one = str(call.resource.get("id", "")) if call.mode == "update" else ""
            tried = Asked(
                asked.caller, request.method, kind, one, headers=asked.headers
            )
            found = await self._rehearsal.of(verb, tried, call.resource)
        return answered(outcome(found or [_NOTHING_WRONG]))

    async def _stored(self, asked: Asked) -> Json:
        """Return what is stored here as its caller sees it: what is masked stays so."""
        asked.allowed(Interaction.READ)
        async with self._store.db.connection() as tx:
            stored = await resources.read(
                tx, self._store, asked.kind, asked.resource_id
            )
        require_seen(asked.caller, stored)
        with noting():  # it is judged, not shown
            return parse(self._answers.show(asked.caller)(stored))


def _read(body: Json | None, request: web.Request) -> _Call:
    query = request.query
    mode, profiles = query.get("mode"), list(query.getall("profile", []))
    resource = body
    if body is not None and body["resourceType"] == "Parameters":
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
        raise Refused([Issue("value", ", ".join(_MODES), "mode")], 400)
    if mode in ("delete", "profile"):  # of what is stored here, whatever was sent
        return _Call(None, mode, tuple(profiles))
    if resource is None:
        raise Refused([Issue("required", "a resource is needed", "resource")], 400)
    return _Call(resource, mode, tuple(profiles))


def _of_mode(asked: Asked, call: _Call) -> list[Issue]:
    """Return why what is to be done would not be done, whatever the resource says."""
    kind, mode = asked.kind, call.mode
    if mode == "delete":
        return [Issue("not-supported", why_kept(kind), "mode")]
    if mode == "profile":
        if not asked.resource_id or Interaction.VREAD not in PERMITS[kind]:
            message = "names a stored resource by its id, in the address"
            return [Issue("required", message, "mode")]
        return []
    found: list[Issue] = []
    if mode in _WRITES:
        try:
            asked.allowed(_WRITES[mode])
        except NodeError as error:
            message = error.message
            if _WRITES[mode] not in PERMITS[kind]:
                message = f"{mode} is not offered for {kind}"
            found.append(Issue(ISSUE_CODE[error.kind], message, "mode"))
    if mode == "update" and call.resource is not None:
        told = call.resource.get("id")
        if told is None or asked.resource_id not in ("", told):
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
        profile = profile_named(url)
        if profile is None and url.partition("|")[0] != f"{_R4}{kind}":
            message = "this profile is not known here, and was not judged by"
            found.append(Issue("not-found", message, "profile"))
        elif profile is not None and profile.type != kind:
            message = f"{profile.id} is a profile of {profile.type}"
            found.append(Issue("invalid", message, "profile"))
        elif profile is not None and shapely:
            told = departures(resource, profile, kind, whole=True)
            found += [issue for issue in told if issue not in found]
    return found
