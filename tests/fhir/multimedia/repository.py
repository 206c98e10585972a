"""A report repository of somebody else, for tests: takes what IHE RAD-141 sends.

It holds each Bundle against what the profile says a Sender shall do, and keeps what it
has by identifier, as FHIR R4 3.1.0.8.1 (ifNoneExist) and 3.1.0.10 (conditional update)
say.
"""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import fhirkit
from aiohttp import web

from fhir.conformance.validation import check
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.encoding.xml import from_xml, to_xml
from tests.fhir.judges import HEARD

IMR = "https://profiles.ihe.net/RAD/IMR/StructureDefinition"
JSON_TYPE, XML_TYPE = "application/fhir+json", "application/fhir+xml"


@dataclass
class Repository:
    """What it was sent and what it has; `answers` are failures that come first."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    refused_entry: str = ""
    redirect: str = ""
    bundles: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    kept: dict[tuple[str, str], Json] = field(default_factory=dict)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        raw, kind = await request.read(), request.content_type
        self.headers.append(dict(request.headers))
        if self.redirect:
            where, self.redirect = self.redirect, ""
            return web.Response(status=307, headers={"Location": where})
        if self.answers:
            return web.Response(status=self.answers.pop(0), text="Wang^XiaoDong")
        assert kind in (JSON_TYPE, XML_TYPE)
        assert request.headers["Accept"] == kind
        bundle = from_xml(raw) if kind == XML_TYPE else parse(raw)
        assert not [str(issue) for issue in fhirkit.validate(to_bytes(bundle))]
        HEARD.hear(to_bytes(_found(bundle)))
        self.bundles.append(bundle)
        self.came.set()
        answer = {
            "resourceType": "Bundle",
            "type": "transaction-response",
            "entry": [{"response": self._store(e)} for e in bundle["entry"]],
        }
        if self.refused_entry:
            answer["entry"][0]["response"]["status"] = self.refused_entry
        body = to_xml(answer) if kind == XML_TYPE else to_bytes(answer)
        return web.Response(body=body, content_type=kind)

    def _store(self, entry: Json) -> Json:
        request, resource = entry["request"], entry["resource"]
        check(_found(resource))
        kind = resource["resourceType"]
        if request["method"] == "PUT":
            assert request["url"].startswith(f"{kind}?")
            known_by = request["url"].partition("?")[2]
        else:
            assert (request["method"], request["url"]) == ("POST", kind)
            known_by = request["ifNoneExist"]
        tokens = [v for k, v in parse_qsl(known_by, strict_parsing=True)]
        numbers = [f"{i['system']}|{i['value']}" for i in resource["identifier"]]
        assert set(tokens) <= set(numbers)
        place = (kind, known_by)
        new = place not in self.kept
        if new or request["method"] == "PUT":
            self.kept[place] = resource
        location = f"{kind}/{list(self.kept).index(place) + 1}/_history/1"
        return {"status": "201 Created" if new else "200 OK", "location": location}

    def reports(self) -> list[Json]:
        return [r for (kind, _), r in self.kept.items() if kind == "DiagnosticReport"]


def _found(value: Any) -> Any:
    """Return a resource with its references as a server stores them.

    Conditional ones are found (FHIR R4 3.1.0.11.2), addresses are resolved.
    """
    if isinstance(value, list):
        return [_found(item) for item in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("reference")
    if isinstance(reference, str) and reference.startswith("Patient?"):
        return value | {"reference": "Patient/1"}
    if isinstance(reference, str):
        return value | {"reference": "/".join(reference.split("/")[-2:])}
    return {key: _found(item) for key, item in value.items()}


def require_imr(bundle: Json, base_url: str) -> dict[str, list[Json]]:
    """Hold a Bundle against RAD-141's message semantics; return resources by type."""
    assert bundle["type"] == "transaction"
    assert f"{IMR}/imr-store-multimedia-report-bundle" in bundle["meta"]["profile"]
    by_type: dict[str, list[Json]] = {}
    for entry in bundle["entry"]:
        resource = entry["resource"]
        assert entry["request"]["method"] == "POST"
        assert "contained" not in resource
        by_type.setdefault(resource["resourceType"], []).append(resource)
    assert set(by_type) <= {"DiagnosticReport", "ServiceRequest", "ImagingStudy"}
    (report,) = by_type["DiagnosticReport"]
    _require_report(report, base_url)
    for order in by_type.get("ServiceRequest", []):
        codes = [c for i in order["identifier"] for c in i["type"]["coding"]]
        assert "ACSN" in {c["code"] for c in codes}
        assert order["intent"] in ("order", "original-order", "filler-order")
        _require_patient(order["subject"])
    for study in by_type.get("ImagingStudy", []):
        uids = [i for i in study["identifier"] if i["system"] == "urn:dicom:uid"]
        assert len(uids) == 1
        assert study["started"]
        assert study["modality"]
        assert study["endpoint"]
        _require_patient(study["subject"])
    places = [entry["fullUrl"] for entry in bundle["entry"]]
    for name in ("basedOn", "imagingStudy"):
        assert {r["reference"] for r in report.get(name, [])} <= set(places)
    return by_type


def _require_report(report: Json, base_url: str) -> None:
    assert report["issued"]
    assert report["status"] in ("final", "amended", "corrected", "appended")
    assert report["text"]["div"].startswith("<div xmlns=")
    _require_patient(report["subject"])
    organization = report["performer"][0]["reference"]
    assert organization == f"{base_url}/Organization/department"
    signer = report["resultsInterpreter"][0]
    assert signer["reference"].startswith(f"{base_url}/Practitioner/")
    assert signer["display"]
    assert report["imagingStudy"]
    forms = report["presentedForm"]
    assert forms[0]["contentType"] == "text/html"
    for form in forms:
        content = base64.b64decode(form["data"])
        sha1 = hashlib.sha1(content, usedforsecurity=False).digest()
        assert base64.b64decode(form["hash"]) == sha1
        assert form["size"] == len(content)
        assert "url" not in form


def _require_patient(subject: dict[str, Any]) -> None:
    assert subject["type"] == "Patient"
    assert subject["identifier"]["value"]


@asynccontextmanager
async def running_repository() -> AsyncIterator[Repository]:
    """Serve a repository on a free port."""
    repository = Repository()
    app = web.Application(client_max_size=16 << 20)
    app.router.add_post("/fhir", repository.take)
    app.router.add_post("/moved", repository.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    repository.url = f"http://{host}:{port}/fhir"
    try:
        yield repository
    finally:
        await runner.cleanup()
