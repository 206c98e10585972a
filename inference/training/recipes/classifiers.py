"""The networks that the papers compare, each with one answer: malignant or not.

All take grey windows, standardised per image as the multi-level paper does it
(gain 1.2, offset 0.1), spread over three colours. All average their last feature map
before one linear layer; VGG's three wide dense layers are left out, which hold 124 of
its 138 million weights and would need the published resolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models

from inference.training.initial import IMAGENET
from node.domain.errors import ErrorKind, NodeError

GAIN, OFFSET = 1.2, 0.1


class Classifier(nn.Module):
    """A trunk that gives pooled features, and a linear head on them."""

    def __init__(self, trunk: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.width = width
        self.head = nn.Linear(width, 1)

    def forward(self, grey: Tensor) -> Tensor:
        """Return logits (n,) of grey levels 0..255, (n, side, side)."""
        return self.head(self.pooled(grey))[:, 0]  # type: ignore[no-any-return]

    def pooled(self, grey: Tensor) -> Tensor:
        return self.trunk(standardised(grey))  # type: ignore[no-any-return]


def standardised(grey: Tensor) -> Tensor:
    """Return windows with mean 0.1 and spread 1.2 each, (n, 3, side, side)."""
    level = grey.mean(dim=(1, 2), keepdim=True)
    spread = grey.std(dim=(1, 2), keepdim=True).clamp(min=1.0)
    x = GAIN * (grey - level) / spread + OFFSET
    return (
        x[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    )


def build(name: str, *, weights: str | None = None) -> Classifier:
    """Return a classifier by name; `weights`: None for fresh ones, or "imagenet".

    Raises NodeError(UNAVAILABLE) where torchvision cannot fetch its weights.
    """
    make = BUILDERS.get(name)
    if make is None:
        raise NodeError(f"no classifier is called {name}", ErrorKind.INVALID)
    try:
        classifier = make("DEFAULT" if weights == IMAGENET else None)
    except OSError as error:
        raise NodeError(
            f"ImageNet weights of {name} cannot be fetched here", ErrorKind.UNAVAILABLE
        ) from error
    return classifier.to(memory_format=torch.channels_last)


def _resnet50(weights: str | None) -> Classifier:
    trunk = models.resnet50(weights=weights)
    trunk.fc = nn.Identity()
    return Classifier(trunk, 2048)


def _vgg16(weights: str | None) -> Classifier:
    if weights is None:
        layers = models.vgg.make_layers(models.vgg.cfgs["D"])
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
                layer.bias.data.zero_()  # type: ignore[union-attr]
    else:
        layers = models.vgg16(weights=weights).features
    pooled = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(pooled, 512)


def _googlenet(weights: str | None) -> Classifier:
    if weights is None:
        trunk = models.googlenet(weights=None, aux_logits=False, init_weights=True)
    else:
        trunk = models.googlenet(weights=weights)
        trunk.aux1 = trunk.aux2 = None
        trunk.aux_logits = False
    trunk.fc = nn.Identity()
    return Classifier(trunk, 1024)


def _inception_v3(weights: str | None) -> Classifier:
    # The auxiliary head needs 299 px; at the sizes that fit a CPU it is left out.
    if weights is None:
        trunk = models.inception_v3(weights=None, aux_logits=False, init_weights=True)
    else:
        trunk = models.inception_v3(weights=weights)
        trunk.AuxLogits = None
        trunk.aux_logits = False
    trunk.fc = nn.Identity()
    return Classifier(trunk, 2048)


class ConvTransformer(nn.Module):
    """Four convolutions down to stride 16, then attention among the places."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, width)
        self.stem = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(inplace=True),
                )
                for before, after in itertools.pairwise(widths)
            ]
        )
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            dim_feedforward=4 * width,
            dropout=0.1,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        places = self.stem(x)
        rows, columns, width = places.shape[2], places.shape[3], places.shape[1]
        tokens = places.flatten(2).transpose(1, 2) + _positions(rows, columns, width)
        return self.norm(self.encoder(tokens)).mean(dim=1)  # type: ignore[no-any-return]


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """Return sine codes of each place, (rows * columns, width), fit for any size."""
    quarter = width // 4
    pitch = torch.exp(-math.log(1000.0) * torch.arange(quarter) / quarter)
    down = torch.arange(rows)[:, None] * pitch
    across = torch.arange(columns)[:, None] * pitch
    down_code = torch.cat([down.sin(), down.cos()], dim=1)[:, None]
    across_code = torch.cat([across.sin(), across.cos()], dim=1)[None]
    return torch.cat(
        [down_code.expand(-1, columns, -1), across_code.expand(rows, -1, -1)], dim=2
    ).flatten(0, 1)


def _cnn_vit(weights: str | None) -> Classifier:
    if weights is not None:
        raise NodeError(
            "CNN-ViT is not specified by its paper and has no ImageNet weights",
            ErrorKind.INVALID,
        )
    return Classifier(ConvTransformer(), 192)


BUILDERS: dict[str, Callable[[str | None], Classifier]] = {
    "ResNet50": _resnet50,
    "VGG16": _vgg16,
    "GoogLeNet": _googlenet,
    "Inception-v3": _inception_v3,
    "CNN-ViT": _cnn_vit,
}
