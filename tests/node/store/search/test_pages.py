"""A page holds the same by whatever candidates it was begun (FHIR R4 3.1.1)."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from node.store import resources
from node.store.resources import DateRange, Index, Reference, Token
from node.store.search import candidates, pages, planning, totals
from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Chained,
    Criterion,
    Has,
    IdIs,
    Order,
    Position,
    Query,
    ReferredBy,
    RefersTo,
    TokenIs,
    Within,
)
from node.store.search.predicates import Predicates
from node.store.store import Store

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TABLES = ("tokens", "references", "dates")
ORDERS = [
    (Order("happened", descending=True),),
    (Order("updated"),),
    (Order("updated", descending=True), Order("happened")),
    (Order("issued:sort", descending=True),),
    (Order("happened"), Order("issued:sort")),
]


def status(code: str, *, negated: bool = False) -> TokenIs:
    return TokenIs("status", ((None, code),), negated=negated)


def on(prefix: str, day: int, days: int, *, name: str = "date") -> Within:
    begin = START + day * DAY
    return Within(name, prefix, begin, begin + days * DAY, sorts=name == "date")


CRITERIA: list[Criterion] = [
    status("final"),
    status("final", negated=True),
    TokenIs("status", ((None, "partial"), ("urn:s", "final"))),
    TokenIs("code", (("urn:c", "1"),)),
    TokenIs("code", ((None, "1"),)),
    TokenIs("code", (("urn:c", None),)),
    TokenIs("code", ()),
    RefersTo("about", (("Observation", "o1"),)),
    RefersTo("about", ((None, "o2"), ("Observation", "o3"))),
    Chained("about", "Observation", status("kept")),
    Chained("about", "Observation", RefersTo("by", (("Device", "d"),))),
    ReferredBy("Provenance", "target", status("signed")),
    Has("code", "token"),
    Has("about", "reference"),
    IdIs(("r1", "r2", "r3", "nobody")),
    on("ge", 5, 1),
    on("lt", 20, 1),
    on("eq", 3, 9),
    on("ne", 3, 1),
    on("ge", 4, 1, name="issued"),
    on("eq", 2, 10, name="issued"),
    Within(LAST_UPDATED, "gt", START + 25 * DAY, START + 26 * DAY),
    AnyOf(((status("partial"),), (RefersTo("about", ((None, "o1"),)),))),
    AnyOf(((status("final"), on("ge", 9, 1)), (status("final", negated=True),))),
    AnyOf(()),
]


async def fill(store: Store, random: Random) -> None:
    """Write thirty reports, to whom and from whom others refer."""

    async def put(kind: str, name: str, index: Index) -> None:
        await resources.write(tx, store, kind, name, lambda *_: b"{}", index)

    async with store.db.transaction() as tx:
        for n in range(4):
            kept = Token("status", "", "kept" if n % 2 else "lost")
            by = (Reference("by", "Device", "d"),) if n else ()
            await put("Observation", f"o{n}", Index((kept,), by))
        for n in range(30):
            code = random.choice(["final", "final", "partial", "late"])
            tokens = [Token("status", "", code)]
            # The same code of two systems stands twice in the index.
            tokens += [Token("code", s, "1") for s in ("urn:c", "urn:d")][: n % 3]
            at = START + random.randrange(30) * DAY
            dates = [DateRange("date", at, at + random.choice([1, 31]) * DAY)]
            dates += [DateRange("issued", at, at + DAY)][: n % 2]
            dates += [DateRange("issued:sort", at, at)]
            about = [
                Reference("about", "Observation", f"o{random.randrange(4)}")
                for _ in range(n % 3)
            ]
            index = Index(tuple(tokens), tuple(set(about)), tuple(dates), at)
            store.clock.now = START + random.randrange(40) * DAY  # type: ignore[attr-defined]
            await put("DiagnosticReport", f"r{n}", index)
            signed = Token("status", "", random.choice(["signed", "seen"]))
            target = Reference("target", "DiagnosticReport", f"r{n}")
            await put("Provenance", f"p{n}", Index((signed,), (target,)))


async def everything_that_meets(store: Store, query: Query) -> set[str]:
    sql = Predicates(store)
    select = f"select r.resource_id from resources r where {sql.where(query)}"
    async with store.db.reading() as tx:
        rows = await tx.fetch(select, *sql.arguments)
    return {row["resource_id"] for row in rows}


async def walked(store: Store, query: Query) -> list[str]:
    """Return the ids of all pages, forwards; and see that the way back is the same."""
    found: list[list[str]] = []
    beside: Position | None = None
    async with store.db.reading() as tx:
        while True:
            asked = Query(
                query.resource_type, query.criteria, query.order, query.count, beside
            )
            page = await pages.search(tx, store, asked)
            found.append([one.resource_id for one in page.matches])
            if len(found) > 1 and page.previous is not None:
                back = Query(
                    query.resource_type,
                    query.criteria,
                    query.order,
                    query.count,
                    page.previous,
                )
                before = await pages.search(tx, store, back)
                assert [one.resource_id for one in before.matches] == found[-2]
            if page.next is None:
                return [one for page_ in found for one in page_]
            beside = page.next


@pytest.mark.parametrize(
    ("few", "tried"), [(3000, 5000), (1, 5000), (1, 2)], ids=["few", "many", "far"]
)
async def test_pages_hold_what_meets_all_criteria_whatever_they_begin_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, few: int, tried: int
) -> None:
    random = Random(f"{few}-{tried}")
    await fill(store, random)
    for module in (candidates, planning):
        monkeypatch.setattr(module, "FEW", few)
    monkeypatch.setattr(pages, "_TRIED", tried)
    met = 0
    for number in range(80):
        asked = random.sample(CRITERIA, 1 + number % 3)
        if number < len(CRITERIA):
            asked = [CRITERIA[number]]
        order = ORDERS[number % len(ORDERS)]
        query = Query("DiagnosticReport", tuple(asked), order, count=7)
        expected = await everything_that_meets(store, query)
        found = await walked(store, query)
        assert sorted(found) == sorted(expected), asked
        async with store.db.reading() as tx:
            assert await totals.count(tx, store, query) == len(expected), asked
            assert await totals.estimate(tx, store, query) == len(expected), asked
        met += bool(expected)
    assert met > 40


async def test_every_row_of_an_index_tells_what_its_resource_is_sorted_by_now(
    store: Store,
) -> None:
    def index(day: int) -> Index:
        at = START + day * DAY
        dates = (DateRange("date", at, at + DAY),)
        about = (Reference("about", "Observation", "o1"),)
        return Index((Token("status", "", "final"),), about, dates, at)

    async with store.db.transaction() as tx:
        for day in (1, 2):
            store.clock.now += DAY  # type: ignore[attr-defined]
            stored = await resources.write(
                tx, store, "DiagnosticReport", "r1", lambda *_: b"{}", index(day)
            )
        # By newer rules the same version may have another date.
        await resources.index_anew(tx, store, stored, index(3))
        for table in ("resources", *(f"resource_{t}" for t in TABLES)):
            rows = await tx.fetch(f"select sort_date, last_updated from {table}")
            assert [tuple(row) for row in rows] == [
                (START + 3 * DAY, stored.last_updated)
            ], table
