"""`make demo ARGS="--once --json FILE"`: every study takes every hop, and it says so.

Once on phantoms, which everybody has, and once on real images where there are any.
What the phantoms' run sends to an archive, where one is installed, is judged.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.conformance import orthanc
from tests.conformance.judges import dciodvfy, dsrdump
from tests.journeys.rig import EXPORTS, HOST, ROOT
from tests.ports import free_port

LIMIT_S = 180.0
PATIENCE_S = 280.0  # the machine may be testing something else beside it


@dataclass(frozen=True)
class Shown:
    """What a demonstration printed, its table, and what its archive holds."""

    printed: str
    studies: Sequence[dict[str, Any]]
    archived: Sequence[bytes] = ()


def run_demo(folder: Path, **settings: str) -> Shown:
    """Run the demonstration to its end with some settings more."""
    relay = free_port()
    inherited = {k: v for k, v in os.environ.items() if k[:9] != "SONONODE_"}
    inherited.pop("SAMPLES", None)
    environment = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "SONONODE_DATA": str(folder / "data"),
        "SONONODE_DICOM__PORT": str(free_port()),
        "SONONODE_HTTP__PORT": str(free_port()),
        "SONONODE_RELAY__PORT": str(relay),
        "SONONODE_RELAY__URL": f"http://{HOST}:{relay}",
        "SONONODE_INFERENCE__EXPORTS": str(EXPORTS),
        **settings,
    }
    table = folder / "table.json"
    done = subprocess.run(
        [sys.executable, "-m", "node", "demo", "--once", "--json", str(table)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Shown(done.stdout, json.loads(table.read_text("utf-8"))["studies"])


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The demonstration on phantoms; its results go to an Orthanc if there is one."""
    folder = tmp_path_factory.mktemp("demo")
    if orthanc.program() is None:
        return run_demo(folder)
    archive = orthanc.Orthanc(folder)
    try:
        archive.wait()
        shown = run_demo(
            folder,
            SONONODE_PACS__AE_TITLE="ORTHANC",
            SONONODE_PACS__HOST=HOST,
            SONONODE_PACS__PORT=str(archive.dicom),
        )
        return Shown(shown.printed, shown.studies, archive.files())
    finally:
        archive.kill()


@pytest.fixture
def archived(phantoms: Shown) -> Sequence[bytes]:
    if orthanc.program() is None:
        pytest.skip("Orthanc is not installed")
    return phantoms.archived


def assert_every_hop(studies: Sequence[Mapping[str, Any]]) -> None:
    for study in studies:
        assert study["complete"], study
        assert study["problems"] == []
        assert study["stored"]
        assert study["ai_sr_uid"] != study["verified_sr_uid"]
        assert study["release"] == "released"
        assert study["wechat"] == "sent"
        moments = [study[f"{hop}_s"] for hop in ("report", "signed_sr", "delivered")]
        assert moments == sorted(moments)
        assert moments[-1] < LIMIT_S
    assert len({study["patient"] for study in studies}) >= 6
    assert all(study["patient"].endswith("*") for study in studies)
    assert len({study["ai_sr_uid"] for study in studies}) == len(studies)


def assert_doppler_says_so(studies: Sequence[Mapping[str, Any]]) -> None:
    refused = [study for study in studies if study["expectation"] == "not_read"]
    doppler = next(s for s in refused if "多普勒" in s["description"])
    assert doppler["category"] is None
    assert "多普勒" in doppler["not_read"]
    assert doppler["probability_percent"] is None


def test_the_demonstration_on_phantoms(phantoms: Shown) -> None:
    assert_every_hop(phantoms.studies)
    assert_doppler_says_so(phantoms.studies)
    assert sum(study["expectation"] == "read" for study in phantoms.studies) >= 6
    assert "张*" in phantoms.printed
    assert "Zhang" not in phantoms.printed


def test_every_study_has_both_documents_in_the_archive(
    phantoms: Shown, archived: Sequence[bytes]
) -> None:
    held = {str(dcmread(BytesIO(file)).SOPInstanceUID) for file in archived}
    for study in phantoms.studies:
        assert study["ai_sr_uid"] in held
        assert study["verified_sr_uid"] in held


def test_the_judges_accept_every_object_in_the_archive(
    archived: Sequence[bytes], tmp_path: Path
) -> None:
    complaints: Counter[str] = Counter()
    for file in archived:
        path = tmp_path / "object.dcm"
        path.write_bytes(file)
        complaints.update(dciodvfy(path))
        if dcmread(path).Modality == "SR":
            complaints.update(dsrdump(path))
    assert complaints == Counter()


def test_the_demonstration_on_real_images(tmp_path: Path, samples: Path) -> None:
    studies = run_demo(tmp_path, SAMPLES=str(samples)).studies
    assert_every_hop(studies)
    assert_doppler_says_so(studies)
    real = [study for study in studies if "public set" in study["description"]]
    assert len(real) >= 6
    assert all(study["category"] is not None for study in real)
