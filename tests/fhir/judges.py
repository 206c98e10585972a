"""Other people's validators, which judge what the node has answered.

@medplum/core also judges by our own StructureDefinitions, npm `fhir` by required
bindings, the JSON schema by formats; fhirkit-rs has judged each body on arrival
(`tests.fhir.rig`). One process of Node judges all bodies at once.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from fhir.conformance.definitions import definitions
from fhir.encoding.wire import to_bytes

_FOLDER = Path(__file__).with_name("validators")
_NODE = shutil.which("node")
# What a validator says of good resources, and why it is wrong or no fault.
FALSE_ALARMS = (
    # Its copies of value sets are parts; bindings that are not required are free.
    ("fhir", r"^info: Value set .* could not be found"),
    ("fhir", r"^warning: Code .* not found in value set"),
)
Fault = tuple[str, str, str, str]


def installed() -> bool:
    """Tell whether the judges are here."""
    return _NODE is not None and (_FOLDER / "node_modules" / "ajv").exists()


def require_judges() -> None:
    """Skip the test where the judges are not installed."""
    if not installed():
        pytest.skip("tests/fhir/validators is not installed: make test does")


def faults(bodies: Iterable[bytes]) -> list[Fault]:
    """Return (validator, type, path, message) of what is wrong with bodies."""
    heard = b",".join(bodies)
    ours = to_bytes(list(definitions("0.1.0").values()))
    judged = subprocess.run(
        [str(_NODE), str(_FOLDER / "judge.mjs")],
        input=b'{"definitions":%b,"bodies":[%b]}' % (ours, heard),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert judged.returncode == 0, judged.stderr.decode()[-2000:]
    types = [one["resourceType"] for one in orjson.loads(b"[" + heard + b"]")]
    return [
        (validator, types[index], path, message)
        for validator, index, path, message in json.loads(judged.stdout)
        if not any(
            validator == who and re.search(words, message)
            for who, words in FALSE_ALARMS
        )
    ]


class Heard:
    """Keeps one body of each shape that a server has answered: few stand for many."""

    def __init__(self) -> None:
        self._shapes: set[int] = set()
        self.bodies: list[bytes] = []

    def hear(self, raw: bytes) -> None:
        """Keep a resource, unless the like of it was heard before."""
        body = orjson.loads(raw) if raw.startswith(b"{") else {}
        if "resourceType" not in body:
            return  # XML, which says the same, or no FHIR
        entries = body.get("entry", []) if body["resourceType"] == "Bundle" else []
        fresh = [entry for entry in entries if self._is_new(entry)]
        # Bundles differ in what is in them; what was judged in another is left out.
        if self._is_new({**body, "entry": entries[:1]}) or fresh:
            if entries:
                raw = orjson.dumps({**body, "entry": fresh or entries[:1]})
            self.bodies.append(raw)

    def _is_new(self, value: Any) -> bool:
        shape = hash(frozenset(_paths(value, "")))
        known = shape in self._shapes
        self._shapes.add(shape)
        return not known


# What the servers of all FHIR tests of this process have answered.
HEARD = Heard()
# Values that decide how the rest is to be: as much a part of the shape as names.
_TELLING = frozenset({"resourceType", "type", "status", "url", "name", "code"})


def _paths(value: Any, path: str) -> Iterable[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _paths(one, f"{path}.{key}")
            if key in _TELLING and isinstance(one, str) and len(one) < 80:
                yield f"{path}.{key}={one}"
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one, path)
    else:
        yield path
