"""Text burned into pictures: found by its regularity, and blacked out (PS3.15 E.3.1).

Outside the ultrasound region everything goes. Inside it, strokes that are thin, sharp
and of one brightness are taken for text where three or more of like height stand on
one line: speckle and fibres never do that for long. Single signs (calliper numbers,
depth marks) stay. A picture is data about tissue first, so this is a help and no
promise: somebody has to look at a set before it is given away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from node.domain.finding import PixelBox

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_STROKE = 5
"""An opening of so many pixels swallows strokes up to four wide."""
_CONTRASTS = (110, 70, 45, 30)
"""Levels above the surroundings, tried one after the other: bright text, then faint."""
_HEIGHT = (5, 28)
_FAINT = 45
_FAINT_HEIGHT, _FAINT_FILL = 7, 0.45
"""Faint strokes must be taller and fuller to be letters: noise has thin ones too."""
_FEWEST_GLYPHS = 3
_FEWEST_NEIGHBOURS = 2
_MARGIN = 3


@dataclass(frozen=True)
class _Glyph:
    """One connected stroke, half-open box."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0


def black_out(frame: Picture, region: PixelBox) -> tuple[Picture, int]:
    """Return the frame black outside `region` and where text is inside it.

    `frame`: uint8, (rows, columns[, 3]). The number counts the lines of text found.
    """
    cleaned = np.zeros_like(frame)
    inside = frame[region.y0 : region.y1, region.x0 : region.x1].copy()
    boxes = text_boxes(inside)
    for box in boxes:
        inside[box.y0 : box.y1, box.x0 : box.x1] = 0
    cleaned[region.y0 : region.y1, region.x0 : region.x1] = inside
    return cleaned, len(boxes)


def text_boxes(picture: Picture) -> list[PixelBox]:
    """Return a box around every line of text, with a margin, clipped to the picture."""
    grey = picture if picture.ndim == 2 else picture.max(axis=2)
    if min(grey.shape) < _STROKE:
        return []
    above = _above_surroundings(grey)
    lines: list[PixelBox] = []
    for contrast in _CONTRASTS:
        strokes = _components(above > contrast)
        runs = _lines([g for g in strokes if _is_sign(g)])
        seeds = [_around(run) for run in runs if contrast > _FAINT or _is_full(run)]
        for line in _with_neighbours(seeds, strokes):
            lines.append(_clipped(_grown(line, strokes), grey.shape[:2]))
    return lines


def _with_neighbours(
    lines: Sequence[_Glyph], strokes: Sequence[_Glyph]
) -> list[_Glyph]:
    """Return the lines, and short ones just above and below them: a note is a block."""
    found = list(lines)
    for line in lines:
        for step in (-1, 1):
            near = [
                g
                for g in strokes
                if 0.6 * line.height <= g.height <= 1.4 * line.height
                and 0.7 * line.height < step * (g.y0 - line.y0) < 2.6 * line.height
                and line.x0 - line.height < g.x0 < line.x1 + line.height
            ]
            feet = {g.y1 for g in near}
            best = max(
                feet, key=lambda y: sum(abs(g.y1 - y) <= 1 for g in near), default=0
            )
            level = [g for g in near if abs(g.y1 - best) <= 1]
            if len(level) >= _FEWEST_NEIGHBOURS:
                found.append(_around(level))
    return found


def _grown(line: _Glyph, strokes: Sequence[_Glyph]) -> _Glyph:
    """Return the line with what stands on it to both sides, broken signs included."""
    height = line.height
    beside = [
        g
        for g in strokes
        if g.y0 >= line.y0 - 3
        and g.y1 <= line.y1 + 3
        and g.height >= 0.4 * height
        and g.width <= 8 * height
    ]
    while True:
        reach = [
            g
            for g in beside
            if g.x0 < line.x1 + 1.7 * height and g.x1 > line.x0 - 1.7 * height
        ]
        wider = _around([line, *reach])
        if wider == line:
            return line
        line = wider


def _clipped(line: _Glyph, shape: tuple[int, int]) -> PixelBox:
    """Return the line with a margin, and room for one more sign at its ends."""
    end = _MARGIN + line.height // 2
    return PixelBox(
        max(0, line.x0 - end),
        max(0, line.y0 - _MARGIN),
        min(shape[1], line.x1 + end),
        min(shape[0], line.y1 + _MARGIN),
    )


