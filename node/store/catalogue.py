"""What is stored, as other systems search it (PS3.4 C): patients, studies, series.

The database narrows by what it can see, dates, UIDs, modalities and blind indexes;
whatever names a patient comes back sealed and is opened, by the caller, one candidate
at a time. Pages follow each other by key, so that a search of any length needs the
memory of one page and holds no connection while a slow peer reads.

Rejected instances are not there: those that a Rejection Note of the study names, and
the node's own results of a report that was withdrawn (IHE RAD IOCM).
"""

# Statements are put together from constants of this module; values are parameters.
# ruff: noqa: S608

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from uuid import UUID

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.store.identities import NAME_PREFIX_LENGTH, number_blind, open_identity
from node.store.studies import StudyDetail, accession_blind, open_detail

if TYPE_CHECKING:
    import asyncpg

    from node.store.database import Transaction
    from node.store.keys import Sealer
    from node.store.store import Store

Header = dict[str, Any]
Entry = TypeVar("Entry")
Place = TypeVar("Place")

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"
# Titles of Rejection Notes (DCM): quality, patient safety, wrong order, expired.
REJECTION_TITLES: Final = frozenset({"113001", "113037", "113038", "113039"})
_PATIENT: Final = "p.patient_id, p.body, p.merged_into"
NO_DATE: Final = date.min  # '-infinity' in the index: a study whose date nobody told
_DATE: Final = "coalesce(s.study_date, '-infinity'::date)"


@dataclass(frozen=True)
class Narrowing:
    """What the database can tell about candidates; empty fields narrow nothing.

    `name_parts` are beginnings of name components, all of which the name has.
    Matches are candidates only: blind indexes fold case and cut names off.
    """

    study_uids: tuple[str, ...] = ()
    series_uids: tuple[str, ...] = ()
    instance_uids: tuple[str, ...] = ()
    patient_number: str = ""
    name_parts: tuple[str, ...] = ()
    accession_number: str = ""
    first_date: date | None = None
    last_date: date | None = None
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatientEntry:
    """A patient, sealed until somebody asks who it is.

    `others` are the rows that are the same woman under another number; of all of them
    one `stands` for her.
    """

    patient_id: UUID
    sealer: "Sealer" = field(repr=False)
    body: bytes = field(repr=False)
    stands: bool = True
    others: tuple["PatientEntry", ...] = ()

    @cached_property
    def identity(self) -> PatientIdentity:
        """Return who the patient is."""
        return open_identity(self.sealer, self.patient_id, self.body)

    @property
    def rows(self) -> tuple["PatientEntry", ...]:
        """Return all rows of this woman, the one that stands for her first."""
        every = (self, *self.others)
        return tuple(sorted(every, key=lambda row: (not row.stands, row.patient_id)))


@dataclass(frozen=True)
class StudyEntry:
    """A study, its words sealed until somebody asks for them."""

    study_instance_uid: str
    study_date: date | None
    patient: PatientEntry
    body: bytes = field(repr=False)

    @cached_property
    def detail(self) -> StudyDetail:
        """Return accession number and description."""
        return open_detail(self.patient.sealer, self.study_instance_uid, self.body)


@dataclass(frozen=True)
class Summary:
    """What a study holds."""

    series: int
    instances: int
    modalities: tuple[str, ...]
    sop_classes: tuple[str, ...]


@dataclass(frozen=True)
class SeriesEntry:
    """A series and the header of its first instance."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    instances: int
    first: "InstanceEntry"


@dataclass(frozen=True)
class InstanceEntry:
    """An instance, its header sealed until somebody asks for it."""

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    sequence: int
    sealer: "Sealer" = field(repr=False)
    metadata: bytes = field(repr=False)

    @cached_property
    def header(self) -> Header:
        """Return the DICOM JSON of the header (PS3.18 F.2)."""
        text = self.sealer.open(
            self.metadata,
            table="instances",
            row=self.sop_instance_uid,
            column="metadata",
        )
        return dict(json.loads(text))


@dataclass(frozen=True)
class Retrievable:
    """What has to be known of an instance before it is sent."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str


StudyPlace = tuple[date, str]


