"""Which associations are open, and what their end says about the studies they fed.

A release is the modality's word that it sent what it wanted to send; an abort or a lost
connection is not (PS3.8 7.2, 7.3). `node.workflow.completion` weighs it.
"""

import threading
from collections.abc import Callable
from uuid import uuid4

from dicom_scp.receiving.peers import Peer
from dicom_scp.receiving.upper_layer import Acceptor
from node.store.associations import EndedHow

AssociationEnded = Callable[[str, EndedHow], None]


class OpenAssociations:
    """The established associations of this process; safe to use from every thread."""

    def __init__(self, ended: AssociationEnded) -> None:
        self._ended = ended
        self._open: dict[str, Acceptor] = {}
        self._feeding: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def of_peer(self, peer: Peer) -> int:
        """Return how many associations of a peer are open."""
        with self._lock:
            return sum(1 for acceptor in self._open.values() if acceptor.peer == peer)

    @staticmethod
    def new_name() -> str:
        """Return a name that no other association ever has."""
        return uuid4().hex

    def established(self, acceptor: Acceptor) -> None:
        """Count an association in."""
        acceptor.was_established = True
        with self._lock:
            self._open[acceptor.association] = acceptor

    def feeds(self, association: str) -> None:
        """Note that an association has brought an instance of some study."""
        with self._lock:
            self._feeding.add(association)

    def over(self, acceptor: Acceptor) -> None:
        """Count an association out and tell how it ended if any study depends on it."""
        with self._lock:
            self._open.pop(acceptor.association, None)
            fed = acceptor.association in self._feeding
            self._feeding.discard(acceptor.association)
        if fed:
            released = acceptor.is_released
            self._ended(
                acceptor.association,
                EndedHow.RELEASED if released else EndedHow.ABORTED,
            )

    def acceptors(self) -> list[Acceptor]:
        """Return those that are open now."""
        with self._lock:
            return list(self._open.values())
