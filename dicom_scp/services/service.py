"""What a DIMSE service brings to the node, and who asks for it.

Each service module (query, worklist, mpps, commitment …) offers one `Service`; the
listener serves those that the calling peer may use and rejects the presentation
contexts of the others (PS3.8 9.3.3.2: abstract syntax not supported).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pynetdicom import evt
from pynetdicom.presentation import PresentationContext

from dicom_scp.receiving.peers import Peer, ServiceName

if TYPE_CHECKING:
    from dicom_scp.receiving.intake import StoreThread
    from dicom_scp.receiving.upper_layer import Acceptor, OwnRequests

Handler = Callable[[evt.Event, "StoreThread"], Any]
RequestHandler = Callable[["Acceptor", Any, PresentationContext, "StoreThread"], None]
_PAUSE_S: Final = 0.001


@dataclass(frozen=True)
class Service:
    """Presentation contexts to accept, and a handler for each kind of message.

    Handlers run in the thread of their association and are what pynetdicom expects
    for the event; `thread.call` runs a coroutine on the store and waits for it.
    `requests` are served without pynetdicom: such a handler gets the association, the
    decoded message and its context, and sends all responses itself.
    """

    name: ServiceName
    contexts: tuple[PresentationContext, ...]
    handlers: Mapping[evt.InterventionEvent, Handler]
    requests: Mapping[type, RequestHandler] = field(default_factory=dict)

    @property
    def abstract_syntaxes(self) -> frozenset[str]:
        """Return the SOP Classes of the service."""
        return frozenset(str(context.abstract_syntax) for context in self.contexts)


@dataclass(frozen=True)
class Caller:
    """The peer at the other end of an association."""

    peer: Peer
    calling_ae: str
    address: str
    association: str


def caller_of(event: evt.Event) -> Caller:
    """Return who sent the message of `event`."""
    acceptor: Any = event.assoc
    return Caller(
        acceptor.peer, acceptor.calling_ae, acceptor.address, acceptor.association
    )


def is_cancelled(event: evt.Event) -> bool:
    """Tell whether a C-CANCEL has come for the request of `event` (PS3.7 9.3.2.3).

    The upper layer listens only when it has nothing to send, so what was answered
    goes out first: answers never gather in memory either.
    """
    association: Any = event.assoc
    waiting = association.dul.to_provider_queue
    while association.is_established and waiting.qsize():
        time.sleep(_PAUSE_S)
    return bool(event.is_cancelled)


def dispatchers(
    services: Sequence[Service], thread: StoreThread
) -> list[tuple[evt.InterventionEvent, Callable[[evt.Event], Any]]]:
    """Return one handler for each event; it finds the service by abstract syntax.

    C-FIND is both a query and a worklist: pynetdicom has one handler for both.
    """
    by_event: dict[evt.InterventionEvent, dict[str, Handler]] = {}
    for service in services:
        for event_type, handler in service.handlers.items():
            classes = by_event.setdefault(event_type, {})
            classes.update(dict.fromkeys(service.abstract_syntaxes, handler))

    def dispatcher(classes: Mapping[str, Handler]) -> Callable[[evt.Event], Any]:
        return lambda event: classes[str(event.context.abstract_syntax)](event, thread)

    return [(event, dispatcher(classes)) for event, classes in by_event.items()]


def own_requests(services: Sequence[Service], thread: StoreThread) -> OwnRequests:
    """Return what is served without pynetdicom, by message and abstract syntax."""

    def served(handler: RequestHandler) -> Any:
        return lambda acceptor, message, context: handler(
            acceptor, message, context, thread
        )

    return {
        (message, syntax): served(handler)
        for service in services
        for message, handler in service.requests.items()
        for syntax in service.abstract_syntaxes
    }
