"""The network tables of the conformance statement (PS3.2), made from the code.

What is negotiated is what is printed: contexts come from the functions that answer an
A-ASSOCIATE-RQ, statuses and keys from the tables that the services themselves use. Only
words are written here. `node.statement` puts the tables into the document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, cast

from pydicom.datadict import (
    dictionary_description,
    dictionary_VR,
    keyword_for_tag,
    tag_for_keyword,
)
from pydicom.uid import UID as Uid

from dicom_scp import (
    commitment,
    dicomweb,
    mpps,
    query,
    query_model,
    retrieve,
    scp,
    scu,
    status,
    stow,
    sub_operations,
    tls,
    transcode,
    worklist,
)
from dicom_scp.coercion import COERCIBLE, KEPT_EMPTY, Action, Rule
from dicom_scp.conformance_objects import (
    full_order,
    object_tables,
    sent_classes,
    table,
)
from dicom_scp.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.matching import RANGES, WILDCARDS
from dicom_scp.peers import Peer, ServiceName
from dicom_scp.query_model import UNIQUE_KEYS, Level
from dicom_scp.scp import ScpSettings
from dicom_scp.services import Service
from dicom_scp.storage import CLASSES, VERIFICATION
from dicom_scp.upper_layer import MAX_COMMAND, MAX_CONTROL_PDU, MAX_IDENTIFIER
from node.charset import MULTI_BYTE, ONE_BYTE
from node.domain.errors import ErrorKind, NodeError
from node.domain.measurement import STRUCTURED_REPORTS
from node.domain.study import PatientIdentity
from node.store.orders import ListedOrder
from node.workflow.commitment import FailureReason

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
        **_storage_tables(),
        **_commitment_tables(),
        **_mpps_tables(),
        **_worklist_tables(),
        **_query_tables(),
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


def _offers(services: Sequence[Service]) -> list[_Offer]:
    of = {uid: one.name for one in services for uid in one.abstract_syntaxes}
    told = []
    for context in scp.contexts_for(_PEER, services, receives=CLASSES):
        uid = str(context.abstract_syntax)
        stored = ServiceName.STORE if uid in CLASSES else None
        told.append(
            _Offer(
                uid,
                tuple(str(syntax) for syntax in context.transfer_syntax or ()),
                of.get(uid, stored),
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
                    name(offer.uid),
                    offer.uid,
                    f"list {letters[offer.syntaxes]}",
                    "SCP, SCU by role selection" if offer.both_roles else "SCP",
                    _needed(offer),
                )
                for offer in offers
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
    also = " (SCU: retrieve)" if offer.uid in CLASSES and offer.both_roles else ""
    return f"{offer.service}{also}"


def _rank(syntax: str, syntaxes: Sequence[str]) -> str:
    return str(syntaxes.index(syntax) + 1) if syntax in syntaxes else ""


# -- services, one after the other -----------------------------------------------------


def _storage_tables() -> Mapping[str, str]:
    kinds = {
        ErrorKind.INVALID: "cannot be understood: cut off, or without what files it",
        ErrorKind.UNSUPPORTED: "SOP Class not supported",
        ErrorKind.FORBIDDEN: "the peer may not store",
        ErrorKind.CONFLICT: "other content under a known UID, or of another patient",
        ErrorKind.EXHAUSTED: "no room on disk, or the instance is too large",
        ErrorKind.UNAVAILABLE: "the database is away",
    }
    return {
        "storage-status": _statuses(
            (status.SUCCESS, "stored: on disk and committed, or there already"),
            (status.COERCED, "stored; a rule of the site has corrected the header"),
            (status.PROCESSING_FAILURE, "unforeseen failure, or a rule cannot apply"),
            (status.DOES_NOT_MATCH, "class or UID of data set and command differ"),
            *((code, kinds[kind]) for kind, code in status.STORAGE_STATUS.items()),
        ),
        "coercible": table(
            ("Attribute", "Tag", "VR", "Removed means"),
            (
                (
                    *_described(tag_of(keyword)),
                    "empty" if keyword in KEPT_EMPTY else "absent",
                )
                for keyword in sorted(COERCIBLE)
            ),
        ),
        "coercions": table(
            ("Action", "`OLD` becomes, with value `NEW`", "An empty value becomes"),
            ((str(action), *_example(action)) for action in Action),
        ),
    }


def _example(action: Action) -> tuple[str, str]:
    """Return what becomes of a value and of an empty one."""
    searched = "^O" if action is Action.REPLACE else ""
    value = "" if action is Action.REMOVE else "NEW"
    rule = Rule("StudyDescription", action, value, searched)
    made = [f"`{text}`" if text else "empty" for text in map(rule.apply, ("OLD", ""))]
    return made[0] + (f", pattern `{searched}`" if searched else ""), made[1]


def _commitment_tables() -> Mapping[str, str]:
    failures = {
        FailureReason.PROCESSING_FAILURE: "there is a row, its object is damaged",
        FailureReason.NO_SUCH_INSTANCE: "it is not here, or was erased",
        FailureReason.CLASS_INSTANCE_CONFLICT: "it is here under another SOP Class",
    }
    resources = commitment.COMMITMENT_STATUS[ErrorKind.EXHAUSTED]
    return {
        "commitment-status": _statuses(
            (0x0000, "N-ACTION: the request is on disk; N-EVENT-REPORT: noted"),
            (commitment.NO_SUCH_CLASS, "another SOP Class than the context's"),
            (commitment.NO_SUCH_INSTANCE, "not the well-known SOP Instance"),
            (commitment.NO_SUCH_ACTION, "Action Type ID is not 1"),
            (commitment.NO_SUCH_EVENT, "Event Type ID is neither 1 nor 2"),
            (commitment.MISSING, "an attribute is missing; the comment names it"),
            (commitment.EMPTY, "an attribute has no value; the comment names it"),
            (
                commitment.INVALID_ARGUMENT,
                "no UID; not to be decoded; a Transaction UID that stands for another"
                " list, or that nobody asked with",
            ),
            (resources, "out of resources"),
            (
                commitment.PROCESSING_FAILURE,
                "no address to report to is set, or the database is away",
            ),
        ),
        "commitment-failures": _statuses(
            *((reason, words) for reason, words in failures.items()),
            head="Failure Reason",
        ),
        "commitment-asked": table(
            ("Status of the N-ACTION", "Meaning: the archive …", "What the node does"),
            (
                (_hex(code), words, _reaction(kind))
                for code, (kind, words) in commitment.ASK_OUTCOMES.items()
            ),
        ),
    }


def _mpps_tables() -> Mapping[str, str]:
    kinds = {
        ErrorKind.CONFLICT: "N-CREATE under a UID that is taken",
        ErrorKind.NOT_FOUND: "N-SET of a step that nobody created",
        ErrorKind.FORBIDDEN: "N-SET of a step that another AE created",
        ErrorKind.EXHAUSTED: "out of resources, or the database is away",
    }
    final = _hex(mpps.NO_LONGER_UPDATED)
    attributes = [
        *mpps.FIXED,
        "PerformedProcedureStepStatus",
        "PerformedSeriesSequence",
    ]
    return {
        "mpps-status": _statuses(
            (mpps.SUCCESS, "on disk"),
            (mpps.INVALID_VALUE, "a value is not allowed; the comment names it"),
            (mpps.NO_SUCH_CLASS, "another SOP Class than the context's"),
            (mpps.MISSING, "a required attribute is missing; the comment names it"),
            (mpps.EMPTY, "a required attribute has no value; the comment names it"),
            *((mpps.MPPS_STATUS[kind], words) for kind, words in kinds.items()),
            (
                mpps.PROCESSING_FAILURE,
                f"N-SET of a step that has ended (Error ID {final}), or what cannot be"
                " decoded, or unforeseen",
            ),
        ),
        "mpps-attributes": table(
            ("Attribute", "Tag", "VR", "N-CREATE", "N-SET"),
            ((*_described(tag_of(k)), *_mpps_rule(k)) for k in attributes),
        ),
    }


def _mpps_rule(keyword: str) -> tuple[str, str]:
    if keyword == "PerformedProcedureStepStatus":
        return "IN PROGRESS", "COMPLETED, DISCONTINUED or IN PROGRESS"
    if keyword == "PerformedSeriesSequence":
        return "optional", "required, with an item, at COMPLETED"
    needed = "required, with a value" if keyword in mpps.DEMANDED else "optional"
    return needed, "not changed"


def _worklist_tables() -> Mapping[str, str]:
    return {
        "worklist-status": _statuses(
            (worklist.PENDING, "a scheduled step"),
            (worklist.PENDING_WITHOUT_SOME_KEYS, "a step; some keys are not supported"),
            (0x0000, "no more steps"),
            (worklist.CANCELLED, "after a C-CANCEL"),
            (
                worklist.OUT_OF_RESOURCES,
                "more steps than `worklist.maximum_answers`, or the database is away",
            ),
            (
                worklist.NOT_THIS_SOP_CLASS,
                "a key cannot be; Offending Element names it",
            ),
            (worklist.UNABLE, "the identifier cannot be read, or unforeseen"),
        ),
        "worklist-keys": table(
            ("Attribute", "Tag", "VR", "Matching", "Returned"),
            _worklist_keys(_answer()),
        ),
    }


def _worklist_keys(
    answer: Mapping[str, Mapping[str, Any]], above: str = ""
) -> Iterator[Sequence[str]]:
    for tag, element in sorted(answer.items()):
        description, shown, vr = _described(int(tag, 16))
        values = element.get("Value") or ()
        told = "as ordered" if values else "empty"
        if vr == "SQ":
            told = "as ordered" if values else "no item"
        elif tag in (worklist.STATION, worklist.START_DATE, worklist.START_TIME):
            told = {worklist.STATION: "its own, else the AE that asks"}.get(tag, told)
        yield f"{above}{description}", shown, vr, _matching(vr), told
        if vr == "SQ" and values:
            yield from _worklist_keys(values[0], f"{above}&gt; ")


def _answer() -> Mapping[str, Mapping[str, Any]]:
    """Return the worklist item of a full order: what is empty there is not kept."""
    identity = PatientIdentity("P", "N", date(1980, 1, 1), "F", issuer="I")
    return worklist.answer_of(ListedOrder(full_order(), identity), "PEER")


def _query_tables() -> Mapping[str, str]:
    return {
        "find-status": _statuses(
            (query.PENDING, "a match"),
            (query.PENDING_WITH_UNSUPPORTED_KEYS, "a match; some keys not supported"),
            (0x0000, "no more matches"),
            (query.CANCELLED, "after a C-CANCEL"),
            (
                query.FIND_STATUS[ErrorKind.EXHAUSTED],
                "more matches or candidates than allowed (the comment says how to"
                " narrow the search), or the database is away",
            ),
            (
                query.FIND_STATUS[ErrorKind.INVALID],
                "no identifier of this model; Offending Element names the key",
            ),
            (query_model.UNABLE, "unable to process"),
        ),
        "find-keys": table(
            ("Level", "Attribute", "Tag", "VR", "Type", "Matching"), _find_keys()
        ),
        "retrieve-status": _statuses(
            (retrieve.PENDING, "sub-operations go on; with their numbers"),
            (retrieve.SUCCESS, "all were taken; also where nothing was found"),
            (
                retrieve.SOME_FAILED,
                "some failed or were warned; the identifier names them",
            ),
            (retrieve.NONE_DONE, "all failed"),
            (retrieve.CANCELLED, "after a C-CANCEL; with what remains"),
            (
                retrieve.NOT_COUNTABLE,
                f"more than {retrieve.MOST_INSTANCES} instances, or the database is"
                " away",
            ),
            (
                retrieve.UNKNOWN_DESTINATION,
                "the move destination is unknown, has no address, or is not the"
                " caller's to use",
            ),
            (
                retrieve.RETRIEVE_STATUS[ErrorKind.INVALID],
                "the identifier does not say what to retrieve",
            ),
            (retrieve.UNFORESEEN, "unforeseen failure"),
        ),
    }


# Required keys of PS3.4 C.6.1.1 and C.6.2.1; unique keys are those of the code.
_REQUIRED: Final = frozenset(
    tag_for_keyword(keyword)
    for keyword in (
        "PatientName",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyID",
        "Modality",
        "SeriesNumber",
        "InstanceNumber",
    )
)
_OF_INSTANCES: Final = tuple(
    f"{tag_for_keyword(keyword):08X}"
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "AvailableTransferSyntaxUID",
        "InstanceNumber",
    )
)


def _find_keys() -> Iterator[Sequence[str]]:
    told_only = (query.RETRIEVE_AE_TITLE, query.INSTANCE_AVAILABILITY)
    for level, keys in (
        (Level.PATIENT, query.PATIENT_KEYS),
        (Level.STUDY, query.STUDY_KEYS),
        (Level.SERIES, query.SERIES_KEYS),
        (Level.IMAGE, _OF_INSTANCES),
    ):
        for tag in sorted(keys):
            yield level.name, *_described(int(tag, 16)), *_key(tag, level)
    yield (
        Level.IMAGE.name,
        "any other standard attribute of the header but bulk data",
        "",
        "",
        "O",
        "by its VR",
    )
    for tag in told_only:
        yield "every", *_described(int(tag, 16)), "–", "returned only"


def _key(tag: str, level: Level) -> tuple[str, str]:
    kind = "R" if int(tag, 16) in _REQUIRED else "O"
    if UNIQUE_KEYS[level] == tag:
        kind = "U"
    return kind, _matching(dictionary_VR(int(tag, 16)))


def _matching(vr: str) -> str:
    """Return how a key of a VR is matched (PS3.4 C.2.2.2), beside universally."""
    if vr == "SQ":
        return "sequence"
    if vr == "UI":
        return "single value, list of UIDs"
    if vr in RANGES:
        return "single value, range"
    return "single value, wildcard" if vr in WILDCARDS else "single value"


# -- what goes out ---------------------------------------------------------------------


def _sending_tables() -> Mapping[str, str]:
    native = ", ".join(name(s) for s in scu.PROPOSED_SYNTAXES)
    either = ", ".join(
        name(Uid(str(s))) for s in commitment.proposed_context().transfer_syntax or ()
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
                    _hex(low) if low == high else f"{_hex(low)}-{_hex(high)}",
                    words,
                    _reaction(kind),
                )
                for low, high, kind, words in scu.SEND_OUTCOMES
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


# -- words -----------------------------------------------------------------------------


def name(uid: str) -> str:
    """Return the name of a SOP Class or transfer syntax in the registry (PS3.6 A)."""
    known = Uid(str(uid))
    told = known.name.removesuffix(" SOP Class")
    told = re.sub(r" (Information Model )?- (FIND|MOVE|GET)$", r" \1– \2", told)
    return f"{told} (Retired)" if known.is_retired else told


def tag_of(keyword: str) -> int:
    """Return the tag of a keyword of PS3.6."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise NodeError(f"{keyword} is no attribute", ErrorKind.INVALID)
    return tag


def _described(tag: int) -> tuple[str, str, str]:
    """Return name, tag and VR of an attribute as tables show them."""
    shown = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    described = dictionary_description(tag) if keyword_for_tag(tag) else shown
    return described, shown, dictionary_VR(tag)


def _classes(uids: Iterable[str]) -> str:
    return table(("SOP Class", "UID"), ((name(uid), uid) for uid in uids))


def _statuses(*rows: tuple[int, str], head: str = "Status") -> str:
    """Return a table of statuses, success first; causes of one status are joined."""
    causes: dict[int, list[str]] = {}
    for code, words in rows:
        causes.setdefault(int(code), []).append(words)
    return table(
        (head, "Cause"),
        ((_hex(code), "; ".join(words)) for code, words in sorted(causes.items())),
    )


def _hex(code: int) -> str:
    return f"{code:04X}"
