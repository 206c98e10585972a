"""Fixtures of the FHIR side: a live server, with a drafted report in it."""

from collections.abc import AsyncIterator

import pytest

from node.domain.access import Role
from node.store.store import Store
from tests.fhir.rig import Rig, drafted, running_fhir

ROLES = (Role.RADIOLOGIST, Role.EHR)


@pytest.fixture
async def empty_rig(store: Store) -> AsyncIterator[Rig]:
    """A live /fhir with nothing in it."""
    async with running_fhir(store, roles=ROLES) as rig:
        yield rig


@pytest.fixture
async def rig(empty_rig: Rig) -> Rig:
    """A live /fhir with one drafted report of category 4C."""
    return await drafted(empty_rig)
