"""What a patient has agreed to beyond her care (FHIR R4 Consent, scope research)."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ConsentScope(StrEnum):
    """What may be done with her images."""

    RESEARCH = "research"  # de-identified, to train and to test models


@dataclass(frozen=True)
class Consent:
    """One consent, from when it was given until it was withdrawn."""

    scope: ConsentScope
    given_at: datetime
    given_by: str
    withdrawn_at: datetime | None = None
    withdrawn_by: str | None = None

    @property
    def in_force(self) -> bool:
        """Tell whether it has not been withdrawn."""
        return self.withdrawn_at is None
