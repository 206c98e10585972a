"""Tells whether the heat map that doctors see looks at the lesion."""

from __future__ import annotations

from typing import Any

import numpy as np

from inference.explain import activation_map
from inference.preprocess import RegionView
from inference.record import Network
from inference.training.data import Catalogue
from inference.training.measures import Pointing, interval, pointing
from inference.two_pass import RegionAnswers
from node.domain.finding import PixelBox


def pointing_figures(
    network: Network,
    catalogue: Catalogue,
    answers: RegionAnswers,
    side: int,
    *,
    rounds: int = 1000,
) -> dict[str, Any]:
    """Return pointing game and energy in the mask, beside what chance would give.

    Uses the very map of the product, over the crop that was read. Chance is the share
    of that crop which the lesion covers: a map spread evenly, or a peak thrown
    blindly, would score that. Split by class, since evidence for malignancy has no
    reason to lie in a benign lesion.
    """
    rows, found = [], []
    for row in range(len(catalogue)):
        one = _point(network, catalogue, answers, row, side)
        if one is not None:
            rows.append(row)
            found.append(one)
    truth = catalogue.malignancy.numpy()[rows]
    classes = {
        "lesions": np.ones(len(rows), dtype=bool),
        "malignant": truth == 1,
        "benign": truth == 0,
    }
    return {
        name: _figures(catalogue, rows, found, np.flatnonzero(kept), rounds)
        for name, kept in classes.items()
    }


def _point(
    network: Network,
    catalogue: Catalogue,
    answers: RegionAnswers,
    row: int,
    side: int,
) -> Pointing | None:
    rows, columns = (int(value) for value in catalogue.sizes[row])
    mask = catalogue.masks[row].numpy()[:rows, :columns] > 127
    if not mask.any():
        return None
    pixels = catalogue.pixels[row].numpy()
    view = RegionView(pixels, rows, columns, PixelBox(0, 0, columns, rows))
    window = answers.windows[row]
    heat = activation_map(network, view, window, side)
    x, y, length = (float(value) for value in window)
    across = np.abs(np.arange(columns) + 0.5 - x) <= length / 2
    down = np.abs(np.arange(rows) + 0.5 - y) <= length / 2
    return pointing(heat, mask, np.outer(down, across))


def _figures(
    catalogue: Catalogue,
    rows: list[int],
    found: list[Pointing],
    kept: np.ndarray[Any, np.dtype[np.int64]],
    rounds: int,
) -> dict[str, Any]:
    if not len(kept):
        return {"n": 0}
    groups = [catalogue.groups[rows[index]] for index in kept]
    hits = np.array([float(found[index].hit) for index in kept])
    energy = np.array([found[index].energy for index in kept])
    area = np.array([found[index].area for index in kept])
    return {
        "n": len(kept),
        "hit": interval(lambda i: float(hits[i].mean()), groups, rounds=rounds),
        "energy": interval(lambda i: float(energy[i].mean()), groups, rounds=rounds),
        "by_chance": float(area.mean()),
    }
