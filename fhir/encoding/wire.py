"""JSON as it goes over the wire: what comes in goes out, digit for digit.

FHIR R4 2.6.1 gives decimals a precision: `0.910` is not `0.91`. Numbers are
therefore kept as they were written, and nobody's parser may differ from ours:
duplicate keys, NaN, NUL and lone surrogates are refused.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import orjson

from node.domain.errors import ErrorKind, NodeError

Json = dict[str, Any]

MAX_DEPTH = 64
# FHIR R4 string: no control characters but tab, line feed and carriage return.
# Nor the two code points that are no characters: XML cannot carry them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Number(Decimal):
    """A number that remembers how it was written (`1.00`, `1e2`)."""

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number


def parse(raw: bytes) -> Json:
    """Return the JSON object in `raw`; INVALID when it is anything else."""
    value = parse_value(raw)
    if not isinstance(value, dict):
        raise NodeError("the body is not a JSON object", ErrorKind.INVALID)
    return value


def parse_value(raw: bytes) -> Any:
    """Return the JSON value in `raw`, numbers as they were written."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_float=Number,
            parse_int=integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError:
        raise NodeError("the body is not UTF-8", ErrorKind.INVALID) from None
    except RecursionError:
        raise NodeError("the body is nested too deeply", ErrorKind.INVALID) from None
    except json.JSONDecodeError as error:
        raise NodeError(
            f"the body is not JSON: {error.msg} at line {error.lineno},"
            f" column {error.colno}",
            ErrorKind.INVALID,
        ) from None
    except (ValueError, InvalidOperation) as error:
        raise NodeError(f"the body is not JSON: {error}", ErrorKind.INVALID) from None
    check_depth(value)
    return value


def integer(text: str) -> int | Number:
    """Return a whole number; one beyond 18 digits stays as it was written."""
    return int(text) if len(text) <= 18 else Number(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has the same key twice")
    for key, item in pairs:
        if _CONTROL.search(key) or (isinstance(item, str) and _CONTROL.search(item)):
            raise ValueError("a string holds a control character or half a character")
        if isinstance(item, list) and any(
            isinstance(part, str) and _CONTROL.search(part) for part in item
        ):
            raise ValueError("a string holds a control character or half a character")
    return value


def check_depth(value: Any) -> None:
    """Raise INVALID when a value holds others more than MAX_DEPTH levels deep."""
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise NodeError("the body is nested too deeply", ErrorKind.INVALID)


def to_bytes(value: Any, *, pretty: bool = False) -> bytes:
    """Return `value` as JSON bytes; numbers as they were written."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE if pretty else 0
    body: bytes = orjson.dumps(value, default=_default, option=option)
    return body


def _default(value: Any) -> Any:
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    if isinstance(value, Decimal):
        return orjson.Fragment(format(value, "f"))
    raise TypeError(f"{type(value).__name__} has no place in a resource")


def with_identity(
    resource: Json, resource_id: str, version: int, last_updated: datetime
) -> bytes:
    """Return a resource's bytes with the elements that the server sets."""
    meta = {
        **resource.get("meta", {}),
        "versionId": str(version),
        "lastUpdated": instant(last_updated),
    }
    head = {"resourceType": resource["resourceType"], "id": resource_id, "meta": meta}
    rest = {key: value for key, value in resource.items() if key not in head}
    return to_bytes({**head, **rest})


def instant(at: datetime) -> str:
    """Return `at` as a FHIR instant in UTC with milliseconds."""
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


_DATE = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d:\d\d(?::\d\d(?:\.\d+)?)?)"
    r"(Z|[+-]\d\d:\d\d)?)?)?)?"
)


def date_range(text: str) -> tuple[datetime, datetime]:
    """Return the half-open interval that a FHIR date, dateTime or instant covers.

    A time without a zone is read as UTC. INVALID when it is no date.
    """
    match = _DATE.fullmatch(text.strip().replace(" ", "+"))
    try:
        if match is None:
            raise ValueError
        return _covered(match)
    except (ValueError, OverflowError):
        raise NodeError("not a FHIR date", ErrorKind.INVALID) from None


def _covered(match: "re.Match[str]") -> tuple[datetime, datetime]:
    year, month, day, time, zone = match.groups()
    if month is None:
        return _utc(int(year), 1, 1), _utc(int(year) + 1, 1, 1)
    if day is None:
        y, m = int(year), int(month)
        return _utc(y, m, 1), _utc(y + m // 12, m % 12 + 1, 1)
    if time is None:
        start = _utc(int(year), int(month), int(day))
        return start, start + timedelta(days=1)
    offset = "+00:00" if zone in (None, "Z") else zone
    whole, _, fraction = time.partition(".")
    start = datetime.fromisoformat(f"{year}-{month}-{day}T{whole}{offset}")
    start = start.astimezone(UTC)
    if fraction:
        start += timedelta(microseconds=int(fraction[:6].ljust(6, "0")))
        return start, start + timedelta(milliseconds=1)
    return start, start + timedelta(seconds=1 if whole.count(":") == 2 else 60)


def _utc(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, day, tzinfo=UTC)


def as_list(value: Any) -> list[Any]:
    """Return an element that may repeat as a list, whatever it is."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def reference_parts(reference: Any) -> tuple[str, str] | None:
    """Return (type, id) of a literal reference to a resource of a server."""
    text = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(text, str):
        return None
    match = re.search(
        r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?$", text
    )
    return (match[1], match[2]) if match else None


def extension(element: Json, url: str) -> Json | None:
    """Return the first extension with `url` of an element, or None."""
    for item in as_list(element.get("extension")):
        if isinstance(item, dict) and item.get("url") == url:
            return item
    return None


def extensions(element: Json, url: str) -> Iterator[Json]:
    """Yield every extension with `url` of an element."""
    for item in as_list(element.get("extension")):
        if isinstance(item, dict) and item.get("url") == url:
            yield item
