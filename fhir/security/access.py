"""Who may do what with which resource. One table; what is not in it is refused."""

from collections.abc import Mapping
from enum import StrEnum

from node.domain.access import Action, Identity
from node.domain.errors import ErrorKind, NodeError


class Interaction(StrEnum):
    """FHIR R4 TypeRestfulInteraction, as far as the node offers it."""

    READ = "read"
    VREAD = "vread"
    HISTORY = "history-instance"
    HISTORY_TYPE = "history-type"
    SEARCH = "search-type"
    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    # An operation of ours here, since who may ask is decided as for the others.
    VALIDATE = "validate"


_LOOK = (
    Interaction.READ,
    Interaction.VREAD,
    Interaction.HISTORY,
    Interaction.HISTORY_TYPE,
    Interaction.SEARCH,
)


# What a scope calls an interaction (SMART 2.2); what is not here no token may do.
LETTERS: Mapping[str, str] = {
    "read": "r",
    "vread": "r",
    "history-instance": "r",
    "history-type": "s",
    "search-type": "s",
    "create": "c",
    "update": "u",
    "patch": "u",
    "validate": "r",
}


def _readable(action: Action) -> dict[Interaction, Action]:
    return dict.fromkeys(_LOOK, action)


# Definitions of the release (`fhir.conformance.definitions`): of no patient.
DEFINED = ("CodeSystem", "SearchParameter", "StructureDefinition", "ValueSet")

_OFFERED: Mapping[str, Mapping[Interaction, Action]] = {
    "DiagnosticReport": {
        **_readable(Action.READ_REPORT),
        Interaction.UPDATE: Action.EDIT_REPORT,
        Interaction.PATCH: Action.EDIT_REPORT,
    },
    "Observation": {
        **_readable(Action.READ_REPORT),
        Interaction.UPDATE: Action.EDIT_REPORT,
        Interaction.PATCH: Action.EDIT_REPORT,
    },
    "Patient": {
        **_readable(Action.READ_REPORT),
        Interaction.CREATE: Action.WRITE_PATIENT,
        Interaction.UPDATE: Action.WRITE_PATIENT,
        Interaction.PATCH: Action.WRITE_PATIENT,
    },
    "ServiceRequest": {
        **_readable(Action.READ_REPORT),
        Interaction.CREATE: Action.WRITE_ORDER,
        Interaction.UPDATE: Action.WRITE_ORDER,
        Interaction.PATCH: Action.WRITE_ORDER,
    },
    "Practitioner": {
        **_readable(Action.READ_REPORT),
        Interaction.CREATE: Action.WRITE_ORDER,
    },
    **dict.fromkeys(
        (
            "BodyStructure",
            "Consent",
            "Device",
            "DocumentReference",
            "Endpoint",
            "ImagingStudy",
            "Organization",
            "PractitionerRole",
        ),
        _readable(Action.READ_REPORT),
    ),
    # The signed report on paper: with her whole name, whoever reads it.
    "Binary": {Interaction.READ: Action.READ_DOCUMENT},
    "Provenance": {
        **_readable(Action.READ_REPORT),
        Interaction.CREATE: Action.EDIT_REPORT,
    },
    "Communication": {
        **_readable(Action.READ_REPORT),
        Interaction.CREATE: Action.SIGN_REPORT,
    },
    "AuditEvent": {
        Interaction.READ: Action.READ_AUDIT,
        Interaction.SEARCH: Action.READ_AUDIT,
    },
    "Task": {
        Interaction.READ: Action.RETRY_WORK,
        Interaction.SEARCH: Action.RETRY_WORK,
        Interaction.UPDATE: Action.RETRY_WORK,
        Interaction.PATCH: Action.RETRY_WORK,
    },
    "Subscription": {
        **_readable(Action.MANAGE_SUBSCRIPTION),
        Interaction.CREATE: Action.MANAGE_SUBSCRIPTION,
        Interaction.UPDATE: Action.MANAGE_SUBSCRIPTION,
        Interaction.PATCH: Action.MANAGE_SUBSCRIPTION,
    },
    **{
        kind: {
            Interaction.READ: Action.READ_DEFINITIONS,
            Interaction.SEARCH: Action.READ_DEFINITIONS,
        }
        for kind in DEFINED
    },
}


def _with_validation(
    offered: Mapping[Interaction, Action],
) -> Mapping[Interaction, Action]:
    """Return what is offered of a type; who reads resources may have some judged."""
    reads = offered.get(Interaction.READ)
    if reads is None or Interaction.SEARCH not in offered:
        return offered
    return {**offered, Interaction.VALIDATE: reads}


# Resource x interaction -> the action that a caller must be allowed.
# The capability statement is generated from this table.
PERMITS: Mapping[str, Mapping[Interaction, Action]] = {
    kind: offered if kind in DEFINED else _with_validation(offered)
    for kind, offered in _OFFERED.items()
}


def require(identity: Identity, resource_type: str, interaction: Interaction) -> None:
    """Raise FORBIDDEN unless the caller may; the table is default-deny.

    A resource type that the node does not have is NOT_FOUND, an interaction
    that nobody has is told as "not allowed" (405) by the caller of this.
    """
    if resource_type not in PERMITS:
        raise NodeError(
            f"{resource_type} is not a resource of this node", ErrorKind.NOT_FOUND
        )
    action = PERMITS[resource_type].get(interaction)
    if action is None:
        raise NodeError(
            f"{interaction.value} is not offered for {resource_type}",
            ErrorKind.UNSUPPORTED,
        )
    identity.require(action)
    require_scope(identity, resource_type, LETTERS.get(interaction.value, ""))


def require_scope(
    identity: Identity, resource_type: str, letter: str, *, whole: bool = False
) -> None:
    """Raise FORBIDDEN unless the caller's token opens a type; sessions open all.

    With `whole` a scope for some resources of the type is not enough.
    """
    scopes = identity.scopes
    if scopes is None:
        return
    if not letter or not scopes.alternatives(resource_type, letter):
        raise NodeError(
            f"the token has no scope for this on {resource_type}", ErrorKind.FORBIDDEN
        )
    if whole and not scopes.opens_whole(resource_type, letter):
        raise NodeError(
            f"this needs a scope for every {resource_type}", ErrorKind.FORBIDDEN
        )


def permits(identity: Identity, resource_type: str, letter: str) -> bool:
    """Tell whether the caller's roles allow anything that a scope's letter means."""
    return any(
        LETTERS.get(interaction.value) == letter and identity.may(action)
        for interaction, action in PERMITS.get(resource_type, {}).items()
    )


def may_read(identity: Identity, resource_type: str) -> bool:
    """Tell whether the caller may see resources of a type at all (_include)."""
    action = PERMITS.get(resource_type, {}).get(Interaction.READ)
    if action is None or not identity.may(action):
        return False
    return identity.scopes is None or bool(
        identity.scopes.alternatives(resource_type, "r")
    )
