"""Who may do what. One table; everything that is not in it is refused."""

from dataclasses import dataclass
from enum import Enum

from node.domain.errors import ErrorKind, NodeError
from node.domain.scopes import Scopes


class Role(Enum):
    """The roles of people and machines."""

    TECHNOLOGIST = "technologist"
    RADIOLOGIST = "radiologist"
    SENIOR_RADIOLOGIST = "senior_radiologist"
    ADMINISTRATOR = "administrator"
    AUDITOR = "auditor"
    RESEARCHER = "researcher"
    EHR = "ehr"  # a hospital system
    PACS = "pacs"  # an archive or viewer that retrieves whole instances


class Action(Enum):
    """What a caller may want; protocols map their verbs to these."""

    READ_REPORT = "read_report"
    READ_IMAGE = "read_image"
    RETRIEVE_INSTANCE = "retrieve_instance"  # whole objects with identity
    EDIT_REPORT = "edit_report"
    SIGN_REPORT = "sign_report"
    PRINT_REPORT = "print_report"  # on paper stands the whole identity
    READ_DOCUMENT = "read_document"  # the same paper, taken into another system
    WRITE_PATIENT = "write_patient"
    WRITE_ORDER = "write_order"
    MANAGE_SUBSCRIPTION = "manage_subscription"
    COMPARE_CASES = "compare_cases"  # confirmed cases of other patients, masked
    RECORD_OUTCOME = "record_outcome"
    RETRY_WORK = "retry_work"
    BIND_PATIENT = "bind_patient"  # print the desk QR code
    RECONCILE = "reconcile"  # say whose study answers which order; sees identity
    READ_AGREEMENT = "read_agreement"  # counts of AI and doctors, no report
    EXPORT_RESOURCES = "export_resources"  # everything at once, by programs alone
    READ_DEFINITIONS = "read_definitions"  # profiles and codes, of no patient
    READ_AUDIT = "read_audit"
    MANAGE_USERS = "manage_users"


_READER = {Action.READ_REPORT, Action.READ_IMAGE}
_DOCTOR = _READER | {
    Action.EDIT_REPORT,
    Action.SIGN_REPORT,
    Action.PRINT_REPORT,
    Action.READ_DOCUMENT,
    Action.READ_AGREEMENT,
    Action.COMPARE_CASES,
    Action.RECORD_OUTCOME,
    Action.RETRY_WORK,
    Action.BIND_PATIENT,
}

_OF_ROLE: dict[Role, frozenset[Action]] = {
    Role.TECHNOLOGIST: frozenset(
        _READER | {Action.RETRY_WORK, Action.BIND_PATIENT, Action.RECONCILE},
    ),
    Role.RADIOLOGIST: frozenset(_DOCTOR),
    Role.SENIOR_RADIOLOGIST: frozenset(_DOCTOR),
    Role.ADMINISTRATOR: frozenset(
        {
            Action.RETRY_WORK,
            Action.MANAGE_USERS,
            Action.MANAGE_SUBSCRIPTION,
            Action.READ_AGREEMENT,
            Action.RECONCILE,
        },
    ),
    Role.AUDITOR: frozenset({Action.READ_AUDIT}),
    Role.RESEARCHER: frozenset(),
    Role.EHR: frozenset(
        _READER
        | {
            Action.RETRIEVE_INSTANCE,
            Action.EXPORT_RESOURCES,
            Action.READ_DOCUMENT,
            Action.WRITE_PATIENT,
            Action.WRITE_ORDER,
            Action.MANAGE_SUBSCRIPTION,
        },
    ),
    Role.PACS: frozenset({Action.READ_IMAGE, Action.RETRIEVE_INSTANCE}),
}

PERMISSIONS: dict[Role, frozenset[Action]] = {
    role: actions | {Action.READ_DEFINITIONS} for role, actions in _OF_ROLE.items()
}

SEES_IDENTITY = frozenset({Role.EHR, Role.PACS})


@dataclass(frozen=True)
class Identity:
    """The caller of one request.

    `practitioner_id` is the id of the FHIR Practitioner behind a person;
    None for machines. `display` is the professional's own name, never a
    patient's: plain words, or a DICOM PN where documents need its parts.
    `scopes` is what a SMART token leaves of the roles; None for a session, which
    has all of them. `client_id` is the program that showed the token, `token_id` what
    the audit trail calls the token.
    """

    user_id: str
    roles: frozenset[Role]
    display: str
    practitioner_id: str | None = None
    scopes: Scopes | None = None
    client_id: str | None = None
    token_id: str | None = None

    @property
    def shown(self) -> str:
        """Return the display as people read it: 李明 for `Li^Ming=李^明`."""
        latin, _, others = self.display.partition("=")
        group = others.partition("=")[0].strip("^ ") or latin
        words = [part.strip() for part in group.split("^") if part.strip()]
        return (" " if group.isascii() else "").join(words)

    def may(self, action: Action) -> bool:
        """Tell whether any of the caller's roles allows `action`."""
        return any(action in PERMISSIONS[role] for role in self.roles)

    def require(self, action: Action) -> None:
        """Raise FORBIDDEN unless the caller may do `action`."""
        if not self.may(action):
            names = ", ".join(sorted(role.value for role in self.roles)) or "no role"
            raise NodeError(
                f"{action.value} is not allowed to {names}", ErrorKind.FORBIDDEN
            )

    @property
    def sees_identity(self) -> bool:
        """Tell whether names and numbers of patients are shown unmasked."""
        return bool(self.roles & SEES_IDENTITY)
