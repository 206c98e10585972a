"""A transaction Bundle that edits one report, read into an `Edit` and answered."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import orjson

from fhir.conformance.validation import check
from fhir.content.editing import Change, Edit, Written, is_of_report, reason_of
from fhir.encoding.outcome import STORED, Issue, Refused, outcome
from fhir.encoding.patch import read_patch_of_entry
from fhir.encoding.wire import Json, as_list, instant
from fhir.search.bundles import Show
from node.domain.errors import ErrorKind, NodeError
from node.store.resources import Stored

MAX_ENTRIES = 500
_ETAG = re.compile(r'\s*(?:W/)?"(\d{1,9})"\s*')
_HTTP_STATUS = {"POST": "201 Created", "PUT": "200 OK"}


# The resource of a type and id as its sender sees it; raises unless of that version.
Seen = Callable[[str, str, int], Awaitable[Json]]


@dataclass(frozen=True)
class Entry:
    """One entry of the Bundle, in the order in which it is answered."""

    method: str
    resource: Json


def version_of_etag(header: str | None, expression: str | None = None) -> int:
    """Return the version in an If-Match; PRECONDITION when there is none."""
    if header is None:
        raise NodeError(
            "an update needs If-Match with the version that was read",
            ErrorKind.PRECONDITION,
            expression=expression,
        )
    match = _ETAG.fullmatch(header)
    if match is None:
        raise NodeError('If-Match is W/"n"', ErrorKind.INVALID, expression=expression)
    return int(match[1])


async def resolve_patches(bundle: Json, seen: Seen) -> Json:
    """Return a transaction Bundle in which every PATCH is the PUT it amounts to."""
    entries = [
        await _resolved(item, f"Bundle.entry[{index}]", seen)
        for index, item in enumerate(_entries(bundle))
    ]
    return {**bundle, "entry": entries}


async def _resolved(item: Json, where: str, seen: Seen) -> Json:
    request, resource = item.get("request", {}), item.get("resource")
    if request.get("method") != "PATCH":
        return item
    kind, _, resource_id = _address(request).partition("/")
    if kind not in ("DiagnosticReport", "Observation") or not resource:
        message = "a transaction patches a DiagnosticReport or an Observation"
        raise _refused(message, f"{where}.request")
    patched = read_patch_of_entry(resource, f"{where}.resource")
    header = request.get("ifMatch")
    expected = version_of_etag(header, f"{where}.request.ifMatch")
    result = patched(await seen(kind, resource_id, expected))
    check(result)
    return {**item, "resource": result, "request": {**request, "method": "PUT"}}


def _entries(bundle: Json) -> list[Json]:
    entries = as_list(bundle.get("entry"))
    if bundle.get("type") != "transaction":
        raise _refused("only transaction Bundles are taken here", "Bundle.type")
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise _refused(f"1 to {MAX_ENTRIES} entries", "Bundle.entry")
    return entries


def read_transaction(bundle: Json) -> tuple[Edit, list[Entry]]:
    """Return the edit that a transaction Bundle asks for, and its entries.

    Only what belongs to one report is taken: PUT of its DiagnosticReport and
    Observations, POST of one Provenance (the reason) and one Communication
    (the patient was told). Everything else is refused, nothing is half done.
    """
    entries = _entries(bundle)
    report: Change | None = None
    observations: list[Change] = []
    posted: dict[str, Json] = {}
    read: list[Entry] = []
    for index, item in enumerate(entries):
        entry = _read_entry(item, f"Bundle.entry[{index}]")
        read.append(entry)
        kind = str(entry.resource["resourceType"])
        if entry.method == "POST":
            if kind in posted:
                raise _refused(f"one {kind} at most", f"Bundle.entry[{index}]")
            posted[kind] = entry.resource
            continue
        header = item["request"].get("ifMatch")
        where = f"Bundle.entry[{index}].request.ifMatch"
        change = Change(entry.resource, version_of_etag(header, where))
        if kind == "Observation":
            observations.append(change)
        elif report is not None:
            raise _refused("one DiagnosticReport at most", f"Bundle.entry[{index}]")
        else:
            report = change
    if len({str(c.resource["id"]) for c in observations}) != len(observations):
        raise _refused("the same Observation twice", "Bundle.entry")
    reason = reason_of(posted["Provenance"]) if "Provenance" in posted else None
    communication = posted.get("Communication")
    if report is None and not observations and communication is None:
        raise _refused("nothing of a report is changed", "Bundle.entry")
    return Edit(report, tuple(observations), reason, communication), read


def _read_entry(item: Json, where: str) -> Entry:
    request = item.get("request")
    resource = item.get("resource")
    if not isinstance(request, dict) or not isinstance(resource, dict):
        raise _refused("request and resource are needed", where)
    method, url = request.get("method"), _address(request)
    kind = str(resource.get("resourceType"))
    if method == "POST" and kind in ("Provenance", "Communication"):
        if url != kind:
            raise _refused(f"the address of a new {kind} is {kind}", f"{where}.request")
        return Entry("POST", resource)
    if method != "PUT" or kind not in ("DiagnosticReport", "Observation"):
        raise _refused(
            "a transaction edits a report: PUT DiagnosticReport or Observation,"
            " POST Provenance or Communication",
            f"{where}.request",
        )
    if url != f"{kind}/{resource.get('id')}" or not is_of_report(resource):
        raise _refused("address and id of the resource differ", f"{where}.request.url")
    return Entry("PUT", resource)


def _address(request: Json) -> str:
    return str(request.get("url", "")).rpartition("/fhir/")[2].strip("/")


def _refused(message: str, expression: str) -> Refused:
    return Refused([Issue("not-supported", message, expression)], 422, ErrorKind.RULE)


def to_response(
    entries: Sequence[Entry],
    written: Written,
    base_url: str,
    show: Show | None,
    *,
    told: bool = False,
) -> Json:
    """Return the transaction-response Bundle.

    `show` adds the resources, `told` an OperationOutcome to each response.
    """
    answers = [_response_entry(entry, written, base_url, show) for entry in entries]
    if told:
        for answer in answers:
            answer["response"]["outcome"] = outcome([STORED])
    return {
        "resourceType": "Bundle",
        "type": "transaction-response",
        "entry": answers,
    }


def _response_entry(
    entry: Entry, written: Written, base_url: str, show: Show | None
) -> Json:
    stored = _stored(entry, written)
    response: Json = {"status": _HTTP_STATUS[entry.method]}
    if stored is None:  # its reason went into a Provenance that was not needed
        return {"response": {"status": "204 No Content"}}
    address = f"{base_url}/{stored.resource_type}/{stored.resource_id}"
    response |= {
        "location": f"{address}/_history/{stored.version}",
        "etag": f'W/"{stored.version}"',
        "lastModified": instant(stored.last_updated),
    }
    if show is None:
        return {"response": response}
    resource = orjson.Fragment(show(stored))
    return {"fullUrl": address, "resource": resource, "response": response}


def _stored(entry: Entry, written: Written) -> Stored | None:
    kind = str(entry.resource["resourceType"])
    if kind == "Provenance":
        return written.provenance
    if kind == "Communication":
        return written.communication
    return written.resources.get((kind, str(entry.resource["id"])))
