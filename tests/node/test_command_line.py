"""The command line beside a running node, as an engineer uses it.

One embedded node is started for the whole module; the commands find it by its data
directory alone.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.journeys.rig import (
    PASSWORD,
    ROLES,
    Caller,
    Installation,
    SimulatedStudy,
    invented,
    make_study,
)

HE, XU = invented(81, "He^Yun=何^芸"), invented(82, "Xu^Jing=徐^静")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    # Reading is not the subject: phantoms are named as such, which is quick.
    quick = {"INFERENCE__READ_SIMULATED": "false"}
    made = Installation(tmp_path_factory.mktemp("installation"), quick)
    try:
        made.start()
        yield made
        children = made.processes()
        assert made.stop() == 0, made.tail()
        assert [p for p in children if p.is_running()] == []
    finally:
        for process in made.processes():
            process.kill()


@pytest.fixture(scope="module")
def doctor(node: Installation) -> Caller:
    node.add_user("li", "radiologist", "Li^Ming=李^明")
    return node.caller("li")


def said(node: Installation, *arguments: str) -> str:
    """Return what a command that succeeds prints."""
    done = node.command(*arguments)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return " ".join(done.stdout.split())


def refused(node: Installation, *arguments: str, status: int = 1) -> str:
    """Return the one line of a command that fails."""
    done = node.command(*arguments)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    return line


def written(study: SimulatedStudy, folder: Path) -> list[str]:
    """Write the instances of a study as files; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, instance in enumerate(study.instances):
        path = folder / f"{number}.dcm"
        instance.save_as(path, enforce_file_format=True)
        paths.append(str(path))
    return paths


def sign_in(node: Installation, login: str) -> int:
    form = {"grant_type": "password", "username": login, "password": PASSWORD}
    return requests.post(f"{node.url}/auth/token", data=form, timeout=30).status_code


# --- audit, before jobs of studies have entries of their own --------------------------


def test_the_audit_trail_counts_what_the_command_line_did(node: Installation) -> None:
    before = int(said(node, "audit", "verify").split()[0])
    said(node, "user", "add", "sun", "--role", "auditor", "--password", PASSWORD)
    assert said(node, "audit", "verify") == f"{before + 1} entries, the chain holds"


# --- send ---------------------------------------------------------------------------


def test_files_and_folders_are_sent(
    node: Installation, doctor: Caller, tmp_path: Path
) -> None:
    one, other = make_study(HE, images=2), make_study(XU)
    first, _ = written(one, tmp_path / "one")
    written(other, tmp_path / "other")
    port = ("--port", str(node.dicom_port))
    assert "1 stored, 0 not" in said(node, "send", first, *port)
    assert "3 stored, 0 not" in said(node, "send", str(tmp_path), *port)
    for study in (one, other):
        doctor.report_of(study.study_instance_uid)


def test_sending_nothing_or_to_nobody_is_one_line(
    node: Installation, tmp_path: Path
) -> None:
    line = refused(node, "send", str(tmp_path / "nowhere"))
    assert line.endswith("nowhere: no DICOM file there")
    (path,) = written(make_study(HE), tmp_path / "one")
    line = refused(node, "send", path, "--port", str(node.wechat_port))
    assert line == f"SONONODE at 127.0.0.1:{node.wechat_port}: no answer"
    line = refused(node, "send", path, "--port", str(node.dicom_port), "--ae", "OTHER")
    assert line.startswith(f"OTHER at 127.0.0.1:{node.dicom_port}: ")


# --- accounts -----------------------------------------------------------------------


def test_an_account_is_made_listed_and_shut(node: Installation) -> None:
    roles = ("--role", "radiologist", "--role", "administrator")
    told = said(node, "user", "add", "zhou", *roles, "--password", PASSWORD)
    assert told == "zhou: radiologist, administrator"
    assert "zhou │ administrator, radiologist │ active" in said(node, "user", "list")
    assert sign_in(node, "zhou") == 200
    caller = node.caller("zhou")
    assert said(node, "user", "disable", "zhou") == "zhou: disabled"
    assert sign_in(node, "zhou") == 400
    assert caller.ask("GET", "DiagnosticReport").status_code == 401
    assert re.search(r"zhou │ [^│]* │ disabled", said(node, "user", "list"))


