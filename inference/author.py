"""How the reading model appears as an author; needs no torch."""

from node.domain.report import Author, AuthorKind


def author_of(name: str, version: str, weights_sha256: str) -> Author:
    """Return the Device that drafts with these weights; its id names them."""
    short = weights_sha256[:12]
    return Author(
        AuthorKind.ALGORITHM, f"model-{short}", f"{name} {version}+sha256.{short}"
    )
