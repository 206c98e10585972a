"""A caller is known for a moment, and no longer."""

from node.domain.access import Identity, Role
from node.http import HttpSettings
from node.known import KNOWN_FOR_S, KnownCallers

CALLER = Identity("7", frozenset({Role.EHR}), "EHR")


def test_who_was_recognised_is_known_for_a_second_at_most() -> None:
    now = [100.0]
    known = KnownCallers(KNOWN_FOR_S, lambda: now[0])
    known.keep("token", "bearer True", CALLER)
    assert known.find("token", "bearer True") is CALLER
    assert known.find("token", "bearer False") is None
    assert known.find("another", "bearer True") is None
    now[0] += 1.0
    assert known.find("token", "bearer True") is None


def test_signing_out_forgets_every_way_of_coming() -> None:
    known = KnownCallers(1.0, lambda: 0.0)
    for how in ("cookie True", "cookie False"):
        known.keep("token", how, CALLER)
    known.forget("token")
    assert known.find("token", "cookie True") is None
    assert known.find("token", "cookie False") is None


def test_nobody_is_remembered_unless_it_is_set() -> None:
    known = KnownCallers(HttpSettings().known_for_s, lambda: 0.0)
    known.keep("token", "cookie True", CALLER)
    assert known.find("token", "cookie True") is None
