"""`kill -9` of any process at random moments: nothing that was promised is lost.

Acknowledged means durable (PS3.4 B.2.3, Success), one study gives one report, one
signature gives one event at the relay, and the audit chain holds. With
SONONODE_ADVERSITY=full it is 200 instances and 50 kills, otherwise a short run;
SONONODE_SEED chooses other moments.
"""

import asyncio
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import asyncpg
import psutil
import pytest
import requests

from node.store.reports import report_id_for
from tests.adversity.modality import (
    Examination,
    Studies,
    data_set,
    send_until_stored,
    stored_data_set,
)
from tests.journeys.rig import (
    ROLES,
    Caller,
    Installation,
    Json,
    Phone,
    bound_phone,
    invented,
    until,
)

FULL = os.environ.get("SONONODE_ADVERSITY") == "full"
SEED = int(os.environ.get("SONONODE_SEED", "20261121"))
KILLS = 50 if FULL else 12
STUDIES = 40 if FULL else 10
PATIENCE_S = 400.0
TARGETS = (*ROLES, "supervisor", "postgres")
# A scanner that is cut off comes back before the study counts as complete.
SETTINGS = {
    "COMPLETION__QUIET_PERIOD_S": "40",
    "COMPLETION__QUIET_AFTER_RELEASE_S": "1",
}
PATIENTS = tuple(
    invented(10 + number, f"Qian^Ai{letter}=钱^艾{letter}")
    for number, letter in enumerate("ABCD")
)


@dataclass
class Run:
    """What is known from outside while processes are killed."""

    node: Installation
    doctor: Caller
    studies: Sequence[Examination]
    released: threading.Semaphore = field(default_factory=lambda: _none_yet())
    over: threading.Event = field(default_factory=threading.Event)
    kills: Counter[str] = field(default_factory=Counter)
    ended_by_itself: list[int] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)

    def send(self, examination: Examination) -> None:
        """Send one study when its turn has come."""
        self.released.acquire()
        send_until_stored(
            examination,
            self.node.dicom_port,
            patience_s=PATIENCE_S,
            pause=self.over.wait,
        )

    def sign_everything(self) -> None:
        """Sign every report as soon as it is there, as often as it takes."""
        waiting = {s.study_instance_uid for s in self.studies}
        deadline = time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} reports never came"
            waiting = {uid for uid in waiting if not self.signed(uid)}
            self.over.wait(0.3)

    def signed(self, study_instance_uid: str) -> bool:
        """Tell whether the report is signed; sign it when that is possible."""
        report_id = report_id_for(study_instance_uid)
        try:
            report = self.doctor.found(f"DiagnosticReport/{report_id}")
            if report is None:
                return False
            if report["status"] == "partial":
                self.doctor.sign(report_id, "2")
                return False  # looked at again, as the answer may have been lost
            return report["status"] == "final"
        except (requests.RequestException, AssertionError):
            # An answer 503 is no resource; whoever waits for a report asks again.
            return False

    def kill(self, target: str) -> None:
        """Kill a process as soon as it lives; start the node again after its first."""
        self.keep_supervised()
        until(target, lambda: self._killed(target))
        self.kills[target] += 1
        if target == "supervisor":
            assert self.node.supervisor is not None
            self.node.supervisor.wait()
            self.node.start(wait=False)

    def _killed(self, target: str) -> bool:
        process = self.node.process(target)
        if process is None:
            return False
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def keep_supervised(self) -> None:
        """Start the node again when it ended by itself, which it must not."""
        assert self.node.supervisor is not None
        status = self.node.supervisor.poll()
        if status is not None:
            self.ended_by_itself.append(status)
            self.node.start(wait=False)

    def retry_failed_work(self) -> None:
        """Do what an engineer does about failed work: one click for each."""
        failed = self.doctor.found("Task?status=failed") or {}
        for entry in failed.get("entry", []):
            task = entry["resource"]
            self.retried.append(task["statusReason"]["text"])
            self.doctor.ask("PUT", f"Task/{task['id']}", task | {"status": "requested"})


def _targets(choice: random.Random) -> list[str]:
    """Return whom to kill: everybody equally often, in random order."""
    rounds = -(-KILLS // len(TARGETS))
    return [t for _ in range(rounds) for t in choice.sample(TARGETS, len(TARGETS))][
        :KILLS
    ]


def _none_yet() -> threading.Semaphore:
    return threading.Semaphore(0)


@pytest.fixture(scope="module")
def first_visit(node: Installation) -> tuple[Phone, str]:
    """A patient whose phone was bound before anything went wrong."""
    doctor = node.caller("li")
    studies = Studies()
    examination = studies.make(PATIENTS[0], images=1)
    send_until_stored(
        examination, node.dicom_port, patience_s=60, pause=threading.Event().wait
    )
    report = doctor.report_of(examination.study_instance_uid)
    phone = bound_phone(node, doctor, report, PATIENTS[0])
    phone.allow_messages(STUDIES + 1)
    return phone, examination.study_instance_uid


@pytest.fixture(scope="module")
def run(node: Installation, first_visit: tuple[Phone, str]) -> Run:
    """The whole run: sent, read and signed while processes were being killed."""
    made = Studies()
    studies = [made.make(PATIENTS[n % len(PATIENTS)]) for n in range(STUDIES)]
    run = Run(node, node.caller("li"), studies)
    choice = random.Random(SEED)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(run.send, study) for study in studies]
        signing = threading.Thread(target=run.sign_everything)
        signing.start()
        try:
            for target in _targets(choice):
                # As many studies are under way as there have been kills.
                run.released.release()
                run.over.wait(choice.uniform(0.3, 3.5))
                run.kill(target)
            killed_s = time.monotonic() - started
            until("the node", _patiently(run, node.ready))
            for _ in studies:
                run.released.release()
            for future in sending:
                future.result(PATIENCE_S)
            until("every signature", _patiently(run, lambda: not signing.is_alive()))
        finally:
            run.over.set()
            signing.join()
    print(
        f"\n{run.kills.total()} kills in {killed_s:.0f} s ({dict(run.kills)}), all"
        f" signed after {time.monotonic() - started:.0f} s,"
        f" {len(run.retried)} jobs retried by hand: {Counter(run.retried)}"
    )
    return run


