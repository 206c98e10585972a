"""Modality Worklist: scheduled steps for the machine that asks (PS3.4 Annex K).

What the machine copies into its images comes back with them, so that a result finds
its order. Every query is audited; keys and answers name patients, no log has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from io import BytesIO
from time import sleep
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import structlog
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.presentation import build_context

from dicom_scp.receiving.peers import ServiceName
from dicom_scp.receiving.status import error_comment
from dicom_scp.services.answers import (
    Identifier,
    NotAnIdentifier,
    encode_answer,
    project,
    read_identifier,
    spoken,
    unsupported,
)
from dicom_scp.services.matching import PN_GROUPS, Key, matches, name_parts
from dicom_scp.services.service import Caller, Service, caller_of
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.order import Code, OrderStatus
from node.store import audit, identities, merges, orders
from node.store.orders import ListedOrder, OrderQuery
from node.workflow.intake import MODALITY_ROLE

if TYPE_CHECKING:
    from dicom_scp.receiving.intake import StoreThread
    from node.store.store import Store

log = structlog.get_logger(__name__)

WORKLIST_FIND: Final = UID("1.2.840.10008.5.1.4.31")
PENDING: Final = 0xFF00
PENDING_WITHOUT_SOME_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
OUT_OF_RESOURCES: Final = 0xA700
NOT_THIS_SOP_CLASS: Final = 0xA900
UNABLE: Final = 0xC000
_CANDIDATES: Final = 4
"""Orders opened for each that may be answered, before a query counts as too wide."""

_LISTEN_EVERY: Final = 8
_PAUSE_S: Final = 0.001
_TOO_MANY: Final = "more than worklist.maximum_answers: ask for a day or a room"

_DATE: Final = re.compile(r"\d{8}")
_TIME: Final = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")


class Stations(StrEnum):
    """Whose steps a machine sees; those without a station are everybody's."""

    OWN = "own"  # its own, whatever it asks
    ASKED = "asked"  # its own, unless it asks for another AE title
    ALL = "all"  # every machine's, unless it asks for one


@dataclass(frozen=True)
class WorklistSettings:
    """What machines are answered.

    Steps in progress are left out unless `in_progress`; a query without a date goes
    `past_days` back. After `maximum_answers` a query ends with A700. `offset` is the
    site's from UTC. `character_sets` by AE title: for machines that ask in one
    Specific Character Set and read another, or do not say which.
    """

    stations: Stations = Stations.ASKED
    in_progress: bool = False
    past_days: int = 3
    maximum_answers: int = 500
    offset: timedelta = timedelta(hours=8)
    character_sets: Mapping[str, str] | None = None


def worklist_service(settings: WorklistSettings) -> Service:
    """Return the Modality Worklist SCP."""
    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

    def find(event: evt.Event, thread: StoreThread) -> Iterator[Any]:
        return _Query(event, thread, settings).answers()

    return Service(
        name=ServiceName.WORKLIST,
        contexts=(build_context(WORKLIST_FIND, [*syntaxes]),),
        handlers={evt.EVT_C_FIND: find},
    )


class _Query:
    """One C-FIND-RQ."""

    def __init__(
        self, event: evt.Event, thread: StoreThread, settings: WorklistSettings
    ) -> None:
        self._event = event
        self._thread = thread
        self._settings = settings
        self._caller = caller_of(event)
        self._always = (settings.character_sets or {}).get(self._caller.calling_ae, "")

    def answers(self) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        """Yield (status, identifier) as pynetdicom sends them."""
        syntax = UID(self._event.context.transfer_syntax)
        request = cast(C_FIND, self._event.request)
        try:
            identifier = read_identifier(
                request.Identifier or BytesIO(),
                syntax,
                unlabelled=self._always.split("\\")[0],
            )
            wanted = Wanted.read(identifier, self._caller.calling_ae, self._settings)
            found = self._thread.call(
                find_steps(self._thread.store, wanted, self._caller, self._settings)
            )
        except Exception as error:
            yield _failure(error), None
            return
        sets = spoken(identifier.character_sets, self._always)
        for number, answer in enumerate(found.answers):
            if number % _LISTEN_EVERY == 0 and self._taken_back():
                yield CANCELLED, None
                return
            some = unsupported(answer, identifier.keys)
            told = encode_answer(project(answer, identifier.keys), sets, syntax)
            yield PENDING_WITHOUT_SOME_KEYS if some else PENDING, told
        if found.more:
            yield _status(OUT_OF_RESOURCES, _TOO_MANY), None

    def _taken_back(self) -> bool:
        """Tell whether a C-CANCEL has come.

        The upper layer listens only when it has nothing to send: without a pause
        it would hear of it after the last answer.
        """
        association: Any = self._event.assoc
        while association.is_established and association.dul.to_provider_queue.qsize():
            sleep(_PAUSE_S)
        return bool(self._event.is_cancelled)


