"""From a map of chances to one lesion: its component, its outline and its box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
Indices = NDArray[np.int64]

_AROUND = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""The eight neighbours (row, column), clockwise as seen on the screen."""


def main_component(chances: NDArray[np.float32], threshold: float = 0.5) -> Mask:
    """Return the connected part of `chances` that weighs most.

    The threshold gives way when nothing reaches it: a lesion that the network is
    sure about but cannot place sharply still gets its most likely place.
    """
    level = min(threshold, 0.5 * float(chances.max()))
    rows, starts, ends = _runs(chances > level)
    sums = np.pad(chances.cumsum(axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    weights = sums[rows, ends] - sums[rows, starts]
    part = np.zeros(chances.shape, dtype=np.bool_)
    if len(rows):
        component = _components(rows, starts, ends)
        best = int(np.argmax(np.bincount(component, weights)))
        for run in np.flatnonzero(component == best):
            part[rows[run], starts[run] : ends[run]] = True
    return part


def _runs(open_pixels: Mask) -> tuple[Indices, Indices, Indices]:
    """Return row, start and end (half-open) of every run of open pixels, in order."""
    edges = np.diff(open_pixels.astype(np.int8), axis=1, prepend=0, append=0)
    rows, starts = np.nonzero(edges > 0)
    return rows, starts, np.nonzero(edges < 0)[1]


def _components(rows: Indices, starts: Indices, ends: Indices) -> Indices:
    """Return for each run the first run of its component: runs touch across rows."""
    first = np.searchsorted(rows, rows - 1, side="left").tolist()
    beyond = np.searchsorted(rows, rows - 1, side="right").tolist()
    begins, stops = starts.tolist(), ends.tolist()
    parent = list(range(len(rows)))
    for run in range(len(rows)):
        for above in range(first[run], beyond[run]):
            if begins[above] < stops[run] and begins[run] < stops[above]:
                one, other = _root(parent, above), _root(parent, run)
                parent[max(one, other)] = min(one, other)
    return np.array([_root(parent, run) for run in range(len(rows))])


def _root(parent: list[int], run: int) -> int:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


def box_of(part: Mask) -> tuple[float, float, float, float] | None:
    """Return x0, y0, x1, y1 (half-open) around a component; None when it is empty."""
    rows, columns = np.nonzero(part.any(axis=1))[0], np.nonzero(part.any(axis=0))[0]
    if not len(rows):
        return None
    return (
        float(columns[0]),
        float(rows[0]),
        float(columns[-1] + 1),
        float(rows[-1] + 1),
    )


def outline_of(part: Mask, *, tolerance: float = 0.75) -> Points:
    """Return the outer contour of a component as a closed polyline (n, 2) of x, y.

    Runs through the centres of the border pixels; first and last point are equal
    (SCOORD POLYLINE, PS3.3 C.18.6.1.2). Points that stray less than `tolerance`
    pixels from a straight line are left out.
    """
    border = _trace(part)
    if len(border) < 3:
        box = box_of(part)
        if box is None:
            return np.empty((0, 2))
        x0, y0, x1, y1 = box
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
    half = len(border) // 2
    first = _simplified(border[: half + 1], tolerance)
    second = _simplified(np.vstack([border[half:], border[:1]]), tolerance)
    return np.vstack([first[:-1], second]) + 0.5


def _trace(part: Mask) -> Points:
    """Walk around the component (Moore neighbourhood), from its topmost pixel."""
    padded = np.pad(part, 1)
    rows, columns = np.nonzero(padded)
    if not len(rows):
        return np.empty((0, 2))
    start = (int(rows[0]), int(columns[0]))
    here, heading, border = start, 0, [start]
    for _ in range(4 * padded.size):
        step = next(
            (
                turn % 8
                for turn in range(heading + 6, heading + 14)
                if padded[
                    here[0] + _AROUND[turn % 8][0], here[1] + _AROUND[turn % 8][1]
                ]
            ),
            None,
        )
        if step is None:
            break
        following = (here[0] + _AROUND[step][0], here[1] + _AROUND[step][1])
        if here == start and len(border) > 1 and following == border[1]:
            border.pop()
            break
        here, heading = following, step
        border.append(here)
    return np.array([(column - 1, row - 1) for row, column in border], dtype=np.float64)


def _simplified(line: Points, tolerance: float) -> Points:
    """Return a polyline without the points that hardly matter (Douglas-Peucker)."""
    keep = np.zeros(len(line), dtype=bool)
    keep[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distances = _distances(line[first + 1 : last], line[first], line[last])
        far = int(np.argmax(distances))
        if distances[far] > tolerance:
            middle = first + 1 + far
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return line[keep]


def _distances(points: Points, a: Points, b: Points) -> Points:
    along = b - a
    length = float(np.hypot(*along))
    if length == 0:
        apart = points - a
        return np.asarray(np.hypot(apart[:, 0], apart[:, 1]))
    across = along[0] * (points[:, 1] - a[1]) - along[1] * (points[:, 0] - a[0])
    return np.asarray(np.abs(across) / length)
