"""What `doctor` says of an installation, as far as only whole archives show it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from node.administration import Finding, examine
from node.store.store import Store
from tests.agreements import KEPT, compared_reports, record_all

NOW = datetime(2026, 11, 21, 8, tzinfo=UTC)
WHAT = "agreement of AI and doctors"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        {
            "SONONODE_DATA": str(tmp_path),
            "SONONODE_INFERENCE__AGREEMENT_WINDOW": "60",
        }
    )


async def told(store: Store, settings: Settings) -> list[Finding]:
    found = await examine(store, settings)
    return [finding for finding in found if finding.what == WHAT]


async def test_doctor_says_when_agreement_has_changed(
    store: Store, settings: Settings
) -> None:
    assert await told(store, settings) == []
    before = NOW - timedelta(days=30)
    await record_all(store, compared_reports(100, ends=before, seed=1))
    (early,) = await told(store, settings)
    assert early.well
    assert "100 signed reports compared, too few" in early.told
    await record_all(
        store,
        compared_reports(80, ends=NOW, seed=2, kept={**KEPT, "orientation": 0.5}),
    )
    (alarm,) = await told(store, settings)
    assert not alarm.well
    assert "changed in orientation;" in alarm.told