def _failure(error: Exception) -> Dataset:
    """Return the final status of a query that failed (PS3.4 K.4.1.1.4)."""
    if isinstance(error, NotAnIdentifier):
        status = _status(NOT_THIS_SOP_CLASS, error_comment(error))
        status.OffendingElement = int(error.tag, 16)
        return status
    if not isinstance(error, NodeError):
        log.exception("worklist.failed")
        return _status(UNABLE, error_comment(error))
    away = error.kind in {ErrorKind.EXHAUSTED, ErrorKind.UNAVAILABLE}
    return _status(OUT_OF_RESOURCES if away else UNABLE, error_comment(error))


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    status.ErrorComment = comment[:64]
    return status


# -- what is asked for -----------------------------------------------------------------


@cache
def _element(keyword: str) -> tuple[str, str]:
    """Return tag and VR of an attribute."""
    return f"{tag_for_keyword(keyword):08X}", dictionary_VR(keyword)


def _tag(keyword: str) -> str:
    return _element(keyword)[0]


STEP: Final = _tag("ScheduledProcedureStepSequence")
STATION: Final = _tag("ScheduledStationAETitle")
START_DATE: Final = _tag("ScheduledProcedureStepStartDate")
START_TIME: Final = _tag("ScheduledProcedureStepStartTime")
_LEVEL: Final = _tag("QueryRetrieveLevel")


@dataclass(frozen=True)
class Wanted:
    """A worklist query: what the database narrows, and what each answer must match.

    Date and time are compared here, as a range of both is one period (PS3.4 K.6.1.2).
    """

    query: OrderQuery
    keys: tuple[Key, ...]
    station: Key
    days: Key
    times: Key
    calling_ae: str

    @classmethod
    def read(
        cls, identifier: Identifier, calling_ae: str, settings: WorklistSettings
    ) -> Wanted:
        """Return the query in an identifier; NotAnIdentifier when it is none."""
        if identifier.key(_LEVEL) is not None:
            raise NotAnIdentifier(_LEVEL, "belongs to Query/Retrieve")
        step = identifier.key(STEP) or Key(STEP, "SQ")
        own = {STATION: "AE", START_DATE: "DA", START_TIME: "TM"}
        by_tag = {key.tag: key for key in step.items if key.tag in own}
        station, days, times = (by_tag.get(t) or Key(t, vr) for t, vr in own.items())
        for key, form in ((days, _DATE), (times, _TIME)):
            _ends(key, form)
        others = tuple(key for key in step.items if key.tag not in own)
        keys = tuple(
            replace(key, items=others) if key.tag == STEP else key
            for key in identifier.keys
        )
        wanted = cls(OrderQuery(), keys, station, days, times, calling_ae)
        return replace(wanted, query=wanted._query(step, settings))

    def _query(self, step: Key, settings: WorklistSettings) -> OrderQuery:
        statuses = {OrderStatus.SCHEDULED}
        if settings.in_progress:
            statuses.add(OrderStatus.IN_PROGRESS)
        first, last = _ends(self.days, _DATE)
        modality = next((k for k in step.items if k.tag == _tag("Modality")), None)
        return OrderQuery(
            statuses=frozenset(statuses),
            first_day=_day(first),
            last_day=_day(last),
            stations=self._stations(settings.stations),
            unassigned=self._takes_unassigned(settings.stations),
            modality=modality.single if modality else "",
            patient_id=self._single("PatientID"),
            accession_number=self._single("AccessionNumber"),
            requested_procedure_id=self._single("RequestedProcedureID"),
            study_instance_uids=self._values("StudyInstanceUID"),
            name_prefix=self._name_prefix(),
        )

    def _stations(self, policy: Stations) -> frozenset[str] | None:
        if policy is Stations.OWN or (
            policy is Stations.ASKED and self.station.universal
        ):
            return frozenset({self.calling_ae})
        if self.station.universal or not self.station.single:
            return None  # every station, or a pattern that `matches` looks at
        return frozenset({self.station.single})

    def _takes_unassigned(self, policy: Stations) -> bool:
        """Tell whether a step without a station is one of those asked for."""
        here = {"Value": [self.calling_ae]}
        return policy is Stations.OWN or matches(self.station, here)

    def _values(self, keyword: str) -> tuple[str, ...]:
        tag = _tag(keyword)
        return next((key.values for key in self.keys if key.tag == tag), ())

    def _single(self, keyword: str) -> str:
        tag = _tag(keyword)
        return next((key.single for key in self.keys if key.tag == tag), "")

    def _name_prefix(self) -> str:
        patterns = self._values("PatientName")
        parts = name_parts(patterns[0]) if len(patterns) == 1 else ()
        return identities.unaccented(max(parts, key=len, default=""))

    def accepts(self, listed: ListedOrder, answer: Mapping[str, Any]) -> bool:
        """Tell whether an answer is one of those asked for."""
        step = listed.order.step
        titles = step.station_titles or (self.calling_ae,)
        return (
            self._in_time(step.scheduled_on, step.scheduled_time)
            and matches(self.station, {"Value": titles})
            and all(matches(key, answer.get(key.tag)) for key in self.keys)
        )

    def _in_time(self, day: date, at: time | None) -> bool:
        first_day, last_day = _ends(self.days, _DATE)
        first_time, last_time = _ends(self.times, _TIME)
        told_day = f"{day:%Y%m%d}"
        if not (first_day <= told_day and told_day <= (last_day or "99999999")):
            return False
        if at is None or self.times.universal:
            return True  # a step without an hour is due the whole day
        told, last = f"{at:%H%M%S}", _latest(last_time)
        if not (_is_range(self.days) and _is_range(self.times)):
            return first_time.ljust(6, "0")[:6] <= told <= last
        begins = (first_day, first_time.ljust(6, "0")[:6])
        return begins <= (told_day, told) and (
            not last_day or (told_day, told) <= (last_day, last)
        )


