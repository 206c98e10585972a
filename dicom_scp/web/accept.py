"""The Accept header of DICOMweb: media ranges inside multipart/related (PS3.18 8.7).

Clients in the field quote parameters or do not, repeat `transfer-syntax`, and browsers
merge two headers into one: all of it is understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydicom.uid import ExplicitVRLittleEndian

ANY_SYNTAX = "*"
OCTETS = "application/octet-stream"
MAX_LENGTH = 8192
_PARAMETER = re.compile(r"""\s*([\w!#$&^.+-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,\s]*)""")


@dataclass(frozen=True)
class Wanted:
    """One acceptable answer.

    `media_type` is that of the part when `multipart`. Empty `transfer_syntaxes` leaves
    the choice to the server.
    """

    media_type: str
    multipart: bool
    transfer_syntaxes: tuple[str, ...] = ()
    quality: float = 1.0

    @property
    def transfer_syntax(self) -> str:
        """Return the syntax that was settled on by `narrowed`."""
        return self.transfer_syntaxes[0]

    def narrowed(self, media_type: str, syntaxes: Sequence[str]) -> Wanted | None:
        """Return this wish settled on an offer, or None when the offer is no answer.

        `*/*` takes whatever is there, as multipart: that is the default of stored data.
        """
        family = media_type.split("/")[0]
        if self.media_type not in (media_type, f"{family}/*", "*/*"):
            return None
        asked = self.transfer_syntaxes
        if self.media_type == OCTETS and not asked:
            asked = (str(ExplicitVRLittleEndian),)  # the default, PS3.18 8.7.3.3
        if syntaxes and asked and ANY_SYNTAX not in asked:
            syntaxes = [syntax for syntax in syntaxes if syntax in asked]
            if not syntaxes:
                return None
        multipart = self.multipart or self.media_type == "*/*"
        return replace(
            self,
            media_type=media_type,
            multipart=multipart,
            transfer_syntaxes=tuple(syntaxes),
        )


def wanted(headers: Iterable[str]) -> list[Wanted]:
    """Return what the caller accepts, best first; anything when no header says so."""
    text = ",".join(header for header in headers if header.strip())
    if not text:
        return [Wanted("*/*", multipart=True)]
    found = [wish for part in _split(text[:MAX_LENGTH]) if (wish := _parse(part))]
    return sorted(
        (wish for wish in found if wish.quality > 0), key=lambda wish: -wish.quality
    )


def _split(text: str) -> Iterator[str]:
    """Split at commas outside quotes."""
    start, quoted, at = 0, False, 0
    while at < len(text):
        sign = text[at]
        if quoted and sign == "\\":
            at += 1
        elif sign == '"':
            quoted = not quoted
        elif sign == "," and not quoted:
            yield text[start:at]
            start = at + 1
        at += 1
    yield text[start:]


def _parse(part: str) -> Wanted | None:
    media_type, _, rest = part.partition(";")
    media_type = media_type.strip().lower()
    if "/" not in media_type:
        return None
    inner, syntaxes, quality = "", [], 1.0
    for name, value in _PARAMETER.findall(rest):
        bare = value.strip('"').replace('\\"', '"')
        if name.lower() == "type":
            inner = bare.lower()
        elif name.lower() == "transfer-syntax":
            syntaxes.append(bare)
        elif name.lower() == "q":
            quality = _quality(bare)
    multipart = media_type == "multipart/related"
    return Wanted(
        media_type=(inner or "*/*") if multipart else media_type,
        multipart=multipart,
        transfer_syntaxes=tuple(syntaxes),
        quality=quality,
    )


def _quality(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
