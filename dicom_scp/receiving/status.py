"""What a modality is told: every failure as one C-STORE response status."""

from node.domain.errors import ErrorKind, NodeError

SUCCESS = 0x0000
COERCED = 0xB000  # Coercion of Data Elements: stored, with a rule of the site applied
PROCESSING_FAILURE = 0x0110
DOES_NOT_MATCH = 0xA900

# The conformance statement is generated from this table.
STORAGE_STATUS = {
    ErrorKind.INVALID: 0xC000,  # Cannot understand
    ErrorKind.UNSUPPORTED: 0x0122,  # SOP Class not supported
    ErrorKind.FORBIDDEN: 0x0124,  # Not authorized
    ErrorKind.CONFLICT: 0x0111,  # Duplicate SOP Instance: other bytes, same UID
    ErrorKind.EXHAUSTED: 0xA700,  # Out of resources; modalities retry this one
    ErrorKind.UNAVAILABLE: 0xA700,  # so does a database that is being restarted
}


class DataSetMismatch(NodeError):
    """The data set is not the object that the command announces."""

    def __init__(self, keyword: str) -> None:
        super().__init__(
            f"{keyword} differs between command and data set",
            ErrorKind.INVALID,
            expression=keyword,
        )


def storage_status(error: BaseException) -> int:
    """Return the C-STORE response status for `error` (PS3.4 B.2.3).

    Anything unforeseen becomes 0x0110 (Processing failure) and is ours to fix.
    """
    if isinstance(error, DataSetMismatch):
        return DOES_NOT_MATCH
    if isinstance(error, NodeError):
        return STORAGE_STATUS.get(error.kind, PROCESSING_FAILURE)
    return PROCESSING_FAILURE


def error_comment(error: BaseException) -> str:
    """Return the Error Comment (0000,0902): one line without PHI."""
    return error.message[:64] if isinstance(error, NodeError) else "see the node's log"
