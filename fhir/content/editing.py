"""A doctor's edit of a report: FHIR resources in, one report version out.

Everything happens in the caller's transaction: the version, its resources, its
Provenance and what subscribers are told stand or fall together. The rules of
the life cycle are `node.domain.report`'s; here stands who owns which element.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from fhir.content import completeness, concepts, mapping, publish, site
from fhir.content.documents import retire_documents
from fhir.content.masked import for_doctor, is_masked
from fhir.content.publish import put, versioned
from fhir.content.reading import (
    Content,
    observation_name,
    read_conclusions,
    read_observation,
)
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import (
    Json,
    as_list,
    extension,
    extensions,
    instant,
    parse,
    reference_parts,
)
from fhir.settings import FhirSettings
from fhir.subscriptions import events
from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import (
    SIGNED,
    Author,
    AuthorKind,
    Disclosure,
    Report,
    ReportStatus,
)
from node.store import completion, orders, reports, resources
from node.store.orders import StudyOrder
from node.store.resources import StaleVersion, Stored
from node.workflow.reporting import record_disclosure, revise_report

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_MEDIA = frozenset({"phone", "in-person"})
_VALUE = ("valueCodeableConcept", "valueQuantity", "component", "dataAbsentReason")
# What the node sets whatever a client sends.
_SET_BY_NODE = frozenset({"issued", "resultsInterpreter", "performer", "device"})
# What a client may send back, but only as it was.
_FIXED = {
    "DiagnosticReport": (
        "implicitRules",
        "contained",
        "identifier",
        "basedOn",
        "category",
        "code",
        "subject",
        "encounter",
        "effectiveDateTime",
        "effectivePeriod",
        "specimen",
        "result",
        "imagingStudy",
        "media",
        "conclusionCode",
        "presentedForm",
    ),
    "Observation": (
        "implicitRules",
        "contained",
        "identifier",
        "basedOn",
        "partOf",
        "category",
        "code",
        "subject",
        "focus",
        "encounter",
        "effectiveDateTime",
        "effectivePeriod",
        "method",
        "specimen",
        "hasMember",
        "derivedFrom",
    ),
}
_FIXED_EXTENSIONS = concepts.ABOUT_STUDY | {
    concepts.NOT_READ,
    concepts.BODY_SITE,
    concepts.LESION_REGION,
    concepts.HEAT_MAP,
}


@dataclass(frozen=True)
class Change:
    """One resource as the client wants it, and the version that it has seen."""

    resource: Json
    expected: int


@dataclass(frozen=True)
class Edit:
    """All that one request changes about one report."""

    report: Change | None = None
    observations: tuple[Change, ...] = ()
    reason: str | None = None
    communication: Json | None = None

    @property
    def report_id(self) -> UUID:
        """Return the report that the edit is about; RULE when it is about two."""
        named = {str(c.resource["id"])[:36] for c in self.observations}
        if self.report is not None:
            named.add(str(self.report.resource["id"]))
        if self.communication is not None:
            named |= {i for t, i in _about(self.communication) if t == _REPORT}
        if len(named) != 1:
            raise NodeError("an edit is about exactly one report", ErrorKind.RULE)
        try:
            return UUID(named.pop())
        except ValueError:
            raise NodeError("there is no such report", ErrorKind.NOT_FOUND) from None


_REPORT = "DiagnosticReport"


@dataclass
class Written:
    """What an edit has stored, by type and id; Provenance and Communication apart."""

    resources: dict[tuple[str, str], Stored] = field(default_factory=dict)
    provenance: Stored | None = None
    communication: Stored | None = None

    def add(self, stored: Stored) -> None:
        self.resources[stored.resource_type, stored.resource_id] = stored


async def edit_report(
    tx: "Transaction",
    store: "Store",
    settings: FhirSettings,
    identity: Identity,
    edit: Edit,
) -> Written:
    """Carry out an edit; return every resource version that it made.

    Raises StaleVersion when somebody was faster, RULE and INVALID as the domain
    says, FORBIDDEN when the caller may not sign or is no person.
    """
    report = await reports.read_for_update(tx, store, edit.report_id)
    written = Written()
    author = await _author(tx, store, identity)
    if edit.report is not None or edit.observations:
        report = await _revise(tx, store, identity, author, report, edit, written)
    if edit.communication is not None:
        identity.require(Action.SIGN_REPORT)
        report = await _disclose(tx, store, author, report, edit.communication, written)
    revised = edit.report is not None or bool(edit.observations)
    await events.report_changed(tx, store, settings, report, revised=revised)
    return written


async def _author(tx: "Transaction", store: "Store", identity: Identity) -> Author:
    """Return the caller as an author, and make sure her Practitioner is there."""
    if identity.practitioner_id is None:
        raise NodeError("only a person edits reports", ErrorKind.FORBIDDEN)
    await publish.write_signer(tx, store, identity.practitioner_id, identity.display)
    return Author(AuthorKind.PHYSICIAN, identity.practitioner_id, identity.display)


async def _revise(
    tx: "Transaction",
    store: "Store",
    identity: Identity,
    author: Author,
    before: Report,
    edit: Edit,
    written: Written,
) -> Report:
    stored = await _stored_resources(tx, store, before, edit)
    await _require_published(tx, store, before)
    content = Content(before.current.findings, before.current.conclusions)
    for change in edit.observations:
        _require_own_elements(change.resource, stored)
        content = read_observation(content, before, change.resource)
    status = _status(before, edit)
    if edit.report is not None:
        _require_own_elements(edit.report.resource, stored)
        conclusions = read_conclusions(content.conclusions, edit.report.resource)
        content = Content(content.findings, conclusions)
    if status is ReportStatus.APPENDED:
        for change in (*edit.observations, *([edit.report] if edit.report else [])):
            _require_only_added(change.resource, stored)
    signs = status in SIGNED or status is ReportStatus.ENTERED_IN_ERROR
    identity.require(Action.SIGN_REPORT if signs else Action.EDIT_REPORT)
    after = await revise_report(
        store,
        tx,
        before.id,
        status,
        content.findings,
        content.conclusions,
        author=author,
        reason=edit.reason,
    )
    named = await orders.of_study(tx, store, before.study_instance_uid)
    writer = _Writer(tx, store, before, after, edit, stored, named)
    await writer.write_all(written)
    if edit.report is not None:
        await _take_note(tx, before, stored)
    await _write_provenance(tx, store, before, after, stored, written)
    return after


async def _take_note(
    tx: "Transaction", before: Report, stored: Mapping[tuple[str, str], Stored]
) -> None:
    """Note that she has seen the late images that the report told her of.

    The version that she changed is the one that told it: an older one is stale.
    """
    shown = completeness.images_taken_note_of(
        parse(stored[_REPORT, str(before.id)].body)
    )
    if shown is not None:
        await completion.take_note(tx, before.study_instance_uid, shown)


def _status(before: Report, edit: Edit) -> ReportStatus:
    if edit.report is None:
        if before.current.signed:
            raise NodeError(
                "a signed report is changed together with its status: send the"
                " DiagnosticReport in the same transaction",
                ErrorKind.RULE,
            )
        return ReportStatus.PRELIMINARY
    try:
        return ReportStatus(str(edit.report.resource.get("status")))
    except ValueError:
        raise NodeError(
            "this status has no place in the life cycle of our reports",
            ErrorKind.RULE,
            expression="DiagnosticReport.status",
        ) from None


async def _stored_resources(
    tx: "Transaction", store: "Store", report: Report, edit: Edit
) -> dict[tuple[str, str], Stored]:
    """Return the report's resources, after checking what the client has seen."""
    changes = [*edit.observations, *([edit.report] if edit.report else [])]
    for change in changes:
        resource = change.resource
        if is_masked(resource):
            message = "a masked copy cannot replace the original"
            issue = Issue("business-rule", message, f"{_kind(resource)}.meta.security")
            raise Refused([issue], 422, ErrorKind.RULE)
        kind, resource_id = _kind(resource), str(resource["id"])
        current = await resources.lock(tx, kind, resource_id)
        if current == 0:
            raise NodeError(f"{kind}/{resource_id} is not known", ErrorKind.NOT_FOUND)
        if current != change.expected:
            raise StaleVersion(kind, resource_id, current)
    ids = [o["id"] for o in mapping.to_observations(report, mapping.Exam(None))]
    wanted = [("Observation", i) for i in ids]
    wanted += [(_kind(c.resource), str(c.resource["id"])) for c in changes]
    wanted.append((_REPORT, str(report.id)))
    return await resources.find_all(tx, store, wanted)


