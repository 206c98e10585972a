"""The signed report as a page for browsers: one HTML file that needs nothing else.

IHE RAD IMR 4.141.4.1.2.2.3 makes it mandatory: whoever gets a report can show it, in a
browser and without a font or a program of ours. Each finding has its picture beside it,
and the picture is a link to the whole frame as DICOMweb renders it (4.141.4.1.2.2.3.1);
who may open that is asked there. What people typed is text, never markup; the page
allows no script and no style but its own, and loads nothing.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from pydicom.dataset import Dataset

from dicom_scp.results.figures import Figure
from dicom_scp.results.report_words import content_of
from dicom_scp.results.sr import Equipment
from node.domain.report import Report, ReportVersion

_STYLE: Final = """
body{font:16px/1.55 "Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;
color:#1c232b;max-width:60rem;margin:0 auto;padding:1.5rem}
header,footer{text-align:center}h1{font-size:1.6rem;margin:.2rem 0 1rem}
h2{font-size:1.1rem;color:#1d4f7c;border-bottom:1px solid #1d4f7c;margin:1.5rem 0 .6rem}
small,th,figcaption,footer{color:#5b6470;font-weight:400}small{font-size:.85em}
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;
padding:.12rem 1rem .12rem 0}td,p{white-space:pre-line}
.who,.finding{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem 2.5rem}
.who{border:solid #b9c0c8;border-width:1px 0;padding:.6rem 0}
.change{background:#fdf1d8;border:1px solid #b7791f;padding:.5rem .8rem}
.category{background:#eef3f8;padding:.6rem .9rem}.category strong{font-size:1.5rem}
figure{margin:0;max-width:26rem}figure svg{width:100%;height:auto}
.heat svg{max-width:9rem}figcaption,footer{font-size:.85rem}
@media print{body{padding:0}section{break-inside:avoid}}
""".strip()
_STYLE_HASH: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none';"
    f" style-src 'sha256-{_STYLE_HASH}'"
)

Label = Sequence[str]


def build_report_html(
    report: Report,
    version: ReportVersion,
    header: Dataset,
    figures: Mapping[str, Figure],
    *,
    equipment: Equipment,
    dicomweb_url: str,
    both_languages: bool = False,
) -> bytes:
    """Return a signed version as one HTML file in UTF-8, saying what its PDF says.

    `dicomweb_url` is the root of the service that shows whole frames; without one the
    pictures are no links. The other arguments are those of `build_report_pdf`. The
    same version gives the same bytes.
    """
    said = content_of(
        report,
        version,
        header,
        figures,
        equipment=equipment,
        both_languages=both_languages,
    )
    lines = _page(said, equipment.language, dicomweb_url.rstrip("/"))
    return ("\n".join(lines) + "\n").encode()


def _page(said: Mapping[str, Any], language: str, root: str) -> Iterable[str]:
    yield f'<!DOCTYPE html>\n<html lang="{escape(language)}">\n<head>'
    yield '<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield '<meta name="referrer" content="no-referrer">'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<title>{escape(said['title'])}</title>\n<style>{_STYLE}</style>"
    yield "</head>\n<body>"
    yield f"<header>{escape(said['institution'])}<h1>{_told(said['heading'])}</h1>"
    yield "</header>"
    yield from _change(said["change"])
    yield '<div class="who">'
    for rows in said["patient"]:
        yield _table(rows)
    yield "</div>"
    yield from _category(said["category"])
    for label, text in said["texts"]:
        yield f"<section><h2>{_told(label)}</h2><p>{escape(text)}</p></section>"
    for lesion in said["lesions"]:
        yield from _lesion(lesion, root)
    if not said["lesions"]:
        yield f"<p>{escape(said['no_lesion'])}</p>"
    yield f"<section><h2></h2>{_table(said['signature'])}"
    for words in said["assistance"]:
        yield f"<p><small>{escape(words)}</small></p>"
    yield "</section>\n<footer>"
    for words in said["footer"]:
        yield f"<div>{escape(words)}</div>"
    yield "</footer>\n</body>\n</html>"


def _change(change: Mapping[str, Any] | None) -> Iterable[str]:
    """Yield that this report replaces another: nobody should overlook it."""
    if change is None:
        return
    yield f'<section class="change"><strong>{_told(change["label"])}</strong>'
    yield f"<p>{escape(change['replaces'])}</p>"
    if change["reason"] is not None:
        yield _table([change["reason"]])
    yield "</section>"


def _category(category: Mapping[str, Any]) -> Iterable[str]:
    first, other = category["words"]
    yield f'<section class="category">{_told(category["label"])}<br>'
    yield f"<strong>{escape(first)}</strong> {escape(other)}"
    if category["followup"] is not None:
        yield _table([category["followup"]])
    yield "</section>"


def _lesion(lesion: Mapping[str, Any], root: str) -> Iterable[str]:
    yield f"<section><h2>{_told(lesion['heading'])}</h2>"
    yield f'<div class="finding">{_table(lesion["rows"])}'
    if lesion["figure"] is None:
        yield f"<p>{escape(lesion['no_figure'])}</p>"
    else:
        yield f"<figure>{_linked(lesion, root)}"
        yield f"<figcaption>{escape(lesion['caption'])}</figcaption>"
        if lesion["heat_map"] is not None:
            told = escape(lesion["heat_map_caption"])
            yield f'<div class="heat" role="img" aria-label="{told}">'
            yield f"{lesion['heat_map']}</div><figcaption>{told}</figcaption>"
        yield "</figure>"
    yield "</div></section>"


def _linked(lesion: Mapping[str, Any], root: str) -> str:
    """Return the picture, as a link to the whole frame where there is one.

    The picture is ours, numbers and pixels (`figures`): it goes in as it is.
    """
    told = escape(lesion["caption"])
    figure = f'<div role="img" aria-label="{told}">{lesion["figure"]}</div>'
    if not (root and lesion["image"]):
        return figure
    href = escape(f"{root}/{lesion['image']}")
    words = escape(lesion["open_image"])
    return f'{figure}<a href="{href}" rel="noreferrer">{words}</a>'


def _table(rows: Iterable[tuple[Label, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{_told(label)}</th><td>{escape(text)}</td></tr>'
        for label, text in rows
    )
    return f"<table>{cells}</table>"


def _told(label: Label) -> str:
    first, other = label
    return escape(first) + (f" <small>{escape(other)}</small>" if other else "")
