"""Report repositories in the settings, and who sends to them."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from config.settings import SettingsError, load_settings
from fhir.multimedia.owed import STORE_REPORT
from node.domain.errors import ErrorKind, NodeError
from node.parts import fhir_settings_of
from node.repositories import bury_unwanted, repositories_of
from node.store.store import Store

GOOD = {"name": "hospital", "url": "https://reports.hospital/fhir"}


def load(folder: Path, *tables: dict[str, Any]) -> Any:
    told = {
        "SONONODE_DATA": str(folder),
        "SONONODE_RELAY__ENABLED": "false",
        "SONONODE_FHIR__REPOSITORIES": json.dumps(tables),
    }
    return load_settings(told)


def test_a_repository_is_told_as_the_settings_say(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    tables = (
        {**GOOD, "format": "xml", "patient": "address", "token_file": "token"},
        {"name": "clinic", "url": "http://127.0.0.1:1/fhir"},
    )
    settings = load(tmp_path, *tables)
    first, second = repositories_of(settings).values()
    assert (first.xml, first.search_patient) == (True, False)
    assert first.authorize() == "Bearer secret"
    assert (second.xml, second.search_patient, second.authorize()) == (False, True, "")
    assert fhir_settings_of(settings).repositories == ("hospital", "clinic")
    assert "secret" not in repr(first)


@pytest.mark.parametrize(
    ("tables", "fault"),
    [
        ([{**GOOD, "name": ""}], r"\[1\].name"),
        ([GOOD, GOOD], r"\[2\].name"),
        ([{**GOOD, "url": "reports.hospital"}], r"\[1\].url"),
        ([{**GOOD, "format": "ndjson"}], r"\[1\].format"),
        ([{**GOOD, "patient": "name"}], r"\[1\].patient"),
        ([{**GOOD, "certificate": "a.pem"}], r"\[1\].key"),
    ],
)
def test_a_fault_names_the_setting(
    tmp_path: Path, tables: list[dict[str, Any]], fault: str
) -> None:
    with pytest.raises(SettingsError, match=fault):
        load(tmp_path, *tables)


def test_a_certificate_that_cannot_be_used_is_told_before_anything_starts(
    tmp_path: Path,
) -> None:
    settings = load(tmp_path, {**GOOD, "trusted": "none.pem"})
    with pytest.raises(NodeError) as caught:
        repositories_of(settings)
    assert caught.value.kind is ErrorKind.SETTING


async def test_what_waits_for_a_repository_that_is_gone_is_shown(
    store: Store, tmp_path: Path
) -> None:
    known = repositories_of(load(tmp_path, GOOD))
    async with store.db.transaction() as tx:
        for name in ("hospital", "closed"):
            payload = {"report_id": str(uuid4()), "version": 2, "repository": name}
            await store.jobs.defer(tx, STORE_REPORT, payload, key=name, lane=name)
    await bury_unwanted(store, known)
    async with store.db.transaction() as tx:
        (dead,) = await store.jobs.dead(tx)
    assert dead.payload["repository"] == "closed"
