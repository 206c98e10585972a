"""Looks at the connection of one machine from our side, and says what to change.

Whether it is entered, how its last calls ended, what it asked for in vain, and whether
we reach it for storage commitment. A machine itself tells its operator nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydicom.uid import UID

from dicom_scp.receiving import scp
from dicom_scp.receiving.peers import Peer, Peers, ServiceName
from dicom_scp.receiving.storage import is_storage_class
from dicom_scp.sending.probe import Finding
from node.store.callers import ACCEPTED, Call

LONG_AGO: Final = timedelta(days=7)


@dataclass(frozen=True)
class Around:
    """What the node knows: its own title, its peers, and which service has a class."""

    ae_title: str
    peers: Peers
    services: Mapping[str, ServiceName]


def examine_machine(
    title: str,
    calls: Sequence[Call],
    strangers: Sequence[Call],
    around: Around,
    *,
    now: datetime,
) -> list[Finding]:
    """Return what is known of the machine that calls itself `title`.

    `calls` are those under its title, the latest first; `strangers` those of the
    last hour under titles that nobody entered.
    """
    peer = around.peers.caller(title)
    return [
        _entered(title, peer, around),
        *_called(title, calls, strangers, around, now),
        *_refused(calls, peer, around),
    ]


def _entered(title: str, peer: Peer | None, around: Around) -> Finding:
    if peer is None:
        return Finding(
            "entered",
            False,
            f'no: add a table [[dicom.peers]] with ae_title = "{title}", then start'
            " the node again",
        )
    services = ", ".join(sorted(peer.services))
    if around.peers.known(title) is None:
        return Finding(
            "entered",
            False,
            f"no; like everybody it may use {services}. Add a table [[dicom.peers]]"
            f' with ae_title = "{title}" before patients come',
        )
    return Finding("entered", True, f"may use {services}")


def _called(
    title: str,
    calls: Sequence[Call],
    strangers: Sequence[Call],
    around: Around,
    now: datetime,
) -> Iterator[Finding]:
    if not calls:
        told = (
            f"nobody has called as {title} yet: on the machine set our AE title"
            f" {around.ae_title}, this machine's address and dicom.port, then press"
            " Verification there"
        )
        yield Finding("calls", False, told)
        for one in strangers:
            yield Finding(
                "stranger",
                False,
                f"{one.calling_ae or 'without a title'} called from {one.address}:"
                f" if that is the machine, its title is not {title}",
            )
        return
    latest = calls[0]
    told = f"{_ago(now - latest.at)} from {latest.address}: {latest.outcome}"
    if latest.outcome == ACCEPTED:
        well = now - latest.at < LONG_AGO
        yield Finding("calls", well, told)
    else:
        yield Finding("calls", False, f"{told}. {_mend(latest, around)}")


def _mend(call: Call, around: Around) -> str:
    """Return what to change so that a rejected call gets in."""
    mends = {
        scp.NOT_CALLED: f"It calls {call.called_ae!r}; set the called AE title of the"
        f" machine to {around.ae_title}",
        scp.UNKNOWN_CALLER: "Enter it: [[dicom.peers]] with"
        f' ae_title = "{call.calling_ae}"',
        scp.WRONG_ADDRESS: f"Add {call.address} to its addresses in dicom.peers, if"
        " that is the machine and nobody else",
        scp.NO_CERTIFICATE: "Its entry asks for a certificate: let it call"
        " dicom.tls_port with TLS and show one",
        scp.WRONG_CERTIFICATE: "It shows another certificate than its entry names:"
        " compare the fingerprint (SHA-256), which is in the audit trail",
        scp.TOO_MANY: "Raise dicom.maximum_associations, or see who keeps them open",
        scp.TOO_MANY_OF_PEER: "Raise max_associations of its entry, or see why it"
        " opens so many",
    }
    by_reason = {rejection.reason: words for rejection, words in mends.items()}
    return by_reason.get(call.outcome, "See the log of the node")


def _refused(
    calls: Sequence[Call], peer: Peer | None, around: Around
) -> Iterator[Finding]:
    """Yield a line for each class that the last accepted call asked for in vain."""
    accepted = next((call for call in calls if call.outcome == ACCEPTED), None)
    for uid in accepted.refused_classes if accepted else ():
        yield Finding(
            "asks in vain for", False, f"{UID(uid).name}: {_why(uid, peer, around)}"
        )


def _why(uid: str, peer: Peer | None, around: Around) -> str:
    if UID(uid).is_private:
        return f'if it is to be stored, add "{uid}" to sop_classes of its entry'
    service = around.services.get(uid)
    if service is None and is_storage_class(uid):
        service = ServiceName.STORE
    if service is not None and peer is not None and service not in peer.services:
        return f'add "{service}" to services of its entry in dicom.peers'
    if service is not None:
        return "none of its transfer syntaxes is taken; see the conformance statement"
    return "the node does not offer it; switch it off on the machine"


def _ago(passed: timedelta) -> str:
    minutes = int(passed.total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 120:
        return f"{minutes} minutes ago"
    hours = minutes // 60
    return f"{hours} hours ago" if hours < 48 else f"{hours // 24} days ago"
