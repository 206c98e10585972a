"""A client in JavaScript reads and writes here unmodified: fhir-kit-client."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from node.domain.access import Role
from tests.fhir.conformance.test_fhirpy import more_reports
from tests.fhir.rest.test_rest import make_ehr_patient
from tests.fhir.rig import Rig

PLACE = Path(__file__).parents[1] / "validators"
OUTCOME = "OperationOutcome"


@pytest.mark.skipif(
    shutil.which("node") is None or not (PLACE / "node_modules").exists(),
    reason="`make test` installs what stands in tests/fhir/validators",
)
async def test_fhir_kit_client_reads_writes_and_is_told_what_is_refused(
    rig: Rig,
) -> None:
    await more_reports(rig)
    environment = {
        **os.environ,
        "FHIR_BASE": rig.settings.base_url,
        "FHIR_TOKEN": rig.tokens[Role.EHR],
        "PATIENT": json.dumps(make_ehr_patient()),
    }
    process = await asyncio.create_subprocess_exec(
        "node", "kit.mjs", cwd=PLACE, env=environment, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    told = json.loads(out)
    assert told["fhirVersion"] == "4.0.1"
    assert (len(told["ids"]), len(set(told["ids"])), told["back"]) == (4, 4, 2)
    assert told["posted"] == ["DiagnosticReport", "Patient"]
    assert told["versions"] == ["1", "2", "3", "4"]
    assert (told["vread"], told["history"], told["typeHistory"]) == ("other", 4, 8)
    assert told["everything"] == 1
    assert told["batch"] == ["200 OK", "404 Not Found"]
    assert told["refused"] == {
        "transaction": [404, OUTCOME],
        "read": [404, OUTCOME],
        "delete": [405, OUTCOME],
        "compartment": [404, OUTCOME],
        "system": [405, OUTCOME],
    }
