"""Keys: all is sealed for its place, survives rotation, and dies by shredding."""

import asyncio
import base64
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from node.domain.errors import ErrorKind, NodeError
from node.store import keys
from node.store.database import Database
from node.store.erasure import shred, shred_patient
from node.store.keys import KeyRing, create_root_key, read_root_keys
from node.store.store import Store

WOMAN = UUID(int=1)
PLACE = {"table": "reports", "row": "r1", "column": "body"}


async def patient_key(store: Store, patient_id: UUID = WOMAN) -> keys.Sealer:
    async with store.db.transaction() as tx:
        return await store.ring.patient(tx, patient_id)


async def reopened(store: Store) -> KeyRing:
    """A ring that knows only the file and the database, as another process does."""
    return await KeyRing.open(store.db, store.ring._root_path)


async def test_a_body_opens_only_where_it_was_sealed(store: Store) -> None:
    sealer = await patient_key(store)
    sealed = sealer.seal(b"0.910 mm", **PLACE)
    assert sealer.open(sealed, **PLACE) == b"0.910 mm"
    for part in PLACE:
        with pytest.raises(NodeError) as told:
            sealer.open(sealed, **{**PLACE, part: "elsewhere"})
        assert told.value.kind is ErrorKind.INTEGRITY


async def test_every_changed_byte_of_a_body_is_noticed(store: Store) -> None:
    sealer = await patient_key(store)
    sealed = sealer.seal(b"conclusion", **PLACE)
    for position in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[position] ^= 1
        with pytest.raises(NodeError, match=r"reports\.body"):
            sealer.open(bytes(damaged), **PLACE)
    with pytest.raises(NodeError):
        sealer.open(b"", **PLACE)


async def test_one_woman_s_key_does_not_open_another_s_body(store: Store) -> None:
    hers, another = await patient_key(store), await patient_key(store, UUID(int=2))
    with pytest.raises(NodeError):
        another.open(hers.seal(b"x", **PLACE), **PLACE)
    assert hers.blob_key != another.blob_key
    assert len(hers.blob_key) == 32


async def test_another_process_has_the_same_keys(store: Store) -> None:
    sealed = (await patient_key(store)).seal(b"x", **PLACE)
    for_nobody = store.ring.node.seal(b"y", **PLACE)
    ring = await reopened(store)
    async with store.db.transaction() as tx:
        assert (await ring.patient(tx, WOMAN)).open(sealed, **PLACE) == b"x"
    assert ring.node.open(for_nobody, **PLACE) == b"y"
    assert ring.blind("mrn", "A1") == store.ring.blind("mrn", "A1")


async def test_two_processes_that_start_at_once_share_one_set_of_keys(
    empty_migrated: Database, root_key: Path
) -> None:
    rings = await asyncio.gather(
        *(KeyRing.open(empty_migrated, root_key) for _ in range(4))
    )
    assert len({ring.blind("mrn", "A1") for ring in rings}) == 1
    assert len({ring.node.key_id for ring in rings}) == 1


async def test_two_transactions_that_meet_a_patient_first_share_her_key(
    store: Store,
) -> None:
    found = await asyncio.gather(*(patient_key(store) for _ in range(8)))
    assert len({sealer.key_id for sealer in found}) == 1


class _GivenUp(Exception):
    pass


@pytest.mark.parametrize("nested", [False, True])
async def test_a_key_that_was_rolled_back_is_not_remembered(
    store: Store, nested: bool
) -> None:
    lost: list[keys.Sealer] = []
    with pytest.raises(_GivenUp):  # noqa: PT012
        async with store.db.transaction() as tx:
            if nested:
                async with tx.transaction():
                    await store.ring.patient(tx, WOMAN)
            lost.append(await store.ring.patient(tx, WOMAN))
            raise _GivenUp
    assert (await patient_key(store)).key_id != lost[0].key_id
    # What is sealed now opens in a process that has only the database.
    sealed = (await patient_key(store)).seal(b"x", **PLACE)
    ring = await reopened(store)
    async with store.db.transaction() as tx:
        assert (await ring.patient(tx, WOMAN)).open(sealed, **PLACE) == b"x"


def test_blind_indexes_are_equal_for_equal_values_of_one_field_only(
    store: Store,
) -> None:
    blind = store.ring.blind
    assert blind("name", " ＺＨＡＮＧ ") == blind("name", "zhang")
    assert blind("name", "zhang") != blind("mrn", "zhang")
    assert blind("name", "zhang") != blind("name", "zhan")
    assert len(blind("name", "zhang")) == 16