@dataclass(frozen=True)
class Page(Generic[Entry, Place]):
    """Some candidates, the place of the last row, and whether more may follow it.

    Rows of erased patients have a place and no entry.
    """

    entries: Sequence[Entry]
    last: Place | None
    more: bool


@dataclass(frozen=True)
class _Hidden:
    """What is rejected in some studies: single instances, or all results of ours."""

    instances: list[str]
    withdrawn_in: list[str]


# Parameters $2 and $3 of every statement that counts or reads instances `i`.
_VISIBLE: Final = (
    " not (i.sop_instance_uid = any($2)) and (i.origin in ('received', 'rejection')"
    " or not (i.study_instance_uid = any($3)))"
)


# What was filed under the wrong patient nobody finds or fetches, rejected or not: it
# names one woman and shows another.
_STANDS: Final = (
    "not exists (select from study_moves m"
    " where m.study_instance_uid = s.study_instance_uid)"
)


async def patients_page(
    store: "Store", narrowing: Narrowing, *, after: UUID | None, limit: int
) -> Page[PatientEntry, UUID]:
    """Return the next candidates that have a study, under any number, by id."""
    where = _Where()
    _narrow_patients(where, store, narrowing)
    where.add(
        "exists (select from (select p.patient_id union all select r.other::uuid"
        "  from patient_rows r where r.patient_id = p.patient_id::text) hers"
        f" join studies s using (patient_id) where {_STANDS})"
    )
    if after is not None:
        where.add("p.patient_id > {}", after)
    async with store.db.connection() as tx:
        rows = await tx.fetch(
            f"select {_PATIENT} from patients p where {where.text}"
            f" order by p.patient_id limit {limit:d}",
            *where.values,
        )
        entries = list((await _patients(tx, store, rows)).values())
    last = rows[-1]["patient_id"] if rows else None
    return Page(entries, last, more=len(rows) == limit)


async def studies_page(
    store: "Store",
    narrowing: Narrowing,
    *,
    after: StudyPlace | None,
    limit: int,
) -> Page[StudyEntry, StudyPlace]:
    """Return the next candidates, newest first."""
    text, values = studies_statement(store, narrowing, after=after, limit=limit)
    async with store.db.connection() as tx:
        rows = await tx.fetch(text, *values)
        patients = await _patients(tx, store, _once(rows, "patient_id"))
    entries = [
        StudyEntry(
            study_instance_uid=row["study_instance_uid"],
            study_date=row["study_date"],
            patient=patients[row["patient_id"]],
            body=row["study_body"],
        )
        for row in rows
        if row["patient_id"] in patients
    ]
    last = None
    if rows:
        last = (rows[-1]["study_date"] or NO_DATE, rows[-1]["study_instance_uid"])
    return Page(entries, last, more=len(rows) == limit)


def studies_statement(
    store: "Store", narrowing: Narrowing, *, after: StudyPlace | None, limit: int
) -> tuple[str, list[object]]:
    """Return the statement of one page and its parameters."""
    where = _Where()
    patients = _Where(where.values)
    _narrow_patients(patients, store, narrowing)
    if patients.conditions:
        where.add(
            "s.patient_id in (select p.patient_id from patients p"
            f" where {patients.text})"
        )
    _narrow_studies(where, store, narrowing)
    where.add(_STANDS)
    if after is not None:
        where.add(
            f"({_DATE}, s.study_instance_uid) < ({{}}, {{}})",
            *after,
        )
    text = (
        "select s.study_instance_uid, s.study_date, s.body as study_body,"
        f" {_PATIENT} from studies s join patients p using (patient_id)"
        f" where {where.text}"
        f" order by {_DATE} desc, s.study_instance_uid desc limit {limit:d}"
    )
    return text, where.values


