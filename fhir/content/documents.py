"""The signed report as people read it: DocumentReference, presentedForm, Binary.

On paper, and as a page for browsers (IHE RAD IMR wants that one). Both are made after
the signature, by a job of its own, so the version that was signed has none yet. When
they are there a further version of the DiagnosticReport gets `presentedForm`, with the
same status: nothing of the report has changed, and nobody has amended it. Decision 0009
says why.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.conformance.profiles import with_profile
from fhir.content import concepts, mapping, site
from fhir.content.publish import put, versioned
from fhir.encoding.wire import Json, instant, parse
from fhir.multimedia.owed import owe_report
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report, ReportStatus, ReportVersion
from node.paper import HTML, PDF, Paper, find_papers
from node.store import reports, resources
from node.store.resources import Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_PROVENANCE = UUID("5b7a2d1e-3c55-5b0c-9a53-0f6f2c1d8e44")
_PAGE = "-html"
_ID = re.compile(
    rf"([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-v([1-9]\d{{0,5}})(?:{_PAGE})?"
)
_TITLE = "乳腺超声检查报告 / Breast ultrasound report"
_CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"


@dataclass(frozen=True)
class _Form:
    """What is told of a paper without showing it."""

    paper: Paper
    size: int
    sha1: bytes


def document_id(report_id: UUID, number: int) -> str:
    """Return the id of the DocumentReference of a signed version."""
    return f"{report_id}-v{number}"


def binary_id(report_id: UUID, number: int, content_type: str) -> str:
    """Return the id of the Binary of a signed version in one of `paper.FORMS`."""
    return document_id(report_id, number) + (_PAGE if content_type == HTML else "")


def content_type_of(binary: str) -> str:
    """Return in which form a Binary is, by its id alone."""
    return HTML if binary.endswith(_PAGE) else PDF


def read_binary_id(text: str) -> tuple[UUID, int]:
    """Return the report and version that an id names; NOT_FOUND when it names none."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NodeError(f"Binary/{text} is not known", ErrorKind.NOT_FOUND)
    return UUID(match[1]), int(match[2])


def to_binary(report_id: UUID, number: int, shown: Paper, content: bytes) -> Json:
    """Return the paper as a Binary; who may read it follows from its report."""
    told = {
        "resourceType": "Binary",
        "id": binary_id(report_id, number, shown.content_type),
        "meta": {"versionId": "1", "lastUpdated": instant(shown.made_at)},
        "contentType": shown.content_type,
        "securityContext": {"reference": f"DiagnosticReport/{report_id}"},
        "data": base64.b64encode(content).decode(),
    }
    return with_profile(told)


async def publish_document(
    store: "Store", settings: FhirSettings, payload: Mapping[str, Any]
) -> None:
    """Tell that the paper of a signed version `payload` {report_id, version} is there.

    Of a version that is not the newest any more only the DocumentReference is
    written, as superseded; of a withdrawn report nothing. `quietly` tells no
    subscriber. Runs again without harm.
    """
    report_id, number = UUID(str(payload["report_id"])), int(payload["version"])
    async with store.db.transaction(readonly=True) as tx:
        report = await reports.read(tx, store, report_id)
        if report.current.status is ReportStatus.ENTERED_IN_ERROR:
            return
        papers = await find_papers(tx, store, report, number)
    forms = [await _form(paper) for paper in papers]
    if not forms:
        raise NodeError("the paper is not stored", ErrorKind.NOT_FOUND)
    async with store.db.transaction() as tx:
        report = await reports.read_for_update(tx, store, report_id)
        if report.current.status is not ReportStatus.ENTERED_IN_ERROR:
            version, quietly = report.version(number), bool(payload.get("quietly"))
            await _publish(tx, store, settings, report, version, forms, quietly=quietly)


async def _form(paper: Paper) -> _Form:
    content = await paper.read()
    # R4 wants SHA-1 here; it finds a damaged copy, it keeps nobody out.
    sha1 = hashlib.sha1(content, usedforsecurity=False).digest()
    return _Form(paper, len(content), sha1)


