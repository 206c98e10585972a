"""Convolutional block attention (CBAM): which channels matter, then where to look.

Woo et al. 2018, as the US + CT paper puts it behind a ResNet50. Both gates are
2 * sigmoid of something that starts at zero, so that a fresh block passes its input
on unchanged: it can be switched on behind trained weights without harm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BlockAttention(nn.Module):
    """Weighs the channels, then the places, of a feature map; identity when fresh."""

    def __init__(self, channels: int, *, reduction: int = 16, kernel: int = 7) -> None:
        super().__init__()
        widen = nn.Conv2d(channels // reduction, channels, 1)
        self.channels = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1), nn.ReLU(inplace=True), widen
        )
        self.places = nn.Conv2d(2, 1, kernel, padding=kernel // 2)
        for last in (widen, self.places):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        mean = self.channels(features.mean(dim=(2, 3), keepdim=True))
        peak = self.channels(features.amax(dim=(2, 3), keepdim=True))
        weighed = features * (2 * torch.sigmoid(mean + peak))
        return weighed * (2 * self.place_map(weighed))

    def place_map(self, features: Tensor) -> Tensor:
        """Return where the block looks, (n, 1, rows, columns), 0..1, 0.5 when fresh."""
        summary = torch.cat(
            [features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)],
            dim=1,
        )
        return torch.sigmoid(self.places(summary))
