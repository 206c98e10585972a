"""Refuses pictures that are no breast ultrasound, whatever their header says.

Two gates. The pixels alone give away text screens, drawings, noise and whatever has
no speckle. The network's own features give away the rest: other anatomy, mammograms,
photographs lie far from all that it was trained on. A network answers any picture
with the same confidence, so what it does not know must be kept from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from inference.select import Reason
from node.domain.errors import ErrorKind, NodeError

if TYPE_CHECKING:
    from inference.record import ModelRecord

Features = NDArray[np.float32]

FILE: Final = "familiarity.safetensors"

FEWEST_LEVELS: Final = 32
"""Grey levels in use; 88 is the least among 1,903 breast images."""

LEAST_NEIGHBOURHOOD: Final = 0.62
"""Correlation of neighbouring pixels: breast images from 0.72, text below 0.60."""

LEAST_SPECKLE: Final = 0.055
"""Median contrast of bright blocks: breast images from 0.062, smooth ramps below."""

MOST_BACKGROUND: Final = 0.8
"""Share of one grey level (+-2); 0.49 is the most among breast images."""

_BLOCK: Final = 8
_DARK: Final = 16

AXES: Final = 64
DIRECTION_AXES: Final = 128
SHRINKAGE: Final = 0.01
PASSING: Final = 0.99
"""Share of validation images that must be found familiar."""


def refuse_texture(grey: NDArray[np.uint8]) -> Reason | None:
    """Return why a picture has not the texture of ultrasound, or None.

    `grey`: uint8 (rows, columns), a region as reduced for the network.
    """
    levels = np.bincount(grey.ravel(), minlength=256) / grey.size
    if float(levels.max()) == 1.0:
        return Reason.BLANK
    in_use = int((levels > 1 / 5000).sum())
    background = float(np.convolve(levels, np.ones(5), "same").max())
    if in_use < FEWEST_LEVELS or background > MOST_BACKGROUND:
        return Reason.NO_SPECKLE
    if _neighbourhood(grey) < LEAST_NEIGHBOURHOOD or _speckle(grey) < LEAST_SPECKLE:
        return Reason.NO_SPECKLE
    return None


def _neighbourhood(grey: NDArray[np.uint8]) -> float:
    """Return the lesser correlation of pixels with the next, across and down."""
    apart = grey.astype(np.float32) - float(grey.mean())
    power = max(float((apart**2).mean()), 1e-6)
    across = float((apart[:, 1:] * apart[:, :-1]).mean())
    down = float((apart[1:] * apart[:-1]).mean())
    return min(across, down) / power


def _speckle(grey: NDArray[np.uint8]) -> float:
    """Return the median of standard deviation over mean in blocks that are not dark."""
    rows, columns = (length // _BLOCK for length in grey.shape)
    blocks = (
        grey[: rows * _BLOCK, : columns * _BLOCK]
        .astype(np.float32)
        .reshape(rows, _BLOCK, columns, _BLOCK)
    )
    mean, spread = blocks.mean(axis=(1, 3)), blocks.std(axis=(1, 3))
    bright = mean > _DARK
    return float(np.median(spread[bright] / mean[bright])) if bright.any() else 0.0


@dataclass(frozen=True, slots=True)
class _Cloud:
    """Where features lie: their mean, main axes, and how far they scatter.

    `axes`: (features, d). `variances`: (d,), shrunk towards their mean. `rest`: the
    mean square that lies off the axes, per axis.
    """

    mean: Features
    axes: Features
    variances: Features
    rest: float

    @classmethod
    def fit(cls, features: NDArray[np.float64], axes: int) -> _Cloud:
        mean = features.mean(axis=0)
        apart = features - mean
        _, _, directions = np.linalg.svd(apart, full_matrices=False)
        chosen = directions[: min(axes, len(features) - 1)].T
        along = apart @ chosen
        variances = along.var(axis=0)
        off = (apart**2).sum(axis=1) - (along**2).sum(axis=1)
        return cls(
            mean.astype(np.float32),
            chosen.astype(np.float32),
            (variances + SHRINKAGE * variances.mean()).astype(np.float32),
            max(float(off.mean()) / chosen.shape[1], 1e-12),
        )

    def distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the squared Mahalanobis distance; off the axes counts as one more."""
        apart = features - self.mean
        along = apart @ self.axes.astype(np.float64)
        off = (apart**2).sum(axis=1) - (along**2).sum(axis=1)
        near = (along**2 / self.variances).sum(axis=1)
        return np.asarray(near + off.clip(min=0) / self.rest)


