"""`python -m node audit`: prove the trail, take it away, ask who saw a patient."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.progress import Progress
from rich.table import Table

from node.command import read_settings, with_store
from node.domain.errors import ErrorKind, NodeError
from node.screen import console

if TYPE_CHECKING:
    from node.store.audit import Anchor, Recorded
    from node.store.database import Transaction
    from node.store.store import Store

MOST_SHOWN = 1000
_HEADINGS = {
    "en": ("when", "who", "role", "did what", "to what", "from", "answer"),
    "zh-CN": ("时间", "何人", "角色", "做了什么", "对象", "来自", "结果"),
}
_VERBS = {
    "en": {
        "C": "wrote",
        "R": "saw",
        "U": "changed",
        "D": "deleted",
        "E": "used",
        "110112": "found in a search",
        "110104": "transferred images",
        "110103": "saw images",
        "110106": "took out",
        "110109": "worked on the order",
    },
    "zh-CN": {
        "C": "写入",
        "R": "查看",
        "U": "修改",
        "D": "删除",
        "E": "使用",
        "110112": "检索到",
        "110104": "传输图像",
        "110103": "查看图像",
        "110106": "导出",
        "110109": "处理申请单",
    },
}
_OUTCOMES = {
    "en": {"0": "served", "4": "refused", "8": "failed", "12": "failed"},
    "zh-CN": {"0": "成功", "4": "拒绝", "8": "失败", "12": "失败"},
}
_NOBODY = {"en": "nobody", "zh-CN": "没有记录"}
_MORE = {
    "en": "there is more before these; narrow it with --since or --until",
    "zh-CN": "更早还有记录；请用 --since 或 --until 缩小范围",
}

cli = typer.Typer(help="The audit trail.", no_args_is_help=True)

Day = Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="UTC day.")]
AfterOption = Annotated[
    str,
    typer.Option(
        metavar="NUMBER:HASH",
        help="A head that was kept, as `audit head` tells it: what follows is checked.",
    ),
]


@cli.command("verify")
def verify(
    file: Annotated[
        Path | None, typer.Option(help="A file of `audit export`, not the database.")
    ] = None,
    after: AfterOption = "",
) -> None:
    """Check the hash chain of the audit trail."""
    from node.store import audit

    anchor = _anchor(after)
    if file is not None:
        count, head = verify_file(file, anchor if after else None)
        console.print(f"{count} entries, the chain holds; head {_told(head)}")
        return

    async def check(store: "Store") -> "Anchor":
        async with store.db.connection() as tx:
            last = (await audit.head(tx)).sequence
        reached, more = anchor, True
        with Progress(transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=last - anchor.sequence)
            while more:
                async with store.db.transaction() as tx:
                    reached = await audit.verify_piece(tx, reached, last)
                progress.update(task, completed=reached.sequence - anchor.sequence)
                more = reached.sequence < last
        return reached

    last = with_store(read_settings(), check)
    console.print(f"{last.sequence - anchor.sequence} entries, the chain holds")


@cli.command("head")
def head() -> None:
    """Print number and hash of the last entry; kept elsewhere, they prove the rest."""
    from node.store import audit

    async def look(store: "Store") -> "Anchor":
        async with store.db.connection() as connection:
            return await audit.head(connection)

    console.print(_told(with_store(read_settings(), look)), highlight=False)


@cli.command("export")
def export(
    target: Annotated[Path, typer.Option("--to", help="A file that is not there.")],
    first: Annotated[int, typer.Option(min=1, help="Number of the first entry.")] = 1,
    last: Annotated[int | None, typer.Option(help="Number of the last.")] = None,
    fhir: Annotated[
        bool, typer.Option("--fhir", help="AuditEvents instead of chain lines.")
    ] = False,
) -> None:
    """Write the trail as NDJSON: lines of the chain, or AuditEvents of FHIR."""
    settings = read_settings()
    base_url = f"{settings.http.base_url}/fhir"

    async def write(store: "Store") -> int:
        return await write_export(
            store, target, first, last, base_url if fhir else None
        )

    console.print(f"{target}: {with_store(settings, write)} entries")


@cli.command("who")
def who(
    patient: Annotated[
        str, typer.Option(help="Her number in the hospital, or her id here.")
    ] = "",
    study: Annotated[str, typer.Option(help="A Study Instance UID of hers.")] = "",
    since: Day = None,
    until: Day = None,
    language: Annotated[str, typer.Option(help="zh-CN or en; empty = site's.")] = "",
) -> None:
    """Show who saw a patient's data, and who changed them; this too is recorded."""
    settings = read_settings()
    spoken = language or settings.site.language
    if spoken not in _HEADINGS:
        raise NodeError(f"{spoken}: zh-CN or en", ErrorKind.INVALID)
    if bool(patient) == bool(study):
        raise NodeError("tell --patient or --study", ErrorKind.INVALID)
    rows = with_store(
        settings,
        lambda store: who_saw(store, patient, study, since, until, language=spoken),
    )
    table = Table(*_HEADINGS[spoken])
    for row in rows[:MOST_SHOWN]:
        table.add_row(*row)
    console.print(table if rows else _NOBODY[spoken])
    if len(rows) > MOST_SHOWN:
        console.print(_MORE[spoken])