async def _require_published(tx: "Transaction", store: "Store", report: Report) -> None:
    """Refuse an edit of a reading that no reader of /fhir has seen yet.

    Between a late reading and its publication the resources show the earlier
    one: an edit would silently take over findings that the doctor never saw.
    """
    if report.current.author.kind is not AuthorKind.ALGORITHM:
        return
    marker = publish.marker_of(report)
    if await resources.find(tx, store, "Provenance", marker) is None:
        raise NodeError(
            "a newer reading is about to appear; load the report again",
            ErrorKind.CONFLICT,
        )


def _require_own_elements(sent: Json, stored: Mapping[tuple[str, str], Stored]) -> None:
    """Refuse a change of elements that are the node's own."""
    kind = _kind(sent)
    known = parse(stored[kind, str(sent["id"])].body)
    # A doctor sends back what she was shown; ages do not matter for these types.
    shown = for_doctor(known, _NO_DAY)
    for element in _FIXED[kind]:
        if element in sent and sent[element] not in (
            known.get(element),
            shown.get(element),
        ):
            issue = Issue(
                "business-rule",
                f"{element} is set by the node and cannot be changed",
                f"{kind}.{element}",
            )
            raise Refused([issue], 422, ErrorKind.RULE)


_NO_DAY = date.min
# What the report itself says; `Report.revise` holds that against what was signed.
_OF_REPORT = frozenset(
    {*_SET_BY_NODE, *_VALUE, "resourceType", "id", "meta", "status"}
    | {"conclusion", "bodySite"}
)


