"""Which narrative is safe to show: the XHTML that FHIR R4 2.4.1 allows, no more."""

import re
from xml.etree import ElementTree

_XHTML = "http://www.w3.org/1999/xhtml"
_TAGS = (
    "a abbr acronym b big blockquote br caption cite code col colgroup dd dfn div dl"
    " dt em h1 h2 h3 h4 h5 h6 hr i li ol p pre q samp small span strong sub sup table"
    " tbody td tfoot th thead tr tt ul var"
)
_ATTRIBUTES = (
    "abbr align border cellpadding cellspacing charoff class colspan dir headers id"
    " lang name rowspan scope span summary title valign width"
)
_XHTML_TAGS = frozenset(_TAGS.split())
_XHTML_ATTRIBUTES = frozenset(_ATTRIBUTES.split())
_ENTITY = re.compile(r"&(?!#\d+;|#x[0-9A-Fa-f]+;|(?:lt|gt|amp|quot|apos);)")


def fault_of(text: str) -> tuple[str, str] | None:
    """Return the constraint that a narrative breaks and how; None when it is safe."""
    if "<!" in text or "<?" in text:
        return "txt-1", "no declarations, comments or processing instructions"
    if _ENTITY.search(text):
        return "txt-1", "an entity that XML does not have"
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - no declarations, see above
    except (ElementTree.ParseError, ValueError, RecursionError):
        return "txt-1", "not well-formed XHTML"
    if root.tag != f"{{{_XHTML}}}div":
        return "txt-1", "not a div of XHTML"
    for element in root.iter():
        fault = _fault_of_element(element)
        if fault is not None:
            return "txt-1", fault
    if not "".join(root.itertext()).strip():
        return "txt-2", "a narrative says something"
    return None


def _fault_of_element(element: ElementTree.Element) -> str | None:
    namespace, _, tag = element.tag.rpartition("}")
    if namespace != f"{{{_XHTML}" or tag not in _XHTML_TAGS:
        return "an element that is not basic formatting"
    for name, value in element.attrib.items():
        link = name == "href" and tag == "a" and value.startswith(("#", "https:"))
        if name not in _XHTML_ATTRIBUTES and not link:
            return "an attribute that is not basic formatting"
    return None
