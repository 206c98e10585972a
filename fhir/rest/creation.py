"""New and changed resources that other systems send: patients, orders, people."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode
from uuid import UUID, uuid4

from fhir.content.masked import is_masked
from fhir.content.merged import KEPT_AS_IS, heed_links
from fhir.content.orders import place_service_request
from fhir.content.reading import read_patient
from fhir.encoding.outcome import Issue, Refused
from fhir.encoding.wire import Json, reference_parts, with_identity
from fhir.search import bundles
from fhir.search.parameters import index_of
from fhir.security.access import Interaction, require, require_scope
from fhir.settings import FhirSettings
from fhir.subscriptions import events, requests
from node.domain.access import Identity
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, identities, merges, resources
from node.store.database import limited
from node.store.resources import Stored
from node.store.search import pages
from node.store.search.criteria import Query

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


# A search: as it stands behind a question mark, or read.
Condition = str | Sequence[tuple[str, str]]


class Clerk:
    """Takes resources of other systems in, for one caller and one transaction.

    When all of them are in, `record` writes the audit trail.
    """

    def __init__(
        self,
        tx: "Transaction",
        store: "Store",
        settings: FhirSettings,
        identity: Identity,
    ) -> None:
        self.tx = tx
        self._store = store
        self._settings = settings
        self._identity = identity
        self._notes: list[str] = []
        self._entries: list[AuditEntry] = []
        self._create: Mapping[str, Callable[[Json], Awaitable[Stored]]] = {
            "Patient": self._create_patient,
            "ServiceRequest": self._create_order,
            "Practitioner": self._create_practitioner,
            "Subscription": self._create_subscription,
        }

    async def create(self, resource: Json) -> Stored:
        """Store a new resource under an id of ours."""
        _refuse_masked(resource)
        return await self._create[resource["resourceType"]](resource)

    def noted(self) -> list[str]:
        """Return what the caller should know of what was stored since it last asked."""
        notes, self._notes = self._notes, []
        return notes

    async def record(self) -> None:
        """Record who has written what; nobody else can until the transaction ends."""
        for entry in self._entries:
            await audit.record(self.tx, entry)
        self._entries.clear()

    async def reserve(self, conditions: Iterable[tuple[str, Condition]]) -> None:
        """Wait for who asks the same at this moment: one finds what another creates.

        Always in the same order, so that two never wait for each other.
        """
        asked = {f"{kind}?{urlencode(_pairs(told))}" for kind, told in conditions}
        for text in sorted(asked):
            await self.tx.execute(
                "select pg_advisory_xact_lock(hashtextextended($1, 0))", text
            )

    async def find_existing(
        self, resource_type: str, condition: Condition, what: str
    ) -> Stored | None:
        """Return the one resource that a condition finds (FHIR R4 3.1.0.8.1).

        Refused with 412 when it finds several, 400 when it asks for nothing
        that we can search by: a duplicate must not come from a typing error.
        """
        require(self._identity, resource_type, Interaction.SEARCH)
        require_scope(self._identity, resource_type, "s", whole=True)
        await self.reserve([(resource_type, condition)])
        request = bundles.read_request(
            resource_type,
            _pairs(condition),
            sees_identity=self._identity.sees_identity,
            strict=True,
            page_size=2,
        )
        if not request.criteria:
            raise Refused([Issue("invalid", f"{what} asks for nothing")], 400)
        query = Query(resource_type, tuple(request.criteria), count=2)
        async with limited(self.tx):
            page = await pages.search(self.tx, self._store, query)
        if len(page.matches) > 1:
            issue = Issue("multiple-matches", f"{what} finds several resources")
            raise Refused([issue], 412, ErrorKind.CONFLICT)
        return page.matches[0] if page.matches else None

    async def _create_patient(self, resource: Json) -> Stored:
        told = read_patient(resource, self._settings.systems)
        await self._wait_for_merges(resource)
        patient_id = await identities.upsert_patient(
            self.tx, self._store, told, at=self._store.clock(), replace=True
        )
        known = await resources.lock(self.tx, "Patient", str(patient_id))
        if known:
            issue = Issue(
                "duplicate",
                f"this medical record number is Patient/{patient_id}; update that one",
                "Patient.identifier",
            )
            raise Refused([issue], 409, ErrorKind.CONFLICT)
        resource = await self._with_links(resource, patient_id)
        return await self._write(resource, str(patient_id), patient_id, expected=0)

    async def _wait_for_merges(self, resource: Json) -> None:
        """Let who merges now end first: she could wait for a row that is held here."""
        if "link" in resource:
            await merges.take_turn(self.tx)

    async def _with_links(self, resource: Json, patient_id: UUID) -> Json:
        kept = await heed_links(
            self.tx, self._store, resource, patient_id, self._identity
        )
        if kept != resource:
            self._notes.append(KEPT_AS_IS)
        return kept

    async def _create_order(self, resource: Json) -> Stored:
        patient_id, order_id = await self._patient_of(resource), str(uuid4())
        await self._place(resource, order_id, patient_id)
        return await self._write(resource, order_id, patient_id, expected=0)

    async def _place(self, resource: Json, order_id: str, patient_id: UUID) -> None:
        """Bring an order to the worklist, in the transaction that stores it."""
        self._notes += await place_service_request(
            self.tx, self._store, self._settings, resource, order_id, patient_id
        )

    async def _create_practitioner(self, resource: Json) -> Stored:
        return await self._write(resource, str(uuid4()), None, expected=0)

    async def _create_subscription(self, resource: Json) -> Stored:
        subscription_id = uuid4()
        await self._audit("Subscription", str(subscription_id), new=True)
        asked = await self._subscribe(resource, subscription_id, known=False)
        return await self._write(asked, str(subscription_id), None, expected=0)

    async def _subscribe(
        self, resource: Json, subscription_id: UUID, *, known: bool
    ) -> Json:
        return await requests.accept(
            self.tx,
            self._store,
            self._settings,
            self._identity,
            resource,
            subscription_id,
            known=known,
        )

    async def update(self, resource: Json, expected: int) -> Stored:
        """Store the next version; StaleVersion when somebody was faster."""
        _refuse_masked(resource)
        kind, resource_id = resource["resourceType"], resource["id"]
        if kind == "Subscription":
            await self._audit(kind, resource_id, new=False)
        if kind == "Patient":
            await self._wait_for_merges(resource)
        current = await resources.lock(self.tx, kind, resource_id)
        if current == 0:
            raise NodeError(f"{kind}/{resource_id} is not known", ErrorKind.NOT_FOUND)
        if current != expected:
            raise resources.StaleVersion(kind, resource_id, current)
        patient_id: UUID | None = None
        if kind == "Patient":
            patient_id = await self._update_identity(resource)
            resource = await self._with_links(resource, patient_id)
        elif kind == "ServiceRequest":
            patient_id = await self._patient_of(resource)
            await self._place(resource, resource_id, patient_id)
        elif kind == "Subscription":
            resource = await self._subscribe(resource, UUID(resource_id), known=True)
        return await self._write(resource, resource_id, patient_id, expected=expected)

    async def _update_identity(self, resource: Json) -> UUID:
        told = read_patient(resource, self._settings.systems)
        known = await identities.find_patient(
            self.tx, self._store, issuer=told.issuer, patient_id=told.patient_id
        )
        if known is None or str(known) != resource["id"]:
            raise NodeError(
                "a patient keeps her medical record number",
                ErrorKind.RULE,
                expression="Patient.identifier",
            )
        return await identities.upsert_patient(
            self.tx, self._store, told, at=self._store.clock(), replace=True
        )

    async def _patient_of(self, resource: Json) -> UUID:
        parts = reference_parts(resource.get("subject"))
        fault = Refused(
            [
                Issue(
                    "not-found",
                    "the subject is not a Patient of this node",
                    f"{resource['resourceType']}.subject",
                )
            ],
            422,
            ErrorKind.RULE,
        )
        if parts is None or parts[0] != "Patient":
            raise fault
        if await resources.find(self.tx, self._store, *parts) is None:
            raise fault
        return UUID(parts[1])

    async def _write(
        self,
        resource: Json,
        resource_id: str,
        patient_id: UUID | None,
        *,
        expected: int,
    ) -> Stored:
        kind = resource["resourceType"]
        stored = await resources.write(
            self.tx,
            self._store,
            kind,
            resource_id,
            lambda version, at: with_identity(resource, resource_id, version, at),
            index_of(resource),
            patient_id=patient_id,
            expected=expected,
            method="PUT" if expected else "POST",
        )
        if kind != "Subscription":
            await self._audit(kind, resource_id, new=not expected)
        await events.resources_changed(
            self.tx, self._store, self._settings, [(kind, resource_id)]
        )
        return stored

    async def _audit(self, kind: str, resource_id: str, *, new: bool) -> None:
        """Put down who has written.

        Signing locks the trail first and subscriptions after it, so a
        Subscription is recorded before it is written; everything else last.
        """
        self._entries.append(
            AuditEntry(
                at=self._store.clock(),
                actor=self._identity.user_id,
                role=",".join(sorted(role.value for role in self._identity.roles)),
                action="fhir-create" if new else "fhir-update",
                entity=f"{kind}/{resource_id}",
            )
        )
        if kind == "Subscription":
            await self.record()


def _pairs(condition: Condition) -> Sequence[tuple[str, str]]:
    if isinstance(condition, str):
        return parse_qsl(condition.lstrip("?"), keep_blank_values=True)
    return condition


def _refuse_masked(resource: Json) -> None:
    if is_masked(resource):
        issue = Issue(
            "business-rule",
            "a masked copy cannot replace the original",
            f"{resource['resourceType']}.meta",
        )
        raise Refused([issue], 422, ErrorKind.RULE)
