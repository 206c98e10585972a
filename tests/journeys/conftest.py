"""One running node that all journeys of a test process share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.repository import Repository, running_repository
from tests.journeys.rig import Caller, Installation, running_wechat


@pytest.fixture(scope="session")
def repository() -> Iterator[Repository]:
    """Where the node sends what was signed."""
    with running_repository() as running:
        yield running
        assert running.faults == []


@pytest.fixture(scope="session")
def node(
    tmp_path_factory: pytest.TempPathFactory, repository: Repository
) -> Iterator[Installation]:
    """A node with all its processes. Tests may use it and must not stop it."""
    folder = tmp_path_factory.mktemp("installation")
    installation = Installation(folder, repository.settings)
    with running_wechat(installation):
        try:
            installation.start()
            installation.add_user("li", "radiologist", "Li^Ming=李^明")
            installation.add_user("his", "ehr", "hospital information system")
            installation.add_user("audit", "auditor", "auditor")
            yield installation
            assert installation.stop() == 0, installation.tail()
        finally:
            for process in installation.processes():
                process.kill()


@pytest.fixture(scope="session")
def doctor(node: Installation) -> Caller:
    return node.caller("li")


@pytest.fixture(scope="session")
def ehr(node: Installation) -> Caller:
    return node.caller("his")


@pytest.fixture
def ci_output() -> Path:
    """Where pictures and tables go that people look at."""
    folder = Path(__file__).parents[2] / "ci-output" / "journeys"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
