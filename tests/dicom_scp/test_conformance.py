"""The conformance statement says what the code does (PS3.2)."""

from pathlib import Path

import pytest

from dicom_scp.conformance import main, tables, updated

STATEMENT = Path(__file__).parents[2] / "docs" / "conformance-statement.md"


def test_the_statement_has_every_table_as_the_code_makes_it() -> None:
    text = STATEMENT.read_text(encoding="utf-8")
    assert updated(text) == text, (
        "run: python -m dicom_scp.conformance --write docs/conformance-statement.md"
    )
    for name, table in tables().items():
        assert f"<!-- table {name} -->\n\n{table}\n<!-- end -->" in text


def test_the_tables_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "Ultrasound Multi-frame Image Storage" in printed
    assert "tries again" in printed
