"""A whole installation as an engineer starts it, and those who use it from outside.

`python -m node serve` in a process of its own with every role below it, a WeChat
server that behaves like WeChat, and callers at the public interfaces: a modality, a
doctor and an EHR at /fhir, a patient's phone at the relay. Nothing here reads the
database or imports a part of the running node.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psutil
import requests

from dicom_scp.simulation.phantoms import PhantomLesion, build_phantom
from dicom_scp.simulation.scanner import (
    Machine,
    Patient,
    View,
    build_instance,
    invalid_id_number,
)
from dicom_scp.simulation.simulator import (
    GE_LIKE,
    Expectation,
    Sent,
    SimulatedStudy,
    send,
)
from node.store.reports import report_id_for
from tests.conformance.judges import fhirkit
from tests.fake_wechat import DEMO_APP_ID, DEMO_APP_SECRET, DEMO_TEMPLATE
from tests.ports import free_port

T = TypeVar("T")
Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
MINI_PROGRAM = ROOT / "wechat" / "miniprogram" / "dist"
EXPORTS = ROOT / ".pytest_cache" / "exports"  # one export for all nodes of all runs
HOST = "127.0.0.1"
PASSWORD = "correct horse battery staple"
PATIENCE_S = 150.0  # two cores may be busy with everything else
POLL_S = 0.1
PRIVATE_SYSTEM = "urn:oid:2.25.302567410295148372091187634512093847561"
ROLES = ("scp", "web", "worker", "inference", "relay")
LESION = PhantomLesion(
    22, 16, 12, 10, shape="irregular", margin=("angular",), assessment_category="4B"
)


def until(what: str, look: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """Return what `look` returns once it is something; fail when it takes too long."""
    deadline = time.monotonic() + patience_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for {what}"
        time.sleep(POLL_S)


@dataclass
class Installation:
    """One node on ports and a data folder of its own. `settings` are SECTION__KEY."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    relay_port: int = field(default_factory=free_port)
    wechat_port: int = field(default_factory=free_port)
    supervisor: subprocess.Popen[bytes] | None = None
    first_start_s: float = 0.0

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def output(self) -> Path:
        """What all processes of the node have printed."""
        return self.folder / "output.log"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.http_port}"

    @property
    def relay_url(self) -> str:
        return f"http://{HOST}:{self.relay_port}"

    @property
    def wechat_url(self) -> str:
        return f"http://{HOST}:{self.wechat_port}"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k[:9] != "SONONODE_"}
        own = {
            "DICOM__PORT": str(self.dicom_port),
            "DICOM__HOST": HOST,
            "HTTP__PORT": str(self.http_port),
            "RELAY__PORT": str(self.relay_port),
            "RELAY__URL": self.relay_url,
            "COMPLETION__QUIET_PERIOD_S": "3",
            "COMPLETION__QUIET_AFTER_RELEASE_S": "0.5",
            "INFERENCE__READ_SIMULATED": "true",
            "INFERENCE__EXPORTS": str(EXPORTS),
            "SITE__DEPARTMENT_PHONE": "010-0000-0000",
            "WECHAT__API_URL": self.wechat_url,
            "WECHAT__APP_ID": DEMO_APP_ID,
            "WECHAT__APP_SECRET_FILE": "keys/wechat.secret",
            "WECHAT__TEMPLATE_ID": DEMO_TEMPLATE,
            **self.settings,
        }
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "SONONODE_DATA": str(self.data),
            **{f"SONONODE_{key}": value for key, value in own.items()},
        }

    # --- running it ---------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the node; return when every interface answers."""
        started = time.monotonic()
        (self.data / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.data / "keys" / "wechat.secret").write_text(DEMO_APP_SECRET)
        with open(self.output, "ab") as output:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "node", "serve"],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        if wait:
            until("the node", self.ready)
            self.first_start_s = self.first_start_s or time.monotonic() - started

    def stop(self, patience_s: float = 90.0) -> int:
        """End the node with SIGTERM; return its exit status."""
        assert self.supervisor is not None
        self.supervisor.send_signal(signal.SIGTERM)
        try:
            return self.supervisor.wait(patience_s)
        except subprocess.TimeoutExpired:
            for process in self.processes():
                process.kill()
            raise

    def ready(self) -> bool:
        """Tell whether DICOM, HTTP and relay all answer."""
        assert self.supervisor is not None
        status = self.supervisor.poll()
        assert status is None, f"the node ended with {status}: {self.tail()}"
        try:
            healthy = all(
                requests.get(f"{url}/readyz", timeout=10).status_code == 200
                for url in (self.url, self.relay_url)
            )
        except requests.RequestException:
            return False
        return healthy and self.accepts_dicom()

    def accepts_dicom(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex((HOST, self.dicom_port)) == 0

    def tail(self) -> str:
        """Return the last lines that the node has printed."""
        return self.output.read_text(errors="replace")[-3000:]

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor and everything below it."""
        assert self.supervisor is not None
        try:
            parent = psutil.Process(self.supervisor.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def process(self, name: str) -> psutil.Process | None:
        """Return the process of a role, `postgres` or `supervisor`, if it runs."""
        processes = self.processes()
        if name == "supervisor":
            return processes[0] if processes else None
        for process in processes[1:]:
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if name == "postgres" and "-D" in command:
                return process
            if command[-2:] == ["--role", name]:
                return process
        return None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m node …` on this installation as an engineer does."""
        return subprocess.run(
            [sys.executable, "-m", "node", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def add_user(self, login: str, role: str, display: str) -> None:
        done = self.command(
            *("user", "add", login, "--role", role),
            *("--display", display, "--password", PASSWORD),
        )
        assert done.returncode == 0, done.stderr

    def caller(self, login: str) -> "Caller":
        """Return somebody signed in at /fhir."""
        return Caller.sign_in(self.url, login)

    # --- what comes to it from outside ----------------------------------------------

    def send(
        self, studies: Sequence[SimulatedStudy], associations: int = 2
    ) -> list[Sent]:
        """Send studies as a modality; every answer is Success."""
        answers = send(
            studies,
            host=HOST,
            port=self.dicom_port,
            clock=lambda: datetime.now(UTC),
            associations=associations,
            timeout_s=60,
        )
        assert all(answer.stored for answer in answers)
        return answers


@contextmanager
def running_wechat(node: Installation) -> Iterator[None]:
    """Run the WeChat server that `node` is set to, as a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "fake_wechat.py")]
    command += ["--port", str(node.wechat_port)]
    if (MINI_PROGRAM / "index.html").is_file():  # built for a browser: see npm scripts
        command += ["--phone", str(MINI_PROGRAM), "--relay", node.relay_url]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex((HOST, node.wechat_port)) == 0

    try:
        until("WeChat", answers)
        yield
    finally:
        process.kill()
        process.wait()


# --- the modality's studies -----------------------------------------------------------


def new_uid() -> str:
    return f"2.25.{uuid4().int}"


def invented(number: int, name: str, birth_date: str = "19790412") -> Patient:
    """Return a woman who does not exist."""
    return Patient(
        name,
        f"J-{number:06d}",
        birth_date,
        invalid_id_number(birth_date, number % 1000),
    )


def make_study(
    patient: Patient,
    *,
    images: int = 1,
    seed: int = 1,
    lesion: PhantomLesion = LESION,
    machine: Machine = GE_LIKE,
    at: datetime | None = None,
) -> SimulatedStudy:
    """Return a study of phantoms of one lesion."""
    at = at or datetime.now(UTC)
    study, series, accession = new_uid(), new_uid(), f"J{uuid4().hex[:9].upper()}"
    instances = []
    for number in range(1, images + 1):
        phantom = build_phantom((lesion,), seed=seed + number)
        view = View(frames=(phantom.pixels,), mm_per_pixel=phantom.mm_per_pixel)
        instances.append(
            build_instance(
                view,
                patient,
                machine,
                at=at,
                uids=(study, series, new_uid()),
                accession_number=accession,
                description="Breast US",
                instance_number=number,
            )
        )
    return SimulatedStudy(
        study, accession, "Breast US", tuple(instances), Expectation.READ, (lesion,)
    )


# --- doctors and hospital systems at /fhir ------------------------------------------


@dataclass
class Caller:
    """Somebody who is signed in; every FHIR body that comes back is judged."""

    url: str
    session: requests.Session

    @classmethod
    def sign_in(cls, url: str, login: str, password: str = PASSWORD) -> "Caller":
        session = requests.Session()
        form = {"grant_type": "password", "username": login, "password": password}
        answer = session.post(f"{url}/auth/token", data=form, timeout=30)
        assert answer.status_code == 200, answer.text
        session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        return cls(url, session)

    def ask(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send one FHIR request; the body of the answer is valid FHIR."""
        answer = self.session.request(
            method,
            f"{self.url}/fhir/{path}" if path else f"{self.url}/fhir",
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/fhir+json", **(headers or {})},
            timeout=60,
        )
        if answer.content:
            assert fhirkit(answer.content) == [], (method, path, answer.text[:2000])
        return answer

    def read(self, path: str) -> Json:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, (path, answer.text)
        body: Json = answer.json()
        return body

    def found(self, path: str) -> Json | None:
        """Return a resource, None while it is not there or the node is not."""
        try:
            answer = self.ask("GET", path)
        except requests.RequestException:
            return None
        return answer.json() if answer.status_code == 200 else None

    def report_of(self, study_instance_uid: str) -> Json:
        """Return the report of a study once there is one."""
        path = f"DiagnosticReport/{report_id_for(study_instance_uid)}"
        return until(path, lambda: self.found(path))

    def observations(self, report: Json) -> dict[str, Json]:
        """Return every Observation of a report by id, members of groups included."""
        held: dict[str, Json] = {}
        waiting = [item["reference"] for item in report.get("result", [])]
        while waiting:
            body = self.read(waiting.pop())
            held[body["id"]] = body
            members = [item["reference"] for item in body.get("hasMember", [])]
            waiting += [m for m in members if m.split("/")[1] not in held]
        return held

    def sign(
        self,
        report_id: UUID | str,
        category: str,
        *,
        told: bool = False,
        status: str = "final",
        reason: str | None = None,
        conclusion: str = "Reviewed with the images.",
    ) -> requests.Response:
        """Sign the report with `category` for all of it, in one transaction."""
        report = self.read(f"DiagnosticReport/{report_id}")
        entries = []
        for name, observation in self.observations(report).items():
            if name.endswith("-category"):
                observation.pop("dataAbsentReason", None)
                coding = {"system": PRIVATE_SYSTEM, "code": category}
                observation["valueCodeableConcept"] = {"coding": [coding]}
                entries.append(put(observation))
        entries.append(put(report | {"status": status, "conclusion": conclusion}))
        if told:
            entries.append(post(self.disclosure(report)))
        if reason is not None:
            target = [{"reference": f"DiagnosticReport/{report_id}"}]
            agent = [{"who": {"display": "the signed-in physician"}}]
            entries.append(
                post(
                    {
                        "resourceType": "Provenance",
                        "target": target,
                        "recorded": now(),
                        "reason": [{"text": reason}],
                        "agent": agent,
                    }
                )
            )
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        return self.ask("POST", "", bundle)

    def disclosure(self, report: Json) -> Json:
        """Return the record that the patient was told by phone."""
        return {
            "resourceType": "Communication",
            "status": "completed",
            "subject": report["subject"],
            "about": [{"reference": f"DiagnosticReport/{report['id']}"}],
            "sent": now(),
            "medium": [{"text": "phone"}],
        }

    def print_code(self, patient: str) -> str:
        """Print a desk QR code; return the token in it."""
        url = f"{self.url}/auth/bindings"
        answer = self.session.post(url, json={"patient": patient}, timeout=30)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["code"])

    def instances(self, study_instance_uid: str) -> list[Json]:
        """Return the DICOM JSON headers of everything in a study."""
        url = f"{self.url}/dicom-web/studies/{study_instance_uid}/metadata"
        try:
            answer = self.session.get(url, timeout=60)
        except requests.RequestException:
            return []
        return answer.json() if answer.status_code == 200 else []

    def retrieve(self, study_instance_uid: str) -> list[bytes]:
        """Return every Part 10 file of a study; needs the right to whole objects."""
        files = []
        for header in self.instances(study_instance_uid):
            series, instance = (
                header[tag]["Value"][0] for tag in ("0020000E", "00080018")
            )
            answer = self.session.get(
                f"{self.url}/dicom-web/studies/{study_instance_uid}"
                f"/series/{series}/instances/{instance}",
                headers={"Accept": "application/dicom; transfer-syntax=*"},
                timeout=60,
            )
            assert answer.status_code == 200, (instance, answer.text[:500])
            files.append(answer.content)
        return files

    def documents(self, study_instance_uid: str) -> list[Json]:
        """Return the headers of a study's SRs in the order they were written."""
        documents = [
            item
            for item in self.instances(study_instance_uid)
            if item["00080060"]["Value"] == ["SR"]
        ]
        return sorted(documents, key=lambda item: item["00200011"]["Value"][0])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def put(resource: Json) -> Json:
    """Return a transaction entry that replaces the version that was read."""
    version = resource["meta"]["versionId"]
    url = f"{resource['resourceType']}/{resource['id']}"
    request = {"method": "PUT", "url": url, "ifMatch": f'W/"{version}"'}
    return {"resource": resource, "request": request}


def post(resource: Json) -> Json:
    request = {"method": "POST", "url": resource["resourceType"]}
    return {"resource": resource, "request": request}


# --- the patient's phone ------------------------------------------------------------


@dataclass
class Phone:
    """A phone at the relay: it knows its openid and its session, nothing else."""

    node: Installation
    openid: str
    session: requests.Session

    @classmethod
    def new(cls, node: Installation) -> "Phone":
        """Return a phone that has logged in and bound nobody."""
        openid = f"journey-{uuid4().hex}"
        control = f"{node.wechat_url}/_control/js-codes"
        code = requests.post(control, json={"openid": openid}, timeout=30).json()
        session = requests.Session()
        answer = session.post(f"{node.relay_url}/api/session", json=code, timeout=30)
        assert answer.status_code == 200, answer.text
        session.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        return cls(node, openid, session)

    def bind(self, token: str, last_four: str) -> None:
        """Scan the desk's code; the relay may learn of it a moment later."""
        body = {"token": token, "last4": last_four}

        def bound() -> bool:
            url = f"{self.node.relay_url}/api/bind"
            return self.session.post(url, json=body, timeout=30).status_code == 200

        until("the desk code at the relay", bound)

    def allow_messages(self, times: int = 1) -> None:
        """Accept the subscription message `times` times."""
        grant = {"openid": self.openid, "template_id": DEMO_TEMPLATE, "times": times}
        control = f"{self.node.wechat_url}/_control/quota"
        requests.post(control, json=grant, timeout=30).raise_for_status()
        body = {"template_ids": [DEMO_TEMPLATE]}
        for _ in range(times):
            url = f"{self.node.relay_url}/api/quota"
            self.session.post(url, json=body, timeout=30).raise_for_status()

    def reports(self) -> list[Json]:
        answer = self.session.get(f"{self.node.relay_url}/api/reports", timeout=30)
        assert answer.status_code == 200, answer.text
        listed: list[Json] = answer.json()["reports"]
        return listed

    def report(self, handle: str) -> Json:
        url = f"{self.node.relay_url}/api/reports/{handle}"
        answer = self.session.get(url, timeout=30)
        assert answer.status_code == 200, answer.text
        body: Json = answer.json()
        return body

    def messages(self) -> list[Json]:
        """Return what WeChat has delivered to this phone."""
        url = f"{self.node.wechat_url}/_control/sent"
        sent = requests.get(url, timeout=30).json()["sent"]
        return [message for message in sent if message["openid"] == self.openid]


def bound_phone(
    node: Installation, doctor: Caller, report: Json, patient: Patient
) -> Phone:
    """Return a phone that the desk has bound to the patient of `report`."""
    phone = Phone.new(node)
    token = doctor.print_code(report["subject"]["reference"])
    phone.bind(token, patient.id_number[-4:])
    return phone
