"""What modalities said of the end of their studies, and the facts that follow from it.

Who tells something about a study that is no longer open marks it to be weighed again;
`node.workflow.completion` does so within a second.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from node.domain.completion import (
    Announcement,
    BrokenTransfer,
    Flaw,
    StepFacts,
    StepStatus,
    StudyFacts,
    Verdict,
    verdict_from_json,
    verdict_to_json,
)
from node.domain.study import StudyStatus

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


@dataclass(frozen=True)
class WeighedStudy:
    """A study with its facts and what was concluded of it before."""

    facts: StudyFacts
    status: StudyStatus
    verdict: Verdict | None


# -- what is told ----------------------------------------------------------------------


async def announce_instances(
    tx: "Transaction",
    store: "Store",
    *,
    source: str,
    reference: str,
    calling_ae: str,
    sop_instance_uids: Sequence[str],
) -> None:
    """Note that a modality named these instances as sent: one list per `reference`.

    For the list of an N-ACTION (PS3.4 J.3.2) `reference` is its Transaction UID and
    `source` is "commitment". Call it in the transaction that records the request and
    before anything is audited. Instances may be here, may come later, or may never
    come. The same list told twice is one list.

    A list is proof of completeness only when every image of its study is in some
    list, every image of these lists is here, nothing feeds the study, and a short
    silence follows: a machine may commit image by image.
    """
    await tx.execute(
        "insert into announced_instances"
        " (calling_ae, reference, sop_instance_uid, source, at)"
        " select $1, $2, uid, $4, $5 from unnest($3::text[]) uid"
        " on conflict do nothing",
        calling_ae,
        reference,
        list(sop_instance_uids),
        source,
        store.clock(),
    )
    rows = await tx.fetch(
        "select distinct study_instance_uid from instances"
        " where sop_instance_uid = any($1)",
        list(sop_instance_uids),
    )
    await reconsider(tx, [row["study_instance_uid"] for row in rows])


async def reconsider(tx: "Transaction", study_instance_uids: Sequence[str]) -> None:
    """Have studies that are no longer open weighed again.

    Waits for whoever is closing one of them, who cannot know yet what is told here.
    """
    await tx.execute(
        "select from studies where study_instance_uid = any($1)"
        " order by study_instance_uid for no key update",
        list(study_instance_uids),
    )
    await tx.execute(
        "update studies set reconsider = true where study_instance_uid = any($1)"
        " and status <> 'receiving'",
        list(study_instance_uids),
    )


# -- what follows ----------------------------------------------------------------------


async def studies_to_weigh(tx: "Transaction") -> list[str]:
    """Return the studies that are open or of which something new was told."""
    rows = await tx.fetch(
        "select study_instance_uid from studies where status = 'receiving'"
        " union all select study_instance_uid from studies where reconsider"
        " and status <> 'receiving'"
    )
    return [row["study_instance_uid"] for row in rows]


async def lock_studies(
    tx: "Transaction", study_instance_uids: Sequence[str]
) -> list[str]:
    """Lock studies until `tx` ends; return those that nobody else has locked."""
    rows = await tx.fetch(
        "select study_instance_uid from studies where study_instance_uid = any($1)"
        " order by study_instance_uid for update skip locked",
        list(study_instance_uids),
    )
    return [row["study_instance_uid"] for row in rows]


async def read_facts(
    tx: "Transaction",
    study_instance_uids: Sequence[str],
    now: datetime,
    *,
    stale_association: timedelta,
) -> list[WeighedStudy]:
    """Return all that is known about the end of each study.

    An association that was silent for `stale_association` no longer feeds a study:
    its process may be gone for good.
    """
    uids, fresh = list(study_instance_uids), now - stale_association
    rows = await tx.fetch(_STUDIES, uids, fresh)
    broken = await _broken(tx, uids)
    steps = await _steps(tx, uids)
    beyond = await _beyond_steps(tx, list(steps), fresh)
    lists = await _lists(tx, uids)
    coverage = await _coverage(tx, list(lists))
    return [
        WeighedStudy(
            StudyFacts(
                study_instance_uid=uid,
                images=row["images"],
                senders=tuple(row["senders"]),
                last_instance_at=row["last_instance_at"],
                ended_at=row["ended_at"],
                released=row["ended_how"] == "released",
                feeding=row["feeding"],
                feeding_beyond_lists=beyond[uid][0] if uid in beyond else False,
                stale=row["stale"],
                broken=tuple(broken[uid]),
                steps=tuple(steps.get(uid, ())),
                announcements=tuple(lists.get(uid, ())),
                announced=coverage[uid][0] if uid in coverage else 0,
                unannounced=coverage[uid][1] if uid in coverage else 0,
                after_discontinued=beyond[uid][1] if uid in beyond else 0,
            ),
            StudyStatus(row["status"]),
            _verdict(row["evidence_detail"]),
        )
        for row in rows
        for uid in [row["study_instance_uid"]]
    ]


_STUDIES = """
select s.*,
    (select count(*) from instances i where i.study_instance_uid = s.study_instance_uid
        and i.origin = 'received') as images,
    array(select distinct calling_ae from instances i
        where i.study_instance_uid = s.study_instance_uid and i.origin = 'received'
        order by calling_ae) as senders,
    exists (select from open_associations a
        where a.study_instance_uid = s.study_instance_uid and a.touched_at > $2)
        as feeding,
    (select count(*) from open_associations a
        where a.study_instance_uid = s.study_instance_uid and a.touched_at <= $2)
        as stale
