"""Logs tell where something failed and never what it choked on."""

import json
import logging

import pytest
import structlog

from node.logs import configure_logging


def test_a_foreign_error_is_logged_by_type_and_place_without_its_text(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handlers = logging.getLogger().handlers
    try:
        configure_logging("info", "json")
        try:
            raise ValueError("Zhang^San")
        except ValueError:
            structlog.get_logger("test").exception("failed", job="7")
    finally:
        logging.getLogger().handlers = handlers
        structlog.reset_defaults()
    told = capfd.readouterr().err
    entry = json.loads(told.strip().splitlines()[-1])
    assert "Zhang" not in told
    assert entry["error_type"] == "ValueError"
    assert entry["passed"][0].startswith("test_logs.py:")
