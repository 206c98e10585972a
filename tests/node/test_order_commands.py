"""Orders by hand: `python -m node order`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer import Typer

from node.domain.errors import NodeError
from node.order_commands import cli
from tests.dicom_scp.web.test_orders import ORDER
from tests.node.conftest import Run


@pytest.fixture
def run(installed: Callable[[Typer], Run]) -> Run:
    """Return the command on an installation of its own."""
    return installed(cli)


def test_an_order_is_added_listed_and_cancelled(run: Run) -> None:
    body = json.dumps({**ORDER, "scheduled_start": "2026-11-22T09:30"})
    added = run("add", "-", input=body)
    assert added.exit_code == 0, added.output
    order = re.findall(r"[0-9a-f-]{36}", added.stdout)[-1]
    assert f"{order}: place" in added.stdout
    assert f"{order}: repeat" in run("add", "-", input=body).stdout
    listed = run("list", "--date", "2026-11-22").stdout
    for told in (order, "2026-11-22 09:30:00", "MRN-1", "ACC-1", "US1", "SCHEDULED"):
        assert told in listed
    assert "Wang" not in listed
    assert "cancelled" in run("cancel", order).stdout
    assert order not in run("list", "--date", "2026-11-22").stdout
    assert "is of its patient" in run("conflicts").stdout


def test_a_wrong_order_is_one_line(run: Run, tmp_path: Path) -> None:
    missing = run("add", str(tmp_path / "nowhere.json"))
    assert isinstance(missing.exception, NodeError)
    assert "is no JSON file" in str(missing.exception)
    wrong = run("add", "-", input=json.dumps(ORDER | {"accession_number": ""}))
    assert str(wrong.exception) == "accession_number is missing"