async def _publish(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    report: Report,
    version: ReportVersion,
    forms: Sequence[_Form],
    *,
    quietly: bool,
) -> None:
    document = document_id(report.id, version.number)
    resource = to_document_reference(report, version, forms, settings.site.language)
    told = await resources.find(tx, store, "DocumentReference", document)
    if told is not None and parse(told.body)["content"] == resource["content"]:
        return
    before = await _paper_before(tx, store, report, version)
    if before is not None:
        target = {"reference": f"DocumentReference/{before}"}
        resource["relatesTo"] = [{"code": "replaces", "target": target}]
    targets = [versioned(await put(tx, store, resource, report.patient_id))]
    known = await resources.read(tx, store, "DiagnosticReport", str(report.id))
    newest = report.current.number == version.number
    if newest:
        shown = [content["attachment"] for content in resource["content"]]
        newer = parse(known.body) | {"presentedForm": shown}
        targets.insert(0, versioned(await put(tx, store, newer, report.patient_id)))
    provenance = mapping.by_the_node(
        targets, recorded=store.clock(), source=versioned(known)
    )
    provenance["id"] = str(uuid5(_PROVENANCE, " ".join(targets)))
    await put(tx, store, provenance, report.patient_id)
    if newest and not quietly:
        if any(form.paper.content_type == HTML for form in forms):
            await owe_report(tx, store, settings, report)
        changed = [("DiagnosticReport", str(report.id))]
        await events.resources_changed(tx, store, settings, changed)


async def _paper_before(
    tx: "Transaction", store: "Store", report: Report, version: ReportVersion
) -> str | None:
    """Return the id of the paper that this one replaces, None where there is none."""
    before = report.last_signed(before=version.number)
    if before is None:
        return None
    found = document_id(report.id, before.number)
    if await resources.find(tx, store, "DocumentReference", found) is None:
        return None
    return found


def to_document_reference(
    report: Report, version: ReportVersion, forms: Sequence[_Form], language: str
) -> Json:
    """Return the DocumentReference of the paper of one signed version, in its forms."""
    first = report.last_signed()
    current = first is not None and first.number == version.number
    signer = {"reference": f"Practitioner/{version.author.id}"}
    contents = [
        {
            "attachment": {
                "contentType": form.paper.content_type,
                "language": language,
                "url": "Binary/"
                + binary_id(report.id, version.number, form.paper.content_type),
                "size": form.size,
                "hash": base64.b64encode(form.sha1).decode(),
                "title": _TITLE,
                "creation": instant(form.paper.made_at),
            }
        }
        for form in forms
    ]
    oids = [f"urn:oid:{u}" for f in forms if (u := f.paper.sop_instance_uid)]
    known_as: Json = {}
    if oids:
        master = {"system": "urn:ietf:rfc:3986", "value": oids[0]}
        number = {"system": concepts.DICOM_UID, "value": oids[0]}
        known_as = {"masterIdentifier": master, "identifier": [number]}
    return {
        "resourceType": "DocumentReference",
        "id": document_id(report.id, version.number),
        **known_as,
        "status": "current" if current else "superseded",
        "docStatus": "final" if version.status is ReportStatus.FINAL else "amended",
        "type": concepts.codeable(lexicon.IMAGING_REPORT),
        "category": [concepts.RADIOLOGY],
        "subject": {"reference": f"Patient/{report.patient_id}"},
        "date": instant(version.at),
        "author": [signer],
        "authenticator": signer,
        "custodian": site.HOSPITAL,
        "securityLabel": [{"coding": [{"system": _CONFIDENTIALITY, "code": "N"}]}],
        "content": contents,
        "context": {
            "related": [
                {"reference": f"DiagnosticReport/{report.id}"},
                {"reference": f"ImagingStudy/{report.study_instance_uid}"},
            ]
        },
    }


async def retire_documents(
    tx: "Transaction", store: "Store", report: Report
) -> list[Stored]:
    """Mark the papers of earlier versions as superseded, or withdrawn with the report.

    In the transaction of the new version: an old paper is not the current one even
    for the moment until the new one is made.
    """
    withdrawn = report.current.status is ReportStatus.ENTERED_IN_ERROR
    written = []
    for version in report.versions[:-1]:
        if not version.signed:
            continue
        found = document_id(report.id, version.number)
        stored = await resources.find(tx, store, "DocumentReference", found)
        if stored is None:
            continue
        resource = parse(stored.body)
        status = "entered-in-error" if withdrawn else "superseded"
        if resource["status"] == status:
            continue
        resource["status"] = status
        if withdrawn:
            resource["docStatus"] = status
        written.append(await put(tx, store, resource, report.patient_id))
    return written
