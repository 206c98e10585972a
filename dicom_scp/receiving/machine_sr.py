"""The job `read_machine_report`: measurements out of a machine's Structured Report.

Makers use templates of their own (TID 5000 and relatives, TID 1500, private trees), so
nothing is expected of the tree: every NUM item is taken wherever it stands, with the
headings above it, and CODE items whose name is one of our lexicon (PS3.3 C.17.3,
C.18.1). Free text and persons' names stay where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydicom.dataset import Dataset

from node.domain import lexicon
from node.domain.audit import by_the_node
from node.domain.errors import ErrorKind, NodeError
from node.domain.measurement import Code, MachineReport, Measurement
from node.imaging import read_header
from node.store import audit, measurements, studies

if TYPE_CHECKING:
    from node.store.store import Store
    from node.store.studies import StoredInstance

log = structlog.get_logger(__name__)

MOST_MEASUREMENTS: Final = 500
DEEPEST: Final = 24
_GROUP: Final = ("DCM", "125007")
_TRACKING: Final = {
    ("DCM", "112039"),
    ("DCM", "121151"),
}  # Tracking / Lesion Identifier
_SITE: Final = {("SCT", "363698007"), ("SRT", "G-C0E3"), ("DCM", "111014")}
_SIDE: Final = {("SCT", "272741003"), ("SRT", "G-C171")}
_DERIVATION: Final = ("DCM", "121401")
_ALGORITHM: Final = ("DCM", "111001")
_DESCRIPTORS: Final = {
    (field.concept.scheme, field.concept.value) for field in lexicon.FIELDS.values()
} | {("DCM", "111005")}  # Assessment Category


async def read_machine_report(store: Store, payload: Mapping[str, Any]) -> None:
    """Read one received Structured Report and keep what it measured, sealed.

    Runs again without harm. A document that cannot be understood is kept as it is
    and ends here with INVALID: the images are read all the same.
    """
    uid = payload["sop_instance_uid"]
    async with store.db.connection() as connection:
        instance = await studies.instance(connection, store, uid)
    if instance is None:
        raise NodeError(f"there is no instance {uid}", ErrorKind.NOT_FOUND)
    report = await asyncio.to_thread(_understood, store, instance)
    async with store.db.transaction() as tx:
        study = instance.study_instance_uid
        at = store.clock()
        await measurements.keep(tx, store, instance.patient_id, study, report, at=at)
        await audit.record(
            tx,
            by_the_node(
                at,
                "read measurements",
                f"instance/{uid}",
                {"measurements": str(len(report.measurements))},
            ),
        )
    log.info(
        "machine_report.read", sop_instance_uid=uid, items=len(report.measurements)
    )


def _understood(store: Store, instance: StoredInstance) -> MachineReport:
    """Read the stored object itself: its header as JSON turns 0.910 into 0.91."""
    with studies.open_blob(store, instance) as reader:
        part10 = reader.read()
    try:
        return machine_report(read_header(part10))
    except NodeError:
        raise
    except Exception as error:
        # What the text of such an error quotes is the patient's.
        raise NodeError(
            f"the report {instance.sop_instance_uid} cannot be read"
            f" ({type(error).__name__})",
            ErrorKind.INVALID,
        ) from None


def machine_report(document: Dataset) -> MachineReport:
    """Return what a Structured Report measured; `document` holds Unicode text."""
    found = list(_measurements(document, _Place()))
    return MachineReport(
        sop_instance_uid=str(document.SOPInstanceUID),
        title=_code(document, "ConceptNameCodeSequence").meaning,
        device=" ".join(
            filter(
                None,
                (_text(document, k) for k in ("Manufacturer", "ManufacturerModelName")),
            )
        ),
        algorithm=_algorithm(document),
        verified=_text(document, "VerificationFlag") == "VERIFIED",
        measurements=tuple(found[:MOST_MEASUREMENTS]),
        left_out=max(0, len(found) - MOST_MEASUREMENTS),
    )


@dataclass(frozen=True)
class _Place:
    """Where in the tree an item stands, and what holds for all below."""

    headings: tuple[str, ...] = ()
    site: str = ""
    depth: int = 0

    def below(self, item: Dataset, items: list[Dataset]) -> _Place:
        """Return the place of the children `items` of a container `item`."""
        if self.depth >= DEEPEST:
            raise NodeError("the report is nested too deep", ErrorKind.INVALID)
        # The title of the document says nothing of a measurement, nor does the name
        # that TID 1500 gives every group.
        name = _code(item, "ConceptNameCodeSequence")
        plain = not self.depth or (name.scheme, name.value) == _GROUP
        named = "" if plain else name.meaning
        tracking = next((_text(i, "TextValue") for i in items if _is(i, _TRACKING)), "")
        headings = tuple(word for word in (named, tracking) if word)
        return _Place(
            (*self.headings, *headings), _site(items) or self.site, self.depth + 1
        )


def _measurements(item: Dataset, place: _Place) -> Iterator[Measurement]:
    """Yield what stands below `item`, in the order of the tree."""
    items = _children(item)
    below = place.below(item, items)
    for child in items:
        kind = _text(child, "ValueType")
        if kind == "NUM":
            yield _numeric(child, below)
        elif kind == "CODE" and _is(child, _DESCRIPTORS):
            chosen = _code(child, "ConceptCodeSequence")
            yield _where(child, replace(_named(child, below), term=chosen))
        elif kind == "CONTAINER":
            yield from _measurements(child, below)


def _named(item: Dataset, place: _Place) -> Measurement:
    name = _code(item, "ConceptNameCodeSequence")
    return Measurement(group=place.headings, name=name, site=place.site)


def _numeric(item: Dataset, place: _Place) -> Measurement:
    """Return a NUM item; an empty Measured Value Sequence is no value, not zero."""
    measured = _where(item, _named(item, place))
    qualifier = _code(item, "NumericValueQualifierCodeSequence").meaning
    derivation = next(
        (
            _code(child, "ConceptCodeSequence").meaning
            for child in _children(item)
            if _is(child, {_DERIVATION})
        ),
        "",
    )
    measured = replace(measured, qualifier=qualifier, derivation=derivation)
    values = item.get("MeasuredValueSequence") or ()
    if not values:
        return measured
    value = values[0]
    return replace(
        measured,
        value=_text(value, "NumericValue") or None,
        unit=_code(value, "MeasurementUnitsCodeSequence").value,
    )


def _where(item: Dataset, measured: Measurement) -> Measurement:
    """Add site and picture; the picture may hang on the coordinates drawn in it."""
    items = _children(item)
    image = next((i for i in items if _text(i, "ValueType") == "IMAGE"), None)
    if image is None:
        drawn = (i for i in items if _text(i, "ValueType") == "SCOORD")
        image = next((i for d in drawn for i in _children(d)), None)
    measured = replace(measured, site=_site(items) or measured.site)
    referenced = image.get("ReferencedSOPSequence") if image is not None else None
    if not referenced:
        return measured
    frame = _text(referenced[0], "ReferencedFrameNumber")
    return replace(
        measured,
        image=_text(referenced[0], "ReferencedSOPInstanceUID") or None,
        frame=int(frame) if frame.isdigit() else None,
    )


def _site(items: list[Dataset]) -> str:
    """Return side and site as the machine words them, empty when it names none."""
    words = [
        _code(found, "ConceptCodeSequence").meaning
        for item in items
        if _text(item, "ValueType") == "CODE" and _is(item, _SITE | _SIDE)
        for found in (item, *(c for c in _children(item) if _is(c, _SIDE | _SITE)))
    ]
    return ", ".join(word for word in words if word)


def _algorithm(document: Dataset) -> str:
    """Return the software that measured, if the document says that one did."""
    for item in _descendants(document, DEEPEST):
        if _is(item, {_ALGORITHM}) and (name := _text(item, "TextValue")):
            return name
    return ""


def _descendants(item: Dataset, depth: int) -> Iterator[Dataset]:
    for child in _children(item):
        yield child
        if depth:
            yield from _descendants(child, depth - 1)


def _children(item: Dataset) -> list[Dataset]:
    return list(item.get("ContentSequence") or ())


def _is(item: Dataset, names: set[tuple[str, str]]) -> bool:
    name = _code(item, "ConceptNameCodeSequence")
    return (name.scheme, name.value) in names


def _code(item: Dataset, keyword: str) -> Code:
    found = item.get(keyword)
    if not found:
        return Code("", "", "")
    code = found[0]
    value = next(
        (
            v
            for k in ("CodeValue", "LongCodeValue", "URNCodeValue")
            if (v := _text(code, k))
        ),
        "",
    )
    return Code(
        _text(code, "CodingSchemeDesignator"), value, _text(code, "CodeMeaning")
    )


def _text(item: Dataset, keyword: str) -> str:
    value = item.get(keyword)
    if value is None or value == "":
        return ""
    # A decimal stays as it was written.
    return str(getattr(value, "original_string", value)).strip()
