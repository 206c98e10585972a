"""What every command starts from: the settings of this installation, and its store."""

import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from config.settings import Settings, load_settings
from node.logs import configure_logging

if TYPE_CHECKING:
    from node.store.store import Store

T = TypeVar("T")


def read_settings() -> Settings:
    """Return the settings, with the log as they want it."""
    settings = load_settings(os.environ)
    configure_logging(settings.log.level, settings.log.format)
    return settings


def with_store(settings: Settings, work: "Callable[[Store], Awaitable[T]]") -> T:
    """Run `work` on the store of the installation and return what it returns."""
    # Most of the node hangs on it: a command that only tells its options does without.
    from node.administration import with_store as run

    return run(settings, work)
