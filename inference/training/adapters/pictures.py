"""Images and masks of published sets as arrays that everything else can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.training.adapters.example import DatasetError, Points
from node.domain.errors import NodeError
from node.imaging import BytesReader, StoredImage

MAX_PIXELS = 120_000_000
"""The largest mammograms have 30 million; more is a damaged or hostile header."""
Mask = NDArray[np.bool_]


def open_picture(path: Path) -> Image.Image:
    """Return the image in 8 bits, `L` or `RGB`, whole and decoded.

    Deep greys are spread over what the format can hold or, in DICOM, shown as the
    header asks. DatasetError when it cannot be decoded or is not finite.
    """
    try:
        if path.suffix.lower() == ".dcm":
            return _dicom_picture(path)
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"image {path.name} is larger than any of this kind")
            return _eight_bits(image)
    except FileNotFoundError:
        raise DatasetError(f"image {path.name} is missing") from None
    except NodeError as error:
        raise DatasetError(f"image {path.name}: {error.message}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"image {path.name} cannot be decoded") from error


def _dicom_picture(path: Path) -> Image.Image:
    stored = StoredImage.open(BytesReader(path.read_bytes()))
    pixels = stored.frame(0)
    grey = stored.picture.samples_per_pixel == 1 and bool(
        (pixels[..., :1] == pixels).all()
    )
    return Image.fromarray(pixels[..., 0] if grey else pixels)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        image.load()
        return image.copy()
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("pixels are not finite")
        top = max(255.0, float(values.max(initial=0.0)))
        return Image.fromarray((np.clip(values, 0, None) * (255 / top)).astype("uint8"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        shown = image.convert("RGBA")  # what is transparent was never scanned: black
        ground = Image.new("RGBA", shown.size, (0, 0, 0, 255))
        return Image.alpha_composite(ground, shown).convert("RGB")
    return image.convert("RGB")


def is_coloured(image: Image.Image) -> bool:
    """Tell whether the channels differ anywhere."""
    if image.mode == "L":
        return False
    pixels = np.asarray(image)
    return bool((pixels != pixels[..., :1]).any())


def lesion_mask(
    size: tuple[int, int], masks: Sequence[Path], outlines: Sequence[Points]
) -> Mask | None:
    """Return where the lesions are in an image of `size` (columns, rows), or None.

    None: nobody marked any. DatasetError when a mask is missing, unreadable, empty
    or of another size.
    """
    if not masks and not outlines:
        return None
    drawn = Image.new("1", size)
    for outline in outlines:
        ImageDraw.Draw(drawn).polygon(list(outline), fill=1, outline=1)
    found = np.array(drawn)
    for path in masks:
        if not path.is_file():
            raise DatasetError(f"mask {path.name} is missing")
        mask = open_picture(path).convert("L")
        if mask.size != size:
            raise DatasetError(
                f"mask {path.name} is {mask.width} x {mask.height},"
                f" its image {size[0]} x {size[1]}"
            )
        values = np.asarray(mask)
        found = found | (values > values.max(initial=0) // 2)
    if not found.any():
        raise DatasetError("the mask is empty")
    return found


@dataclass(frozen=True)
class Reduced:
    """A picture at the size in which it is kept, `scale` times the source's."""

    image: Image.Image
    mask: Mask | None
    scale: float


def reduce(image: Image.Image, mask: Mask | None, side: int) -> Reduced:
    """Shrink so that the longer side has at most `side` pixels (area filter)."""
    scale = min(1.0, side / max(image.size))
    if scale == 1.0:
        return Reduced(image, mask, scale)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BOX)
    if mask is None:
        return Reduced(small, None, scale)
    shares = Image.fromarray(mask.astype("uint8") * 255).resize(
        size, Image.Resampling.BOX
    )
    values = np.asarray(shares)
    # A lesion smaller than a pixel must not vanish: then its centre stays.
    return Reduced(small, values >= min(128, int(values.max())), scale)


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 (half-open) around what is marked."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
