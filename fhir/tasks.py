"""Work that failed, shown as Task resources; setting one to `requested` retries it.

Tasks are a projection of the job queue: nothing of them is stored.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from fhir.wire import Json, as_list, instant
from node.domain.errors import ErrorKind, NodeError
from node.store import reports
from node.store.jobs import DeadLetter

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store

_LIMIT = 200
_WORDS = {
    "assess_study": "AI reading of a study",
    "publish_report": "Publication of the AI draft",
    "encode_report": "Structured Report and heat map",
    "send_instance": "Sending to the archive",
    "deliver_notifications": "Notification of a subscriber",
    "offer_binding": "Activation of a QR code",
}


async def failed_tasks(tx: "Transaction", store: "Store") -> list[Json]:
    """Return a Task for every job that ended without success, newest first."""
    letters = await store.jobs.dead(tx, _LIMIT)
    return [await _to_task(tx, store, letter) for letter in letters]


async def failed_task(tx: "Transaction", store: "Store", task_id: str) -> Json:
    """Return the Task of one failed job; NOT_FOUND when it is not among them."""
    for letter in await store.jobs.dead(tx, _LIMIT):
        if str(letter.id) == task_id:
            return await _to_task(tx, store, letter)
    raise NodeError(f"Task/{task_id} is not known", ErrorKind.NOT_FOUND)


async def retry_task(
    tx: "Transaction", store: "Store", task_id: str, wanted: Json
) -> Json:
    """Have a failed job done again; return its Task, now `requested`.

    RULE for any other change: what happens to a job is not a client's to say.
    """
    task = await failed_task(tx, store, task_id)
    if wanted.get("status") != "requested":
        raise NodeError(
            "a Task can only be set to requested, which tries it again",
            ErrorKind.RULE,
            expression="Task.status",
        )
    await store.jobs.replay(tx, UUID(task_id))
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
        "description": _WORDS.get(letter.kind, letter.kind),
        "lastModified": instant(letter.at),
    }
    if letter.error:
        task["statusReason"] = {"text": letter.error}
    focus = await _focus(tx, store, letter)
    if focus is not None:
        task["focus"] = {"reference": focus}
    return task


async def _focus(tx: "Transaction", store: "Store", letter: DeadLetter) -> str | None:
    study = letter.payload.get("study_instance_uid")
    if study is None and "report_id" in letter.payload:
        try:
            report_id = UUID(str(letter.payload["report_id"]))
            study = (await reports.read(tx, store, report_id)).study_instance_uid
        except NodeError:
            return None  # the patient was erased; the failure is still shown
    return None if study is None else f"ImagingStudy/{study}"


def search_tasks(tasks: list[Json], statuses: list[str], base_url: str) -> Json:
    """Return the searchset of the Tasks that have one of `statuses`; none asks all."""
    found = [t for t in tasks if not statuses or t["status"] in statuses]
    bundle: Json = {
        "resourceType": "Bundle",
        "type": "searchset",
        "total": len(found),
        "link": [{"relation": "self", "url": f"{base_url}/Task"}],
    }
    if found:
        bundle["entry"] = [
            {
                "fullUrl": f"{base_url}/Task/{task['id']}",
                "resource": task,
                "search": {"mode": "match"},
            }
            for task in as_list(found)
        ]
    return bundle
