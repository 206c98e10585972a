"""The product shown: studies travel from a modality to a phone, over real sockets.

Everything here acts from outside, as a scanner, a doctor at the public FHIR API and
a patient's phone would; the node's own records say only what an archive still lacks.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from config.settings import Settings, load_settings
from dicom_scp.receiving.peers import EVERYBODY, ServiceName
from dicom_scp.simulation.simulator import (
    Expectation,
    Sent,
    SimulatedStudy,
    plan_demo,
    send,
)
from node.domain.access import Role
from node.domain.errors import NodeError
from node.domain.order import OrderSource, Step
from node.domain.study import PatientIdentity
from node.installation import Addresses, prepared, start_roles
from node.logs import configure_logging
from node.store import people, routes
from node.store.reports import report_id_for
from node.store.store import Store, open_store
from node.supervisor import Supervisor, environment_with
from node.workflow.orders import By, Placement, patient_of_order, place_order

_ROOT = Path(__file__).parents[1]
# The patient channel needs WeChat; a demonstration brings one that behaves like it.
_FAKE_WECHAT = _ROOT / "tests" / "fake_wechat.py"
_WECHAT_APP = "wx5f0a90de0e000001"
_WECHAT_SECRET = "demo-secret-of-the-fake-server"  # noqa: S105
_WECHAT_TEMPLATE = "tmpl-report-updated-000000000000000000000001"
_DOCTOR = "dr.li"
# The simulated room is entered as a peer: it may use every service, others store.
_ROOM: Mapping[str, object] = {
    "ae_title": "SIMULATOR",
    "name": "simulated ultrasound room",
    "services": [str(service) for service in ServiceName],
    "host": "127.0.0.1",
    "port": 11113,
}

_NO_OPINION = "0"  # the category a doctor gives when nothing could be read
_GATED = {"4A", "4B", "4C", "5", "6"}
_POLL_S = 0.1


@dataclass(frozen=True)
class DemoPlan:
    """Where the node answers and how long the demonstration may take."""

    base_url: str
    relay_url: str
    wechat_url: str
    dicom_port: int
    ae_title: str
    template_id: str
    doctor: str
    password: str
    samples: Path | None
    open_store: Callable[[], Awaitable[Store]]
    patience_s: float = 170.0


@dataclass
class StudyStory:
    """What became of one study; times are seconds after its last C-STORE response."""

    study_instance_uid: str
    description: str
    patient: str = "?"
    expectation: str = ""
    stored: bool = False
    category: str | None = None
    probability_percent: float | None = None
    finding: str = ""
    not_read: str = ""
    report_url: str = ""
    ai_sr_uid: str | None = None
    verified_sr_uid: str | None = None
    signed_category: str | None = None
    release: str | None = None
    wechat: str | None = None
    report_s: float | None = None
    ai_sr_s: float | None = None
    signed_sr_s: float | None = None
    delivered_s: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Tell whether every hop happened, and only what may be read was read."""
        hops = (self.ai_sr_uid, self.verified_sr_uid, self.release, self.wechat)
        as_expected = {
            Expectation.READ: self.category is not None,
            Expectation.NOT_READ: self.category is None and bool(self.not_read),
            Expectation.EITHER: True,
        }[Expectation(self.expectation)]
        return self.stored and all(hops) and as_expected and not self.problems


def demonstrate(
    environment: Mapping[str, str],
    console: Console,
    *,
    once: bool,
    json_file: Path | None,
) -> int:
    """Start a node, show it, and keep it until Ctrl-C unless `once`.

    Returns 0 only when every study got its SR, its report and, once signed, its
    verified SR, its masked release and its WeChat message.
    """
    wechat_port = _free_port()
    settings = load_settings({**environment, **_demo_values(environment, wechat_port)})
    os.environ.update(_demo_values(environment, wechat_port))
    configure_logging("error", settings.log.format)
    supervisor = Supervisor(grace_s=settings.dicom.shutdown_grace_s + 15)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    showing = _Showing(console, supervisor, once=once, json_file=json_file)
    with console.status("starting the node"), ExitStack() as stack:
        addresses = stack.enter_context(prepared(settings))
        secret = settings.data / "keys" / "wechat.secret"
        secret.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret.write_text(_WECHAT_SECRET)
        command = [sys.executable, str(_FAKE_WECHAT), "--port", str(wechat_port)]
        supervisor.add("wechat", command, environment_with(PYTHONPATH=str(_ROOT)))
        start_roles(supervisor, settings, addresses)
        plan = asyncio.run(_plan(settings, addresses, environment, wechat_port))
        rest = stack.pop_all()
    with rest:
        thread = threading.Thread(target=showing.run, args=(plan,))
        thread.start()
        ended = supervisor.run(addresses.look_after)
        thread.join()
    return ended or showing.status


