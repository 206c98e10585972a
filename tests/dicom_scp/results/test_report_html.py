"""The signed report as a page: IHE RAD IMR 4.141.4.1.2.2.3, HTML complete in itself.

Another program's parser (html.parser) reads back what was made.
"""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dicom_scp.results.figures import Figure
from dicom_scp.results.report_html import POLICY, build_report_html
from node.domain.errors import NodeError
from node.domain.report import Report, ReportStatus
from tests.dicom_scp.results.test_report_pdf import make_figure, print_report, sign
from tests.dicom_scp.results.test_report_pdf import text_of as text_of_pdf
from tests.dicom_scp.results.test_sr import EQUIPMENT
from tests.dicom_scp.ultrasound import make_header
from tests.factories import make_draft, make_lesion

ROOT = "https://node.example/dicom-web"
RENDERED = "studies/2.25.1/series/2.25.2/instances/2.25.3/frames/12/rendered"
LESION = make_lesion(category="4B")
HOSTILE = "<script>alert(1)</script>\n\"'><img src=http://x onerror=a()> &lt;b&gt; \x07"
# What carries content from elsewhere, or runs.
_ACTIVE = {"script", "iframe", "object", "embed", "form", "link", "base", "img"}


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def show(
    report: Report,
    language: str = "zh-CN",
    *,
    both: bool = False,
    root: str = ROOT,
    figure: Figure | None = None,
    **header: object,
) -> bytes:
    figures = {
        lesion.tracking_uid: figure or replace(make_figure(lesion), rendered=RENDERED)
        for lesion in report.current.findings.lesions
    }
    return build_report_html(
        report,
        report.current,
        make_header("2.25.2001", **header),
        figures,
        equipment=replace(EQUIPMENT, language=language),
        dicomweb_url=root,
        both_languages=both,
    )


@pytest.mark.parametrize(("language", "both"), [("zh-CN", False), ("en", True)])
def test_the_page_says_what_the_paper_says(language: str, both: bool) -> None:
    report = sign(LESION, status=ReportStatus.CORRECTED)
    page = Page(show(report, language, both=both)).text
    paper = text_of_pdf(print_report(report, language, both=both))
    # Paper breaks lines and counts its pages: words alone are held against each other.
    squeezed = re.sub(r"\s", "", page) + ("第页共页Pageof")
    words = set(re.findall(r"[A-Za-z0-9.]{3,}|[\u4e00-\u9fff]{2,}", paper))
    assert len(words) > 60
    assert {word for word in words if word not in squeezed} == set()


def test_the_page_needs_nothing_else_and_lets_nothing_run() -> None:
    page = Page(show(sign(LESION)))
    assert not _ACTIVE & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not page.values("style")
    assert POLICY in page.values("content")
    assert "script-src" not in POLICY
    assert POLICY.startswith("default-src 'none'")
    loaded = [*page.values("src"), *page.values("xlink:href")]
    loaded += [h for h in page.values("href") if not h.startswith(ROOT)]
    assert {url.partition(",")[0] for url in loaded} == {"data:image/jpeg;base64"}
    assert len([words for words in page.values("aria-label") if words]) == 2
    assert page.tags.count("svg") == 2  # the lesion, and where the algorithm looked


def test_what_people_typed_is_text() -> None:
    report = sign(LESION, impression=HOSTILE)
    html = show(report, PatientName="<b>Wang</b>^<i>x", StudyDescription=HOSTILE)
    page = Page(html)
    assert not _ACTIVE & set(page.tags)
    assert not {"b", "i"} & set(page.tags)
    assert "<script>alert(1)</script>" in page.text
    assert "&lt;b&gt;" in page.text
    assert b"\x07" not in html
    assert "<b>Wang</b>" in page.text
    assert "Wang" not in Page(html[: html.index(b"</title>")]).text


def test_a_picture_leads_to_the_whole_frame_ready_to_be_seen() -> None:
    (href,) = [h for h in Page(show(sign(LESION))).values("href") if "://" in h]
    assert href == f"{ROOT}/{RENDERED}"
    assert not [
        h for h in Page(show(sign(LESION), root="")).values("href") if ":/" in h
    ]
    bare = replace(make_figure(LESION), rendered="")
    page = Page(show(sign(LESION), figure=bare))
    assert "a" not in page.tags


def test_a_report_without_lesions_or_with_a_change_says_so() -> None:
    assert "本次检查未描述病灶" in Page(show(sign(category="1"))).text
    changed = Page(show(sign(LESION, status=ReportStatus.AMENDED), "en")).text
    for words in ("Amended report", "Replaces version 2", "左右侧更正"):
        assert words in changed
    assert "AI assistance: drafted by sononode breast ResNet50" in changed


def test_the_same_version_gives_the_same_bytes_and_a_draft_gives_none() -> None:
    report = sign(LESION)
    assert show(report) == show(report)
    with pytest.raises(NodeError, match="signed"):
        show(make_draft())