def _require_only_added(sent: Json, stored: Mapping[tuple[str, str], Stored]) -> None:
    """Refuse, for `appended`, a change of what others have put beside the report.

    Notes, narratives and extensions that somebody has read stay as they were; more of
    them may come.
    """
    kind = _kind(sent)
    known = parse(stored[kind, str(sent["id"])].body)
    for element, value in known.items():
        if element in _OF_REPORT or element in _FIXED[kind]:
            continue
        now = sent.get(element)
        before = [item for item in as_list(value) if not _is_ruled(item)]
        if any(item not in as_list(now) for item in before):
            issue = Issue(
                "business-rule",
                "an appended report keeps its earlier content",
                f"{kind}.{element}",
            )
            raise Refused([issue], 422, ErrorKind.RULE)


def _is_ruled(item: object) -> bool:
    """Tell whether this is an extension that the node itself looks after."""
    ruled = _FIXED_EXTENSIONS | {concepts.PATIENT_SUMMARY}
    return isinstance(item, dict) and item.get("url") in ruled


def _kind(resource: Json) -> str:
    return str(resource["resourceType"])


def _about(communication: Json) -> list[tuple[str, str]]:
    parts = (reference_parts(r) for r in as_list(communication.get("about")))
    return [part for part in parts if part is not None]


