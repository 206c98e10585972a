"""The signed report on paper: typeset, and wrapped as Encapsulated PDF (PS3.3 A.45.1).

The page is laid out in `report.typ`; what it says comes from `report_words`. The font
is embedded and the only one: a page with a sign missing from a name is not printed at
all, because a wrong name is worse than none. The same version gives the same bytes on
every machine of a release.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID, EncapsulatedPDFStorage

from dicom_scp.results.figures import Figure
from dicom_scp.results.report_words import content_of, title_of
from dicom_scp.results.sr import (
    SR_CLASSES,
    VERIFIED_SR,
    Equipment,
    complete_header,
    stamp,
)
from node.charset import UTF8
from node.domain import lexicon
from node.domain.errors import ErrorKind, NodeError
from node.domain.lexicon import Concept
from node.domain.report import Report, ReportVersion
from node.domain.uids import pdf_uid, result_uid

_SERIES_NUMBER: Final = 9700
_TEMPLATE: Final = Path(__file__).with_name("report.typ")
_FONT: Final = "Noto Sans CJK SC"


def build_report_pdf(
    report: Report,
    version: ReportVersion,
    header: Dataset,
    figures: Mapping[str, Figure],
    *,
    equipment: Equipment,
    both_languages: bool = False,
) -> bytes:
    """Return a signed version as PDF/A-2a, tagged (PDF/UA-1), about 30 ms. Blocks.

    `header` is the Unicode header of an image of the study, `figures` the pictures of
    lesions by tracking UID. UNSUPPORTED when the font lacks a sign of a text.
    """
    said = content_of(
        report,
        version,
        header,
        figures,
        equipment=equipment,
        both_languages=both_languages,
    )
    return _typeset({**said, "font": _FONT}, version.at)


def encapsulate_report(
    pdf: bytes,
    report: Report,
    version: ReportVersion,
    header: Dataset,
    *,
    equipment: Equipment,
) -> Dataset:
    """Return a printed report as an instance of its study, beside its verified SR."""
    first = complete_header(header)
    document = Dataset()
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyDescription",
    ):
        if keyword in first:
            document[keyword] = first[keyword]
    document.SpecificCharacterSet = UTF8
    document.SOPClassUID = EncapsulatedPDFStorage
    document.SOPInstanceUID = pdf_uid(report.id, version.number)
    document.SeriesInstanceUID = result_uid(report.id, version.number, "pdf/series")
    document.SeriesNumber = _SERIES_NUMBER + version.number
    document.InstanceNumber = 1
    document.Modality, document.ConversionType = "DOC", "WSD"
    document.SeriesDescription = "Verified breast US report (PDF)"
    document.AcquisitionDateTime = None
    document.BurnedInAnnotation, document.RecognizableVisualFeatures = "YES", "NO"
    document.DocumentTitle = title_of(equipment)
    document.VerificationFlag = "VERIFIED"
    document.ConceptNameCodeSequence = [_coded(lexicon.IMAGING_REPORT)]
    source = Dataset()
    source.ReferencedSOPClassUID = UID(SR_CLASSES[0])
    source.ReferencedSOPInstanceUID = result_uid(report.id, version.number, VERIFIED_SR)
    document.SourceInstanceSequence = [source]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocumentLength = len(pdf)
    document.EncapsulatedDocument = pdf + bytes(len(pdf) % 2)  # PS3.5 7.1: even length
    stamp(document, version, equipment)
    equipment.sign(document)
    return document


def _coded(concept: Concept) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = concept.value, concept.scheme
    item.CodeMeaning = concept.meaning
    return item


def _typeset(content: Mapping[str, Any], at: datetime) -> bytes:
    # 80 MB of code that only who prints should load.
    from typst import TypstError, compile

    try:
        pdf = compile(
            _TEMPLATE.read_bytes(),
            font_paths=_fonts(),
            format="pdf",
            sys_inputs={"report": json.dumps(content, ensure_ascii=False)},
            # Archivable, readable aloud; both forbid a sign that the font lacks.
            pdf_standards=["a-2a", "ua-1"],
            timestamp=int(at.timestamp()),
        )
    except TypstError as error:
        if "could not be displayed" in str(error):
            raise NodeError(
                "the report has a sign that the font of the PDF does not have, so it is"
                " not printed; the signed SR is not affected",
                ErrorKind.UNSUPPORTED,
            ) from None  # the cause quotes the text
        raise NodeError("the PDF cannot be typeset", ErrorKind.INTEGRITY) from None
    return bytes(pdf)


@functools.cache
def _fonts() -> Any:
    """Return the one font that reports are set in; SETTING when it is not installed."""
    from typst import Fonts

    try:
        from noto_cjk_sans_otc import FONT_PATH
    except ImportError:
        raise NodeError(
            "the font of printed reports is not installed: run `make setup`",
            ErrorKind.SETTING,
        ) from None
    fonts = Fonts(
        include_system_fonts=False,
        include_embedded_fonts=False,
        font_paths=[str(Path(str(FONT_PATH)).parent)],
    )
    if _FONT not in fonts.families():
        raise NodeError("the font of printed reports is damaged", ErrorKind.SETTING)
    return fonts
