"""Work that failed, shown as Task resources; setting one to `requested` retries it.

Tasks are a projection of the job queue: nothing of them is stored.
"""

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from fhir.conformance.profiles import with_profile
from fhir.content import concepts
from fhir.encoding.outcome import Issue, outcome
from fhir.encoding.wire import Json, instant
from fhir.search.parameters import UnknownParameter
from node.domain.access import Identity
from node.domain.audit import AuditEntry
from node.domain.completion import words_of
from node.domain.errors import ErrorKind, NodeError
from node.store import audit, completion, reports
from node.store.jobs import DeadLetter
from node.workflow.completion import ASSESS_STUDY, read_discontinued

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_LIMIT = 200
_SHOWN_FOR = timedelta(days=7)
_DISCONTINUED = UUID("4f0a6a2e-8f2b-5f4c-9e1d-6b1f3f0c7a12")
# Work that no doctor waits for, or knows of: an engineer sees it in `doctor`.
_UNSEEN = frozenset({"assess_shadow", "export_resources"})
# What did not happen, in the words of a department: Chinese, English.
_WORDS = {
    "assess_study": ("AI 阅片未完成", "The AI reading was not completed"),
    "publish_report": ("AI 初稿未能发布", "The AI draft was not published"),
    "encode_report": ("结构化报告未能生成", "The Structured Report was not written"),
    "send_instance": ("结果未能送达 PACS", "A result did not reach the archive"),
    "store_report": (
        "报告未能送达报告库",
        "A report did not reach a repository",
    ),
    "redeliver_instance": (
        "PACS 未确认保存结果",
        "An archive did not commit itself to a result",
    ),
    "request_commitment": (
        "未能向 PACS 请求存储确认",
        "An archive was not asked to commit itself",
    ),
    "report_commitment": (
        "存储确认未能送达设备",
        "A machine did not get its storage commitment report",
    ),
    "offer_binding": ("二维码未能启用", "A QR code was not activated"),
}
_CAUSES_ZH = (
    (
        re.compile(r"its process died (\d+) times; see the log"),
        r"处理进程 \1 次意外终止，详见日志",
    ),
    (re.compile(r"unforeseen (\w+); see the log"), r"意外错误 \1，详见日志"),
    (
        re.compile(r"does not know the calling AE title ([^:]+):.*"),
        r"不认识主叫 AE \1，请在对方登记该名称和本机地址",
    ),
    (
        re.compile(r"does not go by the AE title ([^:]+):.*"),
        r"的 AE 名称不是 \1，请改正设置",
    ),
    (re.compile(r"does not answer.*"), "没有应答"),
    (re.compile(r"did not confirm in time.*|broke the association"), "未确认收到"),
    (re.compile(r"is out of resources"), "存储空间不足"),
    (re.compile(r"does not allow us to store"), "不允许存储"),
    (
        re.compile(r"takes (no|neither) .*|does not take this class of object"),
        "不接收此类对象，请用 doctor pacs 检查",
    ),
    (re.compile(r"cannot understand the object"), "无法识别该对象"),
    (re.compile(r"^the settings no longer have this .*"), "设置中已没有此目的地"),
    (re.compile(r"does not know the patient, or is .*"), "不认识该患者，或地址不对"),
    (re.compile(r"refuses the report as not valid"), "认为报告无效，未接收"),
    (re.compile(r"^archive (\S+) at (\S+) "), r"归档 \1（\2）"),
    (re.compile(r"^repository (\S+) at (\S+) "), r"报告库 \1（\2）"),
)


async def failed_tasks(tx: "Transaction", store: "Store") -> list[Json]:
    """Return a Task for every job that ended without success, newest first.

    After them one, `cancelled`, for every examination of the last days that was
    broken off at its machine and therefore was not read.
    """
    letters = await store.jobs.dead(tx, _LIMIT)
    failed = [
        await _to_task(tx, store, letter)
        for letter in letters
        if letter.kind not in _UNSEEN
    ]
    return [*failed, *await _discontinued_tasks(tx, store)]


async def failed_task(tx: "Transaction", store: "Store", task_id: str) -> Json:
    """Return one of `failed_tasks`; NOT_FOUND when it is not among them."""
    for letter in await store.jobs.dead(tx, _LIMIT):
        if str(letter.id) == task_id and letter.kind not in _UNSEEN:
            return await _to_task(tx, store, letter)
    for task in await _discontinued_tasks(tx, store):
        if task["id"] == task_id:
            return task
    raise NodeError(f"Task/{task_id} is not known", ErrorKind.NOT_FOUND)