@dataclass(frozen=True, slots=True)
class Familiarity:
    """How far pictures may lie from those that the model was trained on.

    Two clouds of the same features: as they are, and their direction alone. Other
    anatomy differs in direction, photographs and noise in strength.
    `limits` are the distances that still pass.
    """

    strength: _Cloud
    direction: _Cloud
    limits: tuple[float, float] = (1.0, 1.0)

    def distance(self, features: Features) -> NDArray[np.float64]:
        """Return how far images lie, (n,); up to 1 is familiar.

        `features`: (n, k), averaged over the whole region, see `two_pass`.
        """
        near, far = self._distances(features)
        return np.maximum(near / self.limits[0], far / self.limits[1])

    def calibrated(self, features: Features, passing: float = PASSING) -> Familiarity:
        """Return the same clouds with limits that let this share of images pass."""
        near, far = self._distances(features)
        limits = (float(np.quantile(near, passing)), float(np.quantile(far, passing)))
        both = np.maximum(near / limits[0], far / limits[1])
        wider = float(np.quantile(both, passing))
        return replace(self, limits=(limits[0] * wider, limits[1] * wider))

    def _distances(
        self, features: Features
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = features.astype(np.float64)
        return (
            self.strength.distance(values),
            self.direction.distance(_direction(values)),
        )


def fit(training: Features, validation: Features) -> Familiarity:
    """Return what the model is familiar with.

    `training`, `validation`: (n, k), the pooled features of the whole-region pass.
    """
    values = training.astype(np.float64)
    return Familiarity(
        _Cloud.fit(values, AXES), _Cloud.fit(_direction(values), DIRECTION_AXES)
    ).calibrated(validation)


def _direction(features: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))


def write_familiarity(familiarity: Familiarity, directory: Path) -> str:
    """Write the file beside the weights; return its SHA-256 for `ModelRecord.files`.

    Axes are kept in half precision, so distances change in the fourth digit.
    """
    tensors: dict[str, NDArray[np.generic]] = {
        "limits": np.array(familiarity.limits, np.float32)
    }
    for name in ("strength", "direction"):
        cloud: _Cloud = getattr(familiarity, name)
        tensors |= {
            f"{name}.mean": cloud.mean,
            f"{name}.axes": np.ascontiguousarray(cloud.axes.astype(np.float16)),
            f"{name}.variances": cloud.variances,
            f"{name}.rest": np.array([cloud.rest], np.float32),
        }
    content = save(tensors)
    (directory / FILE).write_bytes(content)
    return sha256(content).hexdigest()


def read_familiarity(directory: Path, record: ModelRecord) -> Familiarity | None:
    """Return what the model is familiar with, None when it was released without.

    Raises NodeError(INTEGRITY) when the file is not the one that was released.
    """
    if FILE not in record.files:
        return None
    try:
        content = (directory / FILE).read_bytes()
    except OSError as error:
        raise NodeError(f"{FILE} is missing", ErrorKind.INTEGRITY) from error
    if sha256(content).hexdigest() != record.files[FILE]:
        raise NodeError(
            f"{FILE} is not the one that model.json names: restore the released file",
            ErrorKind.INTEGRITY,
        )
    try:
        tensors = load(content)
        clouds = [
            _Cloud(
                tensors[f"{name}.mean"],
                tensors[f"{name}.axes"].astype(np.float32),
                tensors[f"{name}.variances"],
                float(tensors[f"{name}.rest"][0]),
            )
            for name in ("strength", "direction")
        ]
        first, second = tensors["limits"].tolist()
    except (SafetensorError, KeyError, IndexError, ValueError) as error:
        raise NodeError(
            f"{FILE} cannot be read: {type(error).__name__}", ErrorKind.INTEGRITY
        ) from error
    return Familiarity(clouds[0], clouds[1], (first, second))
