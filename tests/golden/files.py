"""The golden files: how they are written, compared and kept free of chance.

`SONONODE_GOLDEN=write` writes them anew; look at the diff before it is committed.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_RANDOM_ID = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
)
_NUMBER = re.compile(r'"#number ([^"]+)"')


def read(name: str) -> bytes:
    """Return the bytes of one golden file."""
    return (FOLDER / f"{name}.json").read_bytes()


def check(name: str, text: str) -> None:
    """Compare with a golden file, or write it where somebody asked for that."""
    path = FOLDER / f"{name}.json"
    if os.environ.get("SONONODE_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.read_text("utf-8") == text, (
        f"{path.name} is no longer what the parts agreed on; if that is on purpose,"
        " run `make golden` and show the diff"
    )


def pretty(raw: bytes | str, *, ordered: bool = False) -> str:
    """Return JSON one element a line; numbers stay as they were written.

    Names are sorted, unless their order says something (`ordered`).
    """

    def keep(text: str) -> str:
        return f"#number {text}"

    value = json.loads(raw, parse_float=keep)
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=not ordered)
    return _NUMBER.sub(r"\1", text) + "\n"


@dataclass
class Settled:
    """Replaces what differs from run to run: addresses, random ids and handles."""

    words: dict[str, str] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    def __call__(self, raw: bytes) -> str:
        """Return `raw` as it would be everywhere and always."""
        text = raw.decode()
        for found, fixed in self.words.items():
            text = text.replace(found, fixed)
        return pretty(_RANDOM_ID.sub(self._fixed_id, text))

    def _fixed_id(self, match: re.Match[str]) -> str:
        number = len(self._ids) + 1
        return self._ids.setdefault(match[0], f"00000000-0000-4000-8000-{number:012d}")


def elements(value: Any) -> Iterable[Any]:
    """Yield every value inside parsed JSON."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from elements(item)
    else:
        yield value