def _is_range(key: Key) -> bool:
    return len(key.values) == 1 and "-" in key.values[0]


def _ends(key: Key, form: re.Pattern[str]) -> tuple[str, str]:
    """Return the first and last value that a key allows, empty where it is open."""
    if key.universal:
        return "", ""
    (value,) = key.values if len(key.values) == 1 else ("",)
    first, dash, last = value.partition("-")
    ends = (first.strip(), last.strip() if dash else first.strip())
    if not any(ends) or not all(form.fullmatch(end) for end in ends if end):
        raise NotAnIdentifier(key.tag, f"is no {key.vr} and no range of them")
    return ends


def _latest(end: str) -> str:
    """Return the last second that a time covers: 1200 is all of that minute."""
    whole = end.partition(".")[0]
    return whole + "235959"[len(whole) :]


def _day(value: str) -> date | None:
    try:
        return date(int(value[:4]), int(value[4:6]), int(value[6:])) if value else None
    except ValueError:
        raise NotAnIdentifier(START_DATE, "is no date") from None


# -- what there is ---------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The answers to a query, and whether there would be more."""

    answers: tuple[dict[str, dict[str, Any]], ...]
    more: bool


async def find_steps(
    store: Store, wanted: Wanted, caller: Caller, settings: WorklistSettings
) -> Found:
    """Return the steps that match a query, by time; the query is audited."""
    query, most = wanted.query, settings.maximum_answers
    if wanted.days.universal:
        today = (store.clock() + settings.offset).date()
        query = replace(query, first_day=today - timedelta(days=settings.past_days))
    limit = _CANDIDATES * most
    async with store.db.transaction() as tx:
        listed = await orders.search(tx, store, query, limit=limit)
        women = await merges.women(tx, store, {o.order.patient_id for o in listed})
        pairs = (
            (o, _offered(o, women.get(o.order.patient_id), wanted)) for o in listed
        )
        found = [(o, answer) for o, answer in pairs if answer is not None]
        more = len(found) > most or len(listed) == limit
        told = [one.order.patient_id for one, _ in found[:most]]
        await audit.record(tx, _entry(store.clock(), caller, told))
    return Found(tuple(answer for _, answer in found[:most]), more)


def _offered(
    listed: ListedOrder, woman: merges.Woman | None, wanted: Wanted
) -> dict[str, dict[str, Any]] | None:
    """Return the worklist item of an order, None when it is not asked for.

    A woman of several numbers is found by each, and her images are to be taken under
    the one that stands for her.
    """
    if woman is None or not woman.stands.patient_id.strip():
        answer = answer_of(listed, wanted.calling_ae)
        return answer if wanted.accepts(listed, answer) else None
    rows = (woman.stands, *woman.others)
    numbers = [row.patient_id for row in woman.others if row.patient_id.strip()]
    answers = [
        answer_of(replace(listed, identity=row), wanted.calling_ae, numbers)
        for row in rows
    ]
    asked = any(wanted.accepts(listed, answer) for answer in answers)
    return answers[0] if asked else None


