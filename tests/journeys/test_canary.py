"""Whose name comes in goes nowhere in clear: not to disk, not to logs, not to WeChat.

A patient with names and numbers that occur nowhere else takes the whole way, and
callers put them where they do not belong. Then every file of the installation is
searched for them: objects, PostgreSQL with its write-ahead log, the relay's tables,
and everything that any process printed.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import requests

from dicom_scp.simulation.scanner import Patient, invalid_id_number
from dicom_scp.simulation.simulator import SimulatedStudy
from node.store.postgres import SUPERUSER
from tests.journeys.rig import (
    Caller,
    Installation,
    bound_phone,
    make_study,
    until,
)

BIRTH_DATE = "19631117"
PATIENT = Patient(
    "Kanarienvogel^Xiulanhua=金丝雀^秀兰花",
    "KANARI-7741902",
    BIRTH_DATE,
    invalid_id_number(BIRTH_DATE, 887),
)
PHONE = "19955501847"
ACCESSION = "KANARIACC55018"
SECRETS = (
    "Kanarienvogel",
    "Xiulanhua",
    "金丝雀",
    "秀兰花",
    PATIENT.patient_id,
    PATIENT.id_number,
    PHONE,
    ACCESSION,
)
CHUNK = 1 << 22


def needles() -> dict[bytes, str]:
    """Return the octets to look for, in every form in which a name may lie about."""
    found = {}
    for secret in SECRETS:
        for form in (secret, secret.upper(), secret.casefold()):
            for encoding in ("utf-8", "gb18030", "utf-16-le"):
                found[form.encode(encoding)] = f"{secret} ({encoding})"
            escaped = json.dumps(form)[1:-1]
            found[escaped.encode()] = f"{secret} (JSON)"
    return found


@pytest.fixture(scope="module")
def study(node: Installation, doctor: Caller, ehr: Caller) -> SimulatedStudy:
    """The canary's study, after its whole way and some detours."""
    sent = make_study(PATIENT, seed=500)
    (instance,) = sent.instances
    instance.PatientTelephoneNumbers = PHONE
    instance.AccessionNumber = ACCESSION
    node.send([sent])
    report = doctor.report_of(sent.study_instance_uid)
    phone = bound_phone(node, doctor, report, PATIENT)
    phone.allow_messages()
    assert doctor.sign(report["id"], "2").status_code == 200
    until("the phone's report", phone.reports)
    until("the verified SR", lambda: len(doctor.documents(sent.study_instance_uid)) > 1)
    put_where_it_does_not_belong(node, ehr, sent)
    return sent


def put_where_it_does_not_belong(
    node: Installation, ehr: Caller, study: SimulatedStudy
) -> None:
    """Ask for her in every wrong way; each answer is an error or a hit."""
    assert len(ehr.read(f"DiagnosticReport?identifier={ACCESSION}")["entry"]) == 1
    name = SECRETS[0]
    for path in (
        f"Patient?name={name}",
        f"Patient/{name}",
        f"{name}/1",
        f"DiagnosticReport?status={name}&nonsense={PATIENT.id_number}",
    ):
        assert ehr.ask("GET", path).status_code in {200, 400, 404}
    broken = ehr.session.post(
        f"{node.url}/fhir/Patient",
        data=f'{{"resourceType": "Patient", "name": "{name}"'.encode(),
        headers={"Content-Type": "application/fhir+json"},
        timeout=30,
    )
    assert broken.status_code == 400
    form = {"grant_type": "password", "username": name, "password": PHONE}
    refused = requests.post(f"{node.url}/auth/token", data=form, timeout=30)
    assert refused.status_code in {400, 401}
    requests.get(f"{node.url}/{name}?{PHONE}", timeout=30)
    requests.get(f"{node.relay_url}/api/reports/{name}", timeout=30)
    (instance,) = study.instances
    changed = make_study(PATIENT, seed=501).instances[0]
    changed.StudyInstanceUID = instance.StudyInstanceUID
    changed.SOPInstanceUID = instance.SOPInstanceUID
    changed.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    other = SimulatedStudy(
        study.study_instance_uid, "", "", (changed,), study.expectation
    )
    with pytest.raises(AssertionError):  # another object under a UID that is taken
        node.send([other])


def files_of(node: Installation) -> Iterator[Path]:
    """Yield every file of the installation, its printed words included."""
    for path in [*node.folder.rglob("*")]:
        if path.is_file() and not path.is_symlink():
            yield path


def search(path: Path, wanted: dict[bytes, str]) -> set[str]:
    """Return which of `wanted` occur in a file, also across the edges of chunks."""
    longest, found, tail = max(map(len, wanted)), set(), b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                window = tail + chunk
                found |= {told for octets, told in wanted.items() if octets in window}
                tail = window[-longest:]
    except FileNotFoundError:
        pass  # PostgreSQL recycles its files
    return found


def checkpoint(node: Installation) -> None:
    """Have PostgreSQL write everything out."""
    passwords = json.loads((node.data / "pg" / "passwords.json").read_text())
    running = json.loads((node.data / "running.json").read_text())
    address = urlsplit(running["node"])
    account = f"{SUPERUSER}:{passwords[SUPERUSER]}@"

    async def run() -> None:
        dsn = urlunsplit(address._replace(netloc=account, path="/postgres"))
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("select pg_switch_wal()")
            await connection.execute("checkpoint")
        finally:
            await connection.close()

    asyncio.run(run())


def test_the_search_would_find_what_lies_in_clear(
    node: Installation, study: SimulatedStudy
) -> None:
    checkpoint(node)
    uid = {study.study_instance_uid.encode(): "UID"}
    places = {path.parts[-2] for path in files_of(node) if search(path, uid)}
    assert "pg_wal" in places
    assert len(places) >= 2


def test_names_and_numbers_of_a_patient_lie_nowhere_in_clear(
    node: Installation, study: SimulatedStudy
) -> None:
    checkpoint(node)
    wanted = needles()
    leaks = {
        str(path.relative_to(node.folder)): sorted(found)
        for path in files_of(node)
        if (found := search(path, wanted))
    }
    assert leaks == {}


def test_no_file_or_folder_is_named_after_a_patient(
    node: Installation, study: SimulatedStudy
) -> None:
    names = " ".join(str(path) for path in node.folder.rglob("*")).casefold()
    assert not [secret for secret in SECRETS if secret.casefold() in names]


def test_neither_wechat_nor_the_metrics_hear_of_her(
    node: Installation, study: SimulatedStudy
) -> None:
    said = requests.get(f"{node.wechat_url}/_control/sent", timeout=30).text
    said += requests.get(f"{node.url}/metrics", timeout=30).text
    assert not [secret for secret in SECRETS if secret in said]