def _demo_values(environment: Mapping[str, str], wechat_port: int) -> dict[str, str]:
    """Return the settings of a demonstration; what the caller has set stays."""
    values = {
        "SONONODE_DICOM__ALLOWED_CALLING_AES": EVERYBODY,
        "SONONODE_DICOM__PEERS": json.dumps([dict(_ROOM)]),
        "SONONODE_COMPLETION__QUIET_PERIOD_S": "3",
        "SONONODE_COMPLETION__QUIET_AFTER_RELEASE_S": "0.5",
        "SONONODE_INFERENCE__READ_SIMULATED": "true",
        "SONONODE_SITE__DEPARTMENT_PHONE": "010-0000-0000",
        "SONONODE_WECHAT__API_URL": f"http://127.0.0.1:{wechat_port}",
        "SONONODE_WECHAT__APP_ID": _WECHAT_APP,
        "SONONODE_WECHAT__APP_SECRET_FILE": "keys/wechat.secret",
        "SONONODE_WECHAT__TEMPLATE_ID": _WECHAT_TEMPLATE,
        "SONONODE_LOG__LEVEL": "error",
    }
    return {k: v for k, v in values.items() if k not in environment}


async def _schedule(store: Store) -> None:
    """Put a woman on today's worklist, for whoever plays the ultrasound room."""
    now = store.clock()
    patient = PatientIdentity(
        "SIM-000010", "Sun^Yue=孙^悦", date(1981, 6, 18), "F", "SIMULATOR"
    )
    step = Step(
        scheduled_on=now.date(),
        accession_number=f"SIM{now:%y%m%d}90",
        requested_procedure_id=f"RP{now:%y%m%d}90",
        requested_procedure_description="乳腺超声",
        step_id=f"SPS{now:%y%m%d}90",
        step_description="Breast US",
        station_titles=(str(_ROOM["ae_title"]),),
    )
    async with store.db.transaction() as tx:
        patient_id = await patient_of_order(store, tx, patient)
        key = f"demo/{step.accession_number}"
        placement = Placement(key, patient_id, OrderSource.REST, step)
        with suppress(NodeError):  # she has been examined already today
            await place_order(store, tx, placement, by=By("demo", "administrator"))


async def _plan(
    settings: Settings,
    addresses: Addresses,
    environment: Mapping[str, str],
    wechat_port: int,
) -> DemoPlan:
    """Make the demonstration's doctor; return where everything is."""
    password = secrets.token_urlsafe(9)
    opening = partial(
        open_store,
        addresses.node,
        settings.keys.root_file,
        settings.data / settings.storage.objects,
        lambda: datetime.now(UTC),
    )
    store = await opening()
    try:
        async with store.db.transaction() as tx:
            if await people.find_login(tx, _DOCTOR) is None:
                await people.create_user(
                    tx,
                    login=_DOCTOR,
                    password=password,
                    display="Li^Ming=李^明",
                    roles=[Role.RADIOLOGIST],
                    now=store.clock(),
                )
            else:
                await people.set_password(tx, _DOCTOR, password)
        await _schedule(store)
    finally:
        await store.close()
    chosen = environment.get("SAMPLES")
    return DemoPlan(
        base_url=settings.http.base_url,
        relay_url=f"http://{settings.relay.host}:{settings.relay.port}",
        wechat_url=f"http://127.0.0.1:{wechat_port}",
        dicom_port=settings.dicom.port,
        ae_title=settings.dicom.ae_title,
        template_id=settings.wechat.template_id,
        doctor=_DOCTOR,
        password=password,
        samples=Path(chosen) if chosen else _downloaded(settings.data),
        open_store=opening,
    )


def _downloaded(data: Path) -> Path | None:
    """Return where `make samples` put the BrEaST images, when it did."""
    folder = data / "samples"
    return folder if folder.is_dir() else None


