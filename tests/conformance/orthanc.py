"""An Orthanc of the test's own, on ports of its own, in a directory of its own."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.ports import free_port

START_S = 60.0


def program() -> str | None:
    """Return where Orthanc is, None where it is not installed."""
    return shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")


class Orthanc:
    """Starts the archive; `wait` until it answers, `kill` it in the end."""

    def __init__(self, folder: Path, *, plugins: Sequence[Path] = ()) -> None:
        installed = program()
        if installed is None:
            pytest.skip("Orthanc is not installed")
        self.http, self.dicom = free_port(), free_port()
        self._log = folder / "orthanc.log"
        configuration = folder / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "Plugins": [str(plugin) for plugin in plugins],
                    "HttpPort": self.http,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAet": "ORTHANC",
                    "DicomPort": self.dicom,
                    "DicomCheckCalledAet": True,
                }
            )
        )
        self._command = [installed, str(configuration)]
        self.start()

    def start(self) -> None:
        """Start it, again if need be, on what it has stored."""
        with self._log.open("ab") as written:
            self.process = subprocess.Popen(
                self._command,
                stdout=written,
                stderr=written,
                env={**os.environ, "TCP_NODELAY": "1"},
            )

    def kill(self) -> None:
        """End it at once, whatever it is doing: asked politely it takes seconds."""
        self.process.kill()
        self.process.wait(timeout=60)

    def wait(self) -> None:
        """Return when it answers; fail the test when it does not, with what it said.

        It is the judge here: one that ends before it answers is started once more.
        """
        if not self._answers():
            self.kill()
            self.start()
            if not self._answers():
                said = self._log.read_text("utf-8", "replace")[-3000:]
                pytest.fail(f"Orthanc does not answer:\n{said}")

    def _answers(self) -> bool:
        until = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < until:
            try:
                return bool(self.get("/system"))
            except OSError:
                time.sleep(0.05)
        return False

    def get(self, path: str, body: bytes | None = None) -> bytes:
        """Return what its REST API answers."""
        url = f"http://127.0.0.1:{self.http}{path}"
        with urllib.request.urlopen(url, data=body, timeout=60) as response:
            return bytes(response.read())

    def put(self, path: str, body: object) -> None:
        """Set something in its REST API; what is no text goes as JSON."""
        told = body if isinstance(body, str) else json.dumps(body)
        url = f"http://127.0.0.1:{self.http}{path}"
        request = urllib.request.Request(url, told.encode(), method="PUT")
        with urllib.request.urlopen(request, timeout=60):
            pass

    def file(self, sop_instance_uid: str) -> bytes:
        """Return the Part 10 file of an instance."""
        query = {"Level": "Instance", "Query": {"SOPInstanceUID": sop_instance_uid}}
        found = json.loads(self.get("/tools/find", json.dumps(query).encode()))
        assert len(found) == 1
        return self.get(f"/instances/{found[0]}/file")

    def files(self) -> list[bytes]:
        """Return everything it holds."""
        return [
            self.get(f"/instances/{name}/file")
            for name in json.loads(self.get("/instances"))
        ]
