"""How the reading model appears as an author; needs no torch."""

import re

from node.domain.report import Author, AuthorKind

_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9.-]")


def author_of(name: str, version: str, weights_sha256: str) -> Author:
    """Return the Device that drafts with this model; its id names version and weights.

    The version belongs to it: the same weights with other thresholds speak otherwise.
    """
    short = weights_sha256[:12]
    plain = _NOT_IN_AN_ID.sub("-", version)[:32]
    return Author(
        AuthorKind.ALGORITHM,
        f"model-{plain}-{short}",
        f"{name} {version}+sha256.{short}",
    )
