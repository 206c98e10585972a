"""A live node, a relay that listens, and what calls it."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fhir.subscriptions.delivery import Dispatcher
from tests.conftest import FrozenClock
from tests.factories import make_findings, make_patient
from tests.fhir.rig import publish_draft, receive_study, running_fhir
from tests.fhir.subscriptions.rig import ROLES, Channel, running_hook


@pytest.fixture
async def channel(store: Any, clock: FrozenClock) -> AsyncIterator[Channel]:
    """A live node with a drafted report of category 2 and a relay that listens."""
    async with (
        running_hook() as hook,
        running_fhir(store, roles=ROLES, relay_url=hook.url) as rig,
        aiohttp.ClientSession() as session,
    ):
        await receive_study(store, make_patient())
        rig.report = await publish_draft(
            store, rig.settings, findings=make_findings("2")
        )
        yield Channel(
            rig, hook, clock, Dispatcher(store, rig.settings, session, session)
        )
