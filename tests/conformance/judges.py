"""Other people's tools, asked about one object: what they object to, as lines.

dicom3tools' dciodvfy judges the information object, DCMTK's dsrdump the content
tree, fhirkit a FHIR resource. A judge that is not installed skips the test that
asked, with the reason.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Terms of our private scheme are unknown to everybody, which is what private means.
OWN_SCHEME = re.compile(r"99SONONODE|2\.25\.302567410295148372091187634512093847561")
# An empty side draws a warning even where it "is actually unknown", as the text has it.
UNKNOWN_SIDE = "Laterality(0020,0060)> - is only permitted to be empty when"
TIMEOUT_S = 60


def dciodvfy(path: Path) -> list[str]:
    """Return what `dciodvfy -new` objects to, but for the two excuses above."""
    told = _run([_tool("dciodvfy"), "-new", str(path)])
    output = told.stderr + told.stdout
    lines = [
        line
        for line in output.splitlines()
        if line.startswith(("Error", "Warning"))
        and not OWN_SCHEME.search(line)
        and UNKNOWN_SIDE not in line
    ]
    crashed = told.returncode < 0
    return [
        *lines,
        *([f"dciodvfy died by signal {-told.returncode}"] if crashed else []),
    ]


def dsrdump(path: Path) -> list[str]:
    """Return the complaints of dsrdump; nothing when it reads the document."""
    told = _run([_tool("dsrdump"), "+Pn", str(path)])
    if told.returncode:
        return [f"dsrdump ended with {told.returncode}", *told.stderr.splitlines()]
    return [line for line in told.stderr.splitlines() if line.startswith(("E:", "F:"))]


def fhirkit(body: bytes | str | dict[str, Any]) -> list[str]:
    """Return the errors of fhirkit's validator for one R4 resource."""
    judge = pytest.importorskip("fhirkit", reason="fhirkit-rs is not installed")
    return [str(i) for i in judge.validate(body) if i.severity == "error"]


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def dcmtk(program: str) -> str:
    """Return a program of DCMTK; pynetdicom brings others of the same names."""
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    found = shutil.which(program, path=path)
    if found is None:
        pytest.skip("DCMTK is not installed")
    return found


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace"
    )
