"""Accounts, sessions and desk codes; secrets are stored as hashes only."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from argon2 import PasswordHasher

from node.domain.access import Action, Role
from node.domain.errors import ErrorKind, NodeError
from node.store import people
from node.store.people import SessionKind

PASSWORD = "correct horse battery"
DECOY = people._DECOY  # as a node has it: tests have a quicker one


async def _doctor(tx, clock, login="wang", roles=(Role.RADIOLOGIST,)):
    return await people.create_user(
        tx, login=login, password=PASSWORD, display="Wang", roles=roles, now=clock()
    )


async def test_an_account_opens_with_its_password_however_its_login_is_typed(
    store, clock
):
    async with store.db.transaction() as tx:
        made = await _doctor(tx, clock)
        for typed in ("wang", " WANG ", "ｗａｎｇ"):
            assert await people.check_password(tx, typed, PASSWORD) == made
    assert made.identity.may(Action.SIGN_REPORT)
    assert made.practitioner_id is not None


async def test_a_stranger_a_wrong_password_and_a_closed_account_look_alike(
    store, clock
):
    messages = set()
    async with store.db.transaction() as tx:
        await _doctor(tx, clock)
        await _doctor(tx, clock, login="gone")
        await people.disable_user(tx, "gone", now=clock())
        for login, password in (("x", PASSWORD), ("wang", "no"), ("gone", PASSWORD)):
            with pytest.raises(NodeError) as refused:
                await people.check_password(tx, login, password)
            assert refused.value.kind is ErrorKind.UNAUTHENTICATED
            messages.add(refused.value.message)
    assert len(messages) == 1


def test_the_decoy_costs_as_much_as_a_real_hash():
    assert not PasswordHasher().check_needs_rehash(DECOY)


async def test_an_account_needs_a_role_a_free_login_and_a_long_password(store, clock):
    async with store.db.transaction() as tx:
        await _doctor(tx, clock)
    faults = {
        ErrorKind.CONFLICT: {"login": "WANG"},
        ErrorKind.INVALID: {"password": "short"},
    }
    for kind, change in faults.items():
        wanted = {"login": "li", "password": PASSWORD, **change}
        with pytest.raises(NodeError) as refused:
            async with store.db.transaction() as tx:
                await people.create_user(
                    tx, **wanted, display="L", roles=[Role.EHR], now=clock()
                )
        assert refused.value.kind is kind
    with pytest.raises(NodeError):
        async with store.db.transaction() as tx:
            await _doctor(tx, clock, login="li", roles=())


async def test_no_token_stands_in_the_database(store, clock):
    async with store.db.transaction() as tx:
        user = await _doctor(tx, clock)
        token = await people.open_session(tx, user, SessionKind.COOKIE, now=clock())
        binding, code = await people.create_binding(
            tx,
            patient_id=uuid4(),
            id_number="33010219900101123X",
            created_by=user.user_id,
            now=clock(),
        )
        rows = await tx.fetch("select s::text from sessions s")
        rows += await tx.fetch("select b::text from bindings b")
    stored = str([row[0] for row in rows])
    for secret in (token, code, "123X", PASSWORD):  # X is in no random hexadecimal
        assert secret.encode().hex() not in stored
        assert secret not in stored
    assert binding.check_code == people.check_code(code, "…123X")


async def test_closing_an_account_or_a_new_password_ends_its_sessions(store, clock):
    async with store.db.transaction() as tx:
        user = await _doctor(tx, clock)
        token = await people.open_session(tx, user, SessionKind.COOKIE, now=clock())
        await people.set_password(tx, "wang", "another long password")
        with pytest.raises(NodeError):
            await people.read_session(tx, token, SessionKind.COOKIE, now=clock())
        await people.check_password(tx, "wang", "another long password")


async def test_a_bearer_session_lasts_fifteen_minutes_and_no_use_prolongs_it(
    store, clock
):
    async with store.db.transaction() as tx:
        user = await _doctor(tx, clock)
        token = await people.open_session(tx, user, SessionKind.BEARER, now=clock())
        clock.advance(seconds=14 * 60)
        await people.read_session(tx, token, SessionKind.BEARER, now=clock())
        clock.advance(seconds=61)
        with pytest.raises(NodeError) as ended:
            await people.read_session(tx, token, SessionKind.BEARER, now=clock())
    assert ended.value.kind is ErrorKind.UNAUTHENTICATED


async def test_a_printed_code_expires_after_a_day(store, clock):
    async with store.db.transaction() as tx:
        user = await _doctor(tx, clock)

        async def print_one():
            return await people.create_binding(
                tx,
                patient_id=uuid4(),
                id_number=None,
                created_by=user.user_id,
                now=clock(),
            )

        binding, _ = await print_one()
        assert binding.expires_at - clock() == timedelta(hours=24)
        assert binding.check_code is None
        assert await people.read_binding(tx, binding.binding_id) == binding
        clock.advance(seconds=24 * 3600 + 1)
        await print_one()
        with pytest.raises(NodeError) as gone:
            await people.read_binding(tx, binding.binding_id)
    assert gone.value.kind is ErrorKind.GONE


async def test_a_practitioner_is_found_by_the_id_that_signatures_carry(store, clock):
    async with store.db.transaction() as tx:
        user = await _doctor(tx, clock)
        assert await people.find_practitioner(tx, user.practitioner_id) == user
        assert await people.find_practitioner(tx, str(UUID(int=0))) is None
        assert [row.login for row in await people.list_users(tx)] == ["wang"]