from studies s where s.study_instance_uid = any($1) order by s.study_instance_uid
"""


async def _broken(
    tx: "Transaction", uids: list[str]
) -> Mapping[str, list[BrokenTransfer]]:
    found: dict[str, list[BrokenTransfer]] = defaultdict(list)
    for row in await tx.fetch(
        "select * from broken_transfers where study_instance_uid = any($1)"
        " order by calling_ae",
        uids,
    ):
        transfer = BrokenTransfer(row["calling_ae"], Flaw(row["how"]))
        found[row["study_instance_uid"]].append(transfer)
    return found


_STEPS = """
select o.study_instance_uid, p.sop_instance_uid, p.calling_ae, p.status, p.changed_at,
    cardinality(p.images) as images,
    array(select uid from unnest(p.images) uid where not exists
        (select from instances i where i.sop_instance_uid = uid)) as missing
from (select distinct study_instance_uid, sop_instance_uid from performed_step_orders
    where study_instance_uid = any($1)) o
join performed_steps p using (sop_instance_uid)
order by p.created_at, p.sop_instance_uid
"""


async def _steps(tx: "Transaction", uids: list[str]) -> dict[str, list[StepFacts]]:
    found: dict[str, list[StepFacts]] = {}
    for row in await tx.fetch(_STEPS, uids):
        step = StepFacts(
            row["sop_instance_uid"],
            row["calling_ae"],
            StepStatus(row["status"]),
            row["changed_at"],
            row["images"],
            tuple(row["missing"]),
        )
        found.setdefault(row["study_instance_uid"], []).append(step)
    return found


_BEYOND_STEPS = """
with told as (
    select o.study_instance_uid as study, max(p.changed_at) as changed_at
    from performed_step_orders o join performed_steps p using (sop_instance_uid)
    where o.study_instance_uid = any($1) group by 1
), listed as (
    select distinct o.study_instance_uid as study, uid
    from performed_step_orders o join performed_steps p using (sop_instance_uid),
        unnest(p.images) uid
    where o.study_instance_uid = any($1)
), beyond as (
    select i.study_instance_uid as study, i.association, i.received_at
    from instances i where i.study_instance_uid = any($1) and i.origin = 'received'
        and not exists (select from listed l
            where l.study = i.study_instance_uid and l.uid = i.sop_instance_uid)
)
select t.study,
    exists (select from beyond b join open_associations a
        on a.association = b.association and a.study_instance_uid = b.study
        where b.study = t.study and a.touched_at > $2) as feeding,
    (select count(*) from beyond b where b.study = t.study
        and b.received_at > t.changed_at) as later
from told t
"""


async def _beyond_steps(
    tx: "Transaction", uids: list[str], fresh: datetime
) -> dict[str, tuple[bool, int]]:
    """Return for studies with steps what came that no step lists.

    That is whether an open association brought some, and how many came after
    the last word of any step.
    """
    if not uids:
        return {}
    rows = await tx.fetch(_BEYOND_STEPS, uids, fresh)
    return {row["study"]: (row["feeding"], row["later"]) for row in rows}


_LISTS = """
with told as (
    select distinct i.study_instance_uid as study, a.reference, a.calling_ae
    from instances i join announced_instances a using (sop_instance_uid)
    where i.study_instance_uid = any($1)
)
select t.study, t.reference, t.calling_ae, max(a.at) as at,
    array_remove(array_agg(case when i.sop_instance_uid is null
        then a.sop_instance_uid end), null) as missing
