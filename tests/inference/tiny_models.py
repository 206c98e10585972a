"""Models that fit into a test: folders as released, whose networks only pretend."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.assess import Reader
from inference.loaded import Serving
from inference.models import ModelFolder
from inference.record import (
    CHOICE_KEYS,
    Network,
    Reading,
    verified_weights,
    write_record,
)
from tests.inference.records import RECORD


def make_model(path: Path, version: str, weights: bytes) -> Path:
    """Write a folder whose weights only the loader of this module understands."""
    path.mkdir()
    (path / RECORD.weights).write_bytes(weights)
    digest = hashlib.sha256(weights).hexdigest()
    write_record(replace(RECORD, version=version, sha256=digest), path)
    return path


def network_of(weights: bytes) -> Network:
    """Return what answers like a network, each model in its own way."""
    if weights == b"shapes":
        raise RuntimeError("size mismatch for a:\n  (3, 2)\nsize mismatch for b")
    likely = float("nan") if weights == b"nan" else float(weights[:1])

    def network(windows: NDArray[np.float32]) -> Reading:
        n, quarter, last = len(windows), RECORD.side // 4, RECORD.side // 32
        mask = np.full((n, quarter, quarter), -5, np.float32)
        mask[:, 4:10, 5:12] = 5
        return Reading(
            malignancy=np.full(n, likely, np.float32),
            lesion=np.ones(n, np.float32),
            birads=np.zeros((n, 5), np.float32),
            margin=np.zeros((n, 5), np.float32),
            choices={
                field: np.zeros((n, len(keys)), np.float32)
                for field, keys in CHOICE_KEYS.items()
            },
            mask=mask,
            features=np.ones((n, 2048, last, last), np.float32),
            evidence=np.ones((n, last, last), np.float32),
        )

    return network


def load_tiny(folder: ModelFolder) -> Serving:
    """Load a model that `make_model` wrote."""
    content, record = verified_weights(folder.path)
    network = network_of(content)
    return Serving(Reader(network, record, read_simulated=True), network)