async def summaries(
    store: "Store", study_uids: Sequence[str], *, rejected_too: bool = False
) -> dict[str, Summary]:
    """Return what these studies hold; those without a visible instance are left out."""
    async with store.db.connection() as tx:
        hidden = await _hidden(tx, store, study_uids, rejected_too)
        rows = await tx.fetch(
            "select i.study_instance_uid, count(*) as instances,"
            " count(distinct i.series_instance_uid) as series,"
            " array_agg(distinct i.modality order by i.modality) as modalities,"
            " array_agg(distinct i.sop_class_uid order by i.sop_class_uid) as classes"
            f" from instances i where i.study_instance_uid = any($1) and{_VISIBLE}"
            " group by i.study_instance_uid",
            list(study_uids),
            hidden.instances,
            hidden.withdrawn_in,
        )
    return {
        row["study_instance_uid"]: Summary(
            series=row["series"],
            instances=row["instances"],
            modalities=tuple(m for m in row["modalities"] if m),
            sop_classes=tuple(row["classes"]),
        )
        for row in rows
    }


async def studies_of(store: "Store", patient_ids: Sequence[UUID]) -> dict[str, UUID]:
    """Return the studies of these patients, by UID, with the patient of each."""
    async with store.db.connection() as tx:
        rows = await tx.fetch(
            "select study_instance_uid, patient_id from studies"
            " where patient_id = any($1)",
            list(patient_ids),
        )
    return {row["study_instance_uid"]: row["patient_id"] for row in rows}


async def first_instances(
    store: "Store", study_uids: Sequence[str], *, rejected_too: bool = False
) -> dict[str, InstanceEntry]:
    """Return the first visible instance of each study that has one."""
    async with store.db.connection() as tx:
        hidden = await _hidden(tx, store, study_uids, rejected_too)
        rows = await tx.fetch(
            "select f.*, s.patient_id from studies s cross join lateral"
            f" (select {_ENTRY} from instances i"
            f"  where i.study_instance_uid = s.study_instance_uid and{_VISIBLE}"
            "   order by i.sequence limit 1) f"
            " where s.study_instance_uid = any($1)",
            list(study_uids),
            hidden.instances,
            hidden.withdrawn_in,
        )
        return {
            row["study_instance_uid"]: _instance(
                row, await store.ring.patient(tx, row["patient_id"])
            )
            for row in rows
        }


async def series_of(
    store: "Store",
    study: StudyEntry,
    narrowing: Narrowing,
    *,
    rejected_too: bool = False,
) -> list[SeriesEntry]:
    """Return the series of a study in the order in which they came."""
    sealer = study.patient.sealer
    async with store.db.connection() as tx:
        hidden = await _hidden(tx, store, [study.study_instance_uid], rejected_too)
        rows = await tx.fetch(
            f"select {_ENTRY}, i.modality, n.instances from"
            " (select i.series_instance_uid, count(*) as instances,"
            "   min(i.sequence) as first from instances i"
            f"  where i.study_instance_uid = $1 and{_VISIBLE}"
            "   and ($4::text[] = '{}' or i.series_instance_uid = any($4))"
            "   group by 1) n"
            " join instances i on i.sequence = n.first"
            "  and i.study_instance_uid = $1 order by i.sequence",
            study.study_instance_uid,
            hidden.instances,
            hidden.withdrawn_in,
            list(narrowing.series_uids),
        )
    return [
        SeriesEntry(
            study_instance_uid=row["study_instance_uid"],
            series_instance_uid=row["series_instance_uid"],
            modality=row["modality"],
            instances=row["instances"],
            first=_instance(row, sealer),
        )
        for row in rows
    ]


async def instances_page(
    store: "Store",
    series: SeriesEntry,
    narrowing: Narrowing,
    *,
    after: int,
    limit: int,
    rejected_too: bool = False,
) -> list[InstanceEntry]:
    """Return the next instances of a series as they came, from sequence `after` on."""
    study_uid = series.study_instance_uid
    async with store.db.connection() as tx:
        hidden = await _hidden(tx, store, [study_uid], rejected_too)
        rows = await tx.fetch(
            f"select {_ENTRY} from instances i where i.series_instance_uid = $1"
            f" and{_VISIBLE} and i.study_instance_uid = $4 and i.sequence > $5"
            " and ($6::text[] = '{}' or i.sop_instance_uid = any($6))"
            f" order by i.sequence limit {limit:d}",
            series.series_instance_uid,
            hidden.instances,
            hidden.withdrawn_in,
            study_uid,
            after,
            list(narrowing.instance_uids),
        )
    return [_instance(row, series.first.sealer) for row in rows]


