"""The DICOM nodes around us: who may call, for which services, and how we call them.

A peer is a modality, an archive or a workstation. What it may ask for is default-deny:
a machine that nobody entered may at most store, and only where the site allows that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from types import MappingProxyType

from dicom_scp.receiving.coercion import Rule
from node.domain.study import Duplicates


class ServiceName(StrEnum):
    """What a peer may ask us for; Verification is free to everybody who may call."""

    STORE = "store"
    COMMITMENT = "commitment"
    WORKLIST = "worklist"
    MPPS = "mpps"
    QUERY = "query"
    RETRIEVE = "retrieve"


# What brings data and tells nothing: for machines that nobody entered by name.
ANONYMOUS_SERVICES = frozenset(
    {ServiceName.STORE, ServiceName.COMMITMENT, ServiceName.MPPS}
)


@dataclass(frozen=True)
class Peer:
    """One application entity. Empty `addresses`: it may call from anywhere.

    `certificates` are the SHA-256 fingerprints (hex) of the certificates one of which
    it must show over TLS, the next one beside the present one; none: no certificate
    in particular. `host` is empty for a peer that only calls us. `sop_classes` are
    stored for this peer alone; `transfer_syntaxes` are its own order of preference,
    all others follow. `max_associations` at the same time; 0: no limit of its own.
    `commitment_reply` says where its storage commitment reports go: "new" for an
    association of ours, "same" for the one that asked while it stays open.
    `move_to` are the titles of other peers to which it may send by C-MOVE; to itself
    it always may.
    """

    ae_title: str
    name: str = ""
    services: frozenset[ServiceName] = ANONYMOUS_SERVICES
    addresses: tuple[IPv4Network | IPv6Network, ...] = ()
    certificates: frozenset[str] = frozenset()
    host: str = ""
    port: int = 104
    tls: bool = False
    sop_classes: tuple[str, ...] = ()
    transfer_syntaxes: tuple[str, ...] = ()
    coerce: tuple[Rule, ...] = ()
    duplicates: Duplicates = Duplicates.REJECT
    max_associations: int = 0
    commitment_reply: str = "new"
    move_to: tuple[str, ...] = ()

    def calls_from(self, address: str) -> bool:
        """Tell whether the peer may call from this address."""
        if not self.addresses:
            return True
        told = ip_address(address)
        return any(told in network for network in self.addresses)


EVERYBODY = "*"


class Peers:
    """The peers by AE title; while there are none, everybody may call to store.

    So may everybody, beside the peers, where `*` is among the allowed titles.
    """

    def __init__(
        self, peers: Iterable[Peer] = (), *, allowed_titles: Sequence[str] = ()
    ) -> None:
        self._by_title: Mapping[str, Peer] = MappingProxyType(
            {
                **{
                    title: Peer(title) for title in allowed_titles if title != EVERYBODY
                },
                **{peer.ae_title: peer for peer in peers},
            }
        )
        self.open_door = not self._by_title or EVERYBODY in allowed_titles

    def known(self, ae_title: str) -> Peer | None:
        """Return the peer that the site entered under this title."""
        return self._by_title.get(ae_title)

    def caller(self, ae_title: str) -> Peer | None:
        """Return who calls under this title; None when it may not call at all."""
        known = self.known(ae_title)
        return known or (Peer(ae_title) if self.open_door else None)

    def has_address(self, address: str) -> bool:
        """Tell whether some peer was entered with this address."""
        return any(peer.addresses and peer.calls_from(address) for peer in self)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_title.values())
