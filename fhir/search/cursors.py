"""Where a page begins, as an opaque word that only the node can read.

A query may name a patient, and page links stand in logs of proxies and browsers.
"""

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from node.store.store import Store


def sealed(store: "Store", about: str, told: Any) -> str:
    """Return `told` (of JSON) as a word for a page link about one thing."""
    body = store.ring.node.seal(json.dumps(told).encode(), **_place(about))
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def unsealed(store: "Store", about: str, cursor: str) -> Any:
    """Return what a page link about the same thing tells; INVALID if it is not ours."""
    try:
        body = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return json.loads(store.ring.node.open(body, **_place(about)))
    except (NodeError, binascii.Error, ValueError):
        raise NodeError(
            "this page link is not one of ours", ErrorKind.INVALID, expression="_page"
        ) from None


def _place(about: str) -> dict[str, str]:
    return {"table": "search", "row": about, "column": "page"}
