"""Every row the relay keeps, and the only SQL over them.

Functions that change state take `tx`, a connection inside the caller's
transaction; what they wrote counts when the caller's block has ended.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg

from node.domain.disclosure import ReleaseState
from node.store.database import Database
from wechat.relay.masked import MaskedReport
from wechat.relay.sealing import RelaySealer

MIGRATIONS = Path(__file__).parent / "migrations"

FAILURES_PER_OPENID = 5
# Nobody guesses a code of 128 bits. A code that is not known is most often one
# whose offer is still under way from the desk, so it may be tried more often.
UNKNOWN_CODES_PER_OPENID = 200
FAILURES_PER_PATIENT = 10
FAILURE_WINDOW = timedelta(hours=24)
OPENIDS_PER_PATIENT = 3
QUOTA_CEILING = 50  # more taps than this are not a patient's

Transaction: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(frozen=True, slots=True)
class BindingOffer:
    """What the desk's QR code proves. `check_mac` is None without an ID number."""

    binding_id: str
    token_hash: bytes
    check_mac: bytes | None
    patient_handle: str
    display: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class StoredReport:
    """A masked report with what this account did with it."""

    report: MaskedReport
    changed_at: datetime
    unread: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """What a hook event changed: nothing when it was seen before or is stale."""

    changed: bool
    pushes: int = 0