async def test_the_cache_of_keys_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_CACHED_KEYS", 8)
    women = [uuid4() for _ in range(20)]
    for _ in range(2):
        for woman in women:
            await patient_key(store, woman)
    assert len(store.ring._patients) == 8


# --- rotation -------------------------------------------------------------------


async def test_rotation_keeps_bodies_and_replaces_every_wrapping(store: Store) -> None:
    sealed = (await patient_key(store)).seal(b"x", **PLACE)
    blind = store.ring.blind("mrn", "A1")
    before = read_root_keys(store.ring._root_path)
    async with store.db.transaction() as tx:
        wrapped = set(await tx.fetch("select wrapped from data_keys"))
    assert await store.ring.rotate() == 3 + 3  # her key, node, index; three domains
    after = read_root_keys(store.ring._root_path)
    assert len(after) == 1
    assert after != before
    for ring in (store.ring, await reopened(store)):
        async with store.db.transaction() as tx:
            assert (await ring.patient(tx, WOMAN)).open(sealed, **PLACE) == b"x"
        assert ring.blind("mrn", "A1") == blind
        assert await ring.verify() == 6
    async with store.db.transaction() as tx:
        assert wrapped.isdisjoint(await tx.fetch("select wrapped from data_keys"))
        assert await tx.fetchval("select count(*) from domain_keys") == 3


async def test_other_processes_go_on_while_keys_are_rotated(store: Store) -> None:
    """Reads and first uses in another ring see no error, whatever the order."""
    other = await reopened(store)
    sealed: dict[UUID, bytes] = {}
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            woman = uuid4()
            async with store.db.transaction() as tx:
                sealer = await other.patient(tx, woman)
                body = sealer.seal(woman.bytes, **PLACE)
            sealed[woman] = body

    async def read() -> None:
        while not stop.is_set():
            await asyncio.sleep(0)
            for woman, body in list(sealed.items())[-5:]:
                other._patients.clear()
                async with store.db.transaction() as tx:
                    sealer = await other.patient(tx, woman)
                assert sealer.open(body, **PLACE) == woman.bytes

    async def rotate() -> None:
        for _ in range(5):
            await store.ring.rotate()
        stop.set()

    async with asyncio.TaskGroup() as group:
        for work in (write(), write(), read(), rotate()):
            group.create_task(work)
    fresh = await reopened(store)
    assert await fresh.verify() == len(sealed) + 2 + 3
    for woman, body in sealed.items():
        async with store.db.transaction() as tx:
            sealer = await fresh.patient(tx, woman)
        assert sealer.open(body, **PLACE) == woman.bytes


