"""Where the network's weights come from before training: files, ImageNet, or nowhere.

Three kinds of file are told apart by what they hold: this network's own weights
(released, pretrained or checkpointed), and torchvision's ResNet50, whose first layer
is folded from three colours onto one grey channel.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from node.domain.errors import ErrorKind, NodeError

SCRATCH = "scratch"
IMAGENET = "imagenet"

# torchvision trained with these, per colour, on levels 0..1; the network's own
# windows are (level - GREY_MEAN) / GREY_SPREAD.
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_SPREAD = 0.25, 0.2

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)

_STEM = {"conv1.": "stem.0.", "bn1.": "stem.1."}
_LAYERS = {f"layer{index + 1}.": f"stages.{index}." for index in range(4)}


def initialise(network: nn.Module, source: str) -> str:
    """Put weights from `source` into `network`; return what they are, for the record.

    `source`: "scratch", "imagenet" (torchvision's, fetched by torchvision), or a file.
    Parts that the source does not know (heads after ImageNet, attention after a
    network without) keep their fresh weights; a part that does not fit is an error.

    Raises NodeError(INVALID) in one line that names the file and what is wrong.
    """
    if source == SCRATCH:
        return SCRATCH
    if source == IMAGENET:
        state, name = _imagenet(), "torchvision ResNet50 IMAGENET1K_V2"
    else:
        state = _read(Path(source))
        name = f"{Path(source).name} sha256:{_sha256(Path(source))[:12]}"
    if "layer4.0.conv1.weight" in state:
        state = from_torchvision(state)
    own = network.state_dict()
    try:
        unknown = network.load_state_dict(
            {
                key: value.to(own[key].dtype) if key in own else value
                for key, value in state.items()
            },
            strict=False,
        ).unexpected_keys
    except RuntimeError as error:
        raise _unfit(source, str(error).splitlines()[-1].strip()) from error
    if unknown or not any(key.startswith("stages.") for key in state):
        raise _unfit(source, f"unknown: {', '.join(unknown[:3]) or 'no stages'}")
    return name


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision ResNet50 weights under the names of the lesion network.

    A grey image has three equal colours, so the first layer's colours are added up.
    The other normalisation is folded in too: its scale into the weights, its shift
    into the mean of the batch normalisation that follows. Exact, but for the border.
    """
    renamed = {}
    for key, value in state.items():
        for old, new in (_STEM | _LAYERS).items():
            if key.startswith(old):
                renamed[new + key.removeprefix(old)] = value.clone()
    spread = torch.tensor(_SPREAD).reshape(1, 3, 1, 1)
    mean = torch.tensor(_MEAN).reshape(1, 3, 1, 1)
    colours = state["conv1.weight"].float()
    renamed["stem.0.weight"] = (colours * GREY_SPREAD / spread).sum(1, keepdim=True)
    shift = (colours * (GREY_MEAN - mean) / spread).sum(dim=(1, 2, 3))
    renamed["stem.1.running_mean"] = renamed["stem.1.running_mean"] - shift
    return renamed


def _imagenet() -> Mapping[str, Tensor]:
    try:
        return ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False)
    except OSError as error:
        raise NodeError(
            "ImageNet weights cannot be fetched here: name a local file of "
            "torchvision's resnet50 instead",
            ErrorKind.UNAVAILABLE,
        ) from error


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _unfit(str(file), type(error).__name__) from error
    if isinstance(state, dict):
        state = state.get("average", state)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise _unfit(str(file), "it holds no weights")
    return state


def _unfit(source: str, reason: str) -> NodeError:
    return NodeError(
        f"initial weights {Path(source).name} do not fit: {reason}", ErrorKind.INVALID
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