# --- who saw ------------------------------------------------------------------------


async def who_saw(
    store: "Store",
    patient: str,
    study: str,
    since: datetime | None,
    until: datetime | None,
    *,
    language: str,
) -> list[tuple[str, ...]]:
    """Return the rows of `audit who`, the newest first."""
    from datetime import UTC, timedelta

    from node.store import audit, clients, people
    from node.store.audit import Sought

    async with store.db.transaction() as tx:
        patients = await _patients(tx, store, patient, study)
        sought = Sought(
            since=since.replace(tzinfo=UTC) if since else None,
            until=until.replace(tzinfo=UTC) + timedelta(days=1) if until else None,
            patients=patients,
        )
        found = await audit.search(tx, sought, limit=MOST_SHOWN + 1)
        names = {str(u.user_id): u.identity.shown for u in await people.list_users(tx)}
        names |= {str(c.client_id): c.name for c in await clients.list_clients(tx)}
        entity = f"patient/{patients[0]}"
        await audit.record(tx, _own_entry(store, "audit-who", entity))
    return [_row(one, names, language) for one in found]


async def _patients(
    tx: "Transaction", store: "Store", patient: str, study: str
) -> tuple[UUID, ...]:
    """Return the rows that are meant, and those that are the same woman."""
    from node.store import identities, merges, studies

    if study:
        found = await studies.study(tx, study)
        patients = [] if found is None else [found.patient_id]
    else:
        patients = await identities.find_patients_by_number(tx, store, patient)
        with suppress(ValueError):
            patients = patients or [UUID(patient)]
    if not patients:
        raise NodeError("no such patient here", ErrorKind.NOT_FOUND)
    return await merges.all_rows_of(tx, patients)


def _row(recorded: "Recorded", names: dict[str, str], language: str) -> tuple[str, ...]:
    from node.domain.audit_codes import act_of

    entry = recorded.entry
    act, words = act_of(entry.action), _VERBS[language]
    repeated = entry.detail.get("repeated")
    verb = words.get(act.code) or words[act.letter]
    return (
        f"{entry.at:%Y-%m-%d %H:%M:%S}",
        names.get(entry.actor, entry.actor),
        entry.role,
        f"{verb} ({entry.action})" + (f" x {repeated}" if repeated else ""),
        entry.entity,
        entry.detail.get("address", ""),
        _OUTCOMES[language][entry.outcome.value],
    )


# --- taking away --------------------------------------------------------------------


