"""Versions and what they are found by are written together, or not at all."""

import pytest

from node.store import resources
from node.store.database import Transaction
from node.store.resources import Draft, Index, StaleVersion, Token
from node.store.search import pages
from node.store.search.criteria import Query, TokenIs
from node.store.store import Store


def draft(name: str, code: str, expected: int | None = None) -> Draft:
    index = Index(tokens=(Token("code", "urn:s", code),), version=1)
    body = code.encode()
    return Draft("Observation", name, lambda *_: body, index, None, expected, "PUT")


async def found(tx: Transaction, store: Store, code: str) -> set[str]:
    asked = TokenIs("code", (("urn:s", code),))
    page = await pages.search(tx, store, Query("Observation", (asked,)))
    return {match.resource_id for match in page.matches}


async def test_several_are_stored_in_one_go_and_found_as_they_are_now(
    store: Store,
) -> None:
    async with store.db.transaction() as tx:
        first = [draft("a", "old", 0), draft("b", "old"), draft("c", "kept", 0)]
        assert [s.version for s in await resources.write_all(tx, store, first)] == [
            1,
            1,
            1,
        ]
    async with store.db.transaction() as tx:
        await resources.write_all(tx, store, [draft("a", "new", 1), draft("b", "new")])
        assert await resources.write_all(tx, store, []) == []
    async with store.db.transaction(readonly=True) as tx:
        assert await found(tx, store, "old") == set()
        assert await found(tx, store, "new") == {"a", "b"}
        wanted = [("Observation", name) for name in ("c", "missing", "a", "c")]
        read = await resources.find_all(tx, store, wanted)
        assert [one.body for one in read.values()] == [b"kept", b"new"]


@pytest.mark.parametrize("expected", [0, 3])
async def test_a_stale_one_names_the_version_that_is_there(
    store: Store, expected: int
) -> None:
    async with store.db.transaction() as tx:
        await resources.write_all(tx, store, [draft("a", "first", 0)])
        await resources.write_all(tx, store, [draft("a", "second", 1)])
    with pytest.raises(StaleVersion) as refused:
        async with store.db.transaction() as tx:
            await resources.write_all(
                tx, store, [draft("b", "beside", 0), draft("a", "late", expected)]
            )
    assert refused.value.current == 2
    async with store.db.transaction(readonly=True) as tx:
        assert await found(tx, store, "second") == {"a"}
        assert not await found(tx, store, "late")
        assert not await found(tx, store, "beside")