def _free_port() -> int:
    """Return a port that nobody has and that the system gives to nobody meanwhile."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)  # Linux gives away what is above
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class _Showing:
    """Shows the studies' way beside the running node, then says what to look at."""

    def __init__(
        self,
        console: Console,
        supervisor: Supervisor,
        *,
        once: bool,
        json_file: Path | None,
    ) -> None:
        self._console = console
        self._supervisor = supervisor
        self._once = once
        self._json_file = json_file
        self.status = 1

    def run(self, plan: DemoPlan) -> None:
        try:
            stories = asyncio.run(show(plan, self._console))
        except (NodeError, _RefusedError, _TookTooLongError) as error:
            self._console.print(f"[red]{error}[/]")
            self._supervisor.stop()
            return
        except BaseException:
            self._supervisor.stop()  # or nobody would ever end the node
            raise
        self._console.print(tabulate(stories))
        for story in stories:
            for problem in story.problems:
                self._console.print(f"[red]{story.description}: {problem}[/]")
        if self._json_file is not None:
            write_json(stories, self._json_file)
        self.status = 0 if stories and all(s.complete for s in stories) else 1
        if self._once:
            self._supervisor.stop()
            return
        self._console.print(
            f"\nreview page: [bold]{plan.base_url}/[/]   user [bold]{plan.doctor}[/]"
            f"   password [bold]{plan.password}[/]\n"
            "be an ultrasound room: [bold]python -m node send --machine logiq"
            f" --port {plan.dicom_port} --listen {_ROOM['port']}[/]\n"
            "Ctrl-C ends the node."
        )


async def show(plan: DemoPlan, console: Console) -> list[StudyStory]:
    """Send the demonstration's studies and follow each to the phone."""
    studies = plan_demo(plan.samples, uid=_new_uid, now=datetime.now(UTC))
    answers = await asyncio.to_thread(_send_all, plan, studies, console)
    async with aiohttp.ClientSession() as http:
        doctor = await _Doctor.sign_in(http, plan)
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            console=console,
        ) as progress:
            task = progress.add_task("read, signed, delivered", total=len(studies))
            stories = await asyncio.gather(
                *(
                    _follow(plan, http, doctor, study, answers, progress.advance, task)
                    for study in studies
                )
            )
    await _delivered(plan)
    return list(stories)


async def _delivered(plan: DemoPlan) -> None:
    """Wait until the archive has what was made, where the site has set one."""
    store = await plan.open_store()
    try:
        async with asyncio.timeout(plan.patience_s):
            while True:
                async with store.db.transaction() as tx:
                    backlogs = await routes.backlogs(tx)
                if not any(backlog.waiting for backlog in backlogs):
                    return
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise _TookTooLongError("the archive does not take the results") from None
    finally:
        await store.close()


def tabulate(stories: Sequence[StudyStory]) -> Table:
    """Return the demonstration's result for a terminal."""
    table = Table(title="every study, every hop")
    for name in ("patient", "study", "AI", "BI-RADS", "SR: AI, verified", "phone"):
        table.add_column(name, overflow="fold")
    table.add_column("s to report, SR, phone", justify="right")
    for story in stories:
        seconds = (story.report_s, story.ai_sr_s, story.delivered_s)
        table.add_row(
            story.patient,
            f"{story.description}\n[link={story.report_url}]{story.report_url[-36:]}[/link]",
            _opinion(story),
            f"{story.category or '—'} → {story.signed_category or '—'}",
            f"{_tail(story.ai_sr_uid)}\n{_tail(story.verified_sr_uid)}",
            f"{story.release or '—'}\nWeChat {story.wechat or '—'}",
            " ".join("—" if s is None else f"{s:.1f}" for s in seconds),
            style=None if story.complete else "red",
        )
    return table


def _opinion(story: StudyStory) -> str:
    """Return what the algorithm said, in one cell."""
    if story.category is None:
        return story.not_read or "—"
    if story.probability_percent is None:
        return story.finding or "no lesion"
    return f"{story.finding or 'lesion'}\n{story.probability_percent:.0f} %"


def write_json(stories: Sequence[StudyStory], file: Path) -> None:
    """Write what the table shows, and the problems, as JSON."""
    rows = [asdict(story) | {"complete": story.complete} for story in stories]
    text = json.dumps({"studies": rows}, ensure_ascii=False, indent=2)
    file.write_text(f"{text}\n", encoding="utf-8")


