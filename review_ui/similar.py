"""Answers which confirmed cases of the archive look like a lesion, and takes outcomes.

Whoever compares sees of another woman: category, month, outcome, likeness, and the
tissue around her lesion. No name, number, date or UID; the report behind a case is
named only to those who may open it.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from types import MappingProxyType
from typing import Any
from uuid import UUID

from aiohttp import web
from PIL import Image
from pydicom.dataset import Dataset

from node.domain.access import Action, Identity
from node.domain.audit import AuditEntry
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Lesion, PixelBox
from node.domain.outcome import (
    CaseOutcome,
    Method,
    RecordedOutcome,
    outcome_of_lesion,
)
from node.domain.report import Report
from node.domain.study import UltrasoundRegion
from node.http import STORE, RouteGroup, identity, read_json_object
from node.imaging import Pixels, StoredImage, ultrasound_regions
from node.store import audit, cases, reports, studies
from node.store.cases import SimilarCase
from node.store.database import Transaction
from node.store.store import Store
from node.store.studies import StoredInstance

SHOWN = 3
MARGIN = 0.3
"""Share of the box's longer side that a picture shows around the lesion."""

LARGEST_SIDE = 320
_IMAGES_AT_A_TIME = 2
_QUALITY = 88


def route_group() -> RouteGroup:
    """Return the routes under /review that compare cases."""
    pictures = _Pictures()
    return RouteGroup(
        prefix="/review",
        routes=[
            web.get("/review/similar/{report_id}", similar_cases),
            web.get("/review/similar/cases/{case_id}/image", pictures.image),
            web.post("/review/outcomes", record_outcome),
        ],
    )


async def similar_cases(request: web.Request) -> web.Response:
    """Answer the confirmed cases most like lesion `?lesion=` (from 1) of a report."""
    caller = identity(request)
    caller.require(Action.COMPARE_CASES)
    store, report_id = request.app[STORE], _uuid(request, "report_id")
    async with store.db.transaction() as tx:
        report = await reports.read(tx, store, report_id)
        lesion = _chosen(report, request.query.get("lesion", "1"))
        if lesion is None:
            return web.json_response(
                {"cases": [], "fewer": "no_lesion", "outcome": None}
            )
        found = await cases.similar(tx, report_id, lesion.tracking_uid, limit=SHOWN)
        rows = [
            row
            for place, one in enumerate(found or (), 1)
            if (row := await _told(tx, store, caller, place, one)) is not None
        ]
        outcome = await _outcome(tx, report, lesion)
        detail = {"cases": " ".join(str(one.case.report_id) for one in found or ())}
        entity = f"report/{report_id}"
        await _record(store, tx, caller, "compare cases", entity, detail)
    fewer = "not_kept" if found is None else "few" if len(rows) < SHOWN else None
    return web.json_response({"cases": rows, "fewer": fewer, "outcome": outcome})


async def _told(
    tx: Transaction, store: Store, caller: Identity, place: int, similar: SimilarCase
) -> dict[str, Any] | None:
    """Return what may be seen of a case; None when it was erased this moment."""
    case = similar.case
    try:
        report = await reports.read(tx, store, case.report_id)
        lesion = _lesion(report, case.tracking_uid)
    except NodeError as error:
        if error.kind in {ErrorKind.GONE, ErrorKind.NOT_FOUND}:
            return None
        raise
    shown = lesion.image is not None and lesion.box is not None
    return {
        "place": place,
        "category": lesion.category or report.current.findings.category,
        "signed_on": f"{report.current.at:%Y-%m}",
        "outcome": await _outcome(tx, report, lesion),
        "similarity": round(similar.similarity, 3),
        "image": f"/review/similar/cases/{case.case_id}/image" if shown else None,
        "report": str(report.id) if caller.may(Action.READ_REPORT) else None,
    }


async def _outcome(
    tx: Transaction, report: Report, lesion: Lesion
) -> dict[str, Any] | None:
    known = outcome_of_lesion(
        lesion.tracking_uid,
        len(report.current.findings.lesions),
        await cases.outcomes(tx, report.id),
    )
    if known is None:
        return None
    return {"outcome": known.outcome, "method": known.method}


def _chosen(report: Report, number: str) -> Lesion | None:
    """Return the lesion with this number; None when the report has none at all."""
    lesions = report.current.findings.lesions
    if not lesions:
        return None
    if (
        not number.isascii()
        or not number.isdigit()
        or not 0 < int(number) <= len(lesions)
    ):
        raise NodeError(
            f"the report has lesions 1 to {len(lesions)}",
            ErrorKind.INVALID,
            expression="lesion",
        )
    return lesions[int(number) - 1]


def _lesion(report: Report, tracking_uid: str) -> Lesion:
    for lesion in report.current.findings.lesions:
        if lesion.tracking_uid == tracking_uid:
            return lesion
    raise NodeError("there is no such confirmed case", ErrorKind.NOT_FOUND)


def _uuid(request: web.Request, key: str) -> UUID:
    try:
        return UUID(request.match_info[key])
    except ValueError:
        raise NodeError(
            "nothing is stored under this id", ErrorKind.NOT_FOUND
        ) from None


async def _record(
    store: Store,
    tx: Transaction,
    caller: Identity,
    action: str,
    entity: str,
    detail: Mapping[str, str] = MappingProxyType({}),
) -> None:
    await audit.record(
        tx,
        AuditEntry(
            at=store.clock(),
            actor=caller.user_id,
            role=",".join(sorted(role.value for role in caller.roles)),
            action=action,
            entity=entity,
            detail=detail,
        ),
    )


