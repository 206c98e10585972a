"""Fixtures of the golden tests: quick passwords and an empty relay database."""

from tests.fhir.conftest import quick_passwords
from tests.wechat.conftest import relay_database, relay_dsn

__all__ = ["quick_passwords", "relay_database", "relay_dsn"]
