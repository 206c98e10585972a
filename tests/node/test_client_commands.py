"""Programs of other systems by hand: `python -m node client`."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer import Typer

from node.client_commands import cli
from node.domain.errors import NodeError
from tests.fhir.smart_rig import jwks
from tests.node.conftest import Run


@pytest.fixture
def run(installed: Callable[[Typer], Run], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return the command on an installation of its own."""
    monkeypatch.setenv("SONONODE_FHIR__KEY_HOSTS", "his.test")
    return installed(cli)


def test_a_program_is_registered_listed_given_other_keys_and_shut(
    run: Run, tmp_path: Path
) -> None:
    keys = tmp_path / "his.jwks"
    keys.write_text(jwks("EC"))
    scope = ("--scope", "system/DiagnosticReport.rs?status=final")
    added = run("add", "HIS", "--role", "ehr", *scope, "--jwks", str(keys))
    assert added.exit_code == 0, added.output
    client = re.findall(r"[0-9a-f-]{36}", added.stdout)[-1]
    listed = run("list").stdout
    for told in (client, "HIS", "ehr", "status=final", "registered", "active"):
        assert told in listed
    uri = "https://his.test/jwks"
    assert "new keys" in run("rotate", client, "--jwks-uri", uri).stdout
    assert uri in run("list").stdout
    assert "disabled" in run("disable", client).stdout
    assert "disabled" in run("list").stdout


def test_what_people_left_is_listed_and_the_signing_key_is_renewed(run: Run) -> None:
    people = ("--scope", "user/*.rs", "--scope", "offline_access")
    back = ("--redirect-uri", "https://app.test/back")
    added = run("add", "App", *people, *back, "--launch-url", "https://app.test/go")
    assert added.exit_code == 0, added.output
    assert "grant_id" in run("grants").stdout
    assert str(run("end-grant", "x").exception) == "no such grant"
    made = [run("new-signing-key", *more).stdout for more in ((), ("--drop",))]
    assert made[0].startswith("signing with ")
    assert made[0] != made[1]
    odd = run("add", "App", *people, *back, "--launch-url", "http://app.test/go")
    assert "a launch address is https" in str(odd.exception)


def test_what_is_wrong_with_a_registration_is_one_line(
    run: Run, tmp_path: Path
) -> None:
    scope = ("--role", "ehr", "--scope", "system/DiagnosticReport.rs")
    missing = run("add", "HIS", *scope, "--jwks", str(tmp_path / "nowhere"))
    assert isinstance(missing.exception, NodeError)
    elsewhere = run("add", "HIS", *scope, "--jwks-uri", "https://evil.test/")
    assert str(elsewhere.exception) == "jwks_uri: https, and its host in fhir.key_hosts"
    assert "keys and a role" in str(run("add", "HIS", *scope).exception)
    assert str(run("disable", "HIS").exception) == "no such client"