def _around(strokes: Sequence[_Glyph]) -> _Glyph:
    return _Glyph(
        min(g.x0 for g in strokes),
        min(g.y0 for g in strokes),
        max(g.x1 for g in strokes),
        max(g.y1 for g in strokes),
        0,
    )


def _above_surroundings(grey: Picture) -> NDArray[np.int16]:
    """Return by how much thin strokes stand out of what lies around them."""
    image = Image.fromarray(np.ascontiguousarray(grey))
    opened = image.filter(ImageFilter.MinFilter(_STROKE)).filter(
        ImageFilter.MaxFilter(_STROKE)
    )
    return grey.astype(np.int16) - np.asarray(opened, dtype=np.int16)


def _is_sign(stroke: _Glyph) -> bool:
    """Tell whether a stroke could be a letter, a digit, or a few that touch."""
    low, high = _HEIGHT
    return (
        low <= stroke.height <= high
        and stroke.width <= 4 * stroke.height
        and stroke.area >= stroke.height
    )


def _lines(glyphs: Sequence[_Glyph]) -> list[list[_Glyph]]:
    """Return runs of glyphs of like height that stand on one line, near each other."""
    runs: list[list[_Glyph]] = []
    for glyph in sorted(glyphs, key=lambda g: g.x0):
        best = next((run for run in reversed(runs) if _follows(run[-1], glyph)), None)
        if best is None:
            runs.append([glyph])
        else:
            best.append(glyph)
    return [run for run in runs if len(run) >= _FEWEST_GLYPHS and _is_text(run)]


def _follows(last: _Glyph, glyph: _Glyph) -> bool:
    height = max(last.height, glyph.height)
    return (
        abs(last.y1 - glyph.y1) <= 1
        and abs(last.height - glyph.height) <= 1
        and -1 <= glyph.x0 - last.x1 <= 1.6 * height
    )


def _is_text(run: Sequence[_Glyph]) -> bool:
    heights = [g.height for g in run]
    feet = [g.y1 for g in run]
    gaps = [b.x0 - a.x1 for a, b in pairwise(run)]
    close = sum(gap <= 0.6 * heights[0] for gap in gaps)
    single = sum(g.width <= 1.6 * g.height for g in run)
    return (
        max(heights) - min(heights) <= 2
        and max(feet) - min(feet) <= 2
        and close >= len(gaps) / 2
        and single >= len(run) / 2
    )


def _is_full(run: Sequence[_Glyph]) -> bool:
    fill = sum(g.area / (g.width * g.height) for g in run) / len(run)
    return fill >= _FAINT_FILL and run[0].height >= _FAINT_HEIGHT


def _components(mask: Mask) -> list[_Glyph]:
    """Return the eight-connected components of `mask`, by runs of its rows."""
    starts_at, ends_at, row_of = _runs(mask)
    parent = list(range(len(row_of)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first_of_row = np.searchsorted(row_of, np.arange(mask.shape[0] + 1))
    for row in range(1, mask.shape[0]):
        above, end_above = int(first_of_row[row - 1]), int(first_of_row[row])
        for run in range(end_above, int(first_of_row[row + 1])):
            while above < end_above and ends_at[above] < starts_at[run]:
                above += 1
            other = above
            while other < end_above and starts_at[other] <= ends_at[run]:
                parent[root(other)] = root(run)
                other += 1
    boxes: dict[int, list[int]] = {}
    for run in range(len(parent)):
        x0, x1, y = int(starts_at[run]), int(ends_at[run]), int(row_of[run])
        box = boxes.setdefault(root(run), [x0, y, x1, y + 1, 0])
        box[0], box[1] = min(box[0], x0), min(box[1], y)
        box[2], box[3] = max(box[2], x1), max(box[3], y + 1)
        box[4] += x1 - x0
    return [_Glyph(*box) for box in boxes.values()]


def _runs(
    mask: Mask,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return start, end (half-open) and row of every run of set pixels."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    row_of, starts_at = np.nonzero(change == 1)
    _, ends_at = np.nonzero(change == -1)
    return starts_at, ends_at, row_of