def _entry(at: datetime, caller: Caller, patients: Sequence[UUID]) -> AuditEntry:
    return AuditEntry(
        at=at,
        actor=caller.calling_ae,
        role=MODALITY_ROLE,
        action="query",
        entity="worklist",
        detail={
            "answers": str(len(patients)),
            "patients": " ".join(map(str, dict.fromkeys(patients))),
            "address": caller.address,
            "association": caller.association,
        },
    )


def answer_of(
    listed: ListedOrder, calling_ae: str, other_numbers: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the worklist item of an order, in Unicode (PS3.4 table K.6-1).

    A step that belongs to no station is offered to the machine that asks.
    """
    order, patient = listed.order, listed.identity
    step = order.step
    scheduled = _model(
        ScheduledStationAETitle=step.station_titles or (calling_ae,),
        ScheduledProcedureStepStartDate=f"{step.scheduled_on:%Y%m%d}",
        ScheduledProcedureStepStartTime=f"{step.scheduled_time or time():%H%M%S}",
        Modality=step.modality,
        ScheduledPerformingPhysicianName=step.performing_physician,
        ScheduledProcedureStepDescription=(
            step.step_description or step.requested_procedure_description
        ),
        ScheduledStationName="",
        ScheduledProcedureStepLocation=step.step_location,
        ScheduledProtocolCodeSequence=_codes(step.requested_procedure_code),
        PreMedication="",
        ScheduledProcedureStepID=step.step_id,
        RequestedContrastAgent="",
        ScheduledProcedureStepStatus=order.status.value,
        CommentsOnTheScheduledProcedureStep="",
    )
    birth = patient.birth_date
    issuer = patient.issuer if len(patient.issuer) <= 64 else ""
    return _model(
        ScheduledProcedureStepSequence=[scheduled],
        RequestedProcedureID=step.requested_procedure_id,
        RequestedProcedureDescription=step.requested_procedure_description,
        RequestedProcedureCodeSequence=_codes(step.requested_procedure_code),
        StudyInstanceUID=step.study_instance_uid,
        ReferencedStudySequence=[],
        RequestedProcedurePriority=step.priority,
        PatientTransportArrangements="",
        ReasonForTheRequestedProcedure=step.reason,
        RequestedProcedureComments="",
        NamesOfIntendedRecipientsOfResults="",
        AccessionNumber=step.accession_number,
        RequestingPhysician=step.requesting_physician,
        ReferringPhysicianName=step.referring_physician,
        RequestingService="",
        PlacerOrderNumberImagingServiceRequest=step.placer_order_number,
        FillerOrderNumberImagingServiceRequest=step.filler_order_number,
        ImagingServiceRequestComments="",
        AdmissionID="",
        CurrentPatientLocation="",
        ReferencedPatientSequence=[],
        PatientName=patient.name,
        PatientID=patient.patient_id,
        IssuerOfPatientID=issuer,
        OtherPatientIDs=other_numbers,
        PatientBirthDate="" if birth is None else f"{birth:%Y%m%d}",
        PatientSex=patient.sex or "",
        PatientSize="",
        PatientWeight="",
        PatientComments="",
        ConfidentialityConstraintOnPatientDataDescription="",
        PatientState="",
        PregnancyStatus="",
        MedicalAlerts="",
        Allergies="",
        SpecialNeeds="",
        EthnicGroup="",
    )


def _model(**attributes: Any) -> dict[str, dict[str, Any]]:
    """Return attributes by keyword as the DICOM JSON model."""
    model = {}
    for keyword, value in attributes.items():
        tag, vr = _element(keyword)
        values = [value] if isinstance(value, str) else list(value)
        told = [one if vr != "PN" else _name(one) for one in values if one]
        model[tag] = {"vr": vr, "Value": told}
    return model


def _name(name: str) -> dict[str, str]:
    groups = zip(PN_GROUPS, name.split("="), strict=False)
    return {label: group for label, group in groups if group}


def _codes(code: Code | None) -> list[dict[str, dict[str, Any]]]:
    if code is None:
        return []
    return [
        _model(
            CodeValue=code.value,
            CodingSchemeDesignator=code.scheme,
            CodingSchemeVersion="",
            CodeMeaning=code.meaning,
        )
    ]
