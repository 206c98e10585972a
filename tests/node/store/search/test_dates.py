"""Dates of every precision are found by every prefix (FHIR R4 3.1.1.5.6)."""

from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random

from node.store import resources
from node.store.resources import NEVER, DateRange, Index
from node.store.search import pages, totals
from node.store.search.criteria import PREFIXES, Order, Query, Within, overlaps
from node.store.store import Store

LENGTHS = [timedelta(seconds=1), timedelta(days=1), timedelta(days=30)]
LENGTHS.append(timedelta(days=366))
START = datetime(2024, 1, 1, tzinfo=UTC)


async def test_the_sort_date_narrows_a_search_without_losing_anything(
    store: Store,
) -> None:
    random = Random(7)
    dates: dict[str, DateRange | None] = {"never": None}
    for number, length in product(range(12), LENGTHS):
        begin = START + timedelta(days=random.randrange(900), hours=number % 3)
        name = f"{number}-{length.days}"
        dates[name] = DateRange("date", begin, begin + length)
    async with store.db.transaction() as tx:
        for name, told in dates.items():
            index = Index(happened_at=NEVER)
            if told is not None:
                index = Index(dates=(told,), happened_at=told.earliest)
            await resources.write(
                tx, store, "DiagnosticReport", name, lambda *_: b"{}", index
            )
    known = [told for told in dates.values() if told is not None]
    edges = [told.earliest for told in random.sample(known, 2)]
    edges += [told.latest for told in random.sample(known, 2)]
    async with store.db.reading() as tx:
        for prefix, edge, length in product(sorted(PREFIXES), edges, LENGTHS):
            asked = Within("date", prefix, edge, edge + length, sorts=True)
            for order in (Order("happened"), Order("updated", descending=True)):
                query = Query("DiagnosticReport", (asked,), (order,), count=100)
                page = await pages.search(tx, store, query)
                expected = {
                    name
                    for name, told in dates.items()
                    if told and overlaps(asked, told.earliest, told.latest)
                }
                found = {one.resource_id for one in page.matches}
                assert found == expected, (prefix, edge, length)
            assert await totals.count(tx, store, query) == len(expected)
