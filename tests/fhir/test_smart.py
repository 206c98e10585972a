"""SMART App Launch 2.2, Backend Services: what proves a program, and what does not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from node.domain.access import Role
from node.store.store import Store
from tests.fhir.rig import drafted
from tests.fhir.smart_rig import SmartRig, jwks, running_smart

READ = "system/DiagnosticReport.rs"


@pytest.fixture
async def smart(store: Store) -> AsyncIterator[SmartRig]:
    """A live node with a drafted report, that gives tokens to programs."""
    async with running_smart(store, roles=(Role.RADIOLOGIST, Role.EHR)) as rig:
        await drafted(rig)
        yield rig


async def test_a_program_gets_a_token_that_opens_what_it_asked_for(
    smart: SmartRig,
) -> None:
    client = await smart.register()
    for kind in ("RSA", "EC"):
        status, body = await smart.ask_token(
            client, READ, smart.assertion(client, kind)
        )
        assert status == 200
        assert body["expires_in"] <= 300
        assert body["scope"] == READ
        token = body["access_token"]
        assert (await smart.with_token(token, "GET", smart.report_path)).status == 200
        assert (await smart.with_token(token, "GET", "/Patient")).status == 403