class Records:
    """The relay's tables. `sealer` closes whatever could name a person."""

    def __init__(self, db: Database, sealer: RelaySealer) -> None:
        self.db = db
        self._sealer = sealer

    # ---- accounts and sessions ----------------------------------------------

    async def open_session(self, tx: Transaction, openid: str, now: datetime) -> str:
        """Return a new session token; the account is made when it is new."""
        mac = self._sealer.openid_mac(openid)
        account_id = uuid4()
        sealed = self._sealer.seal(
            openid.encode(), table="accounts", row=str(account_id), column="openid"
        )
        await tx.execute(
            "insert into accounts (account_id, openid_mac, openid, created_at)"
            " values ($1, $2, $3, $4) on conflict (openid_mac) do nothing",
            account_id,
            mac,
            sealed,
            now,
        )
        token = secrets.token_urlsafe(32)
        await tx.execute(
            "insert into sessions (token_hash, account_id, used_at)"
            " select $1, account_id, $3 from accounts where openid_mac = $2",
            _hash(token),
            mac,
            now,
        )
        return token

    async def account_of_session(
        self, tx: Transaction, token: str, now: datetime, idle: timedelta
    ) -> UUID | None:
        """Return the account of a living session and keep it alive."""
        account: UUID | None = await tx.fetchval(
            "update sessions set used_at = $2"
            " where token_hash = $1 and used_at > $3 returning account_id",
            _hash(token),
            now,
            now - idle,
        )
        return account

    async def openid_of(self, tx: Transaction, account_id: UUID) -> str | None:
        sealed = await tx.fetchval(
            "select openid from accounts where account_id = $1", account_id
        )
        if sealed is None:
            return None
        return self._sealer.open(
            sealed, table="accounts", row=str(account_id), column="openid"
        ).decode()

    async def account_of_openid(self, tx: Transaction, openid: str) -> UUID | None:
        account: UUID | None = await tx.fetchval(
            "select account_id from accounts where openid_mac = $1",
            self._sealer.openid_mac(openid),
        )
        return account

    # ---- binding ------------------------------------------------------------

    async def offer_binding(self, tx: Transaction, offer: BindingOffer) -> None:
        """Keep one offer; the same offer again changes nothing."""
        display = self._sealer.seal(
            offer.display.encode(),
            table="binding_offers",
            row=offer.binding_id,
            column="display",
        )
        await tx.execute(
            "insert into binding_offers"
            " (binding_id, token_hash, check_mac, patient_handle, display, expires)"
            " values ($1, $2, $3, $4, $5, $6) on conflict do nothing",
            offer.binding_id,
            offer.token_hash,
            offer.check_mac,
            offer.patient_handle,
            display,
            offer.expires,
        )

    async def bind(
        self, tx: Transaction, account_id: UUID, token: str, last4: str, now: datetime
    ) -> bool:
        """Bind the account to the patient of a QR token; say only whether it worked.

        Five failures with a code that exists block an openid for 24 hours, ten
        block a patient, also for the right answer. The same statements run
        whatever is wrong.
        """
        mac: bytes | None = await tx.fetchval(
            "select openid_mac from accounts where account_id = $1 for update",
            account_id,
        )
        if mac is None:
            return False
        offer = await tx.fetchrow(
            "select * from binding_offers where token_hash = $1 for update",
            _hash(token),
        )
        patient = offer["patient_handle"] if offer else ""
        blocked = await self._blocked(tx, mac, patient, now)
        holders: int = await tx.fetchval(
            "select count(*) from bindings where patient_handle = $1"
            " and account_id <> $2",
            patient,
            account_id,
        )
        proven = _proves(offer, token, last4, now)
        if blocked or not proven or holders >= OPENIDS_PER_PATIENT:
            await tx.execute(
                "insert into bind_failures (openid_mac, patient_handle, failed_at)"
                " values ($1, $2, $3)",
                mac,
                patient or None,
                now,
            )
            return False
        await self._take_offer(tx, account_id, offer, now)
        return True

    async def _blocked(
        self, tx: Transaction, mac: bytes, patient: str, now: datetime
    ) -> bool:
        row: Any = await tx.fetchrow(
            "select count(*) filter (where openid_mac = $1"
            "  and patient_handle is not null) as by_openid,"
            " count(*) filter (where openid_mac = $1"
            "  and patient_handle is null) as unknown,"
            " count(*) filter (where patient_handle = $2) as by_patient"
            " from bind_failures where failed_at > $3"
            " and (openid_mac = $1 or patient_handle = $2)",
            mac,
            patient,
            now - FAILURE_WINDOW,
        )
        return bool(
            row["by_openid"] >= FAILURES_PER_OPENID
            or row["unknown"] >= UNKNOWN_CODES_PER_OPENID
            or row["by_patient"] >= FAILURES_PER_PATIENT
        )

    async def _take_offer(
        self, tx: Transaction, account_id: UUID, offer: Any, now: datetime
    ) -> None:
        await tx.execute(
            "update binding_offers set used_at = $2 where binding_id = $1",
            offer["binding_id"],
            now,
        )
        display = self._sealer.open(
            offer["display"],
            table="binding_offers",
            row=offer["binding_id"],
            column="display",
        )
        row = f"{account_id}/{offer['patient_handle']}"
        sealed = self._sealer.seal(display, table="bindings", row=row, column="display")
        await tx.execute(
            "insert into bindings (account_id, patient_handle, display, bound_at)"
            " values ($1, $2, $3, $4)"
            " on conflict (account_id, patient_handle) do update set display = $3",
            account_id,
            offer["patient_handle"],
            sealed,
            now,
        )

    async def bound_names(self, tx: Transaction, account_id: UUID) -> list[str]:
        """Return the masked names this account is bound to."""
        rows = await tx.fetch(
            "select patient_handle, display from bindings where account_id = $1"
            " order by bound_at",
            account_id,
        )
        return [
            self._sealer.open(
                row["display"],
                table="bindings",
                row=f"{account_id}/{row['patient_handle']}",
                column="display",
            ).decode()
            for row in rows
        ]

    async def unbind(self, tx: Transaction, account_id: UUID) -> None:
        """Forget the account at once: bindings, sessions, ledger and openid."""
        await tx.execute("delete from accounts where account_id = $1", account_id)

    # ---- reports ------------------------------------------------------------

    async def apply_event(
        self,
        tx: Transaction,
        subscription: str,
        number: int,
        report: MaskedReport,
        now: datetime,
    ) -> Applied:
        """Store the report of one numbered event and defer its messages.

        An event that came before, or that an event with a higher number has
        overtaken, changes nothing: every event carries the whole state.
        """
        new = await tx.fetchval(
            "insert into hook_events (subscription, event_number, received_at)"
            " values ($1, $2, $3) on conflict do nothing returning event_number",
            subscription,
            number,
            now,
        )
        if new is None:
            return Applied(changed=False)
        await tx.execute(
            "select pg_advisory_xact_lock(hashtextextended($1, 0))", report.handle
        )
        before = await tx.fetchrow(
            "select patient_handle, version, subscription, event_number from reports"
            " where handle = $1",
            report.handle,
        )
        if before is not None and _overtaken(before, subscription, number, report):
            return Applied(changed=False)
        await self._write_report(tx, subscription, number, report, now)
        return Applied(changed=True, pushes=await self._defer_pushes(tx, report, now))

    async def _write_report(
        self,
        tx: Transaction,
        subscription: str,
        number: int,
        report: MaskedReport,
        now: datetime,
    ) -> None:
        content = self._sealer.seal(
            json.dumps(asdict(report), ensure_ascii=False).encode(),
            table="reports",
            row=report.handle,
            column="content",
        )
        await tx.execute(
            "insert into reports (handle, patient_handle, version, state, content,"
            " subscription, event_number, first_received_at, changed_at)"
            " values ($1, $2, $3, $4, $5, $6, $7, $8, $8)"
            " on conflict (handle) do update set patient_handle = $2, version = $3,"
            " state = $4, content = $5, subscription = $6, event_number = $7,"
            " changed_at = $8",
            report.handle,
            report.patient_handle,
            report.version,
            report.state.value,
            content,
            subscription,
            number,
            now,
        )

    async def _defer_pushes(
        self, tx: Transaction, report: MaskedReport, now: datetime
    ) -> int:
        """Add one message per bound openid and version; end those it replaces."""
        withdrawn = report.state is ReleaseState.WITHDRAWN
        await tx.execute(
            "update pushes set state = case when ambiguous then 'unconfirmed'"
            " else $2 end, changed = nextval('push_changes'), changed_at = $4"
            " where handle = $1 and state in ('pending', 'parked')"
            " and ($3 or version < $5)",
            report.handle,
            "cancelled" if withdrawn else "superseded",
            withdrawn,
            now,
            report.version,
        )
        if withdrawn:
            return 0
        added = await tx.fetch(
            "insert into pushes (push_id, account_id, handle, version, state,"
            " not_before, created_at, changed_at)"
            " select gen_random_uuid(), account_id, $1, $2, 'pending', $3, $3, $3"
            " from bindings where patient_handle = $4"
            " on conflict (account_id, handle, version) do nothing returning push_id",
            report.handle,
            report.version,
            now,
            report.patient_handle,
        )
        return len(added)

    async def find_reports(
        self, tx: Transaction, account_id: UUID
    ) -> list[StoredReport]:
        """Return the reports of the account's patients, newest examination first."""
        rows = await tx.fetch(_REPORTS_OF_ACCOUNT, account_id)
        stored = [self._stored(row) for row in rows]
        return sorted(
            stored,
            key=lambda s: (s.report.examined_on or "", s.changed_at),
            reverse=True,
        )

    async def find_report(
        self, tx: Transaction, account_id: UUID, handle: str
    ) -> StoredReport | None:
        """Return one report, or None when it is unknown or another person's."""
        row = await tx.fetchrow(
            f"{_REPORTS_OF_ACCOUNT} and r.handle = $2",
            account_id,
            handle,
        )
        return None if row is None else self._stored(row)

    def _stored(self, row: Any) -> StoredReport:
        content = self._sealer.open(
            row["content"], table="reports", row=row["handle"], column="content"
        )
        return StoredReport(
            report=_masked_report(json.loads(content)),
            changed_at=row["changed_at"],
            unread=row["unread"],
        )

    async def mark_read(
        self, tx: Transaction, account_id: UUID, report: MaskedReport, now: datetime
    ) -> None:
        await tx.execute(
            "insert into report_reads (account_id, handle, version, read_at)"
            " values ($1, $2, $3, $4) on conflict (account_id, handle)"
            " do update set version = $3, read_at = $4",
            account_id,
            report.handle,
            report.version,
            now,
        )

    # ---- subscription ledger --------------------------------------------------

    async def add_quota(
        self, tx: Transaction, account_id: UUID, templates: Iterable[str], now: datetime
    ) -> None:
        """Count one accepted message more for every template."""
        for template_id in templates:
            await tx.execute(
                "insert into quotas (account_id, template_id, remaining, changed_at)"
                " values ($1, $2, 1, $3) on conflict (account_id, template_id)"
                " do update set remaining = least(quotas.remaining + 1, $4),"
                " changed_at = $3",
                account_id,
                template_id,
                now,
                QUOTA_CEILING,
            )

    async def empty_quota(
        self, tx: Transaction, account_id: UUID, template_id: str, at: datetime
    ) -> None:
        """WeChat says that nothing is left; news older than the ledger is ignored."""
        await tx.execute(
            "update quotas set remaining = 0 where account_id = $1"
            " and template_id = $2 and changed_at <= $3",
            account_id,
            template_id,
            at,
        )

    async def settle_by_event(
        self,
        tx: Transaction,
        account_id: UUID,
        *,
        delivered: bool,
        now: datetime,
    ) -> None:
        """WeChat reports a delivery: the oldest unanswered push was that one."""
        await tx.execute(
            "update pushes set state = $2, changed = nextval('push_changes'),"
            " changed_at = $3 where push_id = (select push_id from pushes"
            "  where account_id = $1 and ambiguous"
            "  and state in ('unconfirmed', 'pending')"
            "  order by created_at limit 1)",
            account_id,
            "sent" if delivered else "refused",
            now,
        )

    async def deliveries(self, tx: Transaction, after: int) -> list[dict[str, Any]]:
        """Return pushes that changed after `after`, for the node's own records."""
        rows = await tx.fetch(
            "select changed, handle, version, state, errcode, changed_at from pushes"
            " where changed > $1 order by changed limit 500",
            after,
        )
        return [
            {
                "sequence": row["changed"],
                "report_handle": row["handle"],
                "report_version": row["version"],
                "state": row["state"],
                "errcode": row["errcode"],
                "at": row["changed_at"].isoformat(),
            }
            for row in rows
        ]

    async def push_counts(self, tx: Transaction) -> dict[str, int]:
        """Return how many pushes stand in each state."""
        rows = await tx.fetch("select state, count(*) as n from pushes group by state")
        return {row["state"]: row["n"] for row in rows}

    # ---- keeping small --------------------------------------------------------

    async def purge(self, tx: Transaction, now: datetime, keep: timedelta) -> int:
        """Delete what is over: old reports, dead sessions, used offers, failures."""
        day = timedelta(days=1)
        gone = await tx.fetch(
            "delete from reports where first_received_at < $1 returning handle",
            now - keep,
        )
        await tx.execute("delete from sessions where used_at < $1", now - day)
        await tx.execute("delete from binding_offers where expires < $1", now - day)
        await tx.execute(
            "delete from bind_failures where failed_at < $1", now - 2 * day
        )
        return len(gone)