class _Writer:
    """Writes the resources of a new version over those of the one before."""

    def __init__(
        self,
        tx: "Transaction",
        store: "Store",
        before: Report,
        after: Report,
        edit: Edit,
        stored: Mapping[tuple[str, str], Stored],
        named: Sequence[StudyOrder],
    ) -> None:
        self._tx = tx
        self._store = store
        self._before = before
        self._after = after
        self._stored = stored
        self._sent = {str(c.resource["id"]): c.resource for c in edit.observations}
        self._report = edit.report.resource if edit.report else None
        hers = (one.order.source_id for one in named if one.agrees)
        self._exam = mapping.Exam(None, service_requests=tuple(filter(None, hers)))

    async def write_all(self, written: Written) -> None:
        exam = mapping.Exam(None)
        was = {o["id"]: o for o in mapping.to_observations(self._before, exam)}
        newer: list[tuple[Json, int | None]] = []
        for rendered in mapping.to_observations(self._after, exam):
            observation_id = rendered["id"]
            stored = self._stored.get(("Observation", observation_id))
            if stored is None:
                continue
            changed = _value(rendered) != _value(was[observation_id])
            resource = self._observation(parse(stored.body), rendered, changed)
            if observation_id in self._sent or _differs(resource, stored):
                newer.append((resource, stored.version))
        await self._put_all(newer, written)
        await self._withdraw_lesions(written)
        for stored in (
            *await publish.write_places(self._tx, self._store, self._after),
            *await retire_documents(self._tx, self._store, self._after),
        ):
            written.add(stored)
        seen = self._stored[_REPORT, str(self._after.id)].version
        await self._put_all([(self._diagnostic_report(), seen)], written)

    async def _put_all(
        self, newer: Sequence[tuple[Json, int | None]], written: Written
    ) -> None:
        patient_id = self._after.patient_id
        for stored in await publish.put_all(self._tx, self._store, newer, patient_id):
            written.add(stored)

    async def _withdraw_lesions(self, written: Written) -> None:
        kept = {lesion.tracking_uid for lesion in self._after.current.findings.lesions}
        numbers = mapping.lesion_numbers(self._before)
        for lesion in self._before.current.findings.lesions:
            if lesion.tracking_uid not in kept:
                number = numbers[lesion.tracking_uid]
                for stored in await publish.withdraw_lesion(
                    self._tx, self._store, self._after, number
                ):
                    written.add(stored)

    def _observation(self, known: Json, rendered: Json, changed: bool) -> Json:
        """Return the next version of an Observation.

        Whose value it is follows from the value: the algorithm's stays the
        algorithm's until a doctor says something else.
        """
        version = self._after.current
        resource = self._merged(self._sent.get(str(known["id"]), known), known)
        if changed:
            for element in (*_VALUE, "bodySite", "device", "performer"):
                resource.pop(element, None)
            resource |= _value(rendered) | mapping.authorship(version.author)
            resource["issued"] = instant(version.at)
            resource["meta"] = _without_ai_label(resource.get("meta", {}))
        resource["status"] = self._observation_status(known, changed)
        place = extension(rendered, concepts.BODY_SITE)
        if place is not None and extension(resource, concepts.BODY_SITE) is None:
            # It was published by a release that had no BodyStructure.
            resource["extension"] = [place, *as_list(resource.get("extension"))]
        return resource

    def _observation_status(self, known: Json, changed: bool) -> str:
        status = self._after.current.status
        whole = {
            ReportStatus.PRELIMINARY,
            ReportStatus.FINAL,
            ReportStatus.ENTERED_IN_ERROR,
        }
        if status in whole or changed:
            return mapping.observation_status(status)
        return str(known["status"])

    def _diagnostic_report(self) -> Json:
        version = self._after.current
        known = parse(self._stored[_REPORT, str(self._after.id)].body)
        resource = self._merged(self._report or known, known)
        resource["meta"] = _without_ai_label(resource.get("meta", {}))
        resource["status"] = version.status.value
        # The paper says what an earlier version said; that of this one comes later.
        resource.pop("presentedForm", None)
        resource["performer"] = [site.DEPARTMENT]
        resource["result"] = mapping.results(self._after)
        if self._report is not None:  # she has seen the version that tells of them
            completeness.without_late_images(resource)
        # An order may have come after the draft.
        resource = self._exam.based_on | resource
        return resource | mapping.signature(version)

    def _merged(self, sent: Json, known: Json) -> Json:
        """Return what was sent with the node's own elements as they were."""
        kind = _kind(known)
        resource = {k: v for k, v in sent.items() if k not in _SET_BY_NODE}
        for element in (*_FIXED[kind], *_SET_BY_NODE):
            if element in known:
                resource[element] = known[element]
        # Labels are the node's: a client cannot add or remove the AI label.
        meta = {k: v for k, v in sent.get("meta", {}).items() if k != "security"}
        security = known.get("meta", {}).get("security")
        resource["meta"] = meta | ({"security": security} if security else {})
        own = [e for u in sorted(_FIXED_EXTENSIONS) for e in extensions(known, u)]
        others = [
            e
            for e in as_list(sent.get("extension"))
            if e.get("url") not in _FIXED_EXTENSIONS
        ]
        resource.pop("extension", None)
        if own or others:
            resource["extension"] = [*own, *others]
        return resource


