"""What a signed report says to people: its words and tables, on paper and on a page.

One version gives one content: the PDF (`report_pdf`) and the page for browsers
(`report_html`) show the same, so neither says what the other does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final

from pydicom.dataset import Dataset

from dicom_scp.receiving.intake import patient_identity
from dicom_scp.results.figures import Figure
from dicom_scp.results.sr import (
    VERIFIED_SR,
    Equipment,
    complete_header,
    person_name,
)
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.finding import Lesion
from node.domain.lexicon import Concept, FieldKey
from node.domain.report import AuthorKind, Report, ReportStatus, ReportVersion
from node.domain.uids import result_uid

_ABSENT: Final = "—"
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")

# What stands around the terms of the lexicon: 中文, English.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "title": ("乳腺超声检查报告", "Breast ultrasound report"),
    "name": ("姓名", "Name"),
    "sex": ("性别", "Sex"),
    "born": ("出生日期", "Date of birth"),
    "age": ("{years} 岁", "{years} years"),
    "patient_id": ("患者编号", "Patient ID"),
    "accession": ("检查号", "Accession number"),
    "examined": ("检查时间", "Examined"),
    "examination": ("检查项目", "Examination"),
    "referred": ("申请医师", "Referred by"),
    "assessment": ("总体评估", "Overall assessment"),
    "impression": ("诊断意见", "Impression"),
    "advice": ("建议", "Recommendations"),
    "lesion": ("病灶 {number}", "Lesion {number}"),
    "place": ("部位", "Site"),
    "distance": ("距乳头 {mm} mm", "{mm} mm from the nipple"),
    "size": ("最大径", "Longest"),
    "axes": ("宽 × 高 × 第三径", "Width × height × third axis"),
    "no_lesion": ("本次检查未描述病灶。", "No lesion is described."),
    "open_image": ("打开整幅图像", "Open the whole image"),
    "no_figure": ("无可显示的图像", "No image can be shown"),
    "figure": ("病灶 {number}", "Lesion {number}"),
    "image": ("图像 {image}", "image {image}"),
    "frame": ("第 {frame} 帧", "frame {frame}"),
    "outline": ("黄线：AI 勾画的轮廓", "yellow line: outline drawn by AI"),
    "box": ("虚线：AI 标出的范围", "dashed line: place marked by AI"),
    "scale_bar": ("标尺 {mm} mm", "bar: {mm} mm"),
    "heat_map": (
        "AI 热力图：提示 AI 关注的区域，非诊断依据，不可测量",
        "AI heat map: where the AI looked; not for diagnosis or measurement",
    ),
    "signed_by": ("签发医师", "Signed by"),
    "signed_at": ("签发时间", "Signed"),
    "version": ("报告版本", "Report version"),
    "document": ("DICOM 报告", "DICOM report"),
    "assistance": (
        "AI 辅助：初稿由 {algorithm} 起草；内容由签发医师审阅并负责。",
        "AI assistance: drafted by {algorithm}; the signing physician has reviewed the"
        " content and answers for it.",
    ),
    "electronic": (
        "本报告为电子签发，以 DICOM 存档中的最新版本为准。",
        "Signed electronically; the newest version in the archive is the valid one.",
    ),
    "replaces": (
        "替代 {at} 签发的第 {number} 版。",
        "Replaces version {number}, signed {at}.",
    ),
    "reason": ("原因", "Reason"),
    "page": ("第 {page} 页，共 {pages} 页", "Page {page} of {pages}"),
}
_CHANGED: Final = {
    ReportStatus.AMENDED: ("修订报告", "Amended report"),
    ReportStatus.CORRECTED: ("更正报告", "Corrected report"),
    ReportStatus.APPENDED: ("补充报告", "Report with addendum"),
}
_SEX: Final = {"F": ("女", "Female"), "M": ("男", "Male"), "O": ("其他", "Other")}


@dataclass(frozen=True)
class Languages:
    """In what a report is printed: one language, or both with `first` before the other.

    `first` is a key of `lexicon.LANGUAGES`.
    """

    first: str
    both: bool = False

    def label(self, words: tuple[str, str], **values: object) -> tuple[str, str]:
        """Return words that stand before something: in `first`, then in the other."""
        zh, en = (text.format(**values) for text in words)
        first, other = (zh, en) if self.first == "zh-CN" else (en, zh)
        return first, other if self.both and other != first else ""

    def text(self, words: tuple[str, str], **values: object) -> str:
        """Return words that stand for themselves."""
        return " ".join(filter(None, self.label(words, **values)))

    def term(self, concept: Concept) -> str:
        """Return a term of the lexicon."""
        return self.text((concept.zh, concept.en))


def content_of(
    report: Report,
    version: ReportVersion,
    header: Dataset,
    figures: Mapping[str, Figure],
    *,
    equipment: Equipment,
    both_languages: bool = False,
) -> dict[str, Any]:
    """Return all that a signed version says, without control characters.

    `header` is the Unicode header of an image of the study, `figures` the pictures of
    lesions by tracking UID. RULE for what nobody has signed.
    """
    if not version.signed or version.author.kind is not AuthorKind.PHYSICIAN:
        raise NodeError("only a signed version is printed", ErrorKind.RULE)
    languages = Languages(equipment.language, both_languages)
    page = _Page(report, version, header, languages, equipment)
    said: dict[str, Any] = _printable(page.content(figures))
    return said


def title_of(equipment: Equipment) -> str:
    """Return what a report is called in the language of the site."""
    return Languages(equipment.language).text(_WORDS["title"])


@dataclass(frozen=True)
class _Page:
    report: Report
    version: ReportVersion
    header: Dataset
    languages: Languages
    equipment: Equipment

    def content(self, figures: Mapping[str, Figure]) -> dict[str, Any]:
        """Return what is said, in the order in which it is shown."""
        lesions = self.version.findings.lesions
        return {
            "language": self.languages.first.partition("-")[0],
            # Shown in title bars and lists of files: no name in it.
            "title": self._text("title"),
            "institution": self.equipment.institution_name,
            "date": [*self.version.at.astimezone(UTC).timetuple()[:6]],
            "heading": self._label("title"),
            "change": self._change(),
            "patient": self._patient(),
            "category": self._category(),
            "texts": self._texts(),
            "lesions": [
                self._lesion(number, lesion, figures.get(lesion.tracking_uid))
                for number, lesion in enumerate(lesions, start=1)
            ],
            "no_lesion": self._text("no_lesion"),
            "signature": self._signature(),
            "assistance": self._assistance(),
            "footer": self._footer(),
            "page_of": self._text("page", page="{page}", pages="{pages}"),
        }

    def _label(self, key: str, **values: object) -> tuple[str, str]:
        return self.languages.label(_WORDS[key], **values)

    def _text(self, key: str, **values: object) -> str:
        return self.languages.text(_WORDS[key], **values)

    def _at(self, moment: datetime) -> str:
        offset = self.equipment.timezone_offset
        return (
            f"{self.equipment.local(moment):%Y-%m-%d %H:%M}"
            f" (UTC{offset[:3]}:{offset[3:]})"
        )

    def _change(self) -> dict[str, Any] | None:
        version = self.version
        before = self.report.last_signed(before=version.number)
        if before is None:
            return None
        return {
            "label": self.languages.label(_CHANGED[version.status]),
            "replaces": self._text(
                "replaces", number=before.number, at=self._at(before.at)
            ),
            "reason": (self._label("reason"), version.reason)
            if version.reason
            else None,
        }

    def _patient(self) -> list[list[tuple[tuple[str, str], str]]]:
        header = complete_header(self.header)
        identity = patient_identity(header)
        day = _date(str(header.StudyDate or ""))
        sex = _SEX.get(identity.sex or "")
        left = [
            (self._label("name"), shown_name(identity.name) or _ABSENT),
            (self._label("sex"), self.languages.text(sex) if sex else _ABSENT),
            (self._label("born"), self._born(identity.birth_date, day)),
            (self._label("patient_id"), identity.patient_id or _ABSENT),
        ]
        right = [
            (self._label("accession"), str(header.AccessionNumber or "") or _ABSENT),
            (self._label("examined"), _moment(header)),
            (
                self._label("examination"),
                str(header.get("StudyDescription") or "")
                or self.languages.term(lexicon.BREAST_ULTRASOUND),
            ),
            (
                self._label("referred"),
                shown_name(str(header.ReferringPhysicianName or "")) or _ABSENT,
            ),
        ]
        return [left, right]

    def _born(self, born: date | None, day: date | None) -> str:
        if born is None:
            return _ABSENT
        identity = patient_identity(complete_header(self.header))
        years = None if day is None else identity.age_at(day)
        return f"{born}" + (f"  ({self._text('age', years=years)})" if years else "")

    def _category(self) -> dict[str, Any]:
        """Return the assessment, in both languages whatever the page is in."""
        category, followup = self.version.findings.category, None
        words = (_ABSENT, "")
        if category is not None:
            concept = lexicon.category(category).concept
            words = (f"BI-RADS {concept.zh}", concept.en)
            if self.languages.first == "en":
                words = (f"BI-RADS {concept.en}", concept.zh)
        if (key := self.version.conclusions.followup) is not None:
            concept = lexicon.RECOMMENDED_FOLLOWUP
            name = self.languages.label((concept.zh, concept.en))
            followup = (name, self.languages.term(lexicon.FOLLOWUP[key]))
        return {
            "label": self._label("assessment"),
            "words": words,
            "followup": followup,
        }

    def _texts(self) -> list[tuple[tuple[str, str], str]]:
        conclusions = self.version.conclusions
        return [
            (self._label(key), text)
            for key, text in (
                ("impression", conclusions.impression),
                ("advice", conclusions.advice),
            )
            if text.strip()
        ]

    def _lesion(
        self, number: int, lesion: Lesion, figure: Figure | None
    ) -> dict[str, Any]:
        caption = ""
        if figure is not None:
            caption = self._caption(number, lesion, figure)
        return {
            "heading": self._label("lesion", number=number),
            "rows": list(self._rows(lesion)),
            "figure": None if figure is None else figure.svg,
            "caption": caption,
            "image": None if figure is None else figure.rendered,
            "open_image": self._text("open_image"),
            "heat_map": None if figure is None else figure.heat_map,
            "heat_map_caption": self._text("heat_map"),
            "no_figure": self._text("no_figure"),
        }

    def _rows(self, lesion: Lesion) -> Iterable[tuple[tuple[str, str], str]]:
        """Yield every field, also those that nobody assessed: a gap is seen as one."""
        category = lesion.category
        concept = lexicon.ASSESSMENT_CATEGORY
        yield (
            self.languages.label((concept.zh, concept.en)),
            _both(lexicon.category(category).concept) if category else _ABSENT,
        )
        yield self._label("place"), self._place(lesion)
        extent = lesion.extent
        longest = axes = _ABSENT
        if extent is not None:
            longest = f"{_mm(extent.long_axis_mm)} mm"
            sides = (extent.width_mm, extent.height_mm, extent.length_mm)
            axes = f"{' × '.join(map(_mm, sides))} mm"
        yield self._label("size"), longest
        yield self._label("axes"), axes
        for key, field in lexicon.FIELDS.items():
            name = self.languages.label((field.concept.zh, field.concept.en))
            yield name, self._terms(key, lesion.descriptors.get(key))

    def _terms(self, key: FieldKey, values: Sequence[str] | None) -> str:
        if values is None:
            return _ABSENT
        if not values:
            return self.languages.term(lexicon.CALCIFICATIONS_NONE)
        terms = (lexicon.FIELDS[key].term(value).concept for value in values)
        comma = "、" if self.languages.first == "zh-CN" else ", "
        return comma.join(map(self.languages.term, terms))

    def _place(self, lesion: Lesion) -> str:
        parts = []
        if lesion.laterality is not None:
            parts.append(self.languages.term(lexicon.BREAST_SIDE[lesion.laterality]))
        if lesion.clock is not None:
            parts.append(self.languages.term(lexicon.CLOCK[lesion.clock]))
        if (distance := lesion.distance_from_nipple_mm) is not None:
            parts.append(self._text("distance", mm=_mm(distance)))
        return ("，" if self.languages.first == "zh-CN" else ", ").join(
            parts
        ) or _ABSENT

    def _caption(self, number: int, lesion: Lesion, figure: Figure) -> str:
        parts = [self._text("figure", number=number)]
        if figure.instance_number:
            parts.append(self._text("image", image=figure.instance_number))
        if figure.frame is not None:
            parts.append(self._text("frame", frame=figure.frame))
        if lesion.outline or lesion.box is not None:
            parts.append(self._text("outline" if lesion.outline else "box"))
        if figure.scale_bar_mm is not None:
            parts.append(self._text("scale_bar", mm=figure.scale_bar_mm))
        return ("；" if self.languages.first == "zh-CN" else "; ").join(parts)

    def _signature(self) -> list[tuple[tuple[str, str], str]]:
        version = self.version
        return [
            (self._label("signed_by"), shown_name(person_name(version.author.display))),
            (self._label("signed_at"), self._at(version.at)),
            (self._label("version"), f"{version.number}  ·  {self.report.id}"),
            (
                self._label("document"),
                result_uid(self.report.id, version.number, VERIFIED_SR),
            ),
        ]

    def _assistance(self) -> list[str]:
        algorithm = next(
            (
                v.author.display
                for v in reversed(self.report.versions[: self.version.number])
                if v.author.kind is AuthorKind.ALGORITHM
            ),
            None,
        )
        said = [self._text("electronic")]
        if algorithm is not None:
            said.insert(0, self._text("assistance", algorithm=algorithm))
        return said

    def _footer(self) -> tuple[str, str]:
        """Return what ties loose pages together: whose report, and which version."""
        identity = patient_identity(complete_header(self.header))
        who = filter(None, (shown_name(identity.name), identity.patient_id))
        return (
            "  ·  ".join(who),
            f"{self.equipment.institution_name}  ·  {self.report.id}"
            f"  ·  {self._text('version')} {self.version.number}",
        )


def shown_name(name: str) -> str:
    """Return a PN for people: 王小东 (Wang XiaoDong) for `Wang^XiaoDong=王^小东`."""
    groups = []
    for group in name.split("="):
        words = [part.strip() for part in group.split("^") if part.strip()]
        joined = (" " if group.isascii() else "").join(words)
        if joined and joined not in groups:
            groups.append(joined)
    groups.sort(key=str.isascii)  # 汉字 before Latin letters, else as they stand
    first, *others = groups or [""]
    return f"{first} ({', '.join(others)})" if others else first


def _both(concept: Concept) -> str:
    return f"{concept.zh} {concept.en}"


def _mm(value: Decimal | None) -> str:
    return _ABSENT if value is None else f"{value.normalize():f}"


def _date(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return None


def _moment(header: Dataset) -> str:
    """Return when the study was, as the machine's clock had it."""
    day = _date(str(header.StudyDate or ""))
    if day is None:
        return _ABSENT
    time = str(header.StudyTime or "")
    return f"{day}" + (f" {time[:2]}:{time[2:4]}" if len(time) >= 4 else "")


def _printable(value: Any) -> Any:
    """Return `value` without control characters, which nothing shows."""
    if isinstance(value, str):
        return _CONTROL.sub(" ", value.replace("\r\n", "\n").replace("\r", "\n"))
    if isinstance(value, Mapping):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value
