"""Frames as pictures that a browser shows in their true colours (PS3.18 8.7, 10.4).

A stored JPEG goes out as it is when the browser will read its colours right; everything
else is decoded once and sent losslessly, so that no second compression touches what a
diagnosis is made on. Callers to whom identities are masked get the ultrasound regions
only: around them the scanner burns in the name.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit

from node.domain.errors import ErrorKind, NodeError
from node.domain.study import UltrasoundRegion
from node.imaging import (
    FrameTable,
    Pixels,
    RandomAccess,
    StoredImage,
    jpeg_shows_true_colours,
    ultrasound_regions,
)

T = TypeVar("T")

PNG, JPEG = "image/png", "image/jpeg"
# In order of preference; a lossless one first.
MEDIA_TYPES: Final = (PNG, JPEG)
MAX_VIEWPORT: Final = 4096
THUMBNAIL: Final = (160, 160)


@dataclass(frozen=True)
class Source:
    """One stored instance to be shown. `open` is called in a worker thread.

    `revision` names the stored bytes: pictures of the same revision are the same.
    """

    sop_instance_uid: str
    revision: str
    transfer_syntax_uid: str
    header: Dataset
    frames: FrameTable
    open: Callable[[], RandomAccess]


@dataclass(frozen=True)
class Wish:
    """How a frame is shown: `frame` from 0, `viewport` (width, height) at most."""

    frame: int
    masked: bool
    media_types: Sequence[str] = MEDIA_TYPES
    viewport: tuple[int, int] | None = None

    def etag(self, source: Source) -> str:
        """Return a strong entity tag: it changes when any byte of the answer could."""
        size = "x".join(map(str, self.viewport)) if self.viewport else "full"
        kinds = "+".join(kind.removeprefix("image/") for kind in self.media_types)
        who = "masked" if self.masked else "open"
        return f'"{source.revision}.{self.frame}.{who}.{size}.{kinds}"'


@dataclass(frozen=True)
class Picture:
    """An encoded picture."""

    content: bytes
    media_type: str


class Renderer:
    """Decodes off the event loop and remembers the last pictures, up to a bound."""

    def __init__(self, *, threads: int = 2, remembered_bytes: int = 96 << 20) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._remembered: OrderedDict[str, Picture] = OrderedDict()
        self._free = remembered_bytes
        self._limit = remembered_bytes

    async def picture(self, source: Source, wish: Wish) -> Picture:
        """Return the picture; Undecodable when nobody here can show it."""
        key = f"{source.sop_instance_uid} {wish.etag(source)}"
        known = self._remembered.get(key)
        if known is not None:
            self._remembered.move_to_end(key)
            return known
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self._pool, render, source, wish)
        self._remember(key, picture)
        return picture

    async def run(self, work: Callable[[], T]) -> T:
        """Run other blocking work on the pixel data in the same threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """End the threads; what is queued is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._remembered.clear()

    def _remember(self, key: str, picture: Picture) -> None:
        size = len(picture.content)
        if size > self._limit // 4 or key in self._remembered:
            return
        self._remembered[key] = picture
        self._free -= size
        while self._free < 0:
            _, dropped = self._remembered.popitem(last=False)
            self._free += len(dropped.content)


def render(source: Source, wish: Wish) -> Picture:
    """Return one frame encoded in the best of the wished media types. Blocks."""
    image = StoredImage(
        source.open(),
        header=source.header,
        frames=source.frames,
        transfer_syntax_uid=source.transfer_syntax_uid,
    )
    shown = shown_regions(image) if wish.masked else ()
    if not shown and wish.viewport is None and JPEG in wish.media_types:
        stored = _passthrough(image, wish.frame)
        if stored is not None:
            return Picture(stored, JPEG)
    pixels = image.frame(wish.frame)
    if shown:
        pixels = black_outside(pixels, shown)
    return _encode(pixels, wish)


def shown_regions(image: StoredImage) -> tuple[UltrasoundRegion, ...]:
    """Return the regions outside of which a masked caller sees black.

    None when the header knows none, or when one reaches outside the image: then the
    header belongs to another size of the picture, and could hide a lesion.
    """
    regions = ultrasound_regions(image.header)
    rows, columns = image.picture.rows, image.picture.columns
    return regions if all(region.inside(rows, columns) for region in regions) else ()


def black_outside(pixels: Pixels, regions: Sequence[UltrasoundRegion]) -> Pixels:
    """Return a copy of `pixels` that is black outside all `regions`."""
    masked = np.zeros_like(pixels)
    for region in regions:
        rows = slice(region.y0, region.y1 + 1)
        columns = slice(region.x0, region.x1 + 1)
        masked[rows, columns] = pixels[rows, columns]
    return masked


def _passthrough(image: StoredImage, frame: int) -> bytes | None:
    if image.transfer_syntax_uid != JPEGBaseline8Bit:
        return None
    stored = image.stored_frame(frame)
    return stored if jpeg_shows_true_colours(stored, image.header) else None


def _encode(pixels: Pixels, wish: Wish) -> Picture:
    grey = bool(
        (pixels[..., 0] == pixels[..., 1]).all()
        and (pixels[..., 1] == pixels[..., 2]).all()
    )
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0]) if grey else pixels)
    if wish.viewport is not None:
        image.thumbnail(wish.viewport, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    media_type = next((kind for kind in MEDIA_TYPES if kind in wish.media_types), None)
    if media_type == PNG:
        # Higher levels cost five times the time for a tenth of the size: speckle.
        image.save(buffer, "PNG", compress_level=1)
    elif media_type == JPEG:
        image.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    else:
        raise NodeError("no media type that frames come in", ErrorKind.UNSUPPORTED)
    return Picture(buffer.getvalue(), media_type)