def _value(observation: Json) -> Json:
    kept = (*_VALUE, "bodySite")
    return {key: observation[key] for key in kept if key in observation}


def _without_ai_label(meta: Json) -> Json:
    labels = [
        label
        for label in as_list(meta.get("security"))
        if label.get("code") != concepts.AI_ASSERTED["code"]
    ]
    kept = {key: value for key, value in meta.items() if key != "security"}
    return kept | ({"security": labels} if labels else {})


def _differs(resource: Json, stored: Stored) -> bool:
    known = parse(stored.body)
    return any(
        resource.get(key) != known.get(key) for key in {*resource, *known} - {"meta"}
    )


async def _write_provenance(
    tx: "Transaction",
    store: "Store",
    before: Report,
    after: Report,
    stored: Mapping[tuple[str, str], Stored],
    written: Written,
) -> None:
    """Write who made the version, who vouches for it and what it was made from."""
    version = after.current
    doctor = f"Practitioner/{version.author.id}"
    algorithm = after.versions[0].author
    agents = [("verifier", doctor)] if version.signed else []
    same = before.current
    if (version.findings, version.conclusions) != (same.findings, same.conclusions):
        agents.append(("author", doctor))
    if algorithm.kind is AuthorKind.ALGORITHM:
        agents.append(("author", f"Device/{algorithm.id}"))
    if not any(who == doctor for _, who in agents):
        agents.insert(0, ("author", doctor))
    targets: Sequence[Stored] = list(written.resources.values())
    resource = mapping.to_provenance(
        [versioned(stored_target) for stored_target in targets],
        recorded=version.at,
        agents=agents,
        revision_of=versioned(stored[_REPORT, str(after.id)]),
        reason=version.reason,
    )
    resource["id"] = str(uuid4())
    written.provenance = await put(tx, store, resource, after.patient_id, expected=0)


async def _disclose(
    tx: "Transaction",
    store: "Store",
    author: Author,
    report: Report,
    communication: Json,
    written: Written,
) -> Report:
    """Record that the patient was told; it counts from now, when it is recorded."""
    if communication.get("status") != "completed":
        raise NodeError(
            "a disclosure is recorded when it is completed",
            ErrorKind.RULE,
            expression="Communication.status",
        )
    media = [str(m.get("text", "")) for m in as_list(communication.get("medium"))]
    medium = media[0] if media else ""
    if medium not in _MEDIA:
        raise NodeError(
            "say how the patient was told: phone or in-person",
            ErrorKind.INVALID,
            expression="Communication.medium",
        )
    disclosure = Disclosure(by=author.id, at=store.clock(), medium=medium)
    report = await record_disclosure(store, tx, report.id, disclosure)
    resource = {
        **communication,
        "id": str(uuid4()),
        "subject": {"reference": f"Patient/{report.patient_id}"},
        "sender": {"reference": f"Practitioner/{author.id}"},
    }
    resource.setdefault("sent", instant(disclosure.at))
    written.communication = await put(tx, store, resource, report.patient_id)
    return report


def reason_of(provenance: Json) -> str | None:
    """Return the words in which a client's Provenance gives the reason."""
    for reason in as_list(provenance.get("reason")):
        text = reason.get("text")
        if isinstance(text, str) and text.strip():
            return text
    return None


def is_of_report(resource: Json) -> bool:
    """Tell whether a resource belongs to a report that this module edits."""
    if _kind(resource) == _REPORT:
        return True
    return observation_name(str(resource.get("id", ""))) is not None
