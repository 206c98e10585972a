"""`make bench`: measures what is asked for and prints tables."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import chain, inference, reads, receive, results, subscriptions

_BENCHES = ("results", "receive", "reads", "subscriptions", "inference", "chain")


def main() -> None:
    """Run the benchmarks; ratios count, absolute figures are this machine's."""
    parser = argparse.ArgumentParser(prog="bench", description=main.__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        default=list(_BENCHES),
        help=f"{', '.join(_BENCHES)}; all when none is named",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, object]]] = {}
    console = Console()
    with tempfile.TemporaryDirectory(prefix="sononode-bench-") as name:
        folder = Path(name)
        for wanted in asked.names:
            place = folder / wanted
            place.mkdir()
            if wanted == "results":
                found[wanted] = results.measure(10 * asked.repeats)
            elif wanted == "receive":
                found[wanted] = receive.measure(place, asked.repeats)
            elif wanted == "reads":
                found[wanted] = reads.measure(place)
            elif wanted == "inference":
                found[wanted] = inference.measure(place, asked.repeats)
            elif wanted == "subscriptions":
                found[wanted] = subscriptions.measure(place)
            elif wanted == "chain":
                found[wanted] = chain.measure(place)
            else:
                parser.error(f"there is no benchmark {wanted}")
            console.print(_table(wanted, found[wanted]))
    if asked.json is not None:
        text = json.dumps(found, ensure_ascii=False, indent=2)
        asked.json.write_text(f"{text}\n", encoding="utf-8")


def _table(title: str, rows: list[dict[str, object]]) -> Table:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    main()
