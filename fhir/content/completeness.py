"""What a report says of the completeness of its study, as extensions.

It says whether all images had come, and what told so; one on which a physician has
worked says so too when images came since, and what the algorithm makes of them.
"""

from typing import TYPE_CHECKING

from fhir.content import concepts
from fhir.encoding.wire import Json, as_list, extensions
from node.domain.completion import Verdict, Words, words_of
from node.domain.report import Report
from node.store import completion, reports, studies

if TYPE_CHECKING:
    from node.store.database import Transaction
    from node.store.store import Store


async def extensions_of(
    tx: "Transaction", store: "Store", report: Report
) -> list[Json]:
    """Return what a DiagnosticReport says of the completeness of its study."""
    uid = report.study_instance_uid
    verdict = await completion.verdict_on(tx, uid)
    told = [] if verdict is None else [completeness(verdict)]
    if report.physician_has_written:
        late, total = await completion.images_beyond_report(tx, uid)
        if late:
            words = await _late_words(tx, store, report, late)
            told.append(_late_images(late, total, words))
    return told


def completeness(verdict: Verdict) -> Json:
    """Return the extension that says whether a study is whole, and on whose word."""
    state = "incomplete" if verdict.incomplete else "complete"
    return {
        "url": concepts.STUDY_COMPLETENESS,
        "extension": [
            {
                "url": "state",
                "valueCode": "discontinued" if verdict.discontinued else state,
            },
            {"url": "evidence", "valueCode": verdict.kind.value},
            _in_words(words_of(verdict)),
        ],
    }


def images_taken_note_of(diagnostic_report: Json) -> int | None:
    """Return how many images the reader of this resource knew of; None: not told."""
    for extension in extensions(diagnostic_report, concepts.LATE_IMAGES):
        for part in as_list(extension.get("extension")):
            if part.get("url") == "total":
                return int(part["valueUnsignedInt"])
    return None


def without_late_images(diagnostic_report: Json) -> None:
    """Take out what told of late images: the version that is written knows of them."""
    kept = [
        extension
        for extension in as_list(diagnostic_report.pop("extension", None))
        if extension.get("url") != concepts.LATE_IMAGES
    ]
    if kept:
        diagnostic_report["extension"] = kept


def _late_images(late: int, total: int, words: Words) -> Json:
    return {
        "url": concepts.LATE_IMAGES,
        "extension": [
            {"url": "count", "valueUnsignedInt": late},
            {"url": "total", "valueUnsignedInt": total},
            _in_words(words),
        ],
    }


async def _late_words(
    tx: "Transaction", store: "Store", report: Report, late: int
) -> Words:
    signed = report.last_signed() is not None
    zh = f"{'签发' if signed else '修改'}后收到 {late} 幅新图像"
    noun = "image" if late == 1 else "images"
    en = f"{late} new {noun} after {'signature' if signed else 'the last edit'}"
    study = await studies.study(tx, report.study_instance_uid)
    proposal = await reports.newest_proposal(tx, store, report.id)
    if study is None or proposal is None or proposal.number != study.generation:
        return Words(f"{zh}；AI 尚未重新判读", f"{en}; not yet read by the AI")
    findings = proposal.findings
    if findings.category is None:
        return Words(f"{zh}；AI 未给出分类", f"{en}; the AI gives no category")
    grade = f"BI-RADS {findings.category}"
    if findings.probability is not None:
        grade += f" ({findings.probability})"
    return Words(
        f"{zh}；AI 重新判读全部图像：{grade}",
        f"{en}; the AI reads all images as {grade}",
    )


def _in_words(words: Words) -> Json:
    return {
        "url": "words",
        "valueString": words.zh,
        "_valueString": {"extension": [concepts.translation("en", words.en)]},
    }
