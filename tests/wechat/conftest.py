"""Fixtures of the patient channel: a relay over its own database, a fake WeChat."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.wechat.rig import Bench, Rig, push_bench, running_rig


@pytest.fixture
def relay_dsn(empty_database: str) -> str:
    """The DSN of the relay's own database, still without a table."""
    return empty_database


@pytest.fixture
async def rig(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """A running relay on an empty database."""
    async with running_rig(relay_dsn, tmp_path) as made:
        yield made


@pytest.fixture
async def bench(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A push worker that the test drives step by step."""
    async with push_bench(relay_dsn, tmp_path) as made:
        yield made


@pytest.fixture
async def hurried_bench(relay_dsn: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A push worker that waits half a second for WeChat, for calls that hang."""
    async with push_bench(relay_dsn, tmp_path, timeout_s=0.5) as made:
        yield made
