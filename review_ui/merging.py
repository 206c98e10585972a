"""Serves two rows of patients side by side: /review/reconciliation/rows.

Names and numbers in full, as on the rest of the page; every look is audited.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from node.domain.access import Action
from node.domain.errors import ErrorKind, NodeError
from node.domain.study import PatientIdentity
from node.http import STORE, identity, read_json_object
from node.workflow.merging import (
    BothRows,
    Row,
    Said,
    compare_rows,
    keep_apart,
    merge_rows,
    read_said,
    take_apart,
)


def routes(prefix: str) -> list[web.RouteDef]:
    """Return the routes below the page's `prefix`."""
    both: Final = prefix + "/rows/{lost}/{kept}"
    return [
        web.get(f"{prefix}/rows", read_decisions),
        web.get(both, read_both),
        web.post(f"{both}/merge", _act(merge_rows)),
        web.post(f"{both}/unmerge", _act(take_apart)),
        web.post(f"{both}/different", _act(keep_apart)),
    ]


async def read_decisions(request: web.Request) -> web.Response:
    """Answer what people have said of two rows and still counts."""
    said = await read_said(request.app[STORE], identity(request))
    return web.json_response({"said": [_said(one) for one in said]})


async def read_both(request: web.Request) -> web.Response:
    """Answer two rows side by side."""
    caller, store = identity(request), request.app[STORE]
    caller.require(Action.RECONCILE)
    lost, kept = _rows(request)
    async with store.db.transaction() as tx:
        return web.json_response(_both(await compare_rows(store, tx, lost, kept)))


def _act(
    what: Callable[..., Awaitable[None]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of an act: its body has `reason` and what was `seen`."""

    async def handler(request: web.Request) -> web.Response:
        # Before the body is read: who may not learns nothing from its faults.
        identity(request).require(Action.RECONCILE)
        told = await read_json_object(request)
        lost, kept = _rows(request)
        await what(
            request.app[STORE],
            lost,
            kept,
            identity=identity(request),
            reason=_text(told, "reason"),
            seen=_text(told, "seen"),
        )
        return await read_both(request)

    return handler


def _rows(request: web.Request) -> tuple[UUID, UUID]:
    try:
        return UUID(request.match_info["lost"]), UUID(request.match_info["kept"])
    except ValueError:
        raise NodeError("there is no such patient", ErrorKind.NOT_FOUND) from None


def _text(told: dict[str, Any], name: str) -> str:
    value = told.get(name, "")
    if not isinstance(value, str):
        raise NodeError(f"{name} is no text", ErrorKind.INVALID, expression=name)
    return value


def _both(shown: BothRows) -> dict[str, Any]:
    return {
        "seen": shown.seen,
        "rows": [_row(shown.one), _row(shown.other)],
        "merged": None if shown.merged is None else str(shown.merged),
        "differs": list(shown.differs),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": str(row.patient_id),
        "patient": patient_words(row.identity),
        "studies": row.studies,
        "named_by_ehr": row.named_by_ehr,
        "others": [one.patient_id for one in row.others],
    }


def _said(one: Said) -> dict[str, Any]:
    decision = one.decision
    return {
        "ids": [str(decision.lost), str(decision.kept)],
        "patients": [patient_words(one.lost), patient_words(one.kept)],
        "verdict": decision.verdict.value,
        "at": decision.at.isoformat(),
        "reason": decision.reason,
    }


def patient_words(told: PatientIdentity) -> dict[str, Any]:
    """Return who a patient is, as the page shows her."""
    return {
        "patient_id": told.patient_id,
        "issuer": told.issuer,
        "name": told.name,
        "birth_date": None if told.birth_date is None else told.birth_date.isoformat(),
        "sex": told.sex,
    }
