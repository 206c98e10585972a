"""A fresh installation for each module that breaks it, gone with everything below."""

from collections.abc import Iterator

import psutil
import pytest

from tests.journeys.rig import Installation, running_wechat


@pytest.fixture(scope="module")
def installation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation that is not started yet; SETTINGS of the module apply."""
    settings = getattr(request.module, "SETTINGS", {})
    node = Installation(tmp_path_factory.mktemp("installation"), settings)
    with running_wechat(node):
        try:
            yield node
        finally:
            end(node)


@pytest.fixture(scope="module")
def node(installation: Installation) -> Installation:
    """The installation, running, with a doctor and a hospital system."""
    installation.start()
    installation.add_user("li", "radiologist", "Li^Ming=李^明")
    installation.add_user("his", "ehr", "hospital information system")
    return installation


def end(node: Installation) -> None:
    """End the node and whatever a killed supervisor may have left of it."""
    if node.supervisor is not None:
        node.supervisor.kill()
        node.supervisor.wait()
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("SONONODE_DATA") == str(node.data)
            if ours or process.cwd().startswith(str(node.data)):
                process.kill()
        except psutil.Error:
            continue