async def write_export(
    store: "Store", target: Path, first: int, last: int | None, fhir_base: str | None
) -> int:
    """Write entries to a new file, as chain lines or AuditEvents; return how many."""
    from fhir.audit.events import Teller
    from node.store import audit

    count = 0
    try:
        file = target.open("x", encoding="utf-8", newline="\n")
    except OSError as error:
        raise NodeError(f"{target}: {error.strerror}", ErrorKind.INVALID) from None
    with file:
        teller = Teller(fhir_base) if fhir_base is not None else None
        async with store.db.transaction(isolation="repeatable_read") as tx:
            async for recorded in audit.each(tx, first, last):
                count += 1
                if teller is None:
                    file.write(chain_line(recorded) + "\n")
                    continue
                for event in teller.events(recorded):
                    file.write(json.dumps(event, ensure_ascii=False) + "\n")
    async with store.db.transaction() as tx:
        entity = f"audit/{first}-{first + count - 1}"
        await audit.record(tx, _own_entry(store, "audit-export", entity))
    return count


def chain_line(recorded: "Recorded") -> str:
    """Return an entry as a line that proves itself.

    `hash` is SHA-256 of the bytes of `previous_hash` and of `entry` in UTF-8, which
    is JSON in a string: whoever checks it needs not know how we write JSON.
    """
    from node.domain.audit import canonical_text

    line = {
        "sequence": recorded.sequence,
        "previous_hash": recorded.previous_hash.hex(),
        "entry": canonical_text(recorded.entry).decode(),
        "hash": recorded.hash.hex(),
    }
    return json.dumps(line, ensure_ascii=False)


def verify_file(path: Path, after: "Anchor | None") -> "tuple[int, Anchor]":
    """Return how many lines of an export follow from each other, and their head.

    Without `after` the first line is believed what came before it.
    """
    from node.store.audit import Anchor

    count, last = 0, after
    for number, line in enumerate(_lines(path), 1):
        try:
            previous = bytes.fromhex(line["previous_hash"])
            told = bytes.fromhex(line["hash"])
            sequence, entry = int(line["sequence"]), str(line["entry"]).encode()
        except (KeyError, TypeError, ValueError):
            raise _faulty(path, number) from None
        if last is None:
            last = Anchor(sequence - 1, previous)
        expected = hashlib.sha256(previous + entry).digest()
        follows = sequence == last.sequence + 1 and previous == last.hash
        if not follows or expected != told:
            raise NodeError(
                f"{path}: entry {sequence} or one before it was changed",
                ErrorKind.INTEGRITY,
            )
        last, count = Anchor(sequence, told), count + 1
    return count, last or Anchor()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                line = json.loads(text)
                if not isinstance(line, dict):
                    raise _faulty(path, number)
                yield line
    except OSError as error:
        raise NodeError(f"{path}: {error.strerror}", ErrorKind.INVALID) from None
    except ValueError:
        raise _faulty(path, 0) from None


def _faulty(path: Path, number: int) -> NodeError:
    place = f"line {number}" if number else "a line"
    return NodeError(f"{path}: {place} is none of `audit export`", ErrorKind.INVALID)


def _anchor(text: str) -> "Anchor":
    from node.store.audit import Anchor

    if not text:
        return Anchor()
    number, _, told = text.partition(":")
    try:
        digest = bytes.fromhex(told)
        if len(digest) != hashlib.sha256().digest_size:
            raise ValueError
        return Anchor(int(number), digest)
    except ValueError:
        raise NodeError(
            "--after: is number:hash, as `audit head` tells it", ErrorKind.INVALID
        ) from None


def _told(anchor: "Anchor") -> str:
    return f"{anchor.sequence}:{anchor.hash.hex()}"


def _own_entry(store: "Store", action: str, entity: str) -> Any:
    from node.administration import ADMINISTRATOR
    from node.domain.audit import AuditEntry

    return AuditEntry(store.clock(), ADMINISTRATOR, "administrator", action, entity)
