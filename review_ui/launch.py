"""The review page opened from inside an EHR (SMART App Launch 2.2, EHR launch).

The EHR is the authorization server: it sends the browser to /launch, we ask it for
a token (code, PKCE S256, state bound to the browser), learn which study is meant
and open its report. Who the doctor is we do not take from there: she signs in to
the node, so that what she signs is hers. Only EHRs that the site has entered are
spoken to, at their own host, by https.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import structlog
from aiohttp import hdrs, web

from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.fetching import Unfetched, fetch_json, may_call
from node.http import STORE, RouteGroup
from node.store import audit, launches, reports, studies
from node.store.store import Store

COOKIE = "sononode_launch"
CALLBACK = "/launch/callback"
_MAX_BODY = 1 << 20
_TIMEOUT_S = 10.0
_MAX_REFERENCES = 20
_REFERENCE = re.compile(
    r"(ImagingStudy|ServiceRequest|DiagnosticReport)/[A-Za-z0-9.-]{1,64}"
)
_STUDY_SYSTEM = "urn:dicom:uid"
_ACCESSION_TYPE = "ACSN"

log = structlog.get_logger("launch")


@dataclass(frozen=True)
class Ehr:
    """An EHR that may open the review page; `iss` is its FHIR base address.

    We are known there under `client_id`, as a public client whose redirect address
    is ours with CALLBACK. `hosts` may answer besides the host of `iss`: some EHRs
    have their authorization server elsewhere.
    """

    iss: str
    client_id: str
    scope: str = "launch patient/ImagingStudy.rs patient/ServiceRequest.rs"
    hosts: frozenset[str] = frozenset()


def route_group(
    root_url: str,
    ehrs: Sequence[Ehr],
    session: aiohttp.ClientSession,
    *,
    secure: bool,
) -> RouteGroup:
    """Return /launch and where the EHR sends the browser back to."""
    door = _Door(root_url.rstrip("/"), ehrs, session, secure=secure)
    return RouteGroup(
        prefix="/launch",
        routes=[web.get("/launch", door.launch), web.get(CALLBACK, door.come_back)],
        public=frozenset({"/launch", CALLBACK}),
    )


class _Door:
    def __init__(
        self,
        root: str,
        ehrs: Sequence[Ehr],
        session: aiohttp.ClientSession,
        *,
        secure: bool,
    ) -> None:
        self._redirect_uri = f"{root}{CALLBACK}"
        self._ehrs = {ehr.iss.rstrip("/"): ehr for ehr in ehrs}
        self._session = session
        self._secure = secure

    async def launch(self, request: web.Request) -> web.Response:
        """Send the browser to the EHR's authorization server."""
        ehr = self._ehrs.get(request.query.get("iss", "").rstrip("/"))
        launch = request.query.get("launch", "")
        if ehr is None or not 0 < len(launch) <= 2048:
            raise NodeError(
                "this EHR is not entered here (fhir.ehrs), or it told no launch",
                ErrorKind.INVALID,
            )
        found = await self._discover(ehr)
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        store = request.app[STORE]
        kept = {"verifier": verifier, "token_endpoint": found["token_endpoint"]}
        async with store.db.transaction() as tx:
            await launches.begin(tx, store, state, ehr.iss, kept)
        challenge = hashlib.sha256(verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": ehr.client_id,
            "redirect_uri": self._redirect_uri,
            "scope": ehr.scope,
            "state": state,
            "aud": ehr.iss,
            "launch": launch,
            "code_challenge": urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        endpoint = found["authorization_endpoint"]
        glue = "&" if "?" in endpoint else "?"
        response = web.Response(
            status=303, headers={hdrs.LOCATION: f"{endpoint}{glue}{urlencode(asked)}"}
        )
        # Lax: the EHR's redirect must bring it back, no other site's form may.
        response.set_cookie(
            COOKIE,
            state,
            max_age=int(launches.LIFETIME.total_seconds()),
            httponly=True,
            secure=self._secure,
            samesite="Lax",
            path="/launch",
        )
        return response

    async def come_back(self, request: web.Request) -> web.Response:
        """Redeem the code, find the study and open its report, or the worklist."""
        state, code = request.query.get("state", ""), request.query.get("code", "")
        own = request.cookies.get(COOKIE, "")
        if not state or not hmac.compare_digest(own.encode(), state.encode()):
            raise NodeError(
                "this launch was not begun in this browser", ErrorKind.FORBIDDEN
            )
        store = request.app[STORE]
        async with store.db.transaction() as tx:
            begun = await launches.end(tx, store, state)
        ehr = None if begun is None else self._ehrs.get(begun[0].rstrip("/"))
        if begun is None or ehr is None or not code or len(code) > 4096:
            raise NodeError(
                "the launch has ended; open it again in the EHR", ErrorKind.INVALID
            )
        granted = await self._redeem(ehr, code, begun[1])
        report_id = await self._find_report(store, ehr, granted)
        async with store.db.transaction() as tx:
            told = f"DiagnosticReport/{report_id}" if report_id else "worklist"
            entry = AuditEntry(store.clock(), "unknown", "", "launch", told)
            await audit.record(tx, entry)
        place = f"/#/report/{report_id}" if report_id else "/#/"
        response = web.Response(status=303, headers={hdrs.LOCATION: place})
        response.del_cookie(COOKIE, path="/launch", secure=self._secure, httponly=True)
        return response

    # --- what the EHR says --------------------------------------------------------

    async def _discover(self, ehr: Ehr) -> Mapping[str, str]:
        url = f"{ehr.iss.rstrip('/')}/.well-known/smart-configuration"
        body = await self._fetch(ehr, "GET", url)
        endpoints = {}
        for name in ("authorization_endpoint", "token_endpoint"):
            endpoint = body.get(name)
            if not isinstance(endpoint, str) or not may_call(
                endpoint, {urlsplit(ehr.iss).netloc, *ehr.hosts}
            ):
                raise _faulty(f"its {name} is not at one of its hosts")
            endpoints[name] = endpoint
        if "S256" not in (body.get("code_challenge_methods_supported") or ()):
            raise _faulty("it offers no PKCE with S256")
        return endpoints

    async def _redeem(
        self, ehr: Ehr, code: str, begun: Mapping[str, str]
    ) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "client_id": ehr.client_id,
            "code_verifier": begun["verifier"],
        }
        granted = await self._fetch(ehr, "POST", begun["token_endpoint"], data=form)
        token = granted.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise _faulty("it gave no token")
        return granted

    async def _find_report(
        self, store: Store, ehr: Ehr, granted: Mapping[str, Any]
    ) -> str | None:
        """Return the report of the one study that the launch is about."""
        identifiers: list[Mapping[str, Any]] = []
        references: list[str] = []
        for item in _dicts(granted.get("fhirContext"))[:_MAX_REFERENCES]:
            identifiers += _dicts([item.get("identifier")])
            told = str(item.get("reference", "")).removeprefix(ehr.iss).strip("/")
            if _REFERENCE.fullmatch(told):
                references.append(told)
        headers = {hdrs.AUTHORIZATION: f"Bearer {granted['access_token']}"}
        base = ehr.iss.rstrip("/")
        for reference in dict.fromkeys(references):
            body = await self._fetch(ehr, "GET", f"{base}/{reference}", headers=headers)
            identifiers += _dicts(body.get("identifier"))
        study_uids = await _studies_of(store, identifiers)
        if len(study_uids) != 1:
            return None  # none, or several: the doctor chooses, we do not guess
        report_id = reports.report_id_for(study_uids.pop())
        async with store.db.connection() as tx:
            known = await reports.version_count(tx, report_id)
        return str(report_id) if known else None

    async def _fetch(
        self, ehr: Ehr, method: str, url: str, **sent: Any
    ) -> Mapping[str, Any]:
        """Return the JSON object that an EHR answers; UNAVAILABLE when it does not."""
        if not may_call(url, {urlsplit(ehr.iss).netloc, *ehr.hosts}):
            raise _faulty("its address is not https")
        try:
            return await fetch_json(
                self._session,
                method,
                url,
                limit_bytes=_MAX_BODY,
                timeout_s=_TIMEOUT_S,
                **sent,
            )
        except Unfetched as error:
            raise _faulty(error.reason) from None


def _faulty(reason: str) -> NodeError:
    log.warning("launch_failed", reason=reason)
    return NodeError(f"the EHR cannot be used: {reason}", ErrorKind.UNAVAILABLE)


def _dicts(value: object) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


async def _studies_of(
    store: Store, identifiers: Iterable[Mapping[str, Any]]
) -> set[str]:
    """Return the studies that identifiers name: by UID, else by accession number."""
    uids: set[str] = set()
    accessions: set[str] = set()
    for told in identifiers:
        value = told.get("value")
        if not isinstance(value, str) or not 0 < len(value) <= 128:
            continue
        if told.get("system") == _STUDY_SYSTEM:
            uids.add(value.removeprefix("urn:oid:"))
        elif _is_accession(told):
            accessions.add(value)
    if uids:
        return uids
    async with store.db.connection() as tx:
        for accession in sorted(accessions):
            uids |= set(await studies.find_studies_by_accession(tx, store, accession))
    return uids


def _is_accession(told: Mapping[str, Any]) -> bool:
    kind = told.get("type")
    codings = _dicts(kind.get("coding")) if isinstance(kind, dict) else []
    return any(coding.get("code") == _ACCESSION_TYPE for coding in codings)
