"""The table of permissions, walked whole: what is not granted is refused."""

import pytest

from node.domain.access import PERMISSIONS, Action, Identity, Role
from node.domain.errors import ErrorKind, NodeError


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("action", list(Action))
def test_every_role_may_do_exactly_what_the_table_grants(
    role: Role, action: Action
) -> None:
    caller = Identity("u1", frozenset({role}), "Dr Li")
    if action in PERMISSIONS[role]:
        caller.require(action)
    else:
        with pytest.raises(NodeError) as caught:
            caller.require(action)
        assert caught.value.kind is ErrorKind.FORBIDDEN


def test_only_physicians_sign() -> None:
    signers = {r for r in Role if Action.SIGN_REPORT in PERMISSIONS[r]}
    assert signers == {Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST}


def test_people_see_masked_identities_and_machines_whole_ones() -> None:
    seeing = {r for r in Role if Identity("u", frozenset({r}), "x").sees_identity}
    assert seeing == {Role.EHR, Role.PACS}


def test_a_caller_without_roles_may_do_nothing() -> None:
    assert not any(Identity("u", frozenset(), "x").may(a) for a in Action)


@pytest.mark.parametrize(
    ("display", "shown"),
    [
        ("Li^Ming=李^明", "李明"),
        ("Garcia^Maria", "Garcia Maria"),
        ("=欧阳^敏", "欧阳敏"),
        ("Li^Ming=", "Li Ming"),
        ("wang 医生", "wang 医生"),
        ("hospital information system", "hospital information system"),
    ],
)
def test_a_professional_is_shown_as_people_write_her_name(
    display: str, shown: str
) -> None:
    assert Identity("u", frozenset(), display).shown == shown