async def retry_task(
    tx: "Transaction", store: "Store", caller: Identity, task_id: str, wanted: Json
) -> Json:
    """Have a failed job done again, audited; return its Task, now `requested`.

    A discontinued examination is read all the same, where somebody wants that.
    RULE for any other change: what happens to a job is not a client's to say.
    """
    task = await failed_task(tx, store, task_id)
    if wanted.get("status") != "requested":
        raise NodeError(
            "a Task can only be set to requested, which tries it again",
            ErrorKind.RULE,
            expression="Task.status",
        )
    if task["status"] == "cancelled":
        study = str(task["focus"]["reference"]).removeprefix("ImagingStudy/")
        await read_discontinued(tx, store, study)
    else:
        await store.jobs.replay(tx, UUID(task_id))
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=caller.user_id,
            role=",".join(sorted(role.value for role in caller.roles)),
            action="work-retry",
            entity=f"job/{task_id}",
            detail={"kind": task["code"]["text"]},
        ),
    )
    task.pop("statusReason", None)
    return {**task, "status": "requested"}


async def _to_task(tx: "Transaction", store: "Store", letter: DeadLetter) -> Json:
    task: Json = {
        "resourceType": "Task",
        "id": str(letter.id),
        "meta": {"lastUpdated": instant(letter.at)},
        "status": "failed",
        "intent": "order",
        "code": {"text": letter.kind},
        "lastModified": instant(letter.at),
        "statusReason": _reason(letter),
    }
    focus = await _focus(tx, store, letter)
    if focus is not None:
        task["focus"] = {"reference": focus}
    return with_profile(task)


async def _discontinued_tasks(tx: "Transaction", store: "Store") -> list[Json]:
    since = store.clock() - _SHOWN_FOR
    return [
        with_profile(
            {
                "resourceType": "Task",
                "id": str(uuid5(_DISCONTINUED, study)),
                "meta": {"lastUpdated": instant(at)},
                "status": "cancelled",
                "intent": "order",
                "code": {"text": ASSESS_STUDY},
                "lastModified": instant(at),
                "statusReason": {
                    "text": f"Not read by the AI: {words_of(verdict).en}",
                    "_text": {
                        "extension": [
                            concepts.translation(
                                "zh-CN", f"AI 未判读：{words_of(verdict).zh}"
                            )
                        ]
                    },
                },
                "focus": {"reference": f"ImagingStudy/{study}"},
            }
        )
        for study, at, verdict in await completion.discontinued_studies(tx, since)
    ]


def _reason(letter: DeadLetter) -> Json:
    """Return what did not happen and why, in English with a Chinese translation."""
    zh, en = _WORDS.get(letter.kind, (letter.kind, letter.kind))
    cause = cause_zh = letter.error
    for pattern, words in _CAUSES_ZH:
        cause_zh = pattern.sub(words, cause_zh)
    translation = concepts.translation("zh-CN", f"{zh}：{cause_zh}" if cause else zh)
    return {
        "text": f"{en}: {cause}" if cause else en,
        "_text": {"extension": [translation]},
    }


async def _focus(tx: "Transaction", store: "Store", letter: DeadLetter) -> str | None:
    study = letter.payload.get("study_instance_uid")
    if study is None and "report_id" in letter.payload:
        try:
            report_id = UUID(str(letter.payload["report_id"]))
            study = (await reports.read(tx, store, report_id)).study_instance_uid
        except NodeError:
            return None  # the patient was erased; the failure is still shown
    return None if study is None else f"ImagingStudy/{study}"


def search_tasks(
    tasks: list[Json],
    parameters: Sequence[tuple[str, str]],
    base_url: str,
    *,
    strict: bool,
) -> Json:
    """Return the searchset of the Tasks with one of the asked status and _id.

    Other parameters are told as ignored, or refused when handling is `strict`.
    """
    found, ignored = tasks, []
    for name, value in parameters:
        if name == "status":
            found = [task for task in found if task["status"] in value.split(",")]
        elif name == "_id":
            found = [task for task in found if task["id"] in value.split(",")]
        elif name not in ("_count", "_format", "_pretty"):
            fault = UnknownParameter(name, "Task")
            if strict:
                raise fault
            ignored.append(Issue("not-supported", fault.message, severity="warning"))
    bundle: Json = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": len(found),
        "link": [{"relation": "self", "url": f"{base_url}/Task"}],
    }
    entries = [
        {
            "fullUrl": f"{base_url}/Task/{task['id']}",
            "resource": task,
            "search": {"mode": "match"},
        }
        for task in found[: _page_of(parameters)]
    ]
    if ignored:
        entries.append({"resource": outcome(ignored), "search": {"mode": "outcome"}})
    return {**bundle, "entry": entries} if entries else bundle


def _page_of(parameters: Sequence[tuple[str, str]]) -> int:
    counts = [value for name, value in parameters if name == "_count"]
    return int(counts[0]) if counts and counts[0].isdecimal() else _LIMIT
