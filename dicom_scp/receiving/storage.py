"""What the node stores: SOP Classes and, the best first, their transfer syntaxes.

The acceptor's order decides (PS3.8 9.3.3.2), so a machine that offers both never loses
detail to a lossy compression, and what can be read here comes before what can only be
kept. The list is what ultrasound rooms send (PS3.11 C.3 and the statements of the
makers); whatever else a machine has is named in its entry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pydicom import uid
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import _STORAGE_CLASSES

from node.imaging import VIDEO as VIDEO_SYNTAXES

UNCOMPRESSED: Final = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
LOSSLESS: Final = (
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.UID("1.2.840.10008.1.2.4.110"),  # JPEG XL Lossless
)
LOSSY: Final = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.UID("1.2.840.10008.1.2.4.111"),  # JPEG XL JPEG Recompression
    uid.UID("1.2.840.10008.1.2.4.112"),  # JPEG XL
)
# Kept and given out, never decoded here.
VIDEO: Final = tuple(uid.UID(syntax) for syntax in sorted(VIDEO_SYNTAXES, reverse=True))
PICTURE_SYNTAXES: Final = (*UNCOMPRESSED[:3], *LOSSLESS, UNCOMPRESSED[3], *LOSSY)
CINE_SYNTAXES: Final = (*PICTURE_SYNTAXES, *VIDEO)
LOSSLESS_SYNTAXES: Final = (*UNCOMPRESSED[:3], *LOSSLESS, UNCOMPRESSED[3])

VERIFICATION: Final = uid.UID("1.2.840.10008.1.1")
PICTURES: Final = (
    uid.UltrasoundImageStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.6"),  # Ultrasound Image Storage (Retired)
    uid.EnhancedUSVolumeStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameSingleBitSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
CINES: Final = (
    uid.UltrasoundMultiFrameImageStorage,
    uid.UID("1.2.840.10008.5.1.4.1.1.3"),  # Ultrasound Multi-frame (Retired)
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
MAPS: Final = (uid.SegmentationStorage,)
DOCUMENTS: Final = (
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
    uid.Comprehensive3DSRStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.EncapsulatedPDFStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.ColorSoftcopyPresentationStateStorage,
    uid.PseudoColorSoftcopyPresentationStateStorage,
    uid.BlendingSoftcopyPresentationStateStorage,
    uid.RawDataStorage,
)
_FAMILIES: Final = (
    (PICTURES, PICTURE_SYNTAXES),
    (CINES, CINE_SYNTAXES),
    (MAPS, LOSSLESS_SYNTAXES),
    (DOCUMENTS, UNCOMPRESSED),
)
SYNTAXES: Final = frozenset(map(str, CINE_SYNTAXES))
CLASSES: Final = frozenset(str(one) for classes, _ in _FAMILIES for one in classes)
_STANDARD_ROOT: Final = "1.2.840.10008."
_STANDARD_STORAGE: Final = frozenset(map(str, _STORAGE_CLASSES.values()))


def verification_context() -> PresentationContext:
    """Return C-ECHO's."""
    return build_context(VERIFICATION, list(UNCOMPRESSED[:2]))


def storage_contexts(
    preferred: Sequence[str] = (), more_classes: Sequence[str] = ()
) -> list[PresentationContext]:
    """Return every SOP Class we store with its transfer syntaxes, the best first.

    `preferred` are the syntaxes that one machine shall use first, in order; the
    others follow. `more_classes` are those that it alone may store.
    """
    classes = [(one, syntaxes) for family, syntaxes in _FAMILIES for one in family]
    classes += [(uid.UID(o), CINE_SYNTAXES) for o in more_classes if o not in CLASSES]
    return [
        build_context(sop_class, _ordered(syntaxes, preferred))
        for sop_class, syntaxes in classes
    ]


def is_storage_class(sop_class_uid: str) -> bool:
    """Tell whether a site may enter a SOP Class: private, or of the Storage Service."""
    if re.fullmatch(uid.RE_VALID_UID, sop_class_uid) is None:
        return False
    standard = sop_class_uid.startswith(_STANDARD_ROOT)
    return not standard or sop_class_uid in _STANDARD_STORAGE


def _ordered(
    syntaxes: Sequence[uid.UID], preferred: Sequence[str]
) -> list[str | uid.UID]:
    rank = {syntax: number for number, syntax in enumerate(preferred)}
    return sorted(syntaxes, key=lambda syntax: rank.get(syntax, len(rank)))
