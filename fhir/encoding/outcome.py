"""OperationOutcome: how every failure below /fhir is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from fhir.encoding.wire import Json, to_bytes
from node.domain.errors import ErrorKind, NodeError
from node.http import HTTP_STATUS, Failure
from node.store.database import TooCostly
from node.store.resources import StaleVersion

CONTENT_TYPE = "application/fhir+json"

# IssueType (FHIR R4, required binding) for what went wrong.
ISSUE_CODE: Mapping[ErrorKind, str] = {
    ErrorKind.INVALID: "invalid",
    ErrorKind.UNSUPPORTED: "not-supported",
    ErrorKind.FORBIDDEN: "forbidden",
    ErrorKind.UNAUTHENTICATED: "login",
    ErrorKind.NOT_FOUND: "not-found",
    ErrorKind.GONE: "deleted",
    ErrorKind.CONFLICT: "conflict",
    ErrorKind.PRECONDITION: "required",
    ErrorKind.RULE: "business-rule",
    ErrorKind.EXHAUSTED: "no-store",
    ErrorKind.UNAVAILABLE: "transient",
    ErrorKind.INTEGRITY: "exception",
    ErrorKind.SETTING: "exception",
}
_CODE_OF_STATUS = {
    404: "not-found",
    405: "not-supported",
    406: "not-supported",
    410: "deleted",
    413: "too-long",
    415: "not-supported",
}


@dataclass(frozen=True)
class Issue:
    """One problem: IssueType, words, and the FHIRPath of the element at fault."""

    code: str
    message: str
    expression: str | None = None
    severity: str = "error"


# What who prefers an OperationOutcome to the resource is told of a success.
STORED = Issue("informational", "stored", severity="information")


class Refused(NodeError):
    """A request that fails for one or several named reasons, with its status."""

    def __init__(
        self,
        issues: Sequence[Issue],
        status: int,
        kind: ErrorKind = ErrorKind.INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(issues[0].message, kind, expression=issues[0].expression)
        self.issues = tuple(issues)
        self.status = status
        self.headers = dict(headers or {})


def outcome(issues: Sequence[Issue]) -> Json:
    """Return the OperationOutcome that tells `issues`."""
    return {
        "resourceType": "OperationOutcome",
        "issue": [
            {"severity": i.severity, "code": i.code, "diagnostics": i.message}
            | ({"expression": [i.expression]} if i.expression else {})
            for i in issues
        ],
    }


def refusal(error: NodeError) -> web.Response:
    """Return the response to a failure that a handler has named."""
    if isinstance(error, Refused):
        return respond(error.issues, error.status, error.headers)
    status = int(HTTP_STATUS[error.kind])
    if isinstance(error, StaleVersion):
        etag = {"ETag": f'W/"{error.current}"'}
        issue = Issue("conflict", error.message)
        return respond([issue], HTTPStatus.PRECONDITION_FAILED, etag)
    if isinstance(error, TooCostly):
        return respond([Issue("too-costly", error.message)], status)
    issue = Issue(ISSUE_CODE[error.kind], error.message, error.expression)
    return respond([issue], status)


def render_error(failure: Failure) -> web.Response:
    """Return a failure that nobody below /fhir has answered yet (`node.http`)."""
    if failure.kind is not None:
        code = ISSUE_CODE[failure.kind]
    else:
        code = _CODE_OF_STATUS.get(failure.status, "exception")
    message = failure.message
    if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        message = f"{message} (request {failure.request_id})"
    return respond([Issue(code, message, failure.expression)], failure.status)


def respond(
    issues: Sequence[Issue], status: int, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response whose body is an OperationOutcome."""
    return web.Response(
        status=status,
        body=to_bytes(outcome(issues)),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
