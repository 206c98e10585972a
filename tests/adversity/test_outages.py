"""What a node leans on goes away and comes back: database, disk, relay, itself.

The installation has a PostgreSQL that is not its own, objects on a small file
system, and a relay behind a gate that can be shut.
"""

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from node.store.postgres import EmbeddedPostgres
from tests.adversity.conftest import end
from tests.adversity.modality import (
    OUT_OF_RESOURCES,
    Examination,
    Studies,
    data_set,
    send_once,
    send_until_stored,
    stored_data_set,
)
from tests.journeys.rig import (
    HOST,
    Caller,
    Installation,
    Json,
    bound_phone,
    invented,
    running_wechat,
    until,
)
from tests.ports import free_port

RESTART_S = 10.0
DISK_MB = 64
PATIENT = invented(30, "Sun^Lihua=孙^丽华")
forever = threading.Event()  # nobody sets it: waiting for it is a pause


class Gate:
    """A TCP port that leads to another one, or nowhere while it is shut."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self.target = port, target
        self._listening: socket.socket | None = None

    def open(self) -> None:
        self._listening = socket.create_server((HOST, self.port), reuse_port=False)
        threading.Thread(
            target=self._serve, args=(self._listening,), daemon=True
        ).start()

    def shut(self) -> None:
        if self._listening is not None:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None

    def _serve(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                caller, _ = listening.accept()
                threading.Thread(
                    target=self._carry, args=(caller,), daemon=True
                ).start()

    def _carry(self, caller: socket.socket) -> None:
        with (
            closing(caller),
            suppress(OSError),
            closing(socket.create_connection((HOST, self.target))) as target,
        ):
            other = {caller: target, target: caller}
            while True:
                for ready in select.select([*other], [], [])[0]:
                    octets = ready.recv(65536)
                    if not octets:
                        return
                    other[ready].sendall(octets)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A small file system; None where this account may not mount one."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        yield None
        return
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    made = Gate(free_port(), free_port())
    yield made
    made.shut()


@pytest.fixture(scope="module")
def node(
    database: EmbeddedPostgres,
    disk: Path | None,
    gate: Gate,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    settings = {
        "DATABASE__URL": database.create_database("node"),
        "RELAY__DATABASE_URL": database.create_database("relay"),
        "RELAY__URL": f"http://{HOST}:{gate.port}",
        "STORAGE__MINIMUM_FREE_MB": "4",
        "COMPLETION__QUIET_AFTER_RELEASE_S": "1.5",
    }
    if disk is not None:
        settings["STORAGE__OBJECTS"] = str(disk / "objects")
    node = Installation(tmp_path_factory.mktemp("installation"), settings)
    node.relay_port = gate.target
    made = node.command("keys", "init")
    assert made.returncode == 0, made.stderr
    with running_wechat(node):
        try:
            node.start()
            node.add_user("li", "radiologist", "Li^Ming=李^明")
            node.add_user("his", "ehr", "hospital information system")
            yield node
        finally:
            end(node)


@pytest.fixture(scope="module")
def doctor(node: Installation) -> Caller:
    return node.caller("li")


@pytest.fixture(scope="module")
def ehr(node: Installation) -> Caller:
    return node.caller("his")


@pytest.fixture(scope="module")
def studies() -> Studies:
    return Studies()


def sent(node: Installation, examination: Examination) -> None:
    send_until_stored(examination, node.dicom_port, patience_s=60, pause=forever.wait)


def start_again(node: Installation) -> None:
    """Start the node in ten seconds; where its first start took long, in that time."""
    started = time.monotonic()
    node.start()
    took = time.monotonic() - started
    assert took < max(RESTART_S, 2 * node.first_start_s)


def assert_held(ehr: Caller, examination: Examination) -> None:
    wanted = {data_set(instance) for instance in examination.instances}
    held = ehr.retrieve(examination.study_instance_uid)
    assert wanted <= {stored_data_set(file) for file in held}


def test_a_relay_that_was_not_there_gets_every_report_once_when_it_comes(
    node: Installation, doctor: Caller, studies: Studies, gate: Gate
) -> None:
    signed = []
    for _ in range(2):
        examination = studies.make(PATIENT, images=1)
        sent(node, examination)
        report = doctor.report_of(examination.study_instance_uid)
        assert doctor.sign(report["id"], "2").status_code == 200
        signed.append(report)
    gate.open()
    phone = bound_phone(node, doctor, signed[0], PATIENT)
    until("both reports", lambda: len(phone.reports()) == 2)
    gate.shut()
    amended = doctor.sign(signed[0]["id"], "3", status="amended", reason="seen again")
    assert amended.status_code == 200
    gate.open()

    def categories() -> list[str]:
        return sorted(phone.report(r["handle"])["category"] for r in phone.reports())

    until("the amendment", lambda: categories() == ["2", "3"])


def test_without_its_database_the_modality_is_told_to_come_again(
    node: Installation,
    doctor: Caller,
    ehr: Caller,
    studies: Studies,
    database: EmbeddedPostgres,
) -> None:
    before, during = studies.make(PATIENT, images=1), studies.make(PATIENT, images=2)
    sent(node, before)
    assert database.pid is not None
    os.kill(database.pid, signal.SIGKILL)
    assert set(send_once(during, node.dicom_port)) == {OUT_OF_RESOURCES}
    assert during.acknowledged == set()
    assert doctor.session.get(f"{node.url}/readyz", timeout=60).status_code == 503
    assert doctor.session.get(f"{node.url}/healthz", timeout=60).status_code == 200

    until("the database", database.revive)
    sent(node, during)
    until("the node", node.ready)
    for examination in (before, during):
        assert_held(ehr, examination)
        doctor.report_of(examination.study_instance_uid)


def test_a_full_disk_keeps_nothing_half_and_takes_everything_when_there_is_room(
    node: Installation,
    doctor: Caller,
    ehr: Caller,
    studies: Studies,
    disk: Path | None,
) -> None:
    if disk is None:
        pytest.skip("this account may not mount a file system")
    examination = studies.make(PATIENT, images=2)
    filling = disk / "somebody else's"
    with open(filling, "wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 18))
            file.flush()
    try:
        # Results of earlier studies may have been written while the disk filled.
        objects = sorted(disk.rglob("objects/**/*"))
        assert set(send_once(examination, node.dicom_port)) == {OUT_OF_RESOURCES}
        assert sorted(disk.rglob("objects/**/*")) == objects
        assert doctor.instances(examination.study_instance_uid) == []
    finally:
        filling.unlink()

    sent(node, examination)
    assert_held(ehr, examination)
    doctor.report_of(examination.study_instance_uid)


def test_sigterm_in_the_middle_of_work_loses_nothing(
    node: Installation, doctor: Caller, ehr: Caller, studies: Studies
) -> None:
    examinations = [studies.make(PATIENT, images=3) for _ in range(3)]
    for examination in examinations:
        sent(node, examination)
    assert node.stop() == 0, node.tail()
    assert node.processes() == []
    start_again(node)
    for examination in examinations:
        assert_held(ehr, examination)
        doctor.report_of(examination.study_instance_uid)
        (document,) = until(
            "the AI SR",
            lambda e=examination: doctor.documents(e.study_instance_uid),
        )
        assert document["00080060"]["Value"] == ["SR"]


def test_a_killed_supervisor_is_followed_by_another_within_ten_seconds(
    node: Installation, doctor: Caller, ehr: Caller, studies: Studies
) -> None:
    examination = studies.make(PATIENT, images=1)
    sent(node, examination)
    assert node.supervisor is not None
    node.supervisor.kill()
    node.supervisor.wait()
    start_again(node)
    assert_held(ehr, examination)
    doctor.report_of(examination.study_instance_uid)


def test_a_reading_that_failed_is_told_in_plain_words_and_retried_with_one_put(
    node: Installation, doctor: Caller, studies: Studies, disk: Path | None
) -> None:
    objects = (disk or node.data) / "objects"
    before = set(objects.rglob("*"))
    examination = studies.make(PATIENT, images=1)
    sent(node, examination)
    damaged = [path for path in set(objects.rglob("*")) - before if path.is_file()]
    assert damaged
    whole = {path: path.read_bytes() for path in damaged}
    for path, octets in whole.items():
        path.chmod(0o600)
        path.write_bytes(octets[:-1] + bytes([octets[-1] ^ 1]))

    study = f"ImagingStudy/{examination.study_instance_uid}"

    def failed() -> Json | None:
        entries = doctor.read("Task?status=failed").get("entry", [])
        tasks = [entry["resource"] for entry in entries]
        return next((t for t in tasks if t["focus"]["reference"] == study), None)

    task = until("the failed Task", failed)
    words = task["statusReason"]["text"]
    assert words
    assert not any(part in words for part in ("Sun", "孙", "Traceback", "Error("))

    for path, octets in whole.items():
        path.write_bytes(octets)
    asked = doctor.ask("PUT", f"Task/{task['id']}", task | {"status": "requested"})
    assert asked.status_code == 200, asked.text
    assert doctor.report_of(examination.study_instance_uid)["status"] == "partial"
    assert failed() is None
