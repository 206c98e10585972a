"""Stored instances as images to read: the header facts that the gates judge by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference.assess import ImageToRead
from inference.place import place_of, plane_of
from inference.select import ImageHeader
from node.imaging import VIDEO, StoredImage, ultrasound_regions, why_undecodable

SIMULATED = "SIMULATED"
"""Image Comments of the simulator's phantoms begin so."""


def image_to_read(
    header: Dataset, transfer_syntax_uid: str, open_pixels: Callable[[], StoredImage]
) -> ImageToRead:
    """Return an instance as the reader takes it.

    `open_pixels` is called only when the header lets the image be read, so refused
    instances cost no decryption. The pixels are true colours (see `node.imaging`).
    """

    def frames(indices: Sequence[int]) -> NDArray[np.uint8]:
        stored = open_pixels()
        return np.stack([stored.frame(index) for index in indices])

    return ImageToRead(header_of(header, transfer_syntax_uid), frames)


def header_of(header: Dataset, transfer_syntax_uid: str) -> ImageHeader:
    """Return the facts of a header; what is absent or malformed stays neutral."""
    return ImageHeader(
        sop_class_uid=_text(header, "SOPClassUID"),
        sop_instance_uid=_text(header, "SOPInstanceUID"),
        rows=_number(header, "Rows", 0),
        columns=_number(header, "Columns", 0),
        number_of_frames=_number(header, "NumberOfFrames", 1),
        image_type=tuple(str(part) for part in header.get("ImageType", None) or ()),
        regions=ultrasound_regions(header),
        body_part_examined=_text(header, "BodyPartExamined"),
        place=place_of(header),
        plane=plane_of(header),
        ultrasound_color_data_present=_number(header, "UltrasoundColorDataPresent", 0)
        == 1,
        decodable=why_undecodable(transfer_syntax_uid) is None,
        video=transfer_syntax_uid in VIDEO,
        simulated=_text(header, "ImageComments").upper().startswith(SIMULATED),
    )


def _text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword, None) or "").strip()


def _number(header: Dataset, keyword: str, absent: int) -> int:
    value = header.get(keyword, None)
    if value is None or value == "":
        return absent
    try:
        return int(value)
    except (TypeError, ValueError):
        return absent
