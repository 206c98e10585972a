"""What the services answer, for the conformance statement: statuses, keys, attributes.

Numbers, keys and rules are those of the services themselves; words are written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final

from pydicom.datadict import (
    dictionary_description,
    dictionary_VR,
    keyword_for_tag,
    tag_for_keyword,
)
from pydicom.uid import UID

from dicom_scp.receiving import status
from dicom_scp.receiving.coercion import COERCIBLE, KEPT_EMPTY, Action, Rule
from dicom_scp.services import commitment, mpps, query, query_model, retrieve, worklist
from dicom_scp.services.matching import RANGES, WILDCARDS
from dicom_scp.services.query_model import UNIQUE_KEYS, Level
from dicom_scp.statement.objects import full_order, table
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store.orders import ListedOrder
from node.workflow.commitment import FailureReason


def service_tables() -> Mapping[str, str]:
    """Return the Markdown of each service's tables by name."""
    return {
        **_storage_tables(),
        **_commitment_tables(),
        **_mpps_tables(),
        **_worklist_tables(),
        **_query_tables(),
    }


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
        "storage-status": statuses(
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
                    *described(tag_of(keyword)),
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
        "commitment-status": statuses(
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
        "commitment-failures": statuses(
            *((reason, words) for reason, words in failures.items()),
            head="Failure Reason",
        ),
    }


def _mpps_tables() -> Mapping[str, str]:
    kinds = {
        ErrorKind.CONFLICT: "N-CREATE under a UID that is taken",
        ErrorKind.NOT_FOUND: "N-SET of a step that nobody created",
        ErrorKind.FORBIDDEN: "N-SET of a step that another AE created",
        ErrorKind.EXHAUSTED: "out of resources, or the database is away",
    }
    final = in_hex(mpps.NO_LONGER_UPDATED)
    attributes = [
        *mpps.FIXED,
        "PerformedProcedureStepStatus",
        "PerformedSeriesSequence",
    ]
    return {
        "mpps-status": statuses(
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
            ((*described(tag_of(k)), *_mpps_rule(k)) for k in attributes),
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
        "worklist-status": statuses(
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
        description, shown, vr = described(int(tag, 16))
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
        "find-status": statuses(
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
        "retrieve-status": statuses(
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
            yield level.name, *described(int(tag, 16)), *_key(tag, level)
    yield (
        Level.IMAGE.name,
        "any other standard attribute of the header but bulk data",
        "",
        "",
        "O",
        "by its VR",
    )
    for tag in told_only:
        yield "every", *described(int(tag, 16)), "–", "returned only"


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


# -- words -----------------------------------------------------------------------------


def name(uid: str) -> str:
    """Return the name of a SOP Class or transfer syntax in the registry (PS3.6 A)."""
    known = UID(str(uid))
    told = known.name.removesuffix(" SOP Class")
    told = re.sub(r" (Information Model )?- (FIND|MOVE|GET)$", r" \1– \2", told)
    return f"{told} (Retired)" if known.is_retired else told


def tag_of(keyword: str) -> int:
    """Return the tag of a keyword of PS3.6."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise NodeError(f"{keyword} is no attribute", ErrorKind.INVALID)
    return tag


def described(tag: int) -> tuple[str, str, str]:
    """Return name, tag and VR of an attribute as tables show them."""
    shown = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    described = dictionary_description(tag) if keyword_for_tag(tag) else shown
    return described, shown, dictionary_VR(tag)


def statuses(*rows: tuple[int, str], head: str = "Status") -> str:
    """Return a table of statuses, success first; causes of one status are joined."""
    causes: dict[int, list[str]] = {}
    for code, words in rows:
        causes.setdefault(int(code), []).append(words)
    return table(
        (head, "Cause"),
        ((in_hex(code), "; ".join(words)) for code, words in sorted(causes.items())),
    )


def in_hex(code: int) -> str:
    """Return a status as PS3.7 writes it, without its H."""
    return f"{code:04X}"
