"""`docs/bad-input.md` names a test for each of its rows, and that test exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = (TESTS.parent / "docs" / "bad-input.md").read_text("utf-8")
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_shown_by_a_test(row: str) -> None:
    *cells, shown_by = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 4
    assert all(cells)
    found = re.fullmatch(r"`(.+\.py)::(test_\w+)`", shown_by)
    assert found is not None
    assert f"def {found[2]}(" in (TESTS / found[1]).read_text("utf-8")
