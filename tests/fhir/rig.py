"""A live node for FHIR tests: real HTTP, a real store, one drafted report."""

import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import fhirkit
from aiohttp import web

from fhir.content.mapping import Systems
from fhir.content.publish import publish_report
from fhir.content.site import Site
from fhir.encoding.wire import Json, parse, to_bytes
from fhir.encoding.xml import from_xml
from fhir.rest.server import route_group
from fhir.settings import FhirSettings
from fhir.subscriptions.endpoints import read_endpoints
from fhir.subscriptions.topics import read_topics
from node.domain import lexicon
from node.domain.access import Role
from node.domain.disclosure import TierText
from node.domain.finding import Findings
from node.domain.report import Report, ReportStatus
from node.domain.study import PatientIdentity, ReceivedInstance
from node.http import HttpSettings, RouteGroup, make_app
from node.store import identities, models, people, receiving, studies
from node.store.models import KnownModel, Origin
from node.store.store import Store
from node.workflow.reporting import draft_report
from tests.factories import ALGORITHM, NOW, make_findings, make_patient
from tests.fhir.judges import HEARD

JSON = {"Content-Type": "application/fhir+json"}
TOPICS = Path(__file__).parents[2] / "config" / "topics"
STUDY_UID = "2.25.3001"
US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
ACCESSION = "ACC-2026-000042"
TEXTS = {
    key: TierText(f"文{key}", f"text {key}", f"建议{key}", f"advice {key}")
    for key in lexicon.CATEGORIES
}
MODEL = KnownModel(
    ALGORITHM.id,
    "breast ResNet50",
    "1.0.0",
    weights_sha256="ab" * 32,
    record_sha256="cd" * 32,
    origin=Origin.RELEASE,
    added_at=NOW,
    added_by="release",
)


@dataclass(frozen=True)
class Answer:
    """One HTTP response with its body read."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Json:
        """Return the body with its numbers as they were written."""
        return parse(self.json)

    @property
    def json(self) -> bytes:
        """Return the body as JSON, in whatever form it came."""
        told = self.headers.get("Content-Type", "")
        return to_bytes(from_xml(self.raw)) if "xml" in told else self.raw

    @property
    def expressions(self) -> list[str]:
        """Return the expressions of an OperationOutcome."""
        issues = self.body["issue"]
        return [e for issue in issues for e in issue.get("expression", [])]


@dataclass
class Rig:
    """A running /fhir and the tokens of one account for each role."""

    store: Store
    settings: FhirSettings
    session: aiohttp.ClientSession
    tokens: dict[Role, str]
    report: Report | None = None
    answers: list[Answer] = field(default_factory=list)

    @property
    def report_id(self) -> UUID:
        assert self.report is not None
        return self.report.id

    @property
    def report_path(self) -> str:
        return f"/DiagnosticReport/{self.report_id}"

    async def draft_more(self, numbers: Iterable[int]) -> None:
        """Store a study of another patient for each number, and publish its draft."""
        for number in numbers:
            study_uid = f"2.25.300{number}"
            await receive_study(
                self.store,
                make_patient(patient_id=f"MRN-{number}"),
                study_uid=study_uid,
                accession=f"A-{number}",
            )
            await publish_draft(
                self.store,
                self.settings,
                study_uid=study_uid,
                findings=make_findings("2"),
            )

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: Role | None = Role.RADIOLOGIST,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request as `role`; every body that returns is judged by fhirkit."""
        sent = dict(JSON) | dict(headers or {})
        if role is not None:
            sent["Authorization"] = f"Bearer {self.tokens[role]}"
        url = path if path.startswith("http") else f"{self.settings.base_url}{path}"
        data = body if isinstance(body, bytes | None) else to_bytes(body)
        async with self.session.request(method, url, data=data, headers=sent) as r:
            answer = Answer(r.status, r.headers, await r.read())
        if answer.raw:
            issues = [str(i) for i in fhirkit.validate(answer.json)]
            assert not issues, (method, path, answer.status, issues)
            HEARD.hear(answer.json)
        self.answers.append(answer)
        return answer

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def read(self, path: str, **options: Any) -> Json:
        answer = await self.get(path, **options)
        assert answer.status == 200, answer.raw
        return answer.body

    async def edited(self, path: str, **changes: Any) -> dict[str, Any]:
        """Return a transaction entry that puts the resource at `path` changed."""
        resource = await self.read(path)
        version = resource["meta"]["versionId"]
        merged = {**resource, **changes}
        kept = {k: v for k, v in merged.items() if v is not None}
        return {
            "fullUrl": f"{self.settings.base_url}{path}",
            "resource": kept,
            "request": {
                "method": "PUT",
                "url": path.strip("/"),
                "ifMatch": f'W/"{version}"',
            },
        }

    async def put(
        self, path: str, role: Role = Role.RADIOLOGIST, **changes: Any
    ) -> Answer:
        """Change the resource at `path` as somebody who has just read it."""
        entry = await self.edited(path, **changes)
        headers = {"If-Match": entry["request"]["ifMatch"]}
        return await self.ask(
            "PUT", path, entry["resource"], role=role, headers=headers
        )

    async def transact(self, *entries: Any, role: Role = Role.RADIOLOGIST) -> Answer:
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        return await self.ask("POST", "", bundle, role=role)

    async def renew_sessions(self) -> None:
        """Sign everybody in again, for tests that let days go by."""
        now = self.store.clock()
        async with self.store.db.transaction() as tx:
            for user in await people.list_users(tx):
                kind = people.SessionKind.BEARER
                token = await people.open_session(tx, user, kind, now=now)
                for role in user.roles:
                    self.tokens[role] = token

    async def sign(self, **changes: Any) -> Answer:
        """Sign the report as it stands."""
        return await self.put(self.report_path, status="final", **changes)


