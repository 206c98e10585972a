"""The tables of the conformance statement (PS3.2), made from what the code does.

`python -m dicom_scp.conformance` prints them; `--write FILE` puts them into the
statement between its `<!-- table NAME -->` marks.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pydicom.uid import (
    UID,
    EncapsulatedPDFStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_scp import scp, scu, status
from dicom_scp.intake import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from dicom_scp.sr import SR_CLASSES
from node.domain import lexicon
from node.domain.errors import ErrorKind

_MARKS = re.compile(r"(<!-- table (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_AGAIN = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.EXHAUSTED})
_SENT_SYNTAXES = (UID("1.2.840.10008.1.2.1"), UID("1.2.840.10008.1.2"))


def tables() -> Mapping[str, str]:
    """Return the Markdown of every table by its name."""
    return {
        "implementation": _table(
            ("Item", "Value"),
            (
                ("Implementation Class UID", IMPLEMENTATION_UID),
                ("Implementation Version Name", IMPLEMENTATION_VERSION),
                ("Default AE title", scp.ScpSettings().ae_title),
                ("Default port", str(scp.ScpSettings().port)),
                ("Default TLS port", str(scp.ScpSettings().tls_port)),
                ("Maximum PDU received", f"{scp.ScpSettings().max_pdu} bytes"),
                ("Maximum associations", str(scp.ScpSettings().max_associations)),
                ("Asynchronous operations", "not negotiated"),
            ),
        ),
        "received": _table(
            ("SOP Class", "UID", "Transfer syntaxes"),
            (
                (
                    _name(context.abstract_syntax),
                    str(context.abstract_syntax),
                    f"list {_SETS[_syntaxes(context)]}",
                )
                for context in scp.supported_contexts()
            ),
        ),
        "syntaxes": _table(
            ("List", "Preference", "Transfer syntax", "UID"),
            (
                (letter, str(n), _name(syntax), syntax)
                for syntaxes, letter in _SETS.items()
                for n, syntax in enumerate(syntaxes, start=1)
            ),
        ),
        "answered": _table(
            ("Status", "Cause"),
            sorted(
                [
                    (f"{status.SUCCESS:04X}", "stored: on disk and committed"),
                    (f"{status.PROCESSING_FAILURE:04X}", "unforeseen failure"),
                    (f"{status.COERCED:04X}", "stored, coerced by a rule of the site"),
                    (f"{status.DOES_NOT_MATCH:04X}", "data set and command differ"),
                    *(
                        (f"{code:04X}", kind.value)
                        for kind, code in status.STORAGE_STATUS.items()
                    ),
                ]
            ),
        ),
        "rejected": _table(
            ("Result, source, diagnostic", "Cause"),
            ((_triple(refused.answer), refused.reason) for refused in scp.REJECTIONS),
        ),
        "sent": _table(
            ("SOP Class", "UID", "Role", "Transfer syntaxes", "Content"),
            (
                (
                    _name(uid),
                    str(uid),
                    "SCU",
                    ", ".join(_name(s) for s in _SENT_SYNTAXES),
                    content,
                )
                for uid, content in _sent()
            ),
        ),
        "outcomes": _table(
            ("Status from the archive", "Meaning", "What the node does"),
            (
                (
                    f"{low:04X}" if low == high else f"{low:04X}-{high:04X}",
                    words,
                    _reaction(kind),
                )
                for low, high, kind, words in scu.SEND_OUTCOMES
            ),
        ),
        "codes": _table(
            ("Concept name", "Values"),
            ((_code(field.concept), _values(field)) for field in _fields()),
        ),
        "categories": _table(
            ("Assessment", "Code"),
            ((key, _code(c.concept)) for key, c in lexicon.CATEGORIES.items()),
        ),
        "private-codes": _table(
            ("Code Value", "Code Meaning"),
            ((c.value, c.meaning) for c in _private()),
        ),
    }


def updated(statement: str) -> str:
    """Return the statement with every marked table as the code has it now.

    KeyError for a mark whose name no table has.
    """
    made = tables()
    return _MARKS.sub(lambda m: f"{m[1]}\n{made[m['name']]}\n{m[3]}", statement)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into a statement."""
    parser = argparse.ArgumentParser(description="Tables of the conformance statement")
    parser.add_argument("--write", type=Path, metavar="FILE")
    file: Path | None = parser.parse_args(arguments).write
    if file is None:
        for name, table in tables().items():
            sys.stdout.write(f"## {name}\n\n{table}\n")
    else:
        text = updated(file.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")
    return 0


def _syntaxes(context: PresentationContext) -> tuple[str, ...]:
    return tuple(str(syntax) for syntax in context.transfer_syntax or ())


# The lists of transfer syntaxes that occur, each with a letter to cite it by.
_SETS: Final[Mapping[tuple[str, ...], str]] = {
    syntaxes: chr(ord("A") + n)
    for n, syntaxes in enumerate(
        dict.fromkeys(map(_syntaxes, scp.supported_contexts()))
    )
}


def _sent() -> Iterable[tuple[UID, str]]:
    for rank, uid in enumerate(SR_CLASSES):
        when = "results" if rank == 0 else "results, when the classes above are refused"
        yield UID(uid), when
    yield SecondaryCaptureImageStorage, "AI heat maps"
    yield SegmentationStorage, "AI lesion outlines (results.segmentation)"
    yield KeyObjectSelectionDocumentStorage, "key images, rejections"
    yield EncapsulatedPDFStorage, "the signed report on paper (results.pdf)"


def _reaction(kind: ErrorKind | None) -> str:
    if kind is None:
        return "done"
    return "tries again" if kind in _AGAIN else "stops; shown to the staff"


def _fields() -> Iterable[lexicon.Field]:
    return lexicon.FIELDS.values()


def _values(field: lexicon.Field) -> str:
    if field is lexicon.CALCIFICATIONS:
        return (
            f"as {_code(lexicon.CALCIFICATION_TYPE)} and"
            f" {_code(lexicon.CALCIFICATION_DISTRIBUTION)}: "
            + "; ".join(
                _code(c)
                for c in (
                    lexicon.CALCIFICATIONS_NONE,
                    lexicon.MICROCALCIFICATIONS,
                    *(term.concept for term in field.terms),
                )
            )
        )
    return "; ".join(_code(term.concept) for term in field.terms)


def _private() -> Iterable[lexicon.Concept]:
    duct = lexicon.CALCIFICATIONS.term("intraductal").concept
    return (duct, lexicon.CALCIFICATIONS_NONE, lexicon.NOT_READ)


def _code(concept: lexicon.Concept) -> str:
    version = f" {concept.version}" if concept.version else ""
    return f'({concept.value}, {concept.scheme}{version}, "{concept.meaning}")'


def _triple(answer: tuple[int, int, int]) -> str:
    return ", ".join(str(number) for number in answer)


def _name(uid: UID | str | None) -> str:
    known = UID(str(uid))
    if known == Verification:
        return "Verification"
    return f"{known.name} (Retired)" if known.is_retired else known.name


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
