"""C-FIND of the Patient Root and Study Root models (PS3.4 C.4.1).

The database narrows, the thread of the association opens and compares, one page of
candidates at a time: neither memory nor the database feels how many studies there are.
A search that would open too many candidates, or find too many, ends in A700 with a
comment that says how to narrow it: a list that is silently short would make a doctor
believe that there is no earlier study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, cast

import structlog
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND
from pynetdicom.presentation import build_context

from dicom_scp.receiving.peers import ServiceName
from dicom_scp.services.answers import (
    encode_answer,
    holds,
    project,
    read_identifier,
    spoken,
)
from dicom_scp.services.matching import Element, matches
from dicom_scp.services.query_model import (
    FIND_MODELS,
    LEVEL,
    MODALITIES_IN_STUDY,
    STUDY_UID,
    Asked,
    Level,
    failure,
    person_name,
    read_asked,
)
from dicom_scp.services.service import Caller, Service, caller_of, is_cancelled
from node.charset import UTF8
from node.domain.audit import AuditEntry, Outcome
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, catalogue

if TYPE_CHECKING:
    from uuid import UUID

    from dicom_scp.receiving.intake import StoreThread
    from node.domain.study import PatientIdentity
    from node.store.store import Store

log = structlog.get_logger(__name__)

PENDING: Final = 0xFF00
PENDING_WITH_UNSUPPORTED_KEYS: Final = 0xFF01
CANCELLED: Final = 0xFE00
PEER_ROLE: Final = "peer"
PAGE: Final = 100
LISTEN_EVERY: Final = 8
DATABASE_TIMEOUT_S: Final = 60.0

# The conformance statement is generated from this table.
FIND_STATUS: Final = {
    ErrorKind.INVALID: 0xA900,  # Identifier does not match SOP Class
    ErrorKind.EXHAUSTED: 0xA700,  # Out of resources
    ErrorKind.UNAVAILABLE: 0xA700,
}


def _tags(keywords: str) -> frozenset[str]:
    return frozenset(f"{tag_for_keyword(keyword):08X}" for keyword in keywords.split())


# What is answered at a level and below it. All else in a header is the image's own.
PATIENT_KEYS: Final = _tags(
    "PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex"
    " NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries"
    " NumberOfPatientRelatedInstances"
)
STUDY_KEYS: Final = _tags(
    "StudyInstanceUID StudyDate StudyTime AccessionNumber StudyID StudyDescription"
    " ReferringPhysicianName ModalitiesInStudy SOPClassesInStudy"
    " NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances"
    " NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription PatientAge PatientSize"
    " PatientWeight Occupation AdditionalPatientHistory OtherPatientIDs"
    " OtherPatientIDsSequence PatientComments ProcedureCodeSequence"
    " IssuerOfAccessionNumberSequence TimezoneOffsetFromUTC"
)
SERIES_KEYS: Final = _tags(
    "SeriesInstanceUID Modality SeriesNumber SeriesDescription SeriesDate SeriesTime"
    " BodyPartExamined Laterality ProtocolName OperatorsName PerformingPhysicianName"
    " PerformedProcedureStepID PerformedProcedureStepStartDate"
    " PerformedProcedureStepStartTime PerformedProcedureStepDescription"
    " RequestAttributesSequence NumberOfSeriesRelatedInstances Manufacturer"
    " ManufacturerModelName StationName InstitutionName InstitutionalDepartmentName"
)
RETRIEVE_AE_TITLE, INSTANCE_AVAILABILITY = "00080054", "00080056"
AVAILABLE_SYNTAX: Final = "00083002"
_OF_EVERY_LEVEL: Final = frozenset({RETRIEVE_AE_TITLE, INSTANCE_AVAILABILITY})
_COUNTS: Final = _tags(
    "ModalitiesInStudy SOPClassesInStudy NumberOfStudyRelatedSeries"
    " NumberOfStudyRelatedInstances"
)
_PATIENT_COUNTS: Final = _tags(
    "NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries"
    " NumberOfPatientRelatedInstances"
)
_BULK: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


@dataclass(frozen=True)
class QuerySettings:
    """How far a search may go.

    `maximum_matches` are answered, `maximum_opened` candidates opened that do not
    match. `relational` allows searches that name no entity above their level;
    `rejected_too` shows what a Rejection Note or a withdrawn report hides.
    `character_sets` by AE title: for peers that read another than they ask in.
    """

    ae_title: str = "SONONODE"
    maximum_matches: int = 2000
    maximum_opened: int = 20_000
    relational: bool = False
    rejected_too: bool = False
    character_sets: Mapping[str, str] | None = None


def service(settings: QuerySettings) -> Service:
    """Return the query service for peers that may use it."""
    syntaxes: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    return Service(
        ServiceName.QUERY,
        tuple(build_context(model, syntaxes) for model in FIND_MODELS),
        {evt.EVT_C_FIND: partial(_find, settings)},
    )


class _Cancelled(Exception):
    """The peer wants no more answers."""


def _find(
    settings: QuerySettings, event: evt.Event, thread: StoreThread
) -> Iterator[tuple[int | Dataset, Dataset | None]]:
    """Answer one C-FIND; audited whatever becomes of it."""
    caller = caller_of(event)
    record = _Record(caller)
    syntax = UID(event.context.transfer_syntax)
    always = (settings.character_sets or {}).get(caller.calling_ae, "")
    request = cast(C_FIND, event.request)
    try:
        identifier = read_identifier(
            request.Identifier or BytesIO(),
            syntax,
            unlabelled=always.split("\\")[0],
        )
        levels = FIND_MODELS[str(event.context.abstract_syntax)]
        asked = read_asked(identifier, levels, relational=settings.relational)
        record.asked = asked
        pending = PENDING
        if not all(_supported(tag, asked.level) for tag in asked.keys):
            pending = PENDING_WITH_UNSUPPORTED_KEYS
        sets = spoken(identifier.character_sets, always)
        search = _Search(settings, asked, thread, event)
        record.patients = search.patients
        for answer in search.answers():
            record.matches += 1
            if record.matches > settings.maximum_matches:
                raise NodeError(
                    f"more than {settings.maximum_matches} matches: ask for less",
                    ErrorKind.EXHAUSTED,
                )
            # What a viewer cannot tell us about itself must not cost half a name.
            told_in = sets if always or holds(answer, sets) else (UTF8,)
            yield pending, encode_answer(answer, told_in, syntax)
    except _Cancelled:
        record.ended = "cancelled"
        yield CANCELLED, None
    except NodeError as error:
        record.refused(error)
        yield failure(error, FIND_STATUS), None
    finally:
        thread.later(_audited(thread.store, record))


@dataclass
class _Record:
    """What the audit trail tells of a search: tags, counts and ids, never a value."""

    caller: Caller
    asked: Asked | None = None
    matches: int = 0
    patients: Mapping[UUID, None] = field(default_factory=dict)
    ended: str = "complete"
    outcome: Outcome = Outcome.SUCCESS

    def refused(self, error: NodeError) -> None:
        self.ended = error.message
        if error.kind is ErrorKind.INVALID:
            self.outcome = Outcome.REFUSED

    def entry(self, store: Store) -> AuditEntry:
        keys = self.asked.keys if self.asked else {}
        uids = keys[STUDY_UID].values if STUDY_UID in keys else ()
        return AuditEntry(
            at=store.clock(),
            actor=self.caller.calling_ae,
            role=PEER_ROLE,
            action="query",
            entity=f"study/{uids[0]}" if len(uids) == 1 else "catalogue",
            outcome=self.outcome,
            detail={
                "level": self.asked.level.name if self.asked else "",
                "asked": " ".join(t for t, key in keys.items() if not key.universal),
                "matches": str(self.matches),
                "ended": self.ended,
                "association": self.caller.association,
                "address": self.caller.address,
                "patients": " ".join(map(str, self.patients)),
            },
        )


async def _audited(store: Store, record: _Record) -> None:
    try:
        async with store.db.transaction() as tx:
            await audit.record(tx, record.entry(store))
    except NodeError as error:
        log.error("dicom.not_audited", action="query", error=error.message)


def _supported(tag: str, level: Level) -> bool:
    """Tell whether a key is answered at `level` (PS3.4 C.2.2.1.3)."""
    for keys, of in (
        (PATIENT_KEYS, Level.PATIENT),
        (STUDY_KEYS, Level.STUDY),
        (SERIES_KEYS, Level.SERIES),
    ):
        if tag in keys:
            return of <= level
    if tag in _OF_EVERY_LEVEL:
        return True
    return level is Level.IMAGE and int(tag[:4], 16) % 2 == 0 and _told(tag)


def _told(tag: str) -> bool:
    try:
        return dictionary_VR(int(tag, 16)) not in _BULK
    except KeyError:
        return False


# -- searching -------------------------------------------------------------------------


@dataclass
class _Subject:
    """One candidate: what is known of it at its level and above."""

    search: _Search
    patient: catalogue.PatientEntry
    study: catalogue.StudyEntry | None = None
    first: catalogue.InstanceEntry | None = None
    summary: catalogue.Summary | None = None
    series: catalogue.SeriesEntry | None = None
    instance: catalogue.InstanceEntry | None = None

    def element(self, tag: str) -> Element | None:
        """Return the attribute in the JSON model, None when nobody told it."""
        if tag in PATIENT_KEYS:
            return self._of_patient(tag)
        if tag in STUDY_KEYS:
            return self._of_study(tag)
        if tag == RETRIEVE_AE_TITLE:
            return _element("AE", self.search.settings.ae_title)
        if tag == INSTANCE_AVAILABILITY:
            return _element("CS", "ONLINE")
        if tag in SERIES_KEYS:
            return self._of_series(tag)
        instance = self.instance
        if instance is None:
            return None
        rows = {
            "00080018": ("UI", instance.sop_instance_uid),
            "00080016": ("UI", instance.sop_class_uid),
            AVAILABLE_SYNTAX: ("UI", instance.transfer_syntax_uid),
        }
        return _element(*rows[tag]) if tag in rows else instance.header.get(tag)

    def _of_patient(self, tag: str) -> Element | None:
        if tag in _PATIENT_COUNTS:
            counts = self.search.patient_counts(self.patient.patient_id)
            return _element("IS", counts[tag])
        return _identity_element(tag, self.patient.identity)

    def _of_study(self, tag: str) -> Element | None:
        study, summary = self.study, self.summary
        if study is None:
            return None
        if tag in _COUNTS and summary is not None:
            return {
                MODALITIES_IN_STUDY: _element("CS", *summary.modalities),
                "00080062": _element("UI", *summary.sop_classes),
                "00201206": _element("IS", summary.series),
                "00201208": _element("IS", summary.instances),
            }[tag]
        if tag == STUDY_UID:
            return _element("UI", study.study_instance_uid)
        if tag == "00080020":
            day = study.study_date
            return _element("DA", day.strftime("%Y%m%d")) if day else None
        if tag == "00080050":
            return _element("SH", study.detail.accession_number)
        if tag == "00081030":
            return _element("LO", study.detail.study_description)
        return self.first.header.get(tag) if self.first else None

    def _of_series(self, tag: str) -> Element | None:
        series = self.series
        if series is None:
            return None
        rows: dict[str, tuple[str, object]] = {
            "0020000E": ("UI", series.series_instance_uid),
            "00080060": ("CS", series.modality),
            "00201209": ("IS", series.instances),
        }
        if tag in rows:
            return _element(*rows[tag])
        return series.first.header.get(tag)


# Of these a page of studies is sifted before any header is read.
_BEFORE_HEADERS: Final = (PATIENT_KEYS - _PATIENT_COUNTS) | _tags(
    "StudyInstanceUID StudyDate AccessionNumber StudyDescription"
)


class _Search:
    """One search, page by page."""

    def __init__(
        self,
        settings: QuerySettings,
        asked: Asked,
        thread: StoreThread,
        event: evt.Event,
    ) -> None:
        self.settings = settings
        self._asked = asked
        self._narrowing = asked.narrowing
        self._thread = thread
        self._event = event
        self._looked_at = 0
        self._opened = 0
        self._counts_of: tuple[UUID, Mapping[str, int]] | None = None
        self.patients: dict[UUID, None] = {}

    def answers(self) -> Iterator[dict[str, Element]]:
        """Yield the matches, each with the keys that were asked and are supported."""
        for subject in self._subjects():
            self._stop_if_cancelled()
            if self._matches(subject, lambda _tag: True):
                self.patients[subject.patient.patient_id] = None
                yield self._answer(subject)
            else:
                self._count_opened()

    def patient_counts(self, patient_id: UUID) -> Mapping[str, int]:
        """Return the numbers of a patient's studies, series and instances."""
        if self._counts_of is None or self._counts_of[0] != patient_id:
            studies = self._call(catalogue.studies_of(self._store, [patient_id]))
            found = self._call(
                catalogue.summaries(
                    self._store, list(studies), rejected_too=self.settings.rejected_too
                )
            )
            counts = {
                "00201200": len(found),
                "00201202": sum(one.series for one in found.values()),
                "00201204": sum(one.instances for one in found.values()),
            }
            self._counts_of = patient_id, counts
        return self._counts_of[1]

    # -- candidates -------------------------------------------------------------------

    def _subjects(self) -> Iterator[_Subject]:
        level = self._asked.level
        if level is Level.PATIENT:
            yield from self._patients()
            return
        for study in self._studies():
            if level is Level.STUDY:
                yield study
                continue
            for series in self._series(study):
                if level is Level.SERIES:
                    yield series
                else:
                    yield from self._instances(series)

    def _patients(self) -> Iterator[_Subject]:
        after, more = None, True
        while more:
            page = self._call(
                catalogue.patients_page(
                    self._store, self._narrowing, after=after, limit=PAGE
                )
            )
            for patient in page.entries:
                yield _Subject(self, patient)
            after, more = page.last, page.more

    def _studies(self) -> Iterator[_Subject]:
        after, more = None, True
        counted = bool(self._asked.keys.keys() & _COUNTS)
        while more:
            page = self._call(
                catalogue.studies_page(
                    self._store, self._narrowing, after=after, limit=PAGE
                )
            )
            after, more = page.last, page.more
            kept = [study for study in page.entries if self._may_match(study)]
            uids = [study.study_instance_uid for study in kept]
            told = {"rejected_too": self.settings.rejected_too}
            firsts = self._call(catalogue.first_instances(self._store, uids, **told))
            summaries = (
                self._call(catalogue.summaries(self._store, uids, **told))
                if counted
                else {}
            )
            for study in kept:
                uid = study.study_instance_uid
                if uid in firsts:  # else nothing of it is to be seen
                    yield _Subject(
                        self, study.patient, study, firsts[uid], summaries.get(uid)
                    )

    def _may_match(self, study: catalogue.StudyEntry) -> bool:
        self._stop_if_cancelled()
        subject = _Subject(self, study.patient, study)
        if self._matches(subject, _BEFORE_HEADERS.__contains__):
            return True
        self._count_opened()
        return False

    def _series(self, above: _Subject) -> Iterator[_Subject]:
        study = above.study
        if study is None:
            return
        found = self._call(
            catalogue.series_of(
                self._store,
                study,
                self._narrowing,
                rejected_too=self.settings.rejected_too,
            )
        )
        for series in found:
            subject = _Subject(
                self, above.patient, study, above.first, above.summary, series
            )
            if self._matches(subject, SERIES_KEYS.__contains__):
                yield subject

    def _instances(self, above: _Subject) -> Iterator[_Subject]:
        series, after = above.series, -1
        if series is None:
            return
        while page := self._call(
            catalogue.instances_page(
                self._store,
                series,
                self._narrowing,
                after=after,
                limit=PAGE,
                rejected_too=self.settings.rejected_too,
            )
        ):
            for instance in page:
                yield _Subject(
                    self,
                    above.patient,
                    above.study,
                    above.first,
                    above.summary,
                    series,
                    instance,
                )
            after = page[-1].sequence

    # -- matching ---------------------------------------------------------------------

    def _matches(self, subject: _Subject, looked_at: Callable[[str], bool]) -> bool:
        return all(
            matches(key, subject.element(tag))
            for tag, key in self._asked.keys.items()
            if not key.universal
            and tag not in _OF_EVERY_LEVEL
            and looked_at(tag)
            and self._supports(tag)
        )

    def _count_opened(self) -> None:
        self._opened += 1
        if self._opened > self.settings.maximum_opened:
            raise NodeError(
                "too many candidates: add a date, an ID or how the name starts",
                ErrorKind.EXHAUSTED,
            )

    def _answer(self, subject: _Subject) -> dict[str, Element]:
        known: dict[str, Element] = {}
        keys = [k for k in self._asked.keys.values() if self._supports(k.tag)]
        for key in keys:
            element = subject.element(key.tag)
            known[key.tag] = element if element is not None else {"vr": key.vr}
        return {
            LEVEL: _element("CS", self._asked.level.name),
            RETRIEVE_AE_TITLE: _element("AE", self.settings.ae_title),
            **project(known, keys),
        }

    def _supports(self, tag: str) -> bool:
        return _supported(tag, self._asked.level)

    def _stop_if_cancelled(self) -> None:
        self._looked_at += 1
        if self._looked_at % LISTEN_EVERY == 0 and is_cancelled(self._event):
            raise _Cancelled

    # -- the store --------------------------------------------------------------------

    @property
    def _store(self) -> Store:
        return self._thread.store

    def _call(self, coroutine: Any) -> Any:
        return self._thread.call(coroutine, timeout_s=DATABASE_TIMEOUT_S)


def _identity_element(tag: str, identity: PatientIdentity) -> Element | None:
    birth = identity.birth_date
    return {
        "00100010": person_name(identity.name),
        "00100020": _element("LO", identity.patient_id),
        "00100021": _element("LO", identity.issuer),
        "00100030": _element("DA", birth.strftime("%Y%m%d") if birth else ""),
        "00100040": _element("CS", identity.sex or ""),
    }.get(tag)


def _element(vr: str, *values: object) -> Element:
    present = [value for value in values if value != ""]
    return {"vr": vr, "Value": present} if present else {"vr": vr}
