"""What the token endpoint and the consent page share: words, forms, grants, audit."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from fhir.security.access import PERMITS, permits
from fhir.security.scoping import understood
from node.domain.access import Identity
from node.domain.audit import AuditEntry, Outcome
from node.domain.scopes import Context, Scope, Scopes, grant, read_scopes
from node.store import audit, clients
from node.store.clients import Client

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

FORM = "application/x-www-form-urlencoded"
_MAX_FORM = 32_768

Handler = Callable[[web.Request], Awaitable[web.Response]]


class OAuthError(Exception):
    """A request that fails in the words of RFC 6749 5.2; `reason` is for the audit."""

    def __init__(self, code: str, reason: str = "", status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason or code
        self.status = status


def told(handler: Handler) -> Handler:
    """Return a handler whose OAuthError is answered as RFC 6749 says."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except OAuthError as error:
            return web.json_response({"error": error.code}, status=error.status)

    return answer


async def read_form(request: web.Request) -> Mapping[str, str]:
    """Return a form in which nothing stands twice (RFC 6749 3.2)."""
    length = request.content_length
    if request.content_type != FORM or length is None or length > _MAX_FORM:
        raise OAuthError("invalid_request", "form")
    try:
        form = await request.post()
    except (ValueError, LookupError):
        # A charset that nobody knows, or bytes that are not in it.
        raise OAuthError("invalid_request", "form") from None
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    if len(texts) != len(form):
        raise OAuthError("invalid_request", "twice")
    return texts


def granted(
    client: Client, caller: Identity, asked: str, contexts: set[Context]
) -> tuple[Scope, ...]:
    """Return what is asked for, registered, permitted to the caller and understood."""
    wanted = [scope for scope in read_scopes(asked) if scope.context in contexts]
    found = grant(wanted, read_scopes(client.scopes), PERMITS, partial(permits, caller))
    return tuple(scope for scope in found if understood(scope))


def narrowed(asked: str, held: str) -> str:
    """Return what of `asked` is held, too."""
    found = grant(read_scopes(asked), read_scopes(held), PERMITS, lambda *_: True)
    return " ".join(str(scope) for scope in found)


async def record(
    store: "Store",
    tx: "Transaction",
    caller: Identity,
    action: str,
    scopes: Scopes | None = None,
    client: Client | None = None,
) -> None:
    """Write down what a program or a person for a program has done."""
    role = ",".join(sorted(role.value for role in caller.roles))
    about = caller.user_id if client is None else str(client.client_id)
    detail = {} if scopes is None else {"scope": str(scopes)}
    entry = AuditEntry(
        store.clock(), caller.user_id, role, action, f"client/{about}", detail=detail
    )
    await audit.record(tx, entry)


async def record_refusal(store: "Store", name: str, reason: str) -> None:
    """Write down that a program was refused, and why."""
    async with store.db.transaction() as tx:
        # What was sent is not repeated unless it is the id of one of ours.
        known = await clients.find(tx, name)
        actor = "unknown" if known is None else str(known.client_id)
        entry = AuditEntry(
            store.clock(),
            actor,
            "",
            "token",
            f"client/{actor}",
            Outcome.REFUSED,
            {"reason": reason},
        )
        await audit.record(tx, entry)
