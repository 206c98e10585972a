"""`make demo ARGS="--once --json FILE"`: every study takes every hop, and it says so.

Once on phantoms, which everybody has, and once on real images where there are any.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.journeys.rig import EXPORTS, HOST, ROOT
from tests.ports import free_port

LIMIT_S = 180.0
PATIENCE_S = 400.0  # the machine may be testing something else beside it


def run_demo(folder: Path, samples: Path | None) -> tuple[str, list[dict[str, Any]]]:
    """Run the demonstration to its end; return what it printed and its table."""
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
        **({"SAMPLES": str(samples)} if samples else {}),
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
    studies: list[dict[str, Any]] = json.loads(table.read_text("utf-8"))["studies"]
    return done.stdout, studies


def assert_every_hop(studies: list[dict[str, Any]]) -> None:
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


def assert_doppler_says_so(studies: list[dict[str, Any]]) -> None:
    refused = [study for study in studies if study["expectation"] == "not_read"]
    doppler = next(s for s in refused if "多普勒" in s["description"])
    assert doppler["category"] is None
    assert "多普勒" in doppler["not_read"]
    assert doppler["probability_percent"] is None


def test_the_demonstration_on_phantoms(tmp_path: Path) -> None:
    started = time.monotonic()
    printed, studies = run_demo(tmp_path, None)
    assert_every_hop(studies)
    assert_doppler_says_so(studies)
    assert sum(study["expectation"] == "read" for study in studies) >= 6
    assert "张*" in printed
    assert "Zhang" not in printed
    print(f"\n{len(studies)} studies, {time.monotonic() - started:.0f} s in all")


def test_the_demonstration_on_real_images(tmp_path: Path, samples: Path) -> None:
    _, studies = run_demo(tmp_path, samples)
    assert_every_hop(studies)
    assert_doppler_says_so(studies)
    real = [study for study in studies if "public set" in study["description"]]
    assert len(real) >= 6
    assert all(study["category"] is not None for study in real)