async def test_rotation_cut_short_before_its_commit_leaves_a_ring_that_opens(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = (await patient_key(store)).seal(b"x", **PLACE)

    async def killed(self: KeyRing, tx: object, root: object) -> int:
        raise _GivenUp

    with monkeypatch.context() as patch:
        patch.setattr(KeyRing, "_wrap_anew", killed)
        with pytest.raises(_GivenUp):
            await store.ring.rotate()
    assert len(read_root_keys(store.ring._root_path)) == 2
    ring = await reopened(store)
    async with store.db.transaction() as tx:
        assert (await ring.patient(tx, WOMAN)).open(sealed, **PLACE) == b"x"
    with pytest.raises(NodeError, match="keys rotate"):
        await ring.verify()
    await ring.rotate()
    assert await ring.verify() == 6


async def test_rotation_cut_short_after_its_commit_leaves_a_ring_that_opens(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = (await patient_key(store)).seal(b"x", **PLACE)
    replace, calls = keys._replace_root_keys, 0

    def killed(path: Path, roots: list[keys.RootKey]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise _GivenUp
        replace(path, roots)

    with monkeypatch.context() as patch:
        patch.setattr(keys, "_replace_root_keys", killed)
        with pytest.raises(_GivenUp):
            await store.ring.rotate()
    ring = await reopened(store)
    async with store.db.transaction() as tx:
        assert (await ring.patient(tx, WOMAN)).open(sealed, **PLACE) == b"x"
    await ring.rotate()
    assert await ring.verify() == 6


async def test_verify_names_a_wrapped_key_that_was_changed(store: Store) -> None:
    key_id = (await patient_key(store)).key_id
    async with store.db.transaction() as tx:
        await tx.execute(
            "update data_keys set wrapped = set_byte(wrapped, 20,"
            " get_byte(wrapped, 20) # 1) where key_id = $1",
            key_id,
        )
    with pytest.raises(NodeError, match=str(key_id)) as told:
        await store.ring.verify()
    assert told.value.kind is ErrorKind.INTEGRITY


async def test_wrapped_keys_cannot_change_places(store: Store) -> None:
    await patient_key(store)
    await patient_key(store, UUID(int=2))
    async with store.db.transaction() as tx:
        await tx.execute(
            "update data_keys a set wrapped = b.wrapped from data_keys b"
            " where a.domain = 'patient' and b.domain = 'patient'"
            " and a.subject <> b.subject"
        )
    with pytest.raises(NodeError, match="not what was written"):
        await (await reopened(store)).verify()


# --- erasure --------------------------------------------------------------------


async def test_a_shredded_patient_is_gone_and_the_others_stay(store: Store) -> None:
    await patient_key(store)
    kept = (await patient_key(store, UUID(int=2))).seal(b"kept", **PLACE)
    await shred_patient(store.db, store.ring, WOMAN)
    for ring in (store.ring, await reopened(store)):
        async with store.db.transaction() as tx:
            with pytest.raises(NodeError) as told:
                await ring.patient(tx, WOMAN)
            assert told.value.kind is ErrorKind.GONE
            sealer = await ring.patient(tx, UUID(int=2))
            assert sealer.open(kept, **PLACE) == b"kept"


async def test_a_backup_from_before_does_not_bring_an_erased_patient_back(
    store: Store,
) -> None:
    """Whoever has yesterday's rows and today's root key still cannot read her."""
    await patient_key(store)
    tables = ("domain_keys", "data_keys")
    async with store.db.transaction() as tx:
        for table in tables:
            await tx.execute(f"create table old_{table} as select * from {table}")
    await shred_patient(store.db, store.ring, WOMAN)
    async with store.db.transaction() as tx:
        for table in reversed(tables):
            await tx.execute(f"delete from {table}")
        for table in tables:
            await tx.execute(f"insert into {table} select * from old_{table}")
    with pytest.raises(NodeError, match=r"keys\.root_file"):
        await reopened(store)


async def test_other_processes_forget_a_shredded_key_at_once(store: Store) -> None:
    await patient_key(store)
    other = await reopened(store)
    await other.forget_shredded()
    async with store.db.transaction() as tx:
        await other.patient(tx, WOMAN)
    told = asyncio.Event()
    await store.db.listen("key_shredded", lambda _: told.set())
    async with store.db.transaction() as tx:
        await shred(tx, store.ring, WOMAN)
    async with asyncio.timeout(60):
        await told.wait()
    async with store.db.transaction() as tx:
        with pytest.raises(NodeError, match="erased"):
            await other.patient(tx, WOMAN)


async def test_shredding_somebody_unknown_says_so(store: Store) -> None:
    async with store.db.transaction() as tx:
        with pytest.raises(NodeError) as told:
            await shred(tx, store.ring, uuid4())
    assert told.value.kind is ErrorKind.NOT_FOUND


# --- the root key file -----------------------------------------------------------


def test_a_root_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "root.key"
    create_root_key(path)
    text = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o400
    assert len(base64.b64decode(text)) == 32
    with pytest.raises(NodeError) as told:
        create_root_key(path)
    assert told.value.kind is ErrorKind.CONFLICT
    assert path.read_bytes() == text
    assert os.listdir(path.parent) == ["root.key"]


def test_a_root_key_does_not_show_in_a_traceback(root_key: Path) -> None:
    key = read_root_keys(root_key)[0]
    assert str(key.secret) not in repr(key)


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    ("damage", "mend"),
    [
        (lambda path: path.unlink(), "keys init"),
        (lambda path: path.chmod(0o644), "chmod 0400"),
        (lambda path: _overwrite(path, b""), "restore it"),
        (lambda path: _overwrite(path, b"not base64!"), "restore it"),
        (lambda path: _overwrite(path, base64.b64encode(bytes(16))), "restore it"),
        (lambda path: _overwrite(path, base64.b64encode(bytes(32))), "right one"),
    ],
)
async def test_a_wrong_root_key_is_one_line_that_names_setting_and_mend(
    store: Store, damage: Damage, mend: str
) -> None:
    damage(store.ring._root_path)
    with pytest.raises(NodeError) as told:
        await reopened(store)
    assert told.value.kind is ErrorKind.SETTING
    assert told.value.message.startswith("keys.root_file: ")
    assert mend in told.value.message
    assert "\n" not in told.value.message


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)
