"""What a released model is: its record, its weights file, and what its answers mean.

Nothing here needs torch: whoever serves a model reads `model.json`, checks the
weights against it, and takes answers as arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.domain.errors import ErrorKind, NodeError

WEIGHTS = Path(__file__).with_name("weights")
RECORD_FILE = "model.json"
RECORD_FORMAT = 2
"""The newest form of a record that this program reads; without `format` it is 1.

Form 1 has no cut points of categories: the ACR's bands of likelihood hold.
"""

BIRADS_STEPS = ("2", "3", "4A", "4B", "4C", "5")
"""Categories in order; the ordinal head answers "above step i" for all but the last."""

ACR_CUTS = tuple(math.log(p / (1 - p)) for p in (0.005, 0.02, 0.10, 0.50, 0.95))
"""Logits of the likelihoods of malignancy at which 3, 4A, 4B, 4C and 5 begin.

ACR BI-RADS Atlas; 2 is "essentially 0 %", taken as half a per cent.
"""

MARGIN_KEYS = ("circumscribed", "indistinct", "angular", "microlobulated", "spiculated")

CHOICE_KEYS: dict[str, tuple[str, ...]] = {
    "shape": ("oval", "round", "irregular"),
    "orientation": ("parallel", "not_parallel"),
    "lesion_boundary": ("abrupt_interface", "echogenic_halo"),
    "echo_pattern": ("anechoic", "hyperechoic", "complex", "hypoechoic", "isoechoic"),
    "posterior_features": ("none", "enhancement", "shadowing", "combined"),
    "calcifications": ("absent", "in_mass"),
}
"""Single-choice heads and their keys, in the order of their logits.

`calcifications` knows only what its training labels know: none seen, or in the
mass. Macro-calcification and calcification outside a mass have no public label.
"""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a network says about n windows: logits, float32.

    `malignancy`, `lesion`: (n,). `birads`: (n, 5), logit of "above step i".
    `margin`: (n, 5). `choices`: field -> (n, keys). `mask`: (n, side/4, side/4).
    `features`: (n, 2048, side/32, side/32), the last stage of the trunk.
    `evidence`: (n, side/32, side/32), how much each place added to `malignancy`.
    """

    malignancy: Array
    lesion: Array
    birads: Array
    margin: Array
    choices: dict[str, Array]
    mask: Array
    features: Array
    evidence: Array


def mapped(change: Callable[..., Array], readings: Sequence[Reading]) -> Reading:
    """Return a reading whose every array is `change` of that array of each reading."""
    return Reading(
        malignancy=change(*(r.malignancy for r in readings)),
        lesion=change(*(r.lesion for r in readings)),
        birads=change(*(r.birads for r in readings)),
        margin=change(*(r.margin for r in readings)),
        choices={
            field: change(*(r.choices[field] for r in readings))
            for field in readings[0].choices
        },
        mask=change(*(r.mask for r in readings)),
        features=change(*(r.features for r in readings)),
        evidence=change(*(r.evidence for r in readings)),
    )


def joined(readings: Sequence[Reading]) -> Reading:
    """Return the readings of parts of a batch as one."""
    if len(readings) == 1:
        return readings[0]
    return mapped(lambda *parts: np.concatenate(parts), readings)


Network = Callable[[Array], Reading]
"""Takes windows, float32 (n, 1, side, side), as `inference.preprocess` makes them."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the logits of both passes become one calibrated malignancy logit.

    Fitted on the validation split; `whole`, `crop` and `ordinal` weigh the
    malignancy of the whole region, of the crop, and the mean BI-RADS step logit.
    """

    whole: float
    crop: float
    ordinal: float
    offset: float


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What `model.json` says beside the weights.

    `threshold`: probability at and above which a lesion counts as suspicious.
    `lesion_threshold`: lesion logit below which a region may be normal.
    `speaks_on`: field -> keys that the model may say; fields left out are not
    assessed. `margin_thresholds`: logits. `category_cuts`: rising malignancy logits
    at which BI-RADS 3, 4A, 4B, 4C and 5 begin, after the use of the categories by
    the radiologists of the training sets. `files`: SHA-256 of each file beside the
    weights that belongs to the model. `format`: the form of the record itself.
    """

    name: str
    version: str
    weights: str
    sha256: str
    side: int
    fusion: Fusion
    threshold: float
    lesion_threshold: float
    speaks_on: dict[str, tuple[str, ...]]
    margin_thresholds: dict[str, float]
    training: dict[str, Any]
    category_cuts: tuple[float, ...] = ACR_CUTS
    files: dict[str, str] = field(default_factory=dict)
    format: int = RECORD_FORMAT


def read_record(path: Path) -> ModelRecord:
    """Return the record at `path`; NodeError(INTEGRITY) when missing or broken.

    A record of a newer form, or one that names weights outside its folder, is
    refused: half of what it says would be misunderstood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if int(content.get("format", 1)) > RECORD_FORMAT:
            raise NodeError(
                f"model record {path.name} is of a newer form; install that release",
                ErrorKind.INTEGRITY,
            )
        if Path(content["weights"]).name != content["weights"]:
            raise NodeError(
                f"model record {path.name} names a file outside its folder",
                ErrorKind.INTEGRITY,
            )
        content["fusion"] = Fusion(**content["fusion"])
        content["speaks_on"] = {
            name: tuple(keys) for name, keys in content["speaks_on"].items()
        }
        content["category_cuts"] = _cuts(content.get("category_cuts", ACR_CUTS))
        content.pop("benign_step", None)  # of form 1
        return ModelRecord(**content | {"format": RECORD_FORMAT})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NodeError(
            f"model record {path.name} cannot be read: {type(error).__name__}",
            ErrorKind.INTEGRITY,
        ) from error


def _cuts(values: Sequence[float]) -> tuple[float, ...]:
    """Return the cut points; ValueError unless each category follows the one below."""
    cuts = tuple(float(value) for value in values)
    if len(cuts) != len(BIRADS_STEPS) - 1 or not all(map(math.isfinite, cuts)):
        raise ValueError("category cuts are not five numbers")
    if list(cuts) != sorted(cuts):
        raise ValueError("category cuts do not rise")
    return cuts


def write_record(record: ModelRecord, directory: Path) -> None:
    """Write `model.json` into `directory`."""
    (directory / RECORD_FILE).write_text(
        json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def verified_weights(directory: Path = WEIGHTS) -> tuple[bytes, ModelRecord]:
    """Return the bytes of the released weights and their record, hash checked.

    Raises NodeError(INTEGRITY) in one line: a report must never name a model whose
    weights are not the ones that were evaluated.
    """
    record = read_record(directory / RECORD_FILE)
    try:
        content = (directory / record.weights).read_bytes()
    except OSError as error:
        raise NodeError(
            f"model weights {record.weights} are missing", ErrorKind.INTEGRITY
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != record.sha256:
        raise NodeError(
            f"model weights {record.weights} have SHA-256 {found[:12]}..., "
            f"model.json says {record.sha256[:12]}...: restore the released file",
            ErrorKind.INTEGRITY,
        )
    return content, record
