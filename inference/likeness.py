"""What the network saw in a lesion, short enough to search an archive by.

The features of the crop are projected at random onto fewer directions, which keeps
the angles between lesions (Johnson-Lindenstrauss), needs no fitting, and is the same
on every machine. Vectors of different weights do not compare.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

DIMENSIONS = 128
_SEED = 20261121
"""Part of what is stored: vectors of another seed do not compare."""


def lesion_vector(pooled: Array) -> tuple[float, ...]:
    """Return the vector of length 1 of one crop; `pooled`: (features,), float32.

    The mean is taken out first: features are never negative, and what all lesions
    share would make every two of them look alike. Features that are all equal or
    not finite have no direction: the vector is empty.
    """
    features = pooled.astype(np.float64)
    if not np.isfinite(features).all() or np.ptp(features) == 0:
        return ()
    projected = (features - features.mean()) @ _projection(len(pooled))
    return tuple((projected / np.linalg.norm(projected)).tolist())


@cache
def _projection(features: int) -> NDArray[np.float64]:
    # The stream of RandomState is frozen for good (NEP 19); that of newer generators
    # may change with any release of numpy.
    numbers = np.random.RandomState(_SEED).standard_normal((features, DIMENSIONS))
    return np.asarray(numbers / np.sqrt(DIMENSIONS))