def _tail(uid: str | None) -> str:
    return "—" if uid is None else f"…{uid[-8:]}"


def _new_uid() -> str:
    return f"2.25.{uuid4().int}"


# --- the modality ------------------------------------------------------------------


def _send_all(
    plan: DemoPlan, studies: Sequence[SimulatedStudy], console: Console
) -> list[Sent]:
    total = sum(len(study.instances) for study in studies)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("C-STORE from the modality", total=total)
        return send(
            studies,
            host="127.0.0.1",
            port=plan.dicom_port,
            clock=lambda: datetime.now(UTC),
            called_ae=plan.ae_title,
            progress=lambda _: progress.advance(task),
        )


# --- one study ---------------------------------------------------------------------


async def _follow(
    plan: DemoPlan,
    http: aiohttp.ClientSession,
    doctor: "_Doctor",
    study: SimulatedStudy,
    answers: Sequence[Sent],
    advance: Callable[[Any], None],
    task: Any,
) -> StudyStory:
    """Follow one study to the phone; what goes wrong is told in its story."""
    mine = [a for a in answers if a.study_instance_uid == study.study_instance_uid]
    story = StudyStory(
        study.study_instance_uid,
        study.description,
        expectation=study.expectation.value,
        stored=bool(mine) and all(answer.stored for answer in mine),
    )
    last = max((answer.at for answer in mine), default=datetime.now(UTC))
    try:
        watch = _Watch(last, plan.patience_s)
        await _tell(plan, http, doctor, study, story, watch)
    except (aiohttp.ClientError, _TookTooLongError, _RefusedError) as error:
        story.problems.append(f"{type(error).__name__.strip('_')}: {error}")
    advance(task)
    return story


async def _tell(
    plan: DemoPlan,
    http: aiohttp.ClientSession,
    doctor: "_Doctor",
    study: SimulatedStudy,
    story: StudyStory,
    watch: "_Watch",
) -> None:
    report_id = str(report_id_for(story.study_instance_uid))
    story.report_url = f"{plan.base_url}/#/report/{report_id}"
    report = await watch.until(
        f"DiagnosticReport/{report_id}",
        lambda: doctor.read(f"DiagnosticReport/{report_id}"),
    )
    story.report_s = watch.elapsed()
    observations = await doctor.observations(report)
    _describe(story, report, observations)
    patient = await doctor.read(report["subject"]["reference"]) or {}
    story.patient = patient.get("name", [{}])[0].get("text", "?")
    story.ai_sr_uid = await watch.until("the AI SR", lambda: doctor.result_sr(study, 1))
    story.ai_sr_s = watch.elapsed()
    phone = await _Phone.bind(
        plan, http, doctor, report["subject"]["reference"], _last_four(study)
    )
    await doctor.sign(report, observations, story)
    story.verified_sr_uid = await watch.until(
        "the verified SR", lambda: doctor.result_sr(study, 2)
    )
    story.signed_sr_s = watch.elapsed()
    story.release = await watch.until("the phone's report", phone.newest_state)
    story.wechat = await watch.until("the WeChat message", phone.message)
    story.delivered_s = watch.elapsed()


def _last_four(study: SimulatedStudy) -> str:
    """Return what the patient types on her phone: the end of her ID number."""
    others = study.instances[0].get("OtherPatientIDsSequence", None) or ()
    return next((str(item.PatientID)[-4:] for item in others), "")


def _describe(
    story: StudyStory, report: dict[str, Any], observations: list[dict[str, Any]]
) -> None:
    """Put the algorithm's own words into the story."""
    for observation in observations:
        suffix = observation["id"].rsplit("-", 1)[-1]
        if suffix == "probability" and "valueQuantity" in observation:
            value = float(observation["valueQuantity"]["value"])
            story.probability_percent = max(value, story.probability_percent or 0.0)
        if observation["id"] == f"{report['id']}-category":
            story.category = _category(observation)
        if suffix in {"shape", "orientation"}:
            text = observation.get("valueCodeableConcept", {}).get("text")
            story.finding = ", ".join(filter(None, (story.finding, text)))
    reasons = [
        extension["valueString"]
        for extension in report.get("extension", [])
        if extension["url"].endswith("/not-read")
    ]
    story.not_read = "; ".join(dict.fromkeys(reasons))


