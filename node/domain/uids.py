"""UIDs that follow from what they name, so that a retry makes the same object."""

from uuid import UUID, uuid5


def result_uid(report_id: UUID, version: int, kind: str) -> str:
    """Return the UID of one result of a report version (PS3.5 B.2, root 2.25).

    `kind` names the object or its series. The same three arguments give the
    same UID on every machine: a resent result is the instance already sent.
    """
    return f"2.25.{uuid5(report_id, f'{version}/{kind}').int}"


def heat_map_uid(report_id: UUID, version: int, tracking_uid: str) -> str:
    """Return the SOP Instance UID of the heat map of one lesion."""
    return result_uid(report_id, version, f"heat-map/{tracking_uid}")


def pdf_uid(report_id: UUID, version: int) -> str:
    """Return the SOP Instance UID of the Encapsulated PDF of a signed version."""
    return result_uid(report_id, version, "pdf")