from told t join announced_instances a using (reference, calling_ae)
left join instances i using (sop_instance_uid)
group by 1, 2, 3 order by 4, 2
"""


async def _lists(tx: "Transaction", uids: list[str]) -> dict[str, list[Announcement]]:
    found: dict[str, list[Announcement]] = {}
    for row in await tx.fetch(_LISTS, uids):
        told = Announcement(
            row["reference"], row["calling_ae"], row["at"], tuple(row["missing"])
        )
        found.setdefault(row["study"], []).append(told)
    return found


_COVERAGE = """
with told as (
    select distinct i.study_instance_uid as study, a.reference, a.calling_ae
    from instances i join announced_instances a using (sop_instance_uid)
    where i.study_instance_uid = any($1)
)
select s.study,
    (select count(distinct a.sop_instance_uid) from told t
        join announced_instances a using (reference, calling_ae)
        where t.study = s.study) as announced,
    (select count(*) from instances i where i.study_instance_uid = s.study
        and i.origin = 'received' and not exists (select from announced_instances a
            where a.sop_instance_uid = i.sop_instance_uid)) as unannounced
from (select distinct study from told) s
"""


async def _coverage(tx: "Transaction", uids: list[str]) -> dict[str, tuple[int, int]]:
    """Return how many images the lists name, and how many here are in none."""
    if not uids:
        return {}
    rows = await tx.fetch(_COVERAGE, uids)
    return {row["study"]: (row["announced"], row["unannounced"]) for row in rows}


# -- what was concluded ----------------------------------------------------------------


async def write_verdict(
    tx: "Transaction", study_instance_uid: str, verdict: Verdict, evidence: str
) -> None:
    """Keep what is now known of a study that was closed on weaker evidence."""
    await tx.execute(
        "update studies set evidence = $2, evidence_detail = $3, incomplete = $4,"
        " reconsider = false where study_instance_uid = $1",
        study_instance_uid,
        evidence,
        _to_text(verdict),
        verdict.incomplete,
    )


async def last_told(tx: "Transaction", study_instance_uid: str) -> str:
    """Return a text that changes with what was concluded of a study."""
    return str(
        await tx.fetchval(
            "select md5(coalesce(evidence_detail::text, '')) from studies"
            " where study_instance_uid = $1",
            study_instance_uid,
        )
    )


async def settle(tx: "Transaction", study_instance_uid: str) -> None:
    """Note that a study was weighed again and nothing changed."""
    await tx.execute(
        "update studies set reconsider = false where study_instance_uid = $1",
        study_instance_uid,
    )


async def reopen(tx: "Transaction", study_instance_uid: str) -> None:
    """Open a closed study: what closed it does not hold any more."""
    await tx.execute(
        "update studies set status = 'receiving', reconsider = false"
        " where study_instance_uid = $1",
        study_instance_uid,
    )


async def verdict_on(tx: "Transaction", study_instance_uid: str) -> Verdict | None:
    """Return why the study was closed last; None while it never was."""
    detail = await tx.fetchval(
        "select evidence_detail from studies where study_instance_uid = $1",
        study_instance_uid,
    )
    return _verdict(detail)


async def images_beyond_report(
    tx: "Transaction", study_instance_uid: str
) -> tuple[int, int]:
    """Return how many images came since the report was last written, and how many all.

    None count as new where nobody noted what the report was written on.
    """
    row = await tx.fetchrow(
        "select report_images, (select count(*) from instances i where"
        "  i.study_instance_uid = s.study_instance_uid and i.origin = 'received')"
        "  as images from studies s where study_instance_uid = $1",
        study_instance_uid,
    )
    if row is None or row["report_images"] is None:
        return 0, 0 if row is None else row["images"]
    return row["images"] - row["report_images"], row["images"]


async def take_note(
    tx: "Transaction", study_instance_uid: str, images: int | None = None
) -> None:
    """Note that the report takes so many images into account, or all that are here."""
    await tx.execute(
        "update studies s set report_images = coalesce($2, (select count(*)"
        "  from instances i where i.study_instance_uid = s.study_instance_uid"
        "  and i.origin = 'received')) where study_instance_uid = $1",
        study_instance_uid,
        images,
    )


async def discontinued_studies(
    tx: "Transaction", since: datetime
) -> list[tuple[str, datetime, Verdict]]:
    """Return studies that were closed as discontinued since then, newest first."""
    rows = await tx.fetch(
        "select study_instance_uid, closed_at, evidence_detail from studies"
        " where status = 'discontinued' and closed_at >= $1"
        " order by closed_at desc limit 200",
        since,
    )
    return [
        (row["study_instance_uid"], row["closed_at"], verdict)
        for row in rows
        if (verdict := _verdict(row["evidence_detail"])) is not None
    ]


def _verdict(detail: Any) -> Verdict | None:
    return None if detail is None else verdict_from_json(json.loads(detail))


def _to_text(verdict: Verdict) -> str:
    return json.dumps(verdict_to_json(verdict))