def test_an_account_that_cannot_be_made_says_why(node: Installation) -> None:
    add = ("user", "add")
    role = ("--role", "auditor")
    assert "12" in refused(node, *add, "qin", *role, "--password", "short")
    said(node, *add, "qin", *role, "--password", PASSWORD)
    assert "taken" in refused(node, *add, "qin", *role, "--password", PASSWORD)
    assert refused(node, "user", "disable", "nobody") == "no such account"
    done = node.command(*add, "ma", "--role", "nurse", "--password", PASSWORD)
    assert done.returncode == 2
    assert "radiologist" in done.stderr


# --- keys ---------------------------------------------------------------------------


def test_keys_are_rotated_under_a_running_node(
    node: Installation, doctor: Caller
) -> None:
    study = make_study(HE)
    node.send([study])
    doctor.report_of(study.study_instance_uid)
    root = (node.data / "keys" / "root.key").read_bytes()
    count = int(said(node, "keys", "verify").split()[0])
    assert said(node, "keys", "rotate") == f"{count} keys wrapped anew"
    assert (node.data / "keys" / "root.key").read_bytes() != root
    assert said(node, "keys", "verify") == f"{count} keys open"
    assert doctor.report_of(study.study_instance_uid)["status"] == "partial"
    another = make_study(HE)
    node.send([another])
    doctor.report_of(another.study_instance_uid)


def test_keys_that_are_there_are_never_made_anew(node: Installation) -> None:
    root = (node.data / "keys" / "root.key").read_bytes()
    node.command("keys", "init")
    assert (node.data / "keys" / "root.key").read_bytes() == root


def test_a_shredded_patient_is_gone_for_everybody_at_once(
    node: Installation, doctor: Caller
) -> None:
    gone, stays = make_study(XU), make_study(HE)
    node.send([gone, stays])
    report = doctor.report_of(gone.study_instance_uid)
    doctor.report_of(stays.study_instance_uid)
    shred = ("keys", "shred", gone.study_instance_uid)
    assert node.command(*shred).returncode != 0  # nobody has said yes
    assert doctor.read(f"DiagnosticReport/{report['id']}")
    assert "destroyed" in said(node, *shred, "--yes")
    answer = doctor.ask("GET", f"DiagnosticReport/{report['id']}")
    assert answer.status_code == 410
    assert doctor.instances(gone.study_instance_uid) == []
    doctor.report_of(stays.study_instance_uid)
    assert "no such study" in refused(node, "keys", "shred", "2.25.9", "--yes")
    said(node, "keys", "verify")


# --- models -------------------------------------------------------------------------


def test_the_models_of_a_node_are_listed_and_nothing_else_can_be_chosen(
    node: Installation,
) -> None:
    assert "reads" in said(node, "models", "list")
    assert said(node, "models", "compare") == "no shadow has read here yet"
    line = refused(node, "models", "activate", "9.9")
    assert line == "9.9: there is no such model; see `models list`"
    assert "has read here before" in refused(node, "models", "rollback")
    assert "no shadow" in refused(node, "models", "stop-shadow")
    line = refused(node, "models", "add", str(node.data))
    assert line.startswith("model in data: model.json cannot be read")


# --- the installation -----------------------------------------------------------------


def test_the_schema_of_a_running_node_is_up_to_date(node: Installation) -> None:
    assert said(node, "migrate") == "the schema is up to date"


def test_the_doctor_finds_a_new_node_well_and_says_what_is_to_be_decided(
    node: Installation,
) -> None:
    done = node.command("doctor")
    told = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("ok keys") for line in told)
    assert any(line.startswith("ok audit trail") for line in told)
    assert any(line.startswith("decide AE titles any machine may") for line in told)
    assert not any(line.startswith("mend") for line in told)
    assert done.returncode == 0


def test_without_a_running_node_a_command_says_what_to_do(tmp_path: Path) -> None:
    stopped = Installation(tmp_path)
    commands = ("doctor", "user list", "audit verify", "migrate", "models list")
    for command in (command.split() for command in commands):
        line = refused(stopped, *command, status=2)
        assert line.startswith("database.url: "), line
        assert "make run" in line


def test_no_command_leaves_a_name_in_the_log(node: Installation) -> None:
    log = node.output.read_text(errors="replace")
    for patient in (HE, XU):
        assert patient.id_number not in log
        assert patient.name.partition("=")[2].replace("^", "") not in log
    for line in log.splitlines():
        if line.startswith("{"):
            json.loads(line)
    running = {name for name in ROLES if node.process(name) is not None}
    assert running == set(ROLES)
    assert psutil.pid_exists(node.processes()[0].pid)
