"""Stored versions come back as the same values, decimals exact."""

import json
from decimal import Decimal

import pytest

from node.domain.errors import NodeError
from node.domain.finding import HeatMap, NotRead
from node.domain.report import Conclusions, ReportStatus
from node.domain.serial import version_from_json, version_to_json
from tests.factories import DOCTOR, NOW, make_draft, make_findings


def test_a_version_survives_json_unchanged() -> None:
    findings = make_findings(
        "4C",
        not_read=(NotRead("2.25.9", "doppler", "彩色多普勒", "Colour Doppler"),),
        heat_maps=(HeatMap("2.25.1001", "2.25.77"),),
    )
    version = (
        make_draft()
        .revise(
            ReportStatus.FINAL,
            findings,
            Conclusions("impression", "short", "advice", "summary"),
            author=DOCTOR,
            at=NOW,
        )
        .current
    )
    text = json.dumps(version_to_json(version))
    assert version_from_json(json.loads(text)) == version
    assert version.findings.lesions[0].probability == Decimal("0.873")


def test_a_form_of_a_newer_program_is_refused() -> None:
    value = version_to_json(make_draft().current) | {"form": 2}
    with pytest.raises(NodeError, match="newer"):
        version_from_json(value)
