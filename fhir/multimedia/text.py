"""What a signed report says, as narrative: IHE RAD IMR wants its sections in `text`."""

from collections.abc import Callable, Iterator
from html import escape

from fhir.encoding.wire import Json
from node.domain import lexicon
from node.domain.finding import Extent, Lesion
from node.domain.lexicon import Concept
from node.domain.report import ReportVersion

# Where an image, by SOP Instance UID and frame, is seen; None where it is not known.
Rendered = Callable[[str, int], str | None]

_EXAMINATION = "检查 Examination"
_FINDINGS = "检查所见 Findings"
_NO_LESION = "未描述病灶。 No lesion is described."
_LESION = "病灶 {number} Lesion {number}"
_ASSESSMENT = "总体评估 Overall assessment"
_IMPRESSION = "诊断意见 Impression"
_ADVICE = "建议 Recommendations"


def narrative(version: ReportVersion, rendered: Rendered) -> Json:
    """Return `DiagnosticReport.text` of a signed version, in both languages.

    A lesion's image is a link in the sentence about it. R4 has no ImagingSelection to
    which IMR's `span` could refer.
    """
    sections = "".join(_sections(version, rendered))
    div = f'<div xmlns="http://www.w3.org/1999/xhtml">{sections}</div>'
    return {"status": "additional", "div": div}


def _sections(version: ReportVersion, rendered: Rendered) -> Iterator[str]:
    findings, said = version.findings, version.conclusions
    yield _section(_EXAMINATION, _both(lexicon.BREAST_ULTRASOUND))
    yield f"<h2>{_FINDINGS}</h2>"
    for number, lesion in enumerate(findings.lesions, start=1):
        yield _lesion(number, lesion, rendered)
    if not findings.lesions:
        yield f"<p>{_NO_LESION}</p>"
    if findings.category is not None:
        yield _section(_ASSESSMENT, _category(findings.category))
    if said.impression.strip():
        yield _section(_IMPRESSION, said.impression)
    advice = [said.advice.strip()]
    if said.followup is not None:
        advice.insert(0, _both(lexicon.FOLLOWUP[said.followup]))
    if any(advice):
        yield _section(_ADVICE, "\n".join(filter(None, advice)))


def _section(title: str, text: str) -> str:
    lines = "<br/>".join(escape(line) for line in text.splitlines())
    return f"<h2>{title}</h2><p>{lines}</p>"


def _lesion(number: int, lesion: Lesion, rendered: Rendered) -> str:
    name = escape(_LESION.format(number=number))
    image = lesion.image
    place = rendered(image.sop_instance_uid, image.frame) if image else None
    # A narrative has no other links (FHIR R4 txt-1, as this node reads it).
    if place is not None and place.startswith("https:"):
        name = f'<a href="{escape(place)}">{name}</a>'
    return f"<p>{name}: {escape('; '.join(_told(lesion)))}</p>"


def _told(lesion: Lesion) -> Iterator[str]:
    """Yield what was assessed of a lesion, and nothing of what was not."""
    if lesion.laterality is not None:
        yield _both(lexicon.BREAST_SIDE[lesion.laterality])
    if lesion.clock is not None:
        yield _both(lexicon.CLOCK[lesion.clock])
    if lesion.distance_from_nipple_mm is not None:
        mm = f"{lesion.distance_from_nipple_mm.normalize():f}"
        yield f"距乳头 {mm} mm from the nipple"
    if lesion.extent is not None:
        yield _size(lesion.extent)
    for key, field in lexicon.FIELDS.items():
        values = lesion.descriptors.get(key)
        if values is None:
            continue
        terms = [_both(field.term(value).concept) for value in values]
        terms = terms or [_both(lexicon.CALCIFICATIONS_NONE)]
        yield f"{_both(field.concept)} {', '.join(terms)}"
    if lesion.category is not None:
        yield _category(lesion.category)


def _size(extent: Extent) -> str:
    sides = (extent.width_mm, extent.height_mm, extent.length_mm)
    axes = " × ".join(f"{side.normalize():f}" for side in sides if side is not None)
    longest = f"{extent.long_axis_mm.normalize():f}"
    return f"最大径 longest {longest} mm ({axes} mm)"


def _category(key: str) -> str:
    return f"BI-RADS {_both(lexicon.category(key).concept)}"


def _both(concept: Concept) -> str:
    return f"{concept.zh} {concept.en}"
