"""The network that reads a lesion: a ResNet50 trunk, one head per question, and a mask.

The reference: it trains, it serves CUDA, and every export is checked against it.
Every head answers in logits; what a logit may be turned into, and which heads may
speak at all, is said by the `model.json` beside the weights (`inference.record`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import structlog
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet50

from inference.attention import BlockAttention
from inference.record import (
    BIRADS_STEPS,
    CHOICE_KEYS,
    MARGIN_KEYS,
    WEIGHTS,
    Array,
    ModelRecord,
    Reading,
    joined,
    verified_weights,
    write_record,
)
from node.domain.errors import ErrorKind, NodeError

log = structlog.get_logger(__name__)

WIDTHS = (256, 512, 1024, 2048)
"""Channels after each stage of the trunk."""

PYRAMID_CHANNELS = 64


@dataclass(frozen=True, slots=True)
class Logits:
    """The answers to a batch of windows as tensors; the fields of `record.Reading`."""

    malignancy: Tensor
    lesion: Tensor
    birads: Tensor
    margin: Tensor
    choices: dict[str, Tensor]
    mask: Tensor
    features: Tensor
    evidence: Tensor


class LesionNet(nn.Module):
    """A ResNet50 with heads on its pooled last stage and a pyramid for the mask.

    `cbam`: attention after each stage, off unless weights were trained with it.
    """

    def __init__(self, *, dropout: float = 0.0, cbam: bool = False) -> None:
        super().__init__()
        trunk = resnet50(weights=None, zero_init_residual=True)
        trunk.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        self.stages = nn.ModuleList(
            [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]
        )
        self.dropout = nn.Dropout(dropout)
        width = WIDTHS[-1]
        self.malignancy = nn.Linear(width, 1)
        self.lesion = nn.Linear(width, 1)
        self.birads = nn.Linear(width, len(BIRADS_STEPS) - 1)
        self.margin = nn.Linear(width, len(MARGIN_KEYS))
        self.choices = nn.ModuleDict(
            {field: nn.Linear(width, len(keys)) for field, keys in CHOICE_KEYS.items()}
        )
        self.lateral = nn.ModuleList(
            [nn.Conv2d(channels, PYRAMID_CHANNELS, 1) for channels in WIDTHS]
        )
        self.smooth = nn.ModuleList([_conv_block(PYRAMID_CHANNELS) for _ in range(4)])
        self.mask = nn.Conv2d(PYRAMID_CHANNELS, 1, 1)
        # Made last, so that the same seed gives the same heads with and without it.
        self.attention = nn.ModuleList(
            [BlockAttention(width) if cbam else nn.Identity() for width in WIDTHS]
        )

    def forward(self, windows: Tensor) -> Logits:
        stages = self._stages(windows)
        features = stages[-1]
        pooled = self.dropout(features.mean(dim=(2, 3)))
        return Logits(
            malignancy=self.malignancy(pooled)[:, 0],
            lesion=self.lesion(pooled)[:, 0],
            birads=self.birads(pooled),
            margin=self.margin(pooled),
            choices={field: head(pooled) for field, head in self.choices.items()},
            mask=self._mask(stages),
            features=features,
            evidence=self._evidence(features),
        )

    def _stages(self, windows: Tensor) -> list[Tensor]:
        outputs = []
        x = self.stem(windows)
        for stage, attention in zip(self.stages, self.attention, strict=True):
            x = attention(stage(x))
            outputs.append(x)
        return outputs

    def _evidence(self, features: Tensor) -> Tensor:
        """Return how much each place added to the malignancy logit.

        The head is linear on averaged features, so its weights say it without any
        gradient (class activation map).
        """
        weights = self.malignancy.weight[:, :, None, None]
        return functional.conv2d(features, weights)[:, 0]

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


class TorchNetwork:
    """A network as `record.Network`: windows in, answers out as arrays.

    Runs where the module's weights are. When the memory of the GPU does not hold a
    batch, it is read in halves, and so are all later ones of its size.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module.to(memory_format=torch.channels_last)
        self._device = next(module.parameters()).device
        self._most: int | None = None

    @torch.inference_mode()
    def __call__(self, windows: Array) -> Reading:
        """Read windows, float32 (n, 1, side, side), in evaluation mode.

        NodeError(EXHAUSTED) when the memory does not even hold one.
        """
        self._module.eval()
        parts: list[Reading] = []
        start = 0
        while start < len(windows):
            rows = windows[start : start + (self._most or len(windows))]
            try:
                parts.append(self._read(rows))
                start += len(rows)
                continue
            except torch.OutOfMemoryError:
                pass  # its traceback holds the memory until here
            self._shrink(len(rows))
        return joined(parts)

    def _shrink(self, failed: int) -> None:
        if failed <= 1:
            raise NodeError("the GPU has no memory to read with", ErrorKind.EXHAUSTED)
        self._most = failed // 2
        torch.cuda.empty_cache()
        log.warning("model.out_of_memory", windows=failed, now_at_most=self._most)

    def _read(self, windows: Array) -> Reading:
        batch = torch.from_numpy(windows).to(
            self._device, memory_format=torch.channels_last
        )
        return reading_of(self._module(batch))


def reading_of(logits: Logits) -> Reading:
    """Return answers as arrays."""
    return Reading(
        malignancy=_array(logits.malignancy),
        lesion=_array(logits.lesion),
        birads=_array(logits.birads),
        margin=_array(logits.margin),
        choices={field: _array(part) for field, part in logits.choices.items()},
        mask=_array(logits.mask),
        features=_array(logits.features),
        evidence=_array(logits.evidence),
    )


def _array(logits: Tensor) -> Array:
    return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)


def use_threads(count: int) -> None:
    """Bound the CPU cores that torch takes; 0 leaves torch's own choice."""
    if count > 0:
        torch.set_num_threads(count)


def load_model(directory: Path = WEIGHTS) -> tuple[LesionNet, ModelRecord]:
    """Return the released network and its record, after checking the weights' hash."""
    content, record = verified_weights(directory)
    return network_of(content), record


def network_of(content: bytes) -> LesionNet:
    """Return the network with the weights of a safetensors file, in float32."""
    state = load(content)
    network = LesionNet(cbam=any(name.startswith("attention.") for name in state))
    kinds = network.state_dict()
    network.load_state_dict(
        {name: value.to(kinds[name].dtype) for name, value in state.items()}
    )
    return network.eval()


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
    write_record(record, directory)
    return record
