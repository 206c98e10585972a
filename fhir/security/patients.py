"""The patients among whom a person picks one for a program (SMART 2.2, launch/patient).

She sees them as everywhere else: masked, unless her role shows identities.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fhir.content import concepts
from fhir.encoding.wire import Json, parse
from fhir.search.parameters import criterion
from fhir.search.views import View
from node.domain.access import Identity
from node.domain.errors import NodeError
from node.store import resources
from node.store.search import pages
from node.store.search.criteria import Criterion, Order, Query

if TYPE_CHECKING:
    from node.store.store import Store

MOST = 50
_EXAMINED = 200
_ACSN = "ACSN"


@dataclass(frozen=True)
class Choice:
    """One patient by her latest examination."""

    patient_id: str
    name: str
    gender: str
    age: str
    examined: str
    accession: str


@dataclass(frozen=True)
class Choices:
    """The latest patients, or those of one accession number."""

    rows: tuple[Choice, ...]
    accession: str = ""


async def choices(store: "Store", caller: Identity, accession: str = "") -> Choices:
    """Return the patients examined lately, newest first, each once."""
    wanted: tuple[Criterion, ...] = ()
    accession = accession.strip()[:64]
    if accession:
        wanted = (
            criterion(
                "ImagingStudy",
                "identifier",
                accession.replace(",", "\\,"),
                sees_identity=caller.sees_identity,
            ),
        )
    query = Query(
        "ImagingStudy",
        wanted,
        order=(Order("happened", descending=True),),
        count=_EXAMINED,
    )
    view, rows = View(store, caller), dict[str, Choice]()
    async with store.db.reading() as tx:
        page = await pages.search(tx, store, query, store.opened)
        for stored in page.matches:
            study = parse(view(stored))
            patient_id = str(study["subject"]["reference"]).rpartition("/")[2]
            if patient_id in rows or len(rows) >= MOST:
                continue
            patient = await resources.find(tx, store, "Patient", patient_id)
            if patient is not None:
                rows[patient_id] = _choice(parse(view(patient)), study)
    return Choices(tuple(rows.values()), accession)


async def may_pick(store: "Store", caller: Identity, patient_id: str) -> bool:
    """Tell whether there is such a patient and the caller sees her."""
    try:
        async with store.db.reading() as tx:
            patient = await resources.find(tx, store, "Patient", patient_id)
        return patient is not None and bool(View(store, caller)(patient))
    except NodeError:
        return False


def _choice(patient: Json, study: Json) -> Choice:
    age = next(
        (
            str(e.get("valueString", ""))
            for e in patient.get("extension", [])
            if e.get("url") == concepts.PATIENT_AGE
        ),
        "",
    )
    return Choice(
        str(patient["id"]),
        _name(patient),
        str(patient.get("gender", "")),
        age,
        str(study.get("started", ""))[:10],
        next((str(i["value"]) for i in study["identifier"] if _is_accession(i)), ""),
    )


def _name(patient: Json) -> str:
    name: Any = (patient.get("name") or [{}])[0]
    parts = [name.get("family", ""), *name.get("given", [])]
    return str(name.get("text") or " ".join(parts).strip() or "—")


def _is_accession(identifier: Json) -> bool:
    codings = identifier.get("type", {}).get("coding", [])
    return any(coding.get("code") == _ACSN for coding in codings)