def _category(observation: dict[str, Any]) -> str | None:
    codings = observation.get("valueCodeableConcept", {}).get("coding", [])
    return next((coding["code"] for coding in codings), None)


class _TookTooLongError(Exception):
    pass


class _RefusedError(Exception):
    pass


@dataclass(frozen=True)
class _Watch:
    """Seconds since the last C-STORE response of a study, and how long to wait."""

    since: datetime
    patience_s: float
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return round((datetime.now(UTC) - self.since) / timedelta(seconds=1), 2)

    async def until(self, what: str, look: Callable[[], Awaitable[Any]]) -> Any:
        """Look again and again until `look` returns something."""
        while True:
            found = await look()
            if found:
                return found
            if time.monotonic() - self.started > self.patience_s:
                raise _TookTooLongError(what)
            await asyncio.sleep(_POLL_S)


# --- the doctor --------------------------------------------------------------------


@dataclass
class _Doctor:
    """A radiologist who works through the public FHIR API."""

    http: aiohttp.ClientSession
    base_url: str
    token: str

    @classmethod
    async def sign_in(cls, http: aiohttp.ClientSession, plan: DemoPlan) -> "_Doctor":
        form = {
            "grant_type": "password",
            "username": plan.doctor,
            "password": plan.password,
        }
        async with http.post(f"{plan.base_url}/auth/token", data=form) as answer:
            body = await answer.json()
            if answer.status != 200:
                raise _RefusedError(f"sign-in: {answer.status}")
        return cls(http, plan.base_url, body["access_token"])

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def read(self, path: str) -> dict[str, Any] | None:
        """Return a resource with its decimals as text, None when it is not there."""
        url = f"{self.base_url}/fhir/{path}"
        async with self.http.get(url, headers=self._headers) as answer:
            if answer.status in {404, 503}:
                return None
            body: dict[str, Any] = await answer.json(content_type=None)
            if answer.status != 200:
                raise _RefusedError(f"GET {path}: {answer.status}")
            return body

    async def observations(self, report: dict[str, Any]) -> list[dict[str, Any]]:
        """Return every Observation of a report, members of groups included."""
        found: dict[str, dict[str, Any]] = {}
        waiting = [reference["reference"] for reference in report.get("result", [])]
        while waiting:
            path = waiting.pop()
            if path in found or (body := await self.read(path)) is None:
                continue
            found[path] = body
            waiting += [member["reference"] for member in body.get("hasMember", [])]
        return list(found.values())

    async def result_sr(self, study: SimulatedStudy, number: int) -> str | None:
        """Return the UID of the SR `number` that the node made, counted by series."""
        sent = {str(instance.SOPInstanceUID) for instance in study.instances}
        url = f"{self.base_url}/dicom-web/studies/{study.study_instance_uid}/metadata"
        async with self.http.get(url, headers=self._headers) as answer:
            if answer.status != 200:
                return None
            instances = await answer.json(content_type=None)
        documents = sorted(
            (
                item["00200011"]["Value"][0],
                item["00080018"]["Value"][0],
            )
            for item in instances
            if item["00080060"]["Value"] == ["SR"]
            and item["00080018"]["Value"][0] not in sent
        )
        return documents[number - 1][1] if len(documents) >= number else None

    async def sign(
        self,
        report: dict[str, Any],
        observations: list[dict[str, Any]],
        story: StudyStory,
    ) -> None:
        """Take over what the algorithm drafted and sign it.

        Where it had no opinion the doctor gives category 0, and where the category
        is suspicious she records that she has called the patient.
        """
        entries = []
        category = story.category or _NO_OPINION
        overall = next(o for o in observations if o["id"] == f"{report['id']}-category")
        if story.category is None:
            changed = {k: v for k, v in overall.items() if k != "dataAbsentReason"}
            coding = {"system": _PRIVATE_SYSTEM, "code": category}
            changed["valueCodeableConcept"] = {"coding": [coding]}
            entries.append(_put(changed))
        entries.append(
            _put(
                {**report, "status": "final", "conclusion": "Reviewed with the images."}
            )
        )
        if category in _GATED:
            entries.append(_told(report))
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        url = f"{self.base_url}/fhir"
        headers = {**self._headers, "Content-Type": "application/fhir+json"}
        body = json.dumps(bundle)
        async with self.http.post(url, data=body, headers=headers) as answer:
            if answer.status != 200:
                outcome = await answer.text()
                raise _RefusedError(f"sign: {answer.status} {outcome[:300]}")
        story.signed_category = category

    async def print_code(self, patient: str) -> str:
        """Print a desk QR code; return the token that stands in it."""
        url = f"{self.base_url}/auth/bindings"
        async with self.http.post(
            url, json={"patient": patient}, headers=self._headers
        ) as answer:
            if answer.status not in {200, 201}:
                raise _RefusedError(f"desk code: {answer.status}")
            return str((await answer.json())["code"])


