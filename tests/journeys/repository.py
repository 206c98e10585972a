"""The hospital's report repository, as far as a sender sees it (IHE RAD-141)."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.conformance.judges import fhirkit
from tests.journeys.rig import HOST, Json


@dataclass
class Repository:
    """What it was sent, in order; `faults` is what is wrong with that."""

    port: int = 0
    bundles: list[Json] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of a node that sends here."""
        table = {"name": "hospital", "url": f"http://{HOST}:{self.port}/fhir"}
        return {"FHIR__REPOSITORIES": json.dumps([table])}

    def versions_of(self, report_id: str) -> list[Json]:
        """Return the DiagnosticReports that came of a report, in order."""
        return [
            entry["resource"]
            for bundle in list(self.bundles)
            for entry in bundle["entry"]
            if entry["resource"]["resourceType"] == "DiagnosticReport"
            and report_id in {i["value"] for i in entry["resource"]["identifier"]}
        ]

    def take(self, body: bytes) -> bytes:
        self.faults += fhirkit(body)
        bundle = json.loads(body)
        self.bundles.append(bundle)
        entries = [
            {"response": {"status": "201 Created", "location": f"X/{number}"}}
            for number, _ in enumerate(bundle["entry"])
        ]
        told = {"resourceType": "Bundle", "type": "transaction-response"}
        return json.dumps(told | {"entry": entries}).encode()


@contextmanager
def running_repository() -> Iterator[Repository]:
    """Serve a repository on a port of its own."""
    repository = Repository()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = repository.take(
                self.rfile.read(int(self.headers["Content-Length"]))
            )
            self.send_response(200)
            self.send_header("Content-Type", "application/fhir+json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing: the log of a test is the node's."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    repository.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield repository
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
