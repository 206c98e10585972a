"""Which resources a token opens: scopes that are narrowed, for searches and bodies.

`access.require` decides over types; here one resource is held against
`patient/` and `?status=final`. Every body that leaves passes `sees`.
"""

from fhir.content.masked import UNLABELLED_TYPES
from fhir.encoding.wire import parse
from fhir.search.matching import meets
from fhir.search.parameters import COMMON, PARAMETERS, criterion, index_of, parameter
from fhir.security.access import DEFINED, Interaction, require, require_scope
from node.domain.access import Identity
from node.domain.scopes import Context, Scope
from node.store.resources import Stored
from node.store.search.criteria import (
    AnyOf,
    Chained,
    Criterion,
    IdIs,
    ReferredBy,
    RefersTo,
)


def understood(scope: Scope) -> bool:
    """Tell whether the node can hold resources against a scope; else it is not granted.

    A scope is narrowed by tokens and references without modifier, and by nothing
    that identifies a patient: tokens travel through logs of other systems.
    """
    if scope.kind == "*":
        return not scope.narrowing
    others = ("AuditEvent", "Task", *DEFINED)
    if scope.kind not in PARAMETERS and scope.kind not in others:
        return False
    if scope.kind == "Binary":  # each is opened by what opens its report as well
        return not scope.narrowing
    if scope.context is Context.PATIENT and not _has_patient(scope.kind):
        return False
    for name, value in scope.narrowing:
        found = parameter(scope.kind, name) if scope.kind in PARAMETERS else None
        if found is None or not value or found.identifying:
            return False
        if found in COMMON and scope.kind in UNLABELLED_TYPES:
            return False
        if found.kind not in ("token", "reference"):
            return False
    return True


def narrowing(identity: Identity, kind: str, letter: str) -> tuple[Criterion, ...]:
    """Return what a search must ask besides, so that only opened resources match."""
    if identity.scopes is None:
        return ()
    alternatives = identity.scopes.alternatives(kind, letter)
    if any(not scope.narrowed for scope in alternatives):
        return ()
    patients = identity.scopes.patients
    return (AnyOf(tuple(_criteria(scope, kind, patients) for scope in alternatives)),)


def require_criteria(identity: Identity, criteria: "tuple[Criterion, ...]") -> None:
    """Raise FORBIDDEN when a search asks through a type that the token does not open.

    A chained search tells what the other resource holds, without showing it.
    """
    for asked in criteria:
        if isinstance(asked, AnyOf):
            for one in asked.alternatives:
                require_criteria(identity, one)
        if isinstance(asked, Chained | ReferredBy):
            other = (
                asked.target_type if isinstance(asked, Chained) else asked.source_type
            )
            require(identity, other, Interaction.SEARCH)
            require_scope(identity, other, "s", whole=True)
            require_criteria(identity, (asked.criterion,))
        elif isinstance(asked, AnyOf):
            for together in asked.alternatives:
                require_criteria(identity, together)


def sees(identity: Identity, stored: Stored, letter: str = "r") -> bool:
    """Tell whether the caller's token opens one version of a resource."""
    if identity.scopes is None:
        return True
    kind = stored.resource_type
    alternatives = identity.scopes.alternatives(kind, letter)
    if any(not scope.narrowed for scope in alternatives):
        return True
    if not alternatives:
        return False
    index = index_of(parse(stored.body))
    patients = identity.scopes.patients
    return any(
        _is_hers(scope, stored, patients)
        and meets(stored, index, _criteria(scope, kind, patients))
        for scope in alternatives
    )


def _is_hers(scope: Scope, stored: Stored, patients: tuple[str, ...]) -> bool:
    """Tell whether a patient's token may show what a body says of her.

    A report of another woman that was filed under her names her in every version,
    and is hers in none.
    """
    owner = stored.patient_id
    narrow = scope.context is Context.PATIENT and owner is not None
    return not narrow or str(owner) in patients


def _has_patient(kind: str) -> bool:
    return kind == "Patient" or (
        kind in PARAMETERS and parameter(kind, "patient") is not None
    )


def _criteria(
    scope: Scope, kind: str, patients: tuple[str, ...]
) -> tuple[Criterion, ...]:
    """Return what a resource must meet to be opened by a narrowed scope."""
    criteria = [
        criterion(kind, name, value, sees_identity=False)
        for name, value in sorted(scope.narrowing)
    ]
    if scope.context is Context.PATIENT:
        if kind == "Patient":
            criteria.append(IdIs(patients))
        elif _has_patient(kind):
            hers = tuple(("Patient", one) for one in patients)
            criteria.append(RefersTo("patient", hers))
        else:
            criteria.append(IdIs(()))
    return tuple(criteria)
