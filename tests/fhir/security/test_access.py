"""Who may do what below /fhir: every role, resource and interaction."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from fhir.security.access import DEFINED, PERMITS, Interaction
from node.domain.access import Role
from node.store.store import Store
from tests.fhir.rig import Rig, drafted, running_fhir

READ = {
    Interaction.READ,
    Interaction.VREAD,
    Interaction.HISTORY,
    Interaction.HISTORY_TYPE,
    Interaction.SEARCH,
}
CLINICAL = {
    "BodyStructure",
    "Consent",
    "DocumentReference",
    "Endpoint",
    "Organization",
    "PractitionerRole",
    "DiagnosticReport",
    "Observation",
    "Patient",
    "ServiceRequest",
    "Practitioner",
    "ImagingStudy",
    "Device",
    "Provenance",
    "Communication",
}
_TASK = {
    ("Task", i) for i in (Interaction.READ, Interaction.SEARCH, Interaction.UPDATE)
}
_LOOK = {(kind, i) for kind in CLINICAL for i in READ}
_DOCTOR = _LOOK | _TASK
_DOCTOR |= {
    ("Binary", Interaction.READ),
    ("DiagnosticReport", Interaction.UPDATE),
    ("Observation", Interaction.UPDATE),
    ("Provenance", Interaction.CREATE),
    ("Communication", Interaction.CREATE),
}
_SUBSCRIPTION = {
    ("Subscription", i) for i in READ | {Interaction.CREATE, Interaction.UPDATE}
}
# Written out a second time on purpose: the table under test must not judge itself.
EXPECTED: dict[Role, set[tuple[str, Interaction]]] = {
    Role.TECHNOLOGIST: _LOOK | _TASK,
    Role.RADIOLOGIST: _DOCTOR,
    Role.SENIOR_RADIOLOGIST: _DOCTOR,
    Role.ADMINISTRATOR: _TASK | _SUBSCRIPTION,
    Role.AUDITOR: {("AuditEvent", i) for i in (Interaction.READ, Interaction.SEARCH)},
    Role.RESEARCHER: set(),
    Role.PACS: set(),
    Role.EHR: _LOOK
    | _SUBSCRIPTION
    | {
        ("Binary", Interaction.READ),
        ("Patient", Interaction.CREATE),
        ("Patient", Interaction.UPDATE),
        ("ServiceRequest", Interaction.CREATE),
        ("ServiceRequest", Interaction.UPDATE),
        ("Practitioner", Interaction.CREATE),
    },
}

_DEFINED = {"CodeSystem", "SearchParameter", "StructureDefinition", "ValueSet"}
for offered in EXPECTED.values():
    # Who reads resources of a type may have some judged; what is defined all may read.
    readable = {k for k, i in offered if i == "read"} - {"Binary", *_DEFINED}
    offered |= {(kind, Interaction.VALIDATE) for kind in readable}
    offered |= {
        (k, i) for k in _DEFINED for i in (Interaction.READ, Interaction.SEARCH)
    }
# A patch is an update: who may do the one may do the other.
for offered in EXPECTED.values():
    updates = {kind for kind, interaction in offered if interaction == "update"}
    offered |= {(kind, Interaction.PATCH) for kind in updates}


@pytest.fixture
async def everybody(store: Store) -> AsyncIterator[Rig]:
    """A live /fhir with a drafted report and an account for every role."""
    async with running_fhir(store, roles=tuple(Role)) as rig:
        yield await drafted(rig)


def request_of(kind: str, interaction: Interaction) -> tuple[str, str, Any]:
    """Return a request that would ask for an interaction; its body may be faulty."""
    body = {"resourceType": kind, "id": "x"}
    return {
        Interaction.READ: ("GET", f"/{kind}/x", None),
        Interaction.VREAD: ("GET", f"/{kind}/x/_history/1", None),
        Interaction.HISTORY: ("GET", f"/{kind}/x/_history", None),
        Interaction.HISTORY_TYPE: ("GET", f"/{kind}/_history", None),
        Interaction.SEARCH: ("GET", f"/{kind}", None),
        Interaction.CREATE: ("POST", f"/{kind}", body),
        Interaction.UPDATE: ("PUT", f"/{kind}/x", body),
        Interaction.PATCH: ("PATCH", f"/{kind}/x", body),
        Interaction.VALIDATE: ("POST", f"/{kind}/$validate", body),
    }[interaction]


async def test_every_role_can_do_what_the_matrix_says_and_nothing_else(
    everybody: Rig,
) -> None:
    for role in Role:
        for kind in [*PERMITS, "Medication"]:
            for interaction in Interaction:
                method, path, body = request_of(kind, interaction)
                answer = await everybody.ask(method, path, body, role=role)
                case = (role.value, kind, interaction.value, answer.status)
                if (kind, interaction) in EXPECTED[role]:
                    assert answer.status not in (401, 403, 405), case
                else:
                    assert answer.status in (403, 404, 405), case
                    if kind in PERMITS and interaction in PERMITS[kind]:
                        assert answer.status == 403, case


async def test_a_batch_opens_nothing_that_a_request_of_its_own_would_not(
    everybody: Rig,
) -> None:
    for role in Role:
        asked: list[Any] = []
        # Papers, the audit trail and definitions are read by themselves.
        alone = {"Binary", "AuditEvent", *DEFINED}
        for kind in [*sorted(PERMITS.keys() - alone), "Medication"]:
            for interaction in Interaction:
                method, path, body = request_of(kind, interaction)
                request = {"method": method, "url": path.strip("/")}
                entry = {"request": request} | ({"resource": body} if body else {})
                asked.append(((kind, interaction), entry))
        # Searches and histories are counted: as many as may stand in one Bundle.
        for start in range(0, len(asked), 16):
            part = asked[start : start + 16]
            bundle = {
                "resourceType": "Bundle",
                "type": "batch",
                "entry": [entry for _, entry in part],
            }
            answer = await everybody.ask("POST", "", bundle, role=role)
            assert answer.status == 200, answer.raw
            for (what, _), told in zip(part, answer.body["entry"], strict=True):
                status = int(told["response"]["status"][:3])
                case = (role.value, what, told)
                if what in EXPECTED[role]:
                    assert status not in (401, 403, 405), case
                else:
                    assert status in (403, 404, 405), case
                    assert told["response"]["outcome"]["issue"], case


async def test_without_a_token_nothing_is_answered_but_the_capabilities(
    everybody: Rig,
) -> None:
    for kind in PERMITS:
        for interaction in Interaction:
            method, path, body = request_of(kind, interaction)
            answer = await everybody.ask(method, path, body, role=None)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert (await everybody.get("/metadata", role=None)).status == 200
    bundle = {"resourceType": "Bundle", "type": "transaction"}
    assert (await everybody.ask("POST", "", bundle, role=None)).status == 401


async def test_only_doctors_edit_through_a_transaction(everybody: Rig) -> None:
    for role in Role:
        entry = await everybody.edited(everybody.report_path, status="preliminary")
        answer = await everybody.transact(entry, role=role)
        doctor = role in (Role.RADIOLOGIST, Role.SENIOR_RADIOLOGIST)
        assert (answer.status == 200) is doctor, (role, answer.raw)


async def test_who_may_not_read_reports_gets_none_along_with_something_else(
    everybody: Rig,
) -> None:
    asked = "/Subscription?_revinclude=Provenance:target"
    answer = await everybody.get(asked, role=Role.ADMINISTRATOR)
    assert answer.status == 200
    assert "entry" not in answer.body
