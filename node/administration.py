"""What the command line does with an installation."""

import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import aiohttp
import uvloop

from config.settings import Settings
from dicom_scp.receiving.peers import EVERYBODY
from dicom_scp.receiving.scp import tls_context
from dicom_scp.receiving.tls import first_expiry
from fhir.security.provider_probe import look_at_provider
from node import app, atna, parts
from node.domain.access import Role
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.installation import attached
from node.outbound import outbound_of
from node.store import (
    audit,
    audit_feeds,
    commitments,
    erasure,
    merges,
    models,
    orders,
    people,
    routes,
    studies,
    versions,
)
from node.store.database import Transaction
from node.store.store import Store
from node.workflow.agreement import DriftReport, judge

T = TypeVar("T")
WAITS_TOO_LONG = timedelta(minutes=10)
ADMINISTRATOR = "command line"
RENEW_DAYS = 30
NEWEST_ENTRIES = 10_000
REPORT_IS_LATE = timedelta(hours=1)


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` looked at.

    What is not well is to be mended, unless it only `can_wait`: it works today, and
    somebody should decide about it.
    """

    what: str
    well: bool
    told: str
    can_wait: bool = False

    @property
    def failed(self) -> bool:
        """Tell whether something does not work as it should."""
        return not self.well and not self.can_wait


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]]) -> T:
    """Run `work` on the store of the installation and return what it returns."""

    async def run() -> T:
        async with app.opened(attached(settings)) as store:
            return await work(store)

    return uvloop.run(run())


async def examine(store: Store, settings: Settings) -> list[Finding]:
    """Look at database, keys, audit trail, disk, jobs and settings."""
    findings = []
    async with store.db.transaction() as tx:
        findings.append(await _try("keys", store.ring.verify(), "{} keys open"))
        findings.append(
            await _try(
                "audit trail",
                audit.verify_newest(tx, NEWEST_ENTRIES),
                f"{{}} entries, the newest {NEWEST_ENTRIES} hold together;"
                " `python -m node audit verify` looks at all",
            )
        )
        counts = await studies.counts(tx)
        other_versions = await versions.count(tx)
        dead = await store.jobs.dead(tx)
        judged = await judge(tx, parts.drift_settings_of(settings))
        findings += await _models(tx)
        findings += await _commitment(tx, store)
        findings.append(await _orders(tx))
        findings += await _sending(tx, store, settings)
        findings += await _audit_feed(tx, store, settings)
    held = ", ".join(f"{count} {name}" for name, count in counts.items())
    findings.append(Finding("archive", True, held))
    free_mb = shutil.disk_usage(settings.data).free >> 20
    enough = free_mb > settings.storage.minimum_free_mb
    findings.append(Finding("disk", enough, f"{free_mb} MB free in {settings.data}"))
    findings += [
        Finding("failed work", False, f"{job.kind} {job.id}: {job.error}")
        for job in dead
    ]
    if judged is not None:
        findings.append(_agreement(judged))
    if not settings.pacs.ae_title and not settings.routing.destinations:
        told = "pacs.ae_title is empty: results stay in the node"
        findings.append(Finding("PACS", True, told))
    findings += _certificates(settings, store.clock())
    findings += await _sign_on(store, settings)
    if other_versions:
        noun = "version" if other_versions == 1 else "versions"
        told = (
            f"{other_versions} other {noun} came under UIDs that were taken;"
            " look at `python -m node versions list`"
        )
        findings.append(Finding("duplicates", True, told))
    dicom = settings.dicom
    nobody = not dicom.allowed_calling_aes and not dicom.peers
    if nobody or EVERYBODY in dicom.allowed_calling_aes:
        told = (
            "any machine may send: enter yours in dicom.peers, and take * out of"
            " dicom.allowed_calling_aes"
        )
        findings.append(Finding("AE titles", False, told, can_wait=True))
    return findings


async def _audit_feed(
    tx: Transaction, store: Store, settings: Settings
) -> list[Finding]:
    """Look at how far the audit repository is behind the trail."""
    repository = parts.repository_of(settings)
    if repository is None:
        return []
    try:
        repository.check()
    except NodeError as error:
        return [Finding("audit repository", False, error.message)]
    feed = await audit_feeds.find(tx, atna.FEED)
    last = (await audit.head(tx)).sequence
    behind = last - (feed.sequence if feed else 0)
    told = f"{settings.audit.syslog.host}: {behind} entries behind"
    late = feed is None or feed.trouble_since is not None
    if feed is not None and feed.trouble_since is not None:
        since = store.clock() - feed.trouble_since
        told += f", for {since.total_seconds() / 3600:.1f} h; {feed.trouble}"
    return [Finding("audit repository", not (late and behind > 0), told)]


async def _sign_on(store: Store, settings: Settings) -> list[Finding]:
    """Ask the hospital's sign-on what would keep people from signing in."""
    if not settings.auth.oidc.issuer:
        return []
    try:
        own = parts.sign_on_settings_of(settings)
        async with aiohttp.ClientSession() as session:
            found = await look_at_provider(
                session, own, settings.http.base_url, now=store.clock()
            )
    except NodeError as error:
        return [Finding("sign-on", False, error.message)]
    if found.faults:
        return [Finding("sign-on", False, fault) for fault in found.faults]
    return [Finding("sign-on", True, found.told)]


def _agreement(judged: DriftReport) -> Finding:
    if judged.drifted:
        told = (
            f"{judged.name}: changed in {', '.join(judged.drifted)};"
            " look at the page Agreement, then at machine settings and model"
        )
    elif judged.window is None:
        told = f"{judged.reports} signed reports compared, too few to tell a change"
    else:
        told = f"{judged.reports} signed reports compared, no change"
    return Finding("agreement of AI and doctors", not judged.drifted, told)


async def _commitment(tx: Transaction, store: Store) -> list[Finding]:
    """Look at what archives promised us, and at reports that machines do not take."""
    counts = await commitments.delivery_counts(tx)
    findings = []
    for destination in sorted({destination for destination, _ in counts}):
        states = ("committed", "sent", "waiting", "failed")
        told = ", ".join(
            f"{counts[destination, state]} {state}"
            for state in states
            if (destination, state) in counts
        )
        well = (destination, "failed") not in counts
        findings.append(Finding(f"results at {destination}", well, told))
    late = await commitments.overdue_reports(tx, store.clock() - REPORT_IS_LATE)
    for title in sorted({asked.calling_ae for asked in late}):
        since = min(asked.asked_at for asked in late if asked.calling_ae == title)
        told = (
            f"{title} has not taken its report since {since:%Y-%m-%d %H:%M} UTC; look"
            " at host and port in dicom.peers and at the machine"
        )
        findings.append(Finding("storage commitment", False, told))
    return findings


async def _sending(tx: Transaction, store: Store, settings: Settings) -> list[Finding]:
    """Look at what waits for each destination, and at what it said of itself."""
    findings = []
    for one in await routes.backlogs(tx):
        told = f"{one.sent} sent, {one.waiting} waiting, {one.failed} failed"
        stuck = bool(one.since and store.clock() - one.since > WAITS_TOO_LONG)
        if one.since is not None:
            told += f"; the oldest since {one.since:%Y-%m-%d %H:%M} UTC"
        if one.error:
            told += f": {one.error}"
        if one.failed:
            told += f"; then `deliveries replay --to {one.destination}`"
        well = not one.failed and not (stuck and one.error)
        findings.append(Finding(f"sending to {one.destination}", well, told))
    names = [outlet.name for outlet in settings.routing.destinations]
    for name in filter(None, [settings.pacs.ae_title, *names]):
        answer = await routes.probe_answer(tx, name)
        if answer is None:
            continue
        ill = [f"{step}: {told}" for step, well, told in answer.findings if not well]
        told = "; ".join(ill) or "takes what we send"
        at = f"asked {answer.at:%Y-%m-%d %H:%M} UTC"
        findings.append(Finding(f"archive {name}", answer.well, f"{told} ({at})"))
    return findings


def _certificates(settings: Settings, now: datetime) -> list[Finding]:
    """Look at the files of DIMSE-TLS, as the next connection will."""
    findings = []
    try:
        tls_context(parts.scp_settings_of(settings))
        outbound_of(settings, partial(parts.calling_tls_of, settings))
    except NodeError as error:
        told = f"{error.message}; a running node goes on with the one before"
        findings.append(Finding("TLS", False, told))
    dicom = settings.dicom
    for setting in (
        "tls_certificate",
        "tls_client_ca",
        "tls_trusted",
        "tls_calling_certificate",
    ):
        if file := getattr(dicom, setting):
            findings.append(_expiry(f"dicom.{setting}", settings.data / file, now))
    return findings


def _expiry(setting: str, file: Path, now: datetime) -> Finding:
    try:
        ends = first_expiry(file)
    except NodeError as error:
        return Finding(setting, False, error.message)
    left = (ends - now).days
    verb = "expires" if ends > now else "expired"
    told = f"{verb} on {ends:%Y-%m-%d}"
    if left >= RENEW_DAYS:
        return Finding(setting, True, f"{told}, in {left} days")
    told = f"{told}; renew it, no restart is needed"
    return Finding(setting, False, told, can_wait=ends > now)


async def _models(tx: Transaction) -> list[Finding]:
    """Look at what the reading process says of the models that were chosen."""
    findings = []
    for role in models.ModelRole:
        state = await models.state(tx, role)
        if state is None or (state.serving is None and not state.trouble):
            continue
        told = state.trouble
        if state.serving is not None:
            label = (await models.read(tx, state.serving)).label
            verb = "reads" if role is models.ModelRole.ACTIVE else "reads along"
            told = f"{told}; {label} goes on" if told else f"{label} {verb}"
        findings.append(Finding(f"{role} model", not state.trouble, told))
    return findings


async def _orders(tx: Transaction) -> Finding:
    """Tell of studies that name an order of another patient."""
    found = await orders.conflicts(tx)
    told = f"{len(found)} with another patient's order: `node order conflicts`"
    return Finding("orders", not found, told if found else "each of its own patient")


async def _try(what: str, looking: Awaitable[int], told: str) -> Finding:
    try:
        return Finding(what, True, told.format(await looking))
    except NodeError as error:
        return Finding(what, False, error.message)


async def write_version(
    store: Store, sop_instance_uid: str, number: int, target: Path
) -> int:
    """Write a kept version as a Part 10 file, identity and all; return its bytes.

    CONFLICT when `target` is there already: nothing is overwritten.
    """
    async with store.db.transaction() as tx:
        reader = await versions.open_version(tx, store, sop_instance_uid, number)
        with reader:
            part10 = reader.read()
        entity = f"instance/{sop_instance_uid}"
        detail = {"kept_version": str(number)}
        await _record(store, tx, "export", entity, detail)
    _write_new(target, part10)
    return len(part10)


def _write_new(target: Path, content: bytes) -> None:
    try:
        with open(target, "xb", opener=partial(os.open, mode=0o600)) as file:
            file.write(content)
    except OSError as error:
        told = f"{target}: cannot be written ({error.strerror})"
        raise NodeError(told, ErrorKind.CONFLICT) from None


async def kept_versions(store: Store) -> list[versions.KeptVersion]:
    """Return the versions kept beside the ones that are served."""
    async with store.db.connection() as connection:
        return await versions.kept(connection)


async def add_user(
    store: Store, login: str, password: str, roles: Sequence[Role], display: str
) -> None:
    """Make an account; physicians get a Practitioner id."""
    async with store.db.transaction() as tx:
        await people.create_user(
            tx,
            login=login,
            password=password,
            roles=frozenset(roles),
            display=display,
            now=store.clock(),
        )
        await _record(store, tx, "user-add", f"user/{login}")


async def disable_user(store: Store, login: str) -> None:
    """Shut an account and end its sessions."""
    async with store.db.transaction() as tx:
        await people.disable_user(tx, login, now=store.clock())
        await _record(store, tx, "user-disable", f"user/{login}")


async def link_user(store: Store, login: str, issuer: str, subject: str) -> None:
    """Let an account be that of a subject of the hospital's sign-on."""
    async with store.db.transaction() as tx:
        await people.link(tx, login, issuer, subject)
        await _record(store, tx, "user-link", f"user/{login}")


async def user_rows(store: Store) -> list[tuple[str, str, str]]:
    """Return (login, roles, state) of every account."""
    async with store.db.connection() as connection:
        users = await people.list_users(connection)
    return [
        (
            user.login,
            ", ".join(sorted(role.value for role in user.identity.roles)),
            "disabled" if user.disabled else "active",
        )
        for user in users
    ]


async def rotate_keys(store: Store) -> int:
    """Make new root and domain keys; return how many keys were wrapped anew."""
    count = await store.ring.rotate()
    async with store.db.transaction() as tx:
        await _record(store, tx, "keys-rotate", "keys")
    return count


async def verify_keys(store: Store) -> int:
    """Open every key once; return how many there are."""
    return await store.ring.verify()


async def shred_patient(store: Store, study_instance_uid: str) -> None:
    """Destroy the key of the patient of a study, and rotate the keys above it."""
    async with store.db.transaction() as tx:
        study = await studies.study(tx, study_instance_uid)
        if study is None:
            raise NodeError("there is no such study", ErrorKind.NOT_FOUND)
    await erasure.shred_patient(store.db, store.ring, study.patient_id)
    async with store.db.transaction() as tx:
        rows = await merges.rows_of(tx, study.patient_id)
        detail = {"patients": " ".join(sorted(map(str, rows)))}
        await _record(store, tx, "keys-shred", f"patient/{study.patient_id}", detail)


async def merged_rows(store: Store, study_instance_uid: str) -> int:
    """Return how many other rows are erased with the patient of a study."""
    async with store.db.transaction() as tx:
        study = await studies.study(tx, study_instance_uid)
        if study is None:
            raise NodeError("there is no such study", ErrorKind.NOT_FOUND)
        return len(await merges.rows_of(tx, study.patient_id)) - 1


async def _record(
    store: Store,
    tx: Transaction,
    action: str,
    entity: str,
    detail: Mapping[str, str] | None = None,
) -> None:
    entry = AuditEntry(
        at=store.clock(),
        actor=ADMINISTRATOR,
        role="administrator",
        action=action,
        entity=entity,
        detail=detail or {},
    )
    await audit.record(tx, entry)
