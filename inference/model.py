"""The network that reads a lesion: a ResNet50 trunk, one head per question, and a mask.

Inputs are grey windows, float32, (n, 1, side, side), as `inference.preprocess`
makes them. Every head answers in logits; what a logit may be turned into, and
which heads may speak at all, is said by the `model.json` beside the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from node.domain.errors import ErrorKind, NodeError

WEIGHTS = Path(__file__).with_name("weights")

BIRADS_STEPS = ("2", "3", "4A", "4B", "4C", "5")
"""Categories in order; the ordinal head answers "above step i" for all but the last."""

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

PYRAMID_CHANNELS = 64


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits of a batch of windows.

    `malignancy`, `lesion`: (n,). `birads`: (n, 5), logit of "above step i".
    `margin`: (n, 5). `choices`: field -> (n, keys). `mask`: (n, side/4, side/4).
    `features`: (n, 2048, side/32, side/32), for the class activation map.
    """

    malignancy: Tensor
    lesion: Tensor
    birads: Tensor
    margin: Tensor
    choices: dict[str, Tensor]
    mask: Tensor
    features: Tensor


class LesionNet(nn.Module):
    """A ResNet50 with heads on its pooled last stage and a pyramid for the mask."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        trunk = resnet50(weights=None, zero_init_residual=True)
        trunk.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.stages = nn.ModuleList(
            [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        )
        self.dropout = nn.Dropout(dropout)
        width = 2048
        self.malignancy = nn.Linear(width, 1)
        self.lesion = nn.Linear(width, 1)
        self.birads = nn.Linear(width, len(BIRADS_STEPS) - 1)
        self.margin = nn.Linear(width, len(MARGIN_KEYS))
        self.choices = nn.ModuleDict(
            {field: nn.Linear(width, len(keys)) for field, keys in CHOICE_KEYS.items()}
        )
        self.lateral = nn.ModuleList(
            [
                nn.Conv2d(channels, PYRAMID_CHANNELS, 1)
                for channels in (256, 512, 1024, 2048)
            ]
        )
        self.smooth = nn.ModuleList([_conv_block(PYRAMID_CHANNELS) for _ in range(4)])
        self.mask = nn.Conv2d(PYRAMID_CHANNELS, 1, 1)

    def forward(self, windows: Tensor) -> Reading:
        stages = self._stages(windows)
        features = stages[-1]
        pooled = self.dropout(features.mean(dim=(2, 3)))
        return Reading(
            malignancy=self.malignancy(pooled)[:, 0],
            lesion=self.lesion(pooled)[:, 0],
            birads=self.birads(pooled),
            margin=self.margin(pooled),
            choices={field: head(pooled) for field, head in self.choices.items()},
            mask=self._mask(stages),
            features=features,
        )

    def _stages(self, windows: Tensor) -> list[Tensor]:
        outputs = []
        x = self.stem(windows)
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def _mask(self, stages: list[Tensor]) -> Tensor:
        """Top-down pyramid: coarse stages say where, fine stages say how far."""
        merged = self.smooth[3](self.lateral[3](stages[3]))
        for level in (2, 1, 0):
            fine = self.lateral[level](stages[level])
            coarse = functional.interpolate(
                merged, size=fine.shape[-2:], mode="nearest"
            )
            merged = self.smooth[level](fine + coarse)
        return self.mask(merged)[:, 0]  # type: ignore[no-any-return]


def _conv_block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


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
    `benign_step`: logit of BI-RADS "above 2" under which a lesion far below any
    suspicion is category 2 rather than 3. `speaks_on`: field -> keys that the
    model may say; fields left out are not assessed. `margin_thresholds`: logits.
    """

    name: str
    version: str
    weights: str
    sha256: str
    side: int
    fusion: Fusion
    threshold: float
    lesion_threshold: float
    benign_step: float
    speaks_on: dict[str, tuple[str, ...]]
    margin_thresholds: dict[str, float]
    training: dict[str, Any]


def read_record(path: Path) -> ModelRecord:
    """Return the record at `path`; NodeError(INTEGRITY) when missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["fusion"] = Fusion(**content["fusion"])
        content["speaks_on"] = {
            field: tuple(keys) for field, keys in content["speaks_on"].items()
        }
        return ModelRecord(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NodeError(
            f"model record {path.name} cannot be read: {type(error).__name__}",
            ErrorKind.INTEGRITY,
        ) from error


def load_model(directory: Path = WEIGHTS) -> tuple[LesionNet, ModelRecord]:
    """Return the released network and its record, after checking the weights' hash.

    Raises NodeError(INTEGRITY) in one line: a report must never name a model whose
    weights are not the ones that were evaluated.
    """
    record = read_record(directory / "model.json")
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
    network = LesionNet()
    state = {name: value.float() for name, value in load(content).items()}
    network.load_state_dict(
        {
            name: value.to(network.state_dict()[name].dtype)
            for name, value in state.items()
        }
    )
    return network.eval(), record


def save_model(network: nn.Module, record: ModelRecord, directory: Path) -> ModelRecord:
    """Write float16 weights and their record; return the record with its hash."""
    directory.mkdir(parents=True, exist_ok=True)
    content = save(
        {
            name: (value.half() if value.is_floating_point() else value).contiguous()
            for name, value in network.state_dict().items()
        }
    )
    (directory / record.weights).write_bytes(content)
    record = replace(record, sha256=hashlib.sha256(content).hexdigest())
    (directory / "model.json").write_text(
        json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    return record
