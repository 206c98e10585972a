"""The tables of the DICOM conformance statement, for the node as its settings make it.

`python -m node.statement` prints them with the defaults; `--write FILE` puts them into
the statement between its `<!-- table NAME -->` marks.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from config.settings import (
    Coerce,
    Outlet,
    Peer,
    RoutingRule,
    Settings,
    load_settings,
)
from dicom_scp.statement.tables import Implementation, tables, updated
from node.parts import product_version, scp_settings_of, services_of

_DEFAULTS = Path(__file__).parents[1] / "config" / "default.toml"
_SECTIONS: Final = (
    "site",
    "storage",
    "dicom",
    "dicom.peers",
    "dicom.peers.coerce",
    "worklist",
    "query",
    "completion",
    "commitment",
    "pacs",
    "routing.destinations",
    "routing.rules",
    "results",
)
_ARRAYS: Final[Mapping[str, Any]] = {
    "dicom.peers": Peer,
    "dicom.peers.coerce": Coerce,
    "routing.destinations": Outlet,
    "routing.rules": RoutingRule,
}
# A setting or, in an example, one that is commented out; what it means; more of that.
_SECTION = re.compile(r"(?:# )?\[+([\w.]+)\]+\s*(?:#.*)?")
_SETTING = re.compile(r"(?:# )?(\w+) = ([^#]*?)(?:\s+#\s(.*))?")
_MORE = re.compile(r"#?\s{8,}#\s(.*)")


def implementation(settings: Settings) -> Implementation:
    """Return what the statement is about."""
    return Implementation(
        product_version(),
        scp_settings_of(settings),
        services_of(settings),
        tuple(parameters(_DEFAULTS.read_text(encoding="utf-8"))),
    )


def default_tables() -> Mapping[str, str]:
    """Return the tables of a node whose site has set nothing."""
    return tables(implementation(load_settings({})))


def parameters(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, default, meaning) of what concerns DICOM in `default.toml`.

    An array of tables has an example there; its defaults are those of its dataclass.
    """
    section, found = "", dict[str, list[str]]()
    meaning: list[str] = []
    for line in text.splitlines():
        if told := _SECTION.fullmatch(line):
            section, meaning = told[1], []
        elif section in _SECTIONS and (told := _SETTING.fullmatch(line)):
            meaning = [told[3] or ""]
            found.setdefault(f"{section}.{told[1]}", [told[2], *meaning])
            meaning = found[f"{section}.{told[1]}"]
        elif meaning and (told := _MORE.fullmatch(line)):
            meaning.append(told[1])
    for name, (value, *words) in found.items():
        section, _, key = name.rpartition(".")
        default = _default_of(section, key) if section in _ARRAYS else f"`{value}`"
        told_of = " ".join(word.strip() for word in words if word)
        yield f"`{name}`", default, told_of.replace("|", "\\|")


def _default_of(section: str, key: str) -> str:
    (field,) = (one for one in fields(_ARRAYS[section]) if one.name == key)
    if field.default_factory is not MISSING:
        return f"`{json.dumps(field.default_factory())}`"
    if field.default is MISSING:
        return "needed"
    return "as without" if field.default is None else f"`{json.dumps(field.default)}`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into a statement."""
    parser = argparse.ArgumentParser(description="Tables of the conformance statement")
    parser.add_argument("--write", type=Path, metavar="FILE")
    file: Path | None = parser.parse_args(arguments).write
    made = default_tables()
    if file is None:
        for name, table in made.items():
            sys.stdout.write(f"## {name}\n\n{table}\n")
    else:
        text = updated(file.read_text(encoding="utf-8"), made)
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
