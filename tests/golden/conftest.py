"""Fixtures of the golden tests: a live server, an empty relay database."""

from tests.fhir.conftest import empty_rig, rig
from tests.wechat.conftest import relay_database, relay_dsn

__all__ = ["empty_rig", "relay_database", "relay_dsn", "rig"]
