"""Named failures. They travel unchanged and are translated once, at a protocol edge."""

from enum import Enum


class ErrorKind(Enum):
    """What went wrong, in words that DICOM, HTTP and FHIR can each translate."""

    INVALID = "invalid"  # the caller's content breaks a rule
    UNSUPPORTED = "unsupported"  # well-formed, but not something we do
    FORBIDDEN = "forbidden"  # the caller may not
    UNAUTHENTICATED = "unauthenticated"  # we do not know the caller
    NOT_FOUND = "not-found"
    GONE = "gone"  # was here; erased or withdrawn
    CONFLICT = "conflict"  # somebody else was faster, or the same UID differs
    PRECONDITION = "precondition"  # If-Match missing
    RULE = "rule"  # understood, but the life cycle does not allow it
    EXHAUSTED = "exhausted"  # disk, memory, quota: try again later
    UNAVAILABLE = "unavailable"  # a part of the node is away: try again later
    INTEGRITY = "integrity"  # stored bytes are not what we wrote
    SETTING = "setting"  # the installation is configured wrongly


class NodeError(Exception):
    """A failure whose cause is known.

    `message` is one line for a hospital engineer and never holds a name, an
    identity number or pixel data. `expression` names the element at fault
    (FHIRPath or DICOM keyword) where there is one.
    """

    def __init__(
        self, message: str, kind: ErrorKind, *, expression: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.expression = expression
