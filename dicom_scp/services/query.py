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
    PATIENT_ID,
    STUDY_UID,
    Asked,
    Level,
    element_of,
    failure,
    identity_element,
    other_ids,
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
    " OtherPatientIDsSequence NumberOfPatientRelatedStudies"
    " NumberOfPatientRelatedSeries NumberOfPatientRelatedInstances"
)
STUDY_KEYS: Final = _tags(
    "StudyInstanceUID StudyDate StudyTime AccessionNumber StudyID StudyDescription"
    " ReferringPhysicianName ModalitiesInStudy SOPClassesInStudy"
    " NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances"
    " NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription PatientAge PatientSize"
    " PatientWeight Occupation AdditionalPatientHistory OtherPatientIDs"
    " PatientComments ProcedureCodeSequence"
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
_OTHER_IDS: Final = "00101002"
# Of whom an entity is, as one row knows her: a row of hers has to match all of them.
_IDENTITY: Final = PATIENT_KEYS - _PATIENT_COUNTS - {_OTHER_IDS}
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
            return element_of("AE", self.search.settings.ae_title)
        if tag == INSTANCE_AVAILABILITY:
            return element_of("CS", "ONLINE")
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
        return element_of(*rows[tag]) if tag in rows else instance.header.get(tag)

    def _of_patient(self, tag: str) -> Element | None:
        if tag in _PATIENT_COUNTS:
            return element_of("IS", self.search.patient_counts(self.patient)[tag])
        if tag == _OTHER_IDS:
            told = self.first.header.get(tag) if self.first else None
            return other_ids(told, [row.identity for row in self.patient.others])
        return identity_element(tag, self.patient.identity)

    def _of_study(self, tag: str) -> Element | None:
        study, summary = self.study, self.summary
        if study is None:
            return None
        if tag in _COUNTS and summary is not None:
            return {
                MODALITIES_IN_STUDY: element_of("CS", *summary.modalities),
                "00080062": element_of("UI", *summary.sop_classes),
                "00201206": element_of("IS", summary.series),
                "00201208": element_of("IS", summary.instances),
            }[tag]
        if tag == STUDY_UID:
            return element_of("UI", study.study_instance_uid)
        if tag == "00080020":
            day = study.study_date
            return element_of("DA", day.strftime("%Y%m%d")) if day else None
        if tag == "00080050":
            return element_of("SH", study.detail.accession_number)
        if tag == "00081030":
            return element_of("LO", study.detail.study_description)
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
            return element_of(*rows[tag])
        return series.first.header.get(tag)


# Of these a page of studies is sifted before any header is read.
_BEFORE_HEADERS: Final = _IDENTITY | _tags(
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

    def patient_counts(self, patient: catalogue.PatientEntry) -> Mapping[str, int]:
        """Return the numbers of a woman's studies, series and instances."""
        if self._counts_of is None or self._counts_of[0] != patient.patient_id:
            rows = [row.patient_id for row in patient.rows]
            studies = self._call(catalogue.studies_of(self._store, rows))
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
            self._counts_of = patient.patient_id, counts
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
                if self._is_first_of_hers(patient):
                    yield _Subject(self, patient)
            after, more = page.last, page.more

    def _is_first_of_hers(self, patient: catalogue.PatientEntry) -> bool:
        """Tell whether no better row of the same woman is the answer to this search.

        She is answered once: by her standing number, unless another was asked for.
        """
        for row in patient.rows if patient.others else ():
            if self._is_known_as(row):
                return row.patient_id == patient.patient_id
        return True

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
        # Who is asked for by number is meant as a woman: any row of hers may be it.
        asked_by_number = not self._asked.key(PATIENT_ID).universal
        below = self._asked.level is not Level.PATIENT
        patient = subject.patient
        rows = patient.rows if asked_by_number and below else (patient,)
        return any(self._is_known_as(row) for row in rows) and all(
            matches(key, subject.element(tag))
            for tag, key in self._asked.keys.items()
            if not key.universal
            and tag not in _OF_EVERY_LEVEL | _IDENTITY
            and looked_at(tag)
            and self._supports(tag)
        )

    def _is_known_as(self, row: catalogue.PatientEntry) -> bool:
        """Tell whether a row agrees with all that is asked of who it is."""
        return all(
            matches(key, identity_element(tag, row.identity))
            for tag, key in self._asked.keys.items()
            if tag in _IDENTITY and not key.universal
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
            LEVEL: element_of("CS", self._asked.level.name),
            RETRIEVE_AE_TITLE: element_of("AE", self.settings.ae_title),
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