async def retrievable(
    store: "Store",
    narrowing: Narrowing,
    study_uids: Sequence[str],
    *,
    rejected_too: bool = False,
) -> list[Retrievable]:
    """Return the instances of these studies that the UIDs of `narrowing` leave."""
    async with store.db.connection() as tx:
        hidden = await _hidden(tx, store, study_uids, rejected_too)
        rows = await tx.fetch(
            "select i.sop_instance_uid, i.sop_class_uid, i.transfer_syntax_uid,"
            " i.study_instance_uid from instances i"
            f" where i.study_instance_uid = any($1) and{_VISIBLE}"
            " and ($4::text[] = '{}' or i.series_instance_uid = any($4))"
            " and ($5::text[] = '{}' or i.sop_instance_uid = any($5))"
            " order by i.study_instance_uid, i.sequence",
            list(study_uids),
            hidden.instances,
            hidden.withdrawn_in,
            list(narrowing.series_uids),
            list(narrowing.instance_uids),
        )
    return [Retrievable(**row) for row in rows]


# -- narrowing -------------------------------------------------------------------------


class _Where:
    """Conditions and their numbered parameters."""

    def __init__(self, values: list[object] | None = None) -> None:
        self.values = [] if values is None else values
        self.conditions: list[str] = []

    def add(self, condition: str, *values: object) -> None:
        """Add a condition that has a `{}`, or `{0}` and so on, for each of `values`."""
        first = len(self.values) + 1
        self.values.extend(values)
        places = (f"${first + n}" for n in range(len(values)))
        self.conditions.append(condition.format(*places))

    @property
    def text(self) -> str:
        return " and ".join(self.conditions) or "true"


def _narrow_patients(where: _Where, store: "Store", narrowing: Narrowing) -> None:
    if narrowing.patient_number:
        # As an array, which an index takes: a list to look through would be read whole.
        where.add(
            "(p.number_blind = {0} or p.number_blind is null or p.patient_id = any("
            "array(select r.other::uuid from patients q join patient_rows r"
            " on r.patient_id = q.patient_id::text where q.number_blind = {0})))",
            number_blind(store.ring, narrowing.patient_number),
        )
    if narrowing.name_parts:
        where.add(
            "p.name_blinds @> {}::bytea[]",
            [
                store.ring.blind("name_prefix", part[:NAME_PREFIX_LENGTH])
                for part in narrowing.name_parts
            ],
        )


def _narrow_studies(where: _Where, store: "Store", narrowing: Narrowing) -> None:
    if narrowing.study_uids:
        where.add("s.study_instance_uid = any({})", list(narrowing.study_uids))
    if narrowing.accession_number:
        where.add(
            "s.accession_blind = {}",
            accession_blind(store.ring, narrowing.accession_number),
        )
    if narrowing.first_date is not None:
        where.add(f"{_DATE} >= {{}}", narrowing.first_date)
    if narrowing.last_date is not None:
        where.add(f"{_DATE} <= {{}} and {_DATE} > '-infinity'", narrowing.last_date)
    holding = "exists (select from instances i where i.study_instance_uid ="
    if narrowing.modalities:
        where.add(
            f"{holding} s.study_instance_uid and i.modality = any({{}}))",
            list(narrowing.modalities),
        )
    for column, uids in (
        ("series_instance_uid", narrowing.series_uids),
        ("sop_instance_uid", narrowing.instance_uids),
    ):
        if uids and not narrowing.study_uids:
            where.add(
                "s.study_instance_uid in (select i.study_instance_uid from instances i"
                f" where i.{column} = any({{}}))",
                list(uids),
            )


# -- what is rejected ------------------------------------------------------------------


