"""Fixtures of the FHIR side: a live server, with a drafted report in it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from node.domain.access import Role
from node.store.store import Store
from tests.fhir import judges
from tests.fhir.rig import Rig, drafted, running_fhir


@pytest.fixture(scope="session", autouse=True)
def what_was_answered_is_judged() -> Iterator[None]:
    """After the last test: whatever was answered is taken by all judges."""
    yield
    if judges.installed() and judges.HEARD.bodies:
        assert judges.faults(judges.HEARD.bodies) == []


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
