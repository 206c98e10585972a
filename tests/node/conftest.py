"""An installation for the tests of commands: a folder, a key and a database."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from node.store.keys import create_root_key

Run = Callable[..., Result]


@pytest.fixture
def installed(
    new_database: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Typer], Run]:
    """Return what runs the commands of a group on a new installation."""
    (tmp_path / "keys").mkdir()
    create_root_key(tmp_path / "keys" / "root.key")
    monkeypatch.setenv("SONONODE_DATA", str(tmp_path))
    monkeypatch.setenv("SONONODE_DATABASE__URL", new_database())
    monkeypatch.setenv("COLUMNS", "200")

    def commands(cli: Typer) -> Run:
        return lambda *words, **options: CliRunner().invoke(cli, list(words), **options)

    return commands
