"""The network tables of the conformance statement (PS3.2), made from the code.

What is negotiated is what is printed: contexts come from the functions that answer an
A-ASSOCIATE-RQ, statuses and keys from the tables that the services themselves use. Only
words are written here. `node.statement` puts the tables into the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from dicom_scp.receiving import scp, tls
from dicom_scp.receiving.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.receiving.peers import Peer, ServiceName
from dicom_scp.receiving.scp import ScpSettings
from dicom_scp.receiving.storage import CLASSES, VERIFICATION
from dicom_scp.receiving.upper_layer import MAX_COMMAND, MAX_CONTROL_PDU, MAX_IDENTIFIER
from dicom_scp.sending import scu, stow
from dicom_scp.services import commitment, sub_operations, transcode
from dicom_scp.services.service import Service
from dicom_scp.statement.objects import object_tables, sent_classes, table
from dicom_scp.statement.services import in_hex, name, service_tables
from dicom_scp.web import dicomweb
from node.charset import MULTI_BYTE, ONE_BYTE
from node.domain.errors import ErrorKind
from node.domain.measurement import STRUCTURED_REPORTS

_MARKS = re.compile(r"(<!-- table (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_AGAIN = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.EXHAUSTED})
_PEER: Final = Peer("PEER", services=frozenset(ServiceName))


@dataclass(frozen=True)
class Implementation:
    """What is stated about: the node as its settings make it.

    `parameters` are rows (name, default, meaning) of what a site may set.
    """

    version: str
    scp: ScpSettings
    services: Sequence[Service]
    parameters: Sequence[tuple[str, str, str]] = ()


def tables(node: Implementation) -> Mapping[str, str]:
    """Return the Markdown of every table by its name."""
    return {
        "services": _services(node),
        **_association_tables(node),
        **service_tables(),
        **_sending_tables(),
        **_security_tables(),
        "character-sets": _character_sets(),
        "parameters": table(("Setting", "Default", "Meaning"), node.parameters),
        "dicomweb": _dicomweb(),
        "machine-reports": _classes(STRUCTURED_REPORTS),
        **object_tables(),
    }


def updated(statement: str, made: Mapping[str, str]) -> str:
    """Return the statement with every marked table as it is made now.

    KeyError for a mark whose name no table has.
    """
    return _MARKS.sub(lambda m: f"{m[1]}\n{made[m['name']]}\n{m[3]}", statement)


# -- what is offered -------------------------------------------------------------------


@dataclass(frozen=True)
class _Offer:
    """A SOP Class that we accept: as SCP, as SCU too, for which service of a peer."""

    uid: str
    syntaxes: tuple[str, ...]
    service: ServiceName | None
    both_roles: bool


# A class that a site enters for one peer, such as a maker's private one.
_ENTERED: Final = "1.2.3"
_ENTERED_NAME: Final = "Storage classes that the site enters for a peer"


def _offers(services: Sequence[Service], *, also: str = "") -> list[_Offer]:
    peer = replace(_PEER, sop_classes=(also,) if also else ())
    stored = {*CLASSES, also}
    of = {
        **dict.fromkeys(stored, ServiceName.STORE),
        **{uid: one.name for one in services for uid in one.abstract_syntaxes},
    }
    told = []
    for context in scp.contexts_for(peer, services, receives=stored):
        uid = str(context.abstract_syntax)
        told.append(
            _Offer(
                uid,
                tuple(str(syntax) for syntax in context.transfer_syntax or ()),
                of.get(uid),
                bool(context.scp_role),
            )
        )
    return told


def _lists(offers: Iterable[_Offer]) -> Mapping[tuple[str, ...], str]:
    """Return the lists of transfer syntaxes that occur, each with a letter."""
    different = dict.fromkeys(offer.syntaxes for offer in offers)
    return {syntaxes: chr(ord("A") + n) for n, syntaxes in enumerate(different)}


def _services(node: Implementation) -> str:
    """Return who uses and who provides what, in the groups of PS3.2."""
    called = {str(VERIFICATION), str(commitment.PUSH_MODEL), *CLASSES}
    groups: dict[str, list[Sequence[str]]] = {}
    for offer in _offers(node.services):
        user = "yes" if offer.uid in called else "no"
        row = (name(offer.uid), user, "yes")
        groups.setdefault(_GROUPS[offer.service], []).append(row)
    return table(
        ("Network service", "User of service (SCU)", "Provider of service (SCP)"),
        (
            row
            for group, rows in groups.items()
            for row in ((f"**{group}**", "", ""), *rows)
        ),
    )


_GROUPS: Final[Mapping[ServiceName | None, str]] = {
    None: "Verification",
    ServiceName.STORE: "Transfer",
    ServiceName.QUERY: "Query/Retrieve",
    ServiceName.RETRIEVE: "Query/Retrieve",
    ServiceName.COMMITMENT: "Workflow management",
    ServiceName.WORKLIST: "Workflow management",
    ServiceName.MPPS: "Workflow management",
}


def _association_tables(node: Implementation) -> Mapping[str, str]:
    offers, settings = _offers(node.services), node.scp
    letters = _lists(offers)
    every = list(dict.fromkeys(s for syntaxes in letters for s in syntaxes))
    return {
        "implementation": table(
            ("Item", "Value"),
            (
                ("Product version", node.version),
                ("Application context", "1.2.840.10008.3.1.1.1"),
                ("Implementation Class UID", IMPLEMENTATION_UID),
                ("Implementation Version Name", IMPLEMENTATION_VERSION),
                ("Asynchronous operations window", "not negotiated: one at a time"),
                ("User identity", "not negotiated"),
            ),
        ),
        "limits": table(
            ("Limit", "Default"),
            (
                ("PDU received", f"{settings.max_pdu} bytes"),
                ("PDU sent", f"what the peer takes, at most {sub_operations.MOST_PDU}"),
                ("Any other PDU (A-ASSOCIATE-RQ)", f"{MAX_CONTROL_PDU} bytes"),
                ("Command set", f"{MAX_COMMAND} bytes"),
                ("Identifier, attribute list", f"{MAX_IDENTIFIER} bytes"),
                ("Instance received", f"{settings.max_instance_bytes} bytes"),
                ("Associations accepted at once", str(settings.max_associations)),
                (
                    "Connections of one address at once",
                    str(settings.connections_per_address),
                ),
                ("A-ASSOCIATE-RQ, whole", f"{settings.acse_timeout_s:g} s"),
                ("Silence inside an association", f"{settings.network_timeout_s:g} s"),
                ("TLS handshake", f"{settings.tls_handshake_timeout_s:g} s"),
                (
                    "As requestor: connection",
                    f"{_DESTINATION.connection_timeout_s:g} s",
                ),
                (
                    "As requestor: A-ASSOCIATE-AC",
                    f"{_DESTINATION.association_timeout_s:g} s",
                ),
                ("As requestor: response", f"{_DESTINATION.response_timeout_s:g} s"),
                ("As requestor: association kept for more", f"{scu.KEEP_S:g} s"),
            ),
        ),
        "accepted": table(
            ("SOP Class", "UID", "Transfer syntaxes", "Role", "Peer's service"),
            (
                (
                    name(offer.uid) if offer.uid != _ENTERED else _ENTERED_NAME,
                    offer.uid if offer.uid != _ENTERED else "–",
                    f"list {letters[offer.syntaxes]}",
                    "SCP, SCU by role selection" if offer.both_roles else "SCP",
                    _needed(offer),
                )
                for offer in _offers(node.services, also=_ENTERED)
            ),
        ),
        "syntaxes": table(
            ("Transfer syntax", "UID", *letters.values()),
            (
                (
                    name(syntax),
                    syntax,
                    *(_rank(syntax, syntaxes) for syntaxes in letters),
                )
                for syntax in every
            ),
        ),
        "rejected": table(
            ("Result, source, diagnostic", "Cause"),
            (
                (", ".join(map(str, refused.answer)), refused.reason)
                for refused in scp.REJECTIONS
            ),
        ),
    }


_DESTINATION: Final = scu.Destination("", "", 0)


def _needed(offer: _Offer) -> str:
    if offer.service is None:
        return "any"
    fetched = offer.service is ServiceName.STORE and offer.both_roles
    also = " (SCU: retrieve)" if fetched else ""
    return f"{offer.service}{also}"


def _rank(syntax: str, syntaxes: Sequence[str]) -> str:
    return str(syntaxes.index(syntax) + 1) if syntax in syntaxes else ""


# -- what goes out ---------------------------------------------------------------------


def _sending_tables() -> Mapping[str, str]:
    native = ", ".join(name(s) for s in scu.PROPOSED_SYNTAXES)
    either = ", ".join(
        name(str(s)) for s in commitment.proposed_context().transfer_syntax or ()
    )
    push = name(commitment.PUSH_MODEL)
    both = ", ".join(name(s) for s in transcode.NATIVE[:2])
    return {
        "proposed": table(
            ("Activity", "SOP Class", "Transfer syntaxes", "Role", "Extended"),
            (
                ("Send results", "those of the table below", native, "SCU", "none"),
                (
                    "Send what was received",
                    "its own",
                    f"its own, {native}",
                    "SCU",
                    "none",
                ),
                ("C-MOVE sub-operations", "its own", f"its own, {both}", "SCU", "none"),
                ("Ask an archive to commit itself", push, either, "SCU", "none"),
                (
                    "Report commitment to a machine",
                    push,
                    either,
                    "SCP",
                    "role selection: SCU 0, SCP 1",
                ),
                (
                    "Try an archive (`doctor pacs`)",
                    f"{name(VERIFICATION)}; all of the above",
                    native,
                    "SCU",
                    "none",
                ),
            ),
        ),
        "sent": table(
            ("SOP Class", "UID", "Content"),
            ((name(uid), str(uid), content) for uid, content in sent_classes()),
        ),
        "send-outcomes": table(
            ("C-STORE status", "Meaning: the archive …", "What the node does"),
            (
                (
                    in_hex(low) if low == high else f"{in_hex(low)}-{in_hex(high)}",
                    words,
                    _reaction(kind),
                )
                for low, high, kind, words in scu.SEND_OUTCOMES
            ),
        ),
        "commitment-asked": table(
            ("Status of the N-ACTION", "Meaning: the archive …", "What the node does"),
            (
                (in_hex(code), words, _reaction(kind))
                for code, (kind, words) in commitment.ASK_OUTCOMES.items()
            ),
        ),
        "stow-outcomes": table(
            ("HTTP status", "Meaning: the archive …", "What the node does"),
            (
                ("200, 202", "stored", "done"),
                *(
                    (str(code), words, _reaction(kind))
                    for code, (kind, words) in stow.HTTP_OUTCOMES.items()
                ),
                ("other 4xx", "refuses the request", _reaction(ErrorKind.INVALID)),
                ("5xx", "fails itself", _reaction(ErrorKind.UNAVAILABLE)),
            ),
        ),
    }


def _reaction(kind: ErrorKind | None) -> str:
    if kind is None:
        return "done"
    return "tries again" if kind in _AGAIN else "stops; shown to the staff"


def _dicomweb() -> str:
    """Return the resources that are served, with what their handlers say of them."""
    # The routes are only looked at, so there is no store behind them.
    found = dicomweb.routes(cast("Any", None))
    return table(
        ("Method", "Resource", "Transaction"),
        (
            (route.method, f"`{route.path}`", _first_line(route.handler))
            for route in cast("Iterable[Any]", found)
        ),
    )


def _first_line(handler: object) -> str:
    told = (handler.__doc__ or "").partition("\n")[0].removeprefix("Answer ")
    return told.rstrip(".")


# -- security, text --------------------------------------------------------------------


def _security_tables() -> Mapping[str, str]:
    return {
        "tls": table(
            ("Item", "Value"),
            (
                ("Versions", "1.2 and 1.3"),
                ("Cipher suites of TLS 1.2", ", ".join(tls.CIPHERS.split(":"))),
                ("Cipher suites of TLS 1.3", "those of the platform"),
                ("Renegotiation, compression, session tickets", "none"),
            ),
        )
    }


def _character_sets() -> str:
    one_byte = ", ".join(sorted(ONE_BYTE))
    many = ", ".join(MULTI_BYTE)
    return table(
        ("Specific Character Set", "Stored", "C-FIND: read", "C-FIND: answered"),
        (
            ("none (ISO_IR 6)", "yes", "yes", "yes"),
            (many, "yes", "yes", "yes"),
            ("\\ISO 2022 IR 58", "yes", "yes", "yes"),
            (one_byte, "yes", "yes", "yes"),
            ("other ISO 2022 sets", "yes", "yes", "in ISO_IR 192"),
        ),
    )


def _classes(uids: Iterable[str]) -> str:
    return table(("SOP Class", "UID"), ((name(uid), uid) for uid in uids))
