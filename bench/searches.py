"""What is searched in the index of a million reports, by hand and never in CI."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from node.store.search.criteria import (
    LAST_UPDATED,
    AnyOf,
    Chained,
    Criterion,
    Has,
    IdIs,
    Order,
    Position,
    Query,
    ReferredBy,
    RefersTo,
    TokenIs,
    Within,
)

START = datetime(2016, 1, 1, tzinfo=UTC)
APART = timedelta(minutes=5)
REPORTS_A_PATIENT = 4
BY_DATE = (Order("happened", descending=True),)
NEWEST = (Order("updated", descending=True),)
OLDEST = (Order("updated"),)
# Of each search: as it is asked mostly, and from both ends of the last updates.
_ORDERS = {
    "": BY_DATE,
    ", newest update": NEWEST,
    ", oldest date": (Order("happened"),),
}


def queries(reports: int, step: int) -> dict[str, Query]:
    """Return what is asked in round `step`: each asks for somebody else."""
    n = (step * 7919) % reports
    day = START + timedelta(minutes=5 * n)
    year = datetime(2020, 1, 1, tzinfo=UTC)
    since = Within("date", "ge", year, year + timedelta(days=1), sorts=True)
    week = Within("date", "ge", day, day + timedelta(days=1), sorts=True)
    before = Within(
        "date", "lt", day + timedelta(days=7), day + timedelta(days=8), sorts=True
    )
    deep = START + timedelta(minutes=5 * (reports - 20_000))
    number = n // REPORTS_A_PATIENT
    polled = START + (reports - 50) * APART
    long_ago = START + (reports // 10) * APART
    her = RefersTo("patient", (("Patient", name_of("p", number)),))
    final = TokenIs("status", ((None, "final"),))
    return {
        "by patient": _reports(NEWEST, her),
        "by accession number": _reports(NEWEST, _hashed("a", n)),
        "by patient.identifier": _reports(
            NEWEST,
            Chained("patient", "Patient", _hashed("m", number)),
        ),
        "a week, by date": _reports(BY_DATE, week, before),
        "a week, newest update": _reports(NEWEST, week, before),
        "since 2020, page 1": _reports(BY_DATE, since),
        "since 2020, oldest first": _reports((Order("happened"),), since),
        "since 2020, page 1,000": _reports(
            BY_DATE, since, beside=Position((deep, "8"))
        ),
        "final, by date": _reports(BY_DATE, final),
        "partial, newest update": _reports(
            NEWEST, TokenIs("status", ((None, "partial"),))
        ),
        "final and US": _reports(
            NEWEST, final, TokenIs("category", (("urn:category", "US"),))
        ),
        "partial and US": _reports(
            NEWEST,
            TokenIs("status", ((None, "partial"),)),
            TokenIs("category", (("urn:category", "US"),)),
        ),
        "final and CT": _reports(
            NEWEST, final, TokenIs("category", (("urn:category", "CT"),))
        ),
        "everything, page 1": _reports(NEWEST),
        "by basedOn.identifier": _reports(
            NEWEST, Chained("based-on", "ServiceRequest", _hashed("a", n))
        ),
        "by patient:identifier": _reports(
            NEWEST,
            AnyOf(
                (
                    (_hashed("m", number, "patient:identifier"),),
                    (Chained("patient", "Patient", _hashed("m", number)),),
                )
            ),
        ),
        "partial or amended": _reports(
            NEWEST, TokenIs("status", ((None, "partial"), (None, "amended")))
        ),
        "partial, or of category CT": _reports(
            NEWEST,
            AnyOf(
                (
                    (TokenIs("status", ((None, "partial"),)),),
                    (TokenIs("category", (("urn:category", "CT"),)),),
                )
            ),
        ),
        "final, or of category CT": _reports(
            NEWEST,
            AnyOf(((final,), (TokenIs("category", (("urn:category", "CT"),)),))),
        ),
        "changed lately and final": _reports(OLDEST, _since(polled), final),
        "by imagingStudy.identifier": _reports(
            NEWEST, Chained("imaging-study", "ImagingStudy", _hashed("u", n))
        ),
        "by imagingStudy.modality US": _reports(
            NEWEST, Chained("imaging-study", "ImagingStudy", _modality("US"))
        ),
        "by imagingStudy.modality CT": _reports(
            NEWEST, Chained("imaging-study", "ImagingStudy", _modality("CT"))
        ),
        "her reports of modality US": _reports(
            NEWEST,
            her,
            Chained("imaging-study", "ImagingStudy", _modality("US")),
        ),
        "US of a week": _reports(
            NEWEST,
            week,
            before,
            Chained("imaging-study", "ImagingStudy", _modality("US")),
        ),
        "partial of a week": _reports(
            NEWEST, TokenIs("status", ((None, "partial"),)), week, before
        ),
        "changed lately, oldest first": _reports(OLDEST, _since(polled)),
        "changed since a year, oldest first": _reports(OLDEST, _since(long_ago)),
        "final and a week": _reports(BY_DATE, final, week, before),
        "final since 2020": _reports(BY_DATE, final, since),
        "partial since 2020": _reports(
            BY_DATE, TokenIs("status", ((None, "partial"),)), since
        ),
        "partial before 2017": _reports(
            BY_DATE,
            TokenIs("status", ((None, "partial"),)),
            Within("date", "lt", _year(2017), _year(2018), sorts=True),
        ),
        "not final": _reports(
            NEWEST, TokenIs("status", ((None, "final"),), negated=True)
        ),
        "of one device": _reports(
            NEWEST, RefersTo("performer", (("Organization", "department"),))
        ),
        "a patient by number": Query(
            "Patient", (_hashed("m", number),), NEWEST, count=20
        ),
    }


def claimed(reports: int, step: int) -> dict[str, Query]:
    """Return a search by every parameter of the types that are filled, in three orders.

    Values that nearly all have, that few have, and that only old ones have.
    """
    n = (step * 7919) % reports
    asked = {
        (kind, name): criteria
        for kind, its in _claimed(n, reports).items()
        for name, criteria in its.items()
    }
    found = {
        f"{kind}: {name}{told}": Query(kind, criteria, order, count=20)
        for (kind, name), criteria in asked.items()
        for told, order in _ORDERS.items()
    }
    issued = (Order("issued:sort", descending=True),)
    for name in ("status final", "status partial", "retired reader", "a month of 2017"):
        criteria = asked["DiagnosticReport", name]
        query = Query("DiagnosticReport", criteria, issued, count=20)
        found[f"DiagnosticReport: {name}, newest issued"] = query
    return found


def _claimed(n: int, reports: int) -> dict[str, dict[str, tuple[Criterion, ...]]]:
    number = n // REPORTS_A_PATIENT
    her = RefersTo("patient", (("Patient", name_of("p", number)),))
    day, old = START + APART * n, START + APART * (reports // 8)
    name = TokenIs("name", ((None, "wang"),))
    reports_ = {
        "everything": (),
        "_id": (IdIs((name_of("r", n),)),),
        "_lastUpdated, an hour": (_updated("ge", day), _updated("lt", day, hours=1)),
        "_lastUpdated, before 2017": (_updated("lt", _year(2017)),),
        "_security": (_code("_security", "AIAST"),),
        "_profile": (_code("_profile", "urn:profile:report"),),
        "identifier": (_hashed("a", n),),
        "status final": (_code("status", "final"),),
        "status amended": (_code("status", "amended"),),
        "status partial": (_code("status", "partial"),),
        "status:not final": (TokenIs("status", ((None, "final"),), negated=True),),
        "code": (_code("code", "24601-7"),),
        "category US": (_code("category", "US"),),
        "category CT": (_code("category", "CT"),),
        "category US and partial": (
            _code("category", "US"),
            _code("status", "partial"),
        ),
        "patient": (her,),
        "patient, status final": (her, _code("status", "final")),
        "a day": (_on("date", "eq", day, 1),),
        "a month of 2017": _month("date", old, sorts=True),
        "a month of 2017, final": (
            *_month("date", old, sorts=True),
            _code("status", "final"),
        ),
        "since 2020": (_on("date", "ge", _year(2020), 1),),
        "before 2017": (_on("date", "lt", _year(2017), 1),),
        "issued, a day": (_on("issued", "eq", day, 1, sorts=False),),
        "issued, a month of 2017": _month("issued", old, sorts=False),
        "based-on": (RefersTo("based-on", (("ServiceRequest", name_of("o", n)),)),),
        "result": (RefersTo("result", (("Observation", name_of("f", n)),)),),
        "imaging-study": (
            RefersTo("imaging-study", (("ImagingStudy", name_of("s", n)),)),
        ),
        "reader": (_reader("doctor-7"),),
        "retired reader": (_reader("retired"),),
        "performer": (RefersTo("performer", (("Organization", "department"),)),),
        "reader:missing": (_code("_missing", "results-interpreter"),),
        "reader:missing=false": (Has("results-interpreter", "reference"),),
        "patient.identifier": (Chained("patient", "Patient", _hashed("m", number)),),
        "patient.name, a frequent one": (Chained("patient", "Patient", name),),
        "imaging-study.modality US": (
            Chained("imaging-study", "ImagingStudy", _modality("US")),
        ),
        "imaging-study.modality CT": (
            Chained("imaging-study", "ImagingStudy", _modality("CT")),
        ),
        "imaging-study.modality US, a week": (
            Chained("imaging-study", "ImagingStudy", _modality("US")),
            _on("date", "ge", day, 1),
            _on("date", "lt", day + timedelta(days=7), 1),
        ),
        "imaging-study.started, a day": (
            Chained("imaging-study", "ImagingStudy", _on("started", "eq", day, 1)),
        ),
        "result.value-concept 5": (
            Chained("result", "Observation", _code("value-concept", "5")),
        ),
        "result.value-concept 4": (
            Chained("result", "Observation", _code("value-concept", "4")),
        ),
        "_has Provenance by a device": (
            ReferredBy(
                "Provenance", "target", RefersTo("agent", (("Device", "model-1"),))
            ),
        ),
    }
    return {
        "DiagnosticReport": reports_,
        "ImagingStudy": {
            "identifier": (_hashed("u", n),),
            "status": (_code("status", "available"),),
            "patient": (her,),
            "basedon": (RefersTo("basedon", (("ServiceRequest", name_of("o", n)),)),),
            "modality US": (_modality("US"),),
            "modality CT": (_modality("CT"),),
            "started, a day": (_on("started", "eq", day, 1),),
            "endpoint": (RefersTo("endpoint", (("Endpoint", "dicom-web"),)),),
            "_has partial report": (
                ReferredBy(
                    "DiagnosticReport", "imaging-study", _code("status", "partial")
                ),
            ),
        },
        "Observation": {
            "status": (_code("status", "final"),),
            "code": (_code("code", "146611000146107"),),
            "category": (_code("category", "imaging"),),
            "value-concept 5": (_code("value-concept", "5"),),
            "value-concept 4": (_code("value-concept", "4"),),
            "value-concept 2": (_code("value-concept", "2"),),
            "value-concept 5, patient": (her, _code("value-concept", "5")),
            "patient": (her,),
            "a day": (_on("date", "eq", day, 1),),
            "device": (RefersTo("device", (("Device", "model-1"),)),),
            "performer": (RefersTo("performer", (("Practitioner", "doctor-7"),)),),
            "derived-from": (
                RefersTo("derived-from", (("ImagingStudy", name_of("s", n)),)),
            ),
        },
        "Patient": {
            "identifier": (_hashed("m", number),),
            "name, a frequent one": (name,),
            "name, another": (TokenIs("name", ((None, name_of("n", number)[:3]),)),),
            "family": (TokenIs("family", ((None, "wang"),)),),
            "gender female": (_code("gender", "female"),),
            "gender male": (_code("gender", "male"),),
            "name and gender": (name, _code("gender", "male")),
            "active": (_code("active", "true"),),
            "organization": (
                RefersTo("organization", (("Organization", "hospital"),)),
            ),
            "_has partial report": (
                ReferredBy("DiagnosticReport", "patient", _code("status", "partial")),
            ),
            "_has final report": (
                ReferredBy("DiagnosticReport", "patient", _code("status", "final")),
            ),
        },
        "Provenance": {
            "target": (RefersTo("target", (("DiagnosticReport", name_of("r", n)),)),),
            "agent": (RefersTo("agent", (("Device", "model-1"),)),),
            "recorded, a day": (_on("recorded", "eq", day, 1),),
        },
        "ServiceRequest": {
            "identifier": (_hashed("a", n),),
            "status": (_code("status", "completed"),),
            "patient": (her,),
        },
    }


def _code(parameter: str, code: str) -> TokenIs:
    return TokenIs(parameter, ((None, code),))


def _reader(name: str) -> RefersTo:
    return RefersTo("results-interpreter", (("Practitioner", name),))


def _on(
    parameter: str, prefix: str, at: datetime, days: int, *, sorts: bool = True
) -> Within:
    begin = at.replace(hour=0, minute=0)
    return Within(parameter, prefix, begin, begin + timedelta(days=days), sorts)


def _month(parameter: str, at: datetime, *, sorts: bool) -> tuple[Criterion, ...]:
    end = at + timedelta(days=30)
    return (
        _on(parameter, "ge", at, 1, sorts=sorts),
        _on(parameter, "lt", end, 1, sorts=sorts),
    )


def _updated(prefix: str, at: datetime, *, hours: int = 0) -> Within:
    begin = at + timedelta(hours=hours)
    return Within(LAST_UPDATED, prefix, begin, begin + timedelta(seconds=1))


def _reports(
    order: tuple[Order, ...],
    *criteria: Criterion,
    beside: Position | None = None,
) -> Query:
    return Query("DiagnosticReport", criteria, order, count=20, beside=beside)


def _since(at: datetime) -> Within:
    return Within(LAST_UPDATED, "gt", at, at + timedelta(seconds=1))


def _modality(code: str) -> TokenIs:
    return TokenIs("modality", ((None, code),))


def _year(number: int) -> datetime:
    return datetime(number, 1, 1, tzinfo=UTC)


def _hashed(letter: str, n: int, parameter: str = "identifier") -> TokenIs:
    return TokenIs(parameter, ((None, name_of(letter, n)),))


def name_of(letter: str, n: int) -> str:
    return hashlib.md5(f"{letter}{n}".encode(), usedforsecurity=False).hexdigest()
