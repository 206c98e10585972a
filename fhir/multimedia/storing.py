"""Signed reports sent to repositories: the job `store_report` (IHE RAD-141, Sender).

At least once and in order: what a repository has got already it knows by identifier.
Its answer decides what follows: what waiting can mend is tried again for three days,
the rest stands among the failed work with its reason. No word of an answer is kept,
since it may quote the report.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import aiohttp

from fhir.content import site
from fhir.encoding.formats import XML_CONTENT_TYPE
from fhir.encoding.outcome import CONTENT_TYPE
from fhir.encoding.wire import Json, as_list, parse, reference_parts, to_bytes
from fhir.encoding.xml import from_xml, to_xml
from fhir.multimedia.bundle import Around, store_bundle, withdrawal_bundle
from fhir.settings import FhirSettings
from fhir.subscriptions.notification import SIGNATURE_HEADER, sign
from node.domain.audit import by_the_node
from node.domain.errors import ErrorKind, NodeError
from node.domain.report import ReportStatus
from node.paper import HTML, find_papers
from node.store import audit, reports, resources

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_MOST_REDIRECTS: Final = 3
_MOST_ANSWER: Final = 4 << 20
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

# What a status means; of those that are not here 5xx is tried again, the rest not.
STORE_OUTCOMES: Final[Mapping[int, tuple[ErrorKind, str]]] = {
    400: (ErrorKind.INVALID, "cannot understand the report"),
    401: (ErrorKind.FORBIDDEN, "does not accept who we say we are: look at the token"),
    403: (ErrorKind.FORBIDDEN, "does not allow us to store"),
    404: (ErrorKind.NOT_FOUND, "does not know the patient, or is not at this address"),
    405: (ErrorKind.SETTING, "takes no transactions at this address"),
    408: (ErrorKind.UNAVAILABLE, "does not answer in time"),
    409: (ErrorKind.CONFLICT, "is busy with the same report"),
    412: (ErrorKind.INVALID, "has the patient, study, order or report more than once"),
    413: (ErrorKind.INVALID, "finds the report too large"),
    415: (ErrorKind.SETTING, "does not take this format: look at format"),
    422: (ErrorKind.INVALID, "refuses the report as not valid"),
    429: (ErrorKind.UNAVAILABLE, "asks us to wait"),
}


@dataclass(frozen=True)
class Repository:
    """A report repository, or a reader that takes reports: where, how, and who we are.

    `authorize` returns the Authorization header anew for each report, empty for none.
    """

    name: str
    url: str
    xml: bool = False
    search_patient: bool = True
    authorize: Callable[[], str] = field(default=lambda: "", repr=False)
    tls: Callable[[], ssl.SSLContext] | None = None
    timeout_s: float = 120.0

    def __str__(self) -> str:
        return f"repository {self.name} at {self.url}"


async def store_report(
    store: "Store",
    settings: FhirSettings,
    repositories: Mapping[str, Repository],
    session: aiohttp.ClientSession,
    payload: Mapping[str, Any],
) -> None:
    """Send the version `payload` {report_id, version, repository}; idempotent.

    A version that is no longer the newest is not sent: the newer one follows.
    """
    repository = repositories.get(str(payload["repository"]))
    if repository is None:
        raise NodeError("the settings no longer have this repository", ErrorKind.RULE)
    report_id, number = UUID(str(payload["report_id"])), int(payload["version"])
    made = await _bundle(store, settings, repository, report_id, number)
    if made is None:
        return
    bundle, patient_id = made
    body = await asyncio.to_thread(to_xml if repository.xml else to_bytes, bundle)
    status, answer, kind = await _post(settings, repository, session, body)
    _require_stored(repository, status, answer, kind)
    async with store.db.transaction() as tx:
        entry = by_the_node(
            store.clock(),
            "store report",
            f"report/{report_id}/{number}",
            {"repository": repository.name, "patient": str(patient_id)},
        )
        await audit.record(tx, entry)


async def _bundle(
    store: "Store",
    settings: FhirSettings,
    repository: Repository,
    report_id: UUID,
    number: int,
) -> tuple[Json, UUID] | None:
    """Return what is sent, and whom it is about; None when a newer one follows."""
    async with store.db.transaction(readonly=True) as tx:
        report = await reports.read(tx, store, report_id)
        if report.current.number != number:
            return None
        stored = await resources.read(tx, store, "DiagnosticReport", str(report_id))
        known = parse(stored.body)
        around = Around(
            known,
            await _referred(tx, store, known["subject"]),
            base_url=settings.base_url,
            search_patient=repository.search_patient,
        )
        if report.current.status is ReportStatus.ENTERED_IN_ERROR:
            return withdrawal_bundle(report, around), report.patient_id
        papers = await find_papers(tx, store, report, number)
        around = replace(
            around,
            study=await _referred(tx, store, known["imagingStudy"][0]),
            orders=[
                await _referred(tx, store, one) for one in as_list(known.get("basedOn"))
            ],
            names=await _names(tx, store, settings, known),
        )
    contents = {paper.content_type: await paper.read() for paper in papers}
    forms = {
        form["url"]: contents[form["contentType"]]
        for form in as_list(known.get("presentedForm"))
    }
    if not any(HTML in form["contentType"] for form in known.get("presentedForm", ())):
        raise NodeError("the report has no page yet", ErrorKind.NOT_FOUND)
    return store_bundle(report, replace(around, forms=forms)), report.patient_id


async def _names(
    tx: "Transaction", store: "Store", settings: FhirSettings, known: Json
) -> dict[str, str]:
    """Return how the department and who signed are called."""
    names = {site.DEPARTMENT["reference"]: settings.site.department}
    for reference in as_list(known.get("resultsInterpreter")):
        signer = await _referred(tx, store, reference)
        called = [name.get("text", "") for name in as_list(signer.get("name"))]
        names[reference["reference"]] = next(filter(None, called), "")
    return names


async def _referred(tx: "Transaction", store: "Store", reference: Json) -> Json:
    parts = reference_parts(reference)
    if parts is None:
        raise NodeError("a reference leads out of the node", ErrorKind.RULE)
    return parse((await resources.read(tx, store, *parts)).body)


async def _post(
    settings: FhirSettings,
    repository: Repository,
    session: aiohttp.ClientSession,
    body: bytes,
) -> tuple[int, bytes, str]:
    """Return status, body and content type of the answer; UNAVAILABLE without one.

    A redirect is followed on the same host, or to one that `fhir.hook_hosts` lists;
    the token goes to the same host only.
    """
    kind = XML_CONTENT_TYPE if repository.xml else CONTENT_TYPE
    headers = {"Content-Type": kind, "Accept": kind}
    if settings.hook_secret:
        now = datetime.now(UTC)  # judged by another machine: never a test's clock
        headers[SIGNATURE_HEADER] = sign([settings.hook_secret], body, now)
    url = repository.url
    for _ in range(_MOST_REDIRECTS + 1):
        own = _origin(url) == _origin(repository.url)
        if not own and not settings.endpoints.allow(url):
            break
        token = repository.authorize() if own else ""
        try:
            async with session.post(
                url,
                data=body,
                headers=headers | ({"Authorization": token} if token else {}),
                timeout=aiohttp.ClientTimeout(total=repository.timeout_s),
                ssl=True if repository.tls is None else repository.tls(),
                allow_redirects=False,
            ) as response:
                if response.status not in _REDIRECTS:
                    answer = await response.content.read(_MOST_ANSWER)
                    while chunk := await response.content.read(_MOST_ANSWER):
                        answer = (answer + chunk)[:_MOST_ANSWER]
                    return response.status, answer, response.content_type
                url = urljoin(url, response.headers.get("Location", ""))
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            raise NodeError(
                f"{repository} does not answer", ErrorKind.UNAVAILABLE
            ) from None
    raise NodeError(
        f"{repository} sends us to another place: correct its url", ErrorKind.INVALID
    )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _require_stored(
    repository: Repository, status: int, answer: bytes, kind: str
) -> None:
    """Raise unless everything was stored; an answer without entries says as little."""
    if status in (HTTPStatus.OK, HTTPStatus.CREATED):
        for entry in _entries(answer, kind):
            told = str(entry.get("response", {}).get("status", ""))
            if told[:3].isdigit() and int(told[:3]) >= 400:
                status = int(told[:3])
                break
        else:
            return
    default = (
        (ErrorKind.UNAVAILABLE, f"fails (HTTP {status})")
        if status >= 500
        else (ErrorKind.INVALID, f"answers with HTTP {status}")
    )
    error, words = STORE_OUTCOMES.get(status, default)
    raise NodeError(f"{repository} {words}", error)


def _entries(answer: bytes, kind: str) -> list[Json]:
    try:
        bundle = from_xml(answer) if kind == XML_CONTENT_TYPE else parse(answer)
    except NodeError:
        return []
    return [entry for entry in as_list(bundle.get("entry")) if isinstance(entry, dict)]
