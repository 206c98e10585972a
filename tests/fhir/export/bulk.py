"""A client that knows nothing but the Bulk Data specification, and a worker for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from fhir.export.writing import Size, export_resources
from fhir.settings import FhirSettings
from node.store.exports import EXPORT_RESOURCES, LANE
from node.store.store import Store

Lines = list[dict[str, Any]]


@dataclass
class BulkClient:
    """Asks, watches and fetches with one token."""

    session: aiohttp.ClientSession
    base_url: str
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        sent = {"Authorization": f"Bearer {self.token}", **self.headers}
        sent |= dict(headers or {})
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body), "application/fhir+json"
        target = url if url.startswith("http") else f"{self.base_url}{url}"
        async with self.session.request(method, target, headers=sent, data=data) as r:
            return r.status, r.headers, await r.read()

    async def kick_off(
        self,
        query: str = "",
        *,
        level: str = "",
        body: Any = None,
        prefer: str = "respond-async",
        **headers: str,
    ) -> tuple[int, str, Any]:
        """Return the status, the Content-Location and the outcome."""
        status, told, raw = await self.ask(
            "GET" if body is None else "POST",
            f"{level}/$export{query}",
            headers={"Accept": "application/fhir+json", "Prefer": prefer, **headers},
            body=body,
        )
        return status, told.get("Content-Location", ""), json.loads(raw)

    async def manifest(self, place: str) -> dict[str, Any]:
        status, told, raw = await self.ask(
            "GET", place, headers={"Accept": "application/json"}
        )
        assert status == 200, (status, raw)
        assert told["Content-Type"].startswith("application/json")
        found: dict[str, Any] = json.loads(raw)
        return found

    async def lines(self, file: Mapping[str, Any]) -> Lines:
        """Return the resources of one file of a manifest; aiohttp unpacks gzip."""
        status, told, raw = await self.ask(
            "GET", file["url"], headers={"Accept": "application/fhir+ndjson"}
        )
        assert status == 200, (status, raw)
        assert told["Content-Type"] == "application/fhir+ndjson"
        found = [json.loads(line) for line in raw.decode().splitlines()]
        assert len(found) == file["count"]
        assert {one["resourceType"] for one in found} == {file["type"]}
        return found

    async def all_lines(self, place: str) -> Lines:
        told = await self.manifest(place)
        found = [await self.lines(file) for file in told["output"]]
        return [line for lines in found for line in lines]


async def work(
    store: Store, settings: FhirSettings, size: Size | None = None, most: int = 100
) -> int:
    """Do the jobs of exports that are due, at most so many; return how many."""
    for done in range(most):
        job = await store.jobs.claim([EXPORT_RESOURCES], "test", lane=LANE)
        if job is None:
            return done
        await export_resources(store, settings, job.payload, size)
        await store.jobs.done(job)
    return most


def names(lines: Lines) -> list[str]:
    return sorted(f"{one['resourceType']}/{one['id']}" for one in lines)