async def _hidden(
    tx: "Transaction", store: "Store", study_uids: Sequence[str], rejected_too: bool
) -> _Hidden:
    void = await tx.fetch(
        "select i.sop_instance_uid from instances i"
        " join study_moves m using (study_instance_uid)"
        " where m.study_instance_uid = any($1)",
        list(study_uids),
    )
    rejected = {row["sop_instance_uid"] for row in void}
    if rejected_too:
        return _Hidden(sorted(rejected), [])
    notes = await tx.fetch(
        f"select {_ENTRY}, s.patient_id from instances i"
        " join studies s using (study_instance_uid)"
        " where i.study_instance_uid = any($1)"
        f" and i.sop_class_uid = '{KEY_OBJECT_SELECTION}'",
        list(study_uids),
    )
    for row in notes:
        sealer = await store.ring.patient(tx, row["patient_id"])
        rejected |= rejected_by(_instance(row, sealer).header)
    withdrawn = await tx.fetch(
        "select r.study_instance_uid from report r cross join lateral"
        " (select v.status from report_version v where v.report_id = r.id"
        "   order by v.number desc limit 1) v"
        " where r.study_instance_uid = any($1) and v.status = 'entered-in-error'",
        list(study_uids),
    )
    return _Hidden(sorted(rejected), [row["study_instance_uid"] for row in withdrawn])


def rejected_by(header: Header) -> set[str]:
    """Return what a Key Object Selection rejects; nothing unless that is its title."""
    codes = {
        code
        for item in _items(header, "0040A043")
        for code in _values(item, "00080100")
    }
    if not codes & REJECTION_TITLES:
        return set()
    return {
        uid
        for study in _items(header, "0040A375")
        for series in _items(study, "00081115")
        for reference in _items(series, "00081199")
        for uid in _values(reference, "00081155")
    }


def _items(header: Header, tag: str) -> Iterable[Header]:
    return (item for item in _values(header, tag) if isinstance(item, dict))


def _values(header: Header, tag: str) -> Sequence[Any]:
    return header.get(tag, {}).get("Value") or ()


# -- rows ------------------------------------------------------------------------------

_ENTRY: Final = (
    "i.sop_instance_uid, i.sop_class_uid, i.study_instance_uid, i.series_instance_uid,"
    " i.transfer_syntax_uid, i.sequence, i.metadata"
)


def _instance(row: "asyncpg.Record", sealer: "Sealer") -> InstanceEntry:
    return InstanceEntry(
        sop_instance_uid=row["sop_instance_uid"],
        sop_class_uid=row["sop_class_uid"],
        study_instance_uid=row["study_instance_uid"],
        series_instance_uid=row["series_instance_uid"],
        transfer_syntax_uid=row["transfer_syntax_uid"],
        sequence=row["sequence"],
        sealer=sealer,
        metadata=row["metadata"],
    )


async def _patients(
    tx: "Transaction", store: "Store", rows: Collection["asyncpg.Record"]
) -> dict[UUID, PatientEntry]:
    """Return who is in these rows and not erased, by id, with her other rows."""
    beside: dict[UUID, list[PatientEntry]] = {}
    for row in await tx.fetch(
        f"select r.patient_id::uuid as beside, {_PATIENT} from patient_rows r"
        " join patients p on p.patient_id = r.other::uuid where r.patient_id = any($1)",
        [str(row["patient_id"]) for row in rows],
    ):
        if (other := await _patient(tx, store, row)) is not None:
            beside.setdefault(row["beside"], []).append(other)
    found = {}
    for row in rows:
        others = tuple(beside.get(row["patient_id"], ()))
        if (entry := await _patient(tx, store, row, others)) is not None:
            found[entry.patient_id] = entry
    return found


async def _patient(
    tx: "Transaction",
    store: "Store",
    row: "asyncpg.Record",
    others: tuple[PatientEntry, ...] = (),
) -> PatientEntry | None:
    try:
        sealer = await store.ring.patient(tx, row["patient_id"])
    except NodeError as error:
        if error.kind is not ErrorKind.GONE:
            raise
        return None  # erased: there is nobody to find
    stands = row["merged_into"] is None
    return PatientEntry(row["patient_id"], sealer, row["body"], stands, others)


def _once(rows: Sequence["asyncpg.Record"], key: str) -> list["asyncpg.Record"]:
    return list({row[key]: row for row in rows}.values())
