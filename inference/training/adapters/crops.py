"""Copies of one picture that were cut or shifted: found by what they share.

A hash of the whole picture cannot know them. Each picture gives the surroundings of
its most distinct points as bit strings; two pictures of which many agree under one
shift are compared pixel by pixel where they overlap. Notes and rulers that every
picture of a scanner carries agree too, so only the comparison decides. Copies that
were both cut and rescaled are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_POINTS = 96
_PATCH, _LOW = 32, 8
_APART, _WORKING_SIDE = 11, 320
_BANDS = 4
_DIFFERENT_BITS = 8
_CROWD = 48
"""A band that more points share is not distinct: dark corners, smooth fat."""
_VOTES = 5
_ALIKE, _OVERLAP = 0.9, 0.3
"""Correlation of the overlap, and its share of the smaller picture, of one picture."""

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Points:
    """Distinct points of a picture: places (n, 2) x, y and 64 bits about each."""

    places: NDArray[np.int32]
    words: NDArray[np.uint64]


def working_copy(image: Image.Image) -> Grey:
    """Return the picture in grey, halved until it is small enough to look through.

    Halving keeps the scale of pictures of like size, so that a shift stays a shift.
    """
    grey = image.convert("L")
    while max(grey.size) >= 2 * _WORKING_SIDE:
        grey = grey.reduce(2)
    return np.asarray(grey)


def points_of(grey: Grey) -> Points:
    """Return the points that stand out most from their surroundings."""
    image = Image.fromarray(grey)
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(2)), dtype=np.int16)
    around = np.asarray(image.filter(ImageFilter.GaussianBlur(8)), dtype=np.int16)
    response = np.abs(smooth - around).astype(np.uint8)
    peaks = Image.fromarray(response).filter(ImageFilter.MaxFilter(_APART))
    half = _PATCH // 2
    found = (response == np.asarray(peaks)) & (response > 4)
    inside = np.zeros_like(found)
    inside[half:-half, half:-half] = True
    found &= inside
    y, x = np.nonzero(found)
    best = np.argsort(-response[y, x].astype(np.int32), kind="stable")[:_POINTS]
    y, x = y[best], x[best]
    if not len(x):
        return Points(np.empty((0, 2), np.int32), np.empty(0, np.uint64))
    reach = np.arange(-half, half)
    patches = smooth[y[:, None, None] + reach[:, None], x[:, None, None] + reach]
    low = _COSINES @ patches.astype(np.float32) @ _COSINES.T
    flat = low.reshape(len(x), -1)[:, 1:]
    bits = flat > np.median(flat, axis=1, keepdims=True)
    packed = np.packbits(np.pad(bits, ((0, 0), (0, 1))), axis=1)
    return Points(
        np.stack([x, y], axis=1).astype(np.int32), packed.view(np.uint64).ravel()
    )


def shifted_pairs(
    pictures: Sequence[Points], load: Callable[[int], Grey]
) -> Iterator[tuple[int, int]]:
    """Yield the index pairs that show one picture under a shift.

    `load` returns the working copy of a picture; it is called for suspects only.
    """
    for first, second, dx, dy in _suspects(pictures):
        if _is_same(load(first), load(second), dx, dy):
            yield first, second


def _suspects(pictures: Sequence[Points]) -> list[tuple[int, int, int, int]]:
    """Return (first, second, dx, dy) where enough points agree under one shift."""
    counts = [len(points.words) for points in pictures]
    if sum(counts) == 0:
        return []
    owner = np.repeat(np.arange(len(pictures)), counts)
    places = np.concatenate([points.places for points in pictures])
    words = np.concatenate([points.words for points in pictures])
    votes: dict[tuple[int, int, int, int], int] = {}
    for band in range(_BANDS):
        for one, other in _sharing(words, band):
            apart = np.bitwise_count(words[one] ^ words[other])
            good = (apart <= _DIFFERENT_BITS) & (owner[one] != owner[other])
            for a, b in zip(one[good], other[good], strict=True):
                if owner[a] > owner[b]:
                    a, b = b, a
                dx, dy = places[b] - places[a]
                key = (int(owner[a]), int(owner[b]), int(dx) // 2, int(dy) // 2)
                votes[key] = votes.get(key, 0) + 1
    best: dict[tuple[int, int], tuple[int, int, int]] = {}
    for (a, b, dx, dy), count in votes.items():
        if count >= _VOTES and count > best.get((a, b), (0, 0, 0))[0]:
            best[a, b] = (count, 2 * dx, 2 * dy)
    return [(a, b, dx, dy) for (a, b), (_, dx, dy) in sorted(best.items())]


def _sharing(
    words: NDArray[np.uint64], band: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield index arrays of words that are equal in one band of sixteen bits."""
    keys = (words >> np.uint64(16 * band)) & np.uint64(0xFFFF)
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order], prepend=keys[order[0]] + 1))
    for start, end in zip(edges, [*edges[1:], len(order)], strict=True):
        if 2 <= end - start <= _CROWD:
            inside = order[start:end]
            one, other = np.triu_indices(len(inside), 1)
            yield inside[one], inside[other]


def _is_same(first: Grey, second: Grey, dx: int, dy: int) -> bool:
    """Tell whether `second` shows `first` under about this shift."""
    return any(
        _correlation(first, second, dx + x, dy + y) >= _ALIKE
        for x in (0, 1)
        for y in (0, 1)
    )


def _correlation(first: Grey, second: Grey, dx: int, dy: int) -> float:
    """Return the correlation of the overlap, 0 where it is too small to tell.

    Point (x, y) of `first` is (x + dx, y + dy) of `second`.
    """
    x0, y0 = max(0, -dx), max(0, -dy)
    x1 = min(first.shape[1], second.shape[1] - dx)
    y1 = min(first.shape[0], second.shape[0] - dy)
    if x1 <= x0 or y1 <= y0:
        return 0.0
    if (x1 - x0) * (y1 - y0) < _OVERLAP * min(first.size, second.size):
        return 0.0
    one = first[y0:y1, x0:x1].astype(np.float32)
    other = second[y0 + dy : y1 + dy, x0 + dx : x1 + dx].astype(np.float32)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale else 0.0


def _cosines() -> NDArray[np.float32]:
    place = np.arange(_PATCH) + 0.5
    rows = np.cos(np.pi / _PATCH * np.outer(np.arange(_LOW), place))
    return rows.astype(np.float32)


_COSINES = _cosines()