# --- the picture of a case ---------------------------------------------------------


class _Pictures:
    """Renders lesions of confirmed cases, a few at a time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_IMAGES_AT_A_TIME)

    async def image(self, request: web.Request) -> web.Response:
        """Answer the tissue around the lesion of a confirmed case as a JPEG."""
        caller = identity(request)
        caller.require(Action.COMPARE_CASES)
        caller.require(Action.READ_IMAGE)
        store, case_id = request.app[STORE], _uuid(request, "case_id")
        async with store.db.transaction() as tx:
            case = await cases.confirmed_case(tx, case_id)
            report = await reports.read(tx, store, case.report_id)
            lesion = _lesion(report, case.tracking_uid)
            instance = await _instance(tx, store, lesion)
            entity = f"report/{report.id}"
            await _record(store, tx, caller, "read image of confirmed case", entity)
        async with self._free:
            body = await asyncio.to_thread(_picture, store, instance, lesion)
        return web.Response(body=body, content_type="image/jpeg")


async def _instance(tx: Transaction, store: Store, lesion: Lesion) -> StoredInstance:
    found = None
    if lesion.image is not None and lesion.box is not None:
        found = await studies.instance(tx, store, lesion.image.sop_instance_uid)
    if found is None:
        raise NodeError("this case has no picture", ErrorKind.NOT_FOUND)
    return found


def _picture(store: Store, instance: StoredInstance, lesion: Lesion) -> bytes:
    assert lesion.image is not None  # noqa: S101
    assert lesion.box is not None  # noqa: S101
    header = Dataset.from_json(json.loads(instance.metadata))
    with studies.open_blob(store, instance) as blob:
        stored = StoredImage(
            blob,
            header=header,
            frames=instance.frame_table,
            transfer_syntax_uid=instance.transfer_syntax_uid,
        )
        pixels = stored.frame(lesion.image.frame - 1)
    area = shown_area(lesion.box, ultrasound_regions(header), pixels)
    image = Image.fromarray(pixels[area.y0 : area.y1, area.x0 : area.x1])
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def shown_area(
    box: PixelBox, regions: Sequence[UltrasoundRegion], pixels: Pixels
) -> PixelBox:
    """Return the part of a frame that shows a lesion and no border of the screen.

    Names are burned in around the tissue: some of it is shown around the lesion only
    as far as one region of the header reaches. Without a region that fits the frame
    the box itself is all that is shown.
    """
    rows, columns = pixels.shape[:2]
    inner = PixelBox(
        min(box.x0, columns - 1),
        min(box.y0, rows - 1),
        min(box.x1, columns),
        min(box.y1, rows),
    )
    for region in regions:
        fits = region.x0 >= 0 and region.x1 < columns
        fits = fits and region.y0 >= 0 and region.y1 < rows
        holds = region.x0 <= inner.x0 and inner.x1 <= region.x1 + 1
        holds = holds and region.y0 <= inner.y0 and inner.y1 <= region.y1 + 1
        if fits and holds:
            return _grown(inner, region)
    return inner


def _grown(box: PixelBox, region: UltrasoundRegion) -> PixelBox:
    width, height = box.x1 - box.x0, box.y1 - box.y0
    side = round(max(width, height) * (1 + 2 * MARGIN))
    left, top = box.x0 - (side - width) // 2, box.y0 - (side - height) // 2
    return PixelBox(
        max(region.x0, left),
        max(region.y0, top),
        min(region.x1 + 1, left + side),
        min(region.y1 + 1, top + side),
    )


# --- outcomes ----------------------------------------------------------------------


async def record_outcome(request: web.Request) -> web.Response:
    """Keep how a signed case ended: of one lesion (from 1), or of the examination.

    `outcome` null takes back what was said before.
    """
    caller = identity(request)
    caller.require(Action.RECORD_OUTCOME)
    store, body = request.app[STORE], await read_json_object(request)
    outcome = _one_of(CaseOutcome, body, "outcome")
    method = _one_of(Method, body, "method")
    if (outcome is None) != (method is None):
        raise NodeError(
            "an outcome is known by biopsy or by follow-up",
            ErrorKind.INVALID,
            expression="method",
        )
    report_id, number = _report_id(body), body.get("lesion")
    async with store.db.transaction() as tx:
        report = await reports.read_for_update(tx, store, report_id)
        if not report.current.signed:
            raise NodeError("outcomes belong to signed reports", ErrorKind.RULE)
        lesion = None if number is None else _chosen(report, str(number))
        entry = RecordedOutcome(
            lesion.tracking_uid if lesion else None,
            outcome,
            method,
            store.clock(),
            caller.user_id,
        )
        await cases.record_outcome(tx, report, entry)
        await _record(store, tx, caller, "record outcome", f"report/{report_id}")
    return web.json_response({"outcome": outcome, "method": method}, status=201)


def _report_id(body: dict[str, Any]) -> UUID:
    try:
        return UUID(str(body.get("report")))
    except ValueError:
        raise NodeError(
            "report is the id of a report", ErrorKind.INVALID, expression="report"
        ) from None


def _one_of(kind: Any, body: dict[str, Any], key: str) -> Any:
    value = body.get(key)
    if value is None:
        return None
    try:
        return kind(value)
    except ValueError:
        words = ", ".join(member.value for member in kind)
        raise NodeError(
            f"{key} is one of {words}", ErrorKind.INVALID, expression=key
        ) from None
