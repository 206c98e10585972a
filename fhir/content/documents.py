"""The signed report on paper, in FHIR: DocumentReference, presentedForm, Binary.

The paper is made after the signature, by a job of its own, so the version that was
signed has none yet. When it is there a further version of the DiagnosticReport gets
`presentedForm`, with the same status: nothing of the report has changed, and nobody has
amended it. Decision 0009 says why.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from fhir.conformance.profiles import with_profile
from fhir.content import concepts, mapping, site
from fhir.content.publish import put, versioned
from fhir.encoding.wire import Json, instant, parse
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node import paper
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import Report, ReportStatus, ReportVersion
from node.store import reports, resources
from node.store.resources import Stored

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store
    from node.store.studies import StoredInstance

_PROVENANCE = UUID("5b7a2d1e-3c55-5b0c-9a53-0f6f2c1d8e44")
_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-v([1-9]\d{0,5})")
_TITLE = "乳腺超声检查报告 / Breast ultrasound report"
_CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"


@dataclass(frozen=True)
class _Paper:
    """What is told of a PDF without showing it."""

    instance: "StoredInstance"
    size: int
    sha1: bytes
    quietly: bool


def document_id(report_id: UUID, number: int) -> str:
    """Return the id of the DocumentReference and of the Binary of a signed version."""
    return f"{report_id}-v{number}"


def read_document_id(text: str) -> tuple[UUID, int]:
    """Return the report and version that an id names; NOT_FOUND when it names none."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NodeError(f"Binary/{text} is not known", ErrorKind.NOT_FOUND)
    return UUID(match[1]), int(match[2])


def to_binary(report_id: UUID, number: int, at: str, pdf: bytes) -> Json:
    """Return the paper as a Binary; who may read it follows from its report."""
    told = {
        "resourceType": "Binary",
        "id": document_id(report_id, number),
        "meta": {"versionId": "1", "lastUpdated": at},
        "contentType": paper.CONTENT_TYPE,
        "securityContext": {"reference": f"DiagnosticReport/{report_id}"},
        "data": base64.b64encode(pdf).decode(),
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
        instance = await paper.find_paper(tx, store, report, number)
    if instance is None:
        raise NodeError("the paper is not stored", ErrorKind.NOT_FOUND)
    pdf = await paper.read_paper(store, instance)
    # R4 wants SHA-1 here; it finds a damaged copy, it keeps nobody out.
    sha1 = hashlib.sha1(pdf, usedforsecurity=False).digest()
    async with store.db.transaction() as tx:
        report = await reports.read_for_update(tx, store, report_id)
        if report.current.status is not ReportStatus.ENTERED_IN_ERROR:
            quietly = bool(payload.get("quietly"))
            told = _Paper(instance, len(pdf), sha1, quietly=quietly)
            await _publish(tx, store, settings, report, report.version(number), told)


async def _publish(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    report: Report,
    version: ReportVersion,
    told: _Paper,
) -> None:
    document = document_id(report.id, version.number)
    if await resources.find(tx, store, "DocumentReference", document) is not None:
        return
    before = await _paper_before(tx, store, report, version)
    resource = to_document_reference(report, version, told, settings.site.language)
    if before is not None:
        target = {"reference": f"DocumentReference/{before}"}
        resource["relatesTo"] = [{"code": "replaces", "target": target}]
    targets = [versioned(await put(tx, store, resource, report.patient_id))]
    known = await resources.read(tx, store, "DiagnosticReport", str(report.id))
    newest = report.current.number == version.number
    if newest:
        form = resource["content"][0]["attachment"]
        shown = parse(known.body) | {"presentedForm": [form]}
        targets.insert(0, versioned(await put(tx, store, shown, report.patient_id)))
    provenance = mapping.by_the_node(
        targets, recorded=store.clock(), source=versioned(known)
    )
    provenance["id"] = str(uuid5(_PROVENANCE, document))
    await put(tx, store, provenance, report.patient_id)
    if newest and not told.quietly:
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
    report: Report, version: ReportVersion, told: _Paper, language: str
) -> Json:
    """Return the DocumentReference of the paper of one signed version."""
    document, first = document_id(report.id, version.number), report.last_signed()
    current = first is not None and first.number == version.number
    oid = f"urn:oid:{told.instance.sop_instance_uid}"
    signer = {"reference": f"Practitioner/{version.author.id}"}
    attachment: Json = {
        "contentType": paper.CONTENT_TYPE,
        "language": language,
        "url": f"Binary/{document}",
        "size": told.size,
        "hash": base64.b64encode(told.sha1).decode(),
        "title": _TITLE,
        "creation": instant(told.instance.received_at),
    }
    return {
        "resourceType": "DocumentReference",
        "id": document,
        "masterIdentifier": {"system": "urn:ietf:rfc:3986", "value": oid},
        "identifier": [{"system": concepts.DICOM_UID, "value": oid}],
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
        "content": [{"attachment": attachment}],
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