def _patiently(run: Run, look: Callable[[], bool]) -> Callable[[], bool]:
    """Look at the run while an engineer looks after it."""

    def looked() -> bool:
        run.keep_supervised()
        try:
            run.retry_failed_work()
        except (requests.RequestException, AssertionError):
            return False
        return look()

    return looked


@pytest.fixture(scope="module")
def ehr(node: Installation, run: Run) -> Caller:
    return node.caller("his")


def test_the_node_never_ended_by_itself(run: Run) -> None:
    assert run.ended_by_itself == []


def test_every_acknowledged_instance_is_there_byte_for_byte(
    run: Run, ehr: Caller
) -> None:
    for study in run.studies:
        sent = {data_set(instance) for instance in study.instances}
        held = {stored_data_set(f) for f in ehr.retrieve(study.study_instance_uid)}
        assert sent <= held


def test_no_instance_is_there_twice_and_every_study_has_one_sr_of_each_kind(
    run: Run, ehr: Caller
) -> None:
    def verification(uid: str) -> list[str]:
        return sorted(item["0040A493"]["Value"][0] for item in ehr.documents(uid))

    for study in run.studies:
        uid = study.study_instance_uid
        until("both SRs", partial(_two_or_more, partial(verification, uid)))
        assert verification(uid) == ["UNVERIFIED", "VERIFIED"]
        images = [
            item
            for item in run.doctor.instances(uid)
            if item["00080060"]["Value"] == ["US"]
        ]
        assert len(images) == len(study.instances)


def _two_or_more(look: Callable[[], list[str]]) -> bool:
    return len(look()) >= 2


def test_every_study_has_one_report_drafted_signed_once_and_printed_once(
    run: Run,
) -> None:
    def versions(path: str) -> list[str]:
        history = run.doctor.read(f"{path}/_history")["entry"]
        return [entry["resource"]["status"] for entry in history]

    for study in run.studies:
        path = f"DiagnosticReport/{report_id_for(study.study_instance_uid)}"
        until(
            "the paper of the report",
            partial(_has_paper, partial(run.doctor.read, path)),
        )
        assert versions(path) == ["final", "final", "partial"]


def _has_paper(read: Callable[[], Json]) -> bool:
    return "presentedForm" in read()


def test_every_signature_reached_the_relay_once_and_in_order(run: Run) -> None:
    signed = {str(report_id_for(s.study_instance_uid)) for s in run.studies}

    def arrived() -> list[int] | None:
        numbers = asyncio.run(_event_numbers(run.node))
        return numbers if len(numbers) >= len(signed) else None

    numbers = until("every event at the relay", arrived)
    assert numbers == list(range(1, len(signed) + 1))
    assert asyncio.run(_reports(run.node)) == len(signed)


def test_a_phone_gets_each_report_and_no_message_twice(
    run: Run, first_visit: tuple[Phone, str]
) -> None:
    phone, _ = first_visit
    hers = [s for s in run.studies if s.patient == PATIENTS[0]]
    listed = until(
        "her reports", lambda: r if len(r := phone.reports()) >= len(hers) else None
    )
    assert len({report["handle"] for report in listed}) == len(listed) == len(hers)
    pages = Counter(message["page"] for message in phone.messages())
    assert not pages or max(pages.values()) == 1


def test_audit_trail_and_keys_are_whole(run: Run) -> None:
    for words in (("audit", "verify"), ("keys", "verify")):
        done = run.node.command(*words)
        assert done.returncode == 0, done.stderr


def _relay_dsn(node: Installation) -> str:
    told = json.loads((node.data / "running.json").read_text("utf-8"))
    return str(told["relay"])


async def _event_numbers(node: Installation) -> list[int]:
    connection = await asyncpg.connect(_relay_dsn(node))
    try:
        rows = await connection.fetch(
            "select event_number from hook_events order by event_number"
        )
    finally:
        await connection.close()
    return [row["event_number"] for row in rows]


async def _reports(node: Installation) -> int:
    connection = await asyncpg.connect(_relay_dsn(node))
    try:
        return int(await connection.fetchval("select count(*) from reports"))
    finally:
        await connection.close()
