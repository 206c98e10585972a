"""Damages bytes the way networks, disks and hostile peers do; the same for one seed."""

from random import Random

_LENGTHS = (0, 1, 2, 0x7F, 0xFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def mutated(data: bytes, random: Random) -> bytes:
    """Return `data` with one to four wounds."""
    for _ in range(random.randint(1, 4)):
        data = random.choice(_WOUNDS)(data, random)
    return data


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _overwrite(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    new = random.randbytes(random.randint(1, 16))
    return data[:at] + new + data[at + len(new) :]


def _insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randint(1, 64)) + data[at:]


def _remove(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + data[at + random.randint(1, 64) :]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _repeat(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    piece = data[at : at + random.randint(1, 512)]
    return data[:at] + piece * random.randint(2, 6) + data[at:]


def _lie_about_a_length(data: bytes, random: Random) -> bytes:
    """Put a length that somebody will believe where one may stand."""
    if len(data) < 8:
        return data
    at = random.randrange(0, len(data) - 4)
    size = random.choice((2, 4))
    order = random.choice(("little", "big"))
    value = random.choice(_LENGTHS) & (1 << 8 * size) - 1
    return data[:at] + value.to_bytes(size, order) + data[at + size :]  # type: ignore[arg-type]


def _nest(data: bytes, random: Random) -> bytes:
    """Open many sequences of undefined length that nobody closes."""
    at = random.randrange(len(data) + 1)
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return data[:at] + opened * random.randint(1, 200) + data[at:]


_WOUNDS = (
    _flip,
    _overwrite,
    _insert,
    _remove,
    _truncate,
    _repeat,
    _lie_about_a_length,
    _nest,
)
