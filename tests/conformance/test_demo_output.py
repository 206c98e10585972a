"""Everything that the demonstration sends to an archive, before the judges.

The whole node runs: receive, read, draft, sign, encode, send.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.conformance.judges import dciodvfy, dsrdump
from tests.conformance.orthanc import Orthanc
from tests.journeys.rig import EXPORTS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 400


@pytest.fixture(scope="module")
def archived(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[list[dict[str, object]], list[bytes]]:
    """The demonstration's own table, and what its archive holds after it."""
    folder = tmp_path_factory.mktemp("demo")
    archive = Orthanc(folder)
    try:
        archive.wait()
        relay = free_port()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SONONODE_DATA": str(folder / "data"),
            "SONONODE_DICOM__PORT": str(free_port()),
            "SONONODE_HTTP__PORT": str(free_port()),
            "SONONODE_RELAY__PORT": str(relay),
            "SONONODE_RELAY__URL": f"http://127.0.0.1:{relay}",
            "SONONODE_INFERENCE__EXPORTS": str(EXPORTS),
            "SONONODE_PACS__AE_TITLE": "ORTHANC",
            "SONONODE_PACS__HOST": "127.0.0.1",
            "SONONODE_PACS__PORT": str(archive.dicom),
        }
        table = folder / "table.json"
        command = [sys.executable, "-m", "node", "demo", "--once", "--json", str(table)]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-2000:].decode(errors="replace")
        studies = json.loads(table.read_text(encoding="utf-8"))["studies"]
        return studies, archive.files()
    finally:
        archive.stop()


def test_every_study_has_both_documents_in_the_archive(
    archived: tuple[list[dict[str, object]], list[bytes]],
) -> None:
    studies, files = archived
    held = {str(dcmread(BytesIO(file)).SOPInstanceUID) for file in files}
    for study in studies:
        assert study["ai_sr_uid"] in held
        assert study["verified_sr_uid"] in held


def test_the_judges_accept_every_object_in_the_archive(
    archived: tuple[list[dict[str, object]], list[bytes]], tmp_path: Path
) -> None:
    complaints: Counter[str] = Counter()
    for file in archived[1]:
        path = tmp_path / "object.dcm"
        path.write_bytes(file)
        complaints.update(dciodvfy(path))
        if dcmread(path).Modality == "SR":
            complaints.update(dsrdump(path))
    assert complaints == Counter()