def make_settings(base_url: str, **changes: Any) -> FhirSettings:
    settings = FhirSettings(
        base_url=base_url,
        systems=Systems(mrn="urn:oid:2.25.41", accession="urn:oid:2.25.42"),
        site=Site("示范医院", "超声医学科", base_url.removesuffix("/fhir")),
        texts=TEXTS,
        department_phone="010-55551234",
        topics=read_topics({p.name: p.read_bytes() for p in TOPICS.glob("*.json")}),
        endpoints=read_endpoints(
            ["http://127.0.0.1", "http://localhost"], ["127.0.0.0/8", "::1/128"]
        ),
        relay_secret=b"test secret",
    )
    return replace(settings, **changes)


async def receive_study(
    store: Store,
    identity: PatientIdentity,
    *,
    study_uid: str = STUDY_UID,
    accession: str = ACCESSION,
) -> UUID:
    """Store one study with one image, as intake would."""
    instance = ReceivedInstance(
        study_instance_uid=study_uid,
        series_instance_uid=f"{study_uid}.1",
        sop_instance_uid=f"{study_uid}.1.1",
        sop_class_uid=US_IMAGE,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient=identity,
        accession_number=accession,
        study_date=date(2026, 11, 20),
        study_description="Breast ultrasound",
        modality="US",
        number_of_frames=1,
        metadata=b"{}",
        frame_table=(),
        blob_name=f"blob-{study_uid}",
        size=1,
        sha256=b"\0" * 32,
        calling_ae="US1",
        association="1",
    )
    now = store.clock()
    async with store.db.transaction() as tx:
        patient_id = await identities.upsert_patient(tx, store, identity, at=now)
        await studies.open_study(tx, store, instance, patient_id, at=now)
        await receiving.insert_instance(
            tx, store, instance, patient_id, blob_key=b"\1" * 32, at=now
        )
        await studies.close_study(tx, study_uid, at=now, evidence="test")
    return patient_id


async def publish_draft(
    store: Store,
    settings: FhirSettings,
    *,
    study_uid: str = STUDY_UID,
    findings: Findings | None = None,
    status: ReportStatus = ReportStatus.PARTIAL,
) -> Report:
    """Draft a report of a stored study as the algorithm and publish it."""
    async with store.db.transaction() as tx:
        await models.register(tx, MODEL)
        report = await draft_report(
            store,
            tx,
            study_uid,
            make_findings() if findings is None else findings,
            author=ALGORITHM,
            status=status,
            followup="strong_biopsy",
        )
    payload = {"report_id": str(report.id), "version": report.current.number}
    await publish_report(store, settings, payload)
    return report


async def sign_in(store: Store, role: Role) -> str:
    """Return the bearer token of an account with `role`."""
    async with store.db.transaction() as tx:
        user = await people.create_user(
            tx,
            login=f"{role.value}",
            password="correct horse battery",
            display=f"Dr {role.value}",
            roles=[role],
            now=store.clock(),
        )
        kind = people.SessionKind.BEARER
        return await people.open_session(tx, user, kind, now=store.clock())


@asynccontextmanager
async def running_fhir(
    store: Store, *groups: RouteGroup, roles: tuple[Role, ...] = (), **changes: Any
) -> AsyncIterator[Rig]:
    """Serve /fhir (and other route groups) on a free port of this machine."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = make_settings(f"http://127.0.0.1:{port}/fhir", **changes)
        app = make_app(
            store,
            HttpSettings(max_body_bytes=1024 * 1024),
            [route_group(store, settings, "0.1.0"), *groups],
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listening.listen(128)
        await web.SockSite(runner, listening).start()
        tokens = {role: await sign_in(store, role) for role in roles}
        try:
            async with aiohttp.ClientSession() as session:
                yield Rig(store, settings, session, tokens)
        finally:
            await runner.cleanup()


async def drafted(rig: Rig) -> Rig:
    """Give a running rig one patient with one study and its drafted report."""
    await receive_study(rig.store, make_patient())
    rig.report = await publish_draft(rig.store, rig.settings)
    return rig