_PRIVATE_SYSTEM = "urn:oid:2.25.302567410295148372091187634512093847561"


def _put(resource: dict[str, Any]) -> dict[str, Any]:
    kind, identity = resource["resourceType"], resource["id"]
    return {
        "resource": resource,
        "request": {
            "method": "PUT",
            "url": f"{kind}/{identity}",
            "ifMatch": f'W/"{resource["meta"]["versionId"]}"',
        },
    }


def _told(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "resource": {
            "resourceType": "Communication",
            "status": "completed",
            "subject": report["subject"],
            "about": [{"reference": f"DiagnosticReport/{report['id']}"}],
            "sent": datetime.now(UTC).isoformat(timespec="seconds"),
            "medium": [{"text": "phone"}],
        },
        "request": {"method": "POST", "url": "Communication"},
    }


# --- the phone ---------------------------------------------------------------------


@dataclass
class _Phone:
    """A patient's phone: knows its openid, its session at the relay, nothing else."""

    http: aiohttp.ClientSession
    plan: DemoPlan
    openid: str
    session: str
    known: frozenset[str]
    handle: str | None = None

    @classmethod
    async def bind(
        cls,
        plan: DemoPlan,
        http: aiohttp.ClientSession,
        doctor: _Doctor,
        patient: str,
        last_four: str,
    ) -> "_Phone":
        """Scan the desk code with a phone of its own and allow one message."""
        openid = f"demo-{secrets.token_hex(8)}"
        control = f"{plan.wechat_url}/_control"
        token = await doctor.print_code(patient)
        async with http.post(f"{control}/js-codes", json={"openid": openid}) as answer:
            js_code = (await answer.json())["js_code"]
        async with http.post(
            f"{plan.relay_url}/api/session", json={"js_code": js_code}
        ) as answer:
            session = (await answer.json())["token"]
        phone = cls(http, plan, openid, session, frozenset())
        await _Watch(datetime.now(UTC), plan.patience_s).until(
            "the desk code at the relay", lambda: phone._bind(token, last_four)
        )
        grant = {"openid": openid, "template_id": plan.template_id}
        async with http.post(f"{control}/quota", json=grant):
            pass
        body = {"template_ids": [plan.template_id]}
        async with http.post(
            f"{plan.relay_url}/api/quota", json=body, headers=phone._headers
        ):
            pass
        phone.known = frozenset(await phone._handles())
        return phone

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.session}"}

    async def _bind(self, token: str, last_four: str) -> bool:
        async with self.http.post(
            f"{self.plan.relay_url}/api/bind",
            json={"token": token, "last4": last_four},
            headers=self._headers,
        ) as answer:
            return answer.status == 200

    async def _handles(self) -> dict[str, str]:
        async with self.http.get(
            f"{self.plan.relay_url}/api/reports", headers=self._headers
        ) as answer:
            if answer.status != 200:
                return {}
            listed = (await answer.json())["reports"]
        return {item["handle"]: item["state"] for item in listed}

    async def newest_state(self) -> str | None:
        """Return the release state of the report that was not there when bound."""
        fresh = {
            handle: state
            for handle, state in (await self._handles()).items()
            if handle not in self.known
        }
        if not fresh:
            return None
        self.handle = next(iter(fresh))
        return fresh[self.handle]

    async def message(self) -> str | None:
        """Return `sent` when WeChat got the message for this phone."""
        url = f"{self.plan.wechat_url}/_control/sent"
        async with self.http.get(url) as answer:
            sent = (await answer.json())["sent"]
        return "sent" if any(m["openid"] == self.openid for m in sent) else None
