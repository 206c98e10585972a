"""The whole way of a study: seconds from its last C-STORE response to each result."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench.peers import ROOT, free_port

STEPS = {
    "report_s": "report readable over FHIR",
    "ai_sr_s": "AI SR stored",
    "signed_sr_s": "verified SR stored (signed by a script at once)",
    "delivered_s": "message at the patient's phone",
}


def measure(folder: Path) -> list[dict[str, object]]:
    """Run the demonstration on a fresh node; return a row for each step."""
    file = folder / "demo.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SONONODE_DATA": str(folder / "data"),
        "SONONODE_DICOM__PORT": str(free_port()),
        "SONONODE_HTTP__PORT": str(free_port()),
    }
    port = free_port()
    environment |= {
        "SONONODE_RELAY__PORT": str(port),
        "SONONODE_RELAY__URL": f"http://127.0.0.1:{port}",
    }
    command = [sys.executable, "-m", "node", "demo", "--once", "--json", str(file)]
    with (folder / "demo.txt").open("wb") as log:
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
        )
    if not file.exists():
        raise SystemExit(
            f"bench: the demonstration ended with {ended.returncode};"
            f" see {folder}/demo.txt"
        )
    studies = json.loads(file.read_text(encoding="utf-8"))["studies"]
    return [_row(step, words, studies) for step, words in STEPS.items()]


def _row(step: str, words: str, studies: list[dict[str, object]]) -> dict[str, object]:
    """Missing is told as missing: a study that never arrived has no seconds."""
    seconds = [float(str(s[step])) for s in studies if s.get(step) is not None]
    return {
        "step": words,
        "studies": f"{len(seconds)} of {len(studies)}",
        "median s": round(statistics.median(seconds), 2) if seconds else "-",
        "slowest s": round(max(seconds), 2) if seconds else "-",
    }
