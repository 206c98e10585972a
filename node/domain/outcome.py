"""How a case ended: benign or malignant, and how that is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class CaseOutcome(StrEnum):
    """What a lesion turned out to be."""

    BENIGN = "benign"
    MALIGNANT = "malignant"


class Method(StrEnum):
    """How the outcome is known."""

    BIOPSY = "biopsy"
    FOLLOW_UP = "follow-up"  # unchanged over the time that the guideline asks for


@dataclass(frozen=True)
class RecordedOutcome:
    """One entry of a physician; `outcome` None takes back what was said before.

    `tracking_uid` names the lesion; None speaks of the whole examination.
    """

    tracking_uid: str | None
    outcome: CaseOutcome | None
    method: Method | None
    at: datetime
    by: str


def outcome_of_lesion(
    tracking_uid: str, lesions: int, recorded: Sequence[RecordedOutcome]
) -> RecordedOutcome | None:
    """Return what is known of one of the report's `lesions`; None: not recorded.

    `recorded` is oldest first. What was said of the lesion itself counts before
    what was said of the examination. An examination that ended malignant does not
    tell which of several lesions it was.
    """
    own = [row for row in recorded if row.tracking_uid == tracking_uid]
    if own and own[-1].outcome is not None:
        return own[-1]
    whole = [row for row in recorded if row.tracking_uid is None]
    if not whole or whole[-1].outcome is None:
        return None
    if whole[-1].outcome is CaseOutcome.MALIGNANT and lesions > 1:
        return None
    return whole[-1]