_REPORTS_OF_ACCOUNT = (
    "select r.handle, r.content, r.changed_at,"
    # What was released of a version that she has read already is news to her.
    " coalesce(d.version <> r.version or d.read_at < r.changed_at, true) as unread"
    " from reports r"
    " join bindings b on b.patient_handle = r.patient_handle and b.account_id = $1"
    " left join report_reads d on d.handle = r.handle and d.account_id = $1"
    " where true"
)


def _overtaken(
    before: Any, subscription: str, number: int, report: MaskedReport
) -> bool:
    """Tell whether the stored row is newer than this event.

    Event numbers order one subscription. After the node made a new one, the
    report's own version decides.
    """
    if before["patient_handle"] != report.patient_handle:
        return False  # moved to the right patient: the newest word counts
    if before["subscription"] == subscription:
        return bool(before["event_number"] > number)
    return bool(before["version"] > report.version)


def _masked_report(content: dict[str, Any]) -> MaskedReport:
    content["state"] = ReleaseState(content["state"])
    content["trend"] = tuple(tuple(point) for point in content["trend"])
    return MaskedReport(**content)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _proves(offer: Any, token: str, last4: str, now: datetime) -> bool:
    """Tell whether token and last four signs of the ID number open this offer.

    The desk computed HMAC-SHA256(token, last4) when it printed the code; the
    relay never sees the number. It is compared for an unknown token too.
    """
    given = hmac.digest(token.encode(), last4.upper().encode(), hashlib.sha256)
    expected = offer["check_mac"] if offer is not None else None
    matches = hmac.compare_digest(given, expected or secrets.token_bytes(32))
    if offer is None or offer["used_at"] is not None or offer["expires"] <= now:
        return False
    return matches or expected is None
