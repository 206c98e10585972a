"""Losses of many tasks that pass over every label an image does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from inference.network import Logits
from inference.training.data import Batch


def total_loss(reading: Logits, batch: Batch) -> Tensor:
    """Return the weighted sum of all tasks' losses; absent labels weigh nothing."""
    loss = masked_binary(reading.malignancy, batch.malignancy)
    loss = loss + 0.2 * masked_binary(reading.lesion, batch.lesion)
    loss = loss + 0.6 * masked_binary(reading.birads, batch.birads)
    loss = loss + 0.3 * masked_binary(reading.margin, batch.margin)
    for field, logits in reading.choices.items():
        loss = loss + 0.1 * masked_choice(logits, batch.choices[field])
    return loss + mask_loss(reading.mask, batch.masks)


def masked_binary(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the targets that exist (not NaN)."""
    known = ~torch.isnan(targets)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), torch.nan_to_num(targets), reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def masked_choice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the targets that exist (not -1)."""
    losses = functional.cross_entropy(
        logits.float(), targets, ignore_index=-1, reduction="sum"
    )
    return losses / (targets >= 0).sum().clamp(min=1)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice where the window shows a lesion.

    Windows of lesions that nobody has drawn (NaN) count for neither.
    """
    logits = logits.float()
    drawn = ~torch.isnan(targets[:, 0, 0])
    entropy = masked_binary(logits, targets)
    targets = torch.nan_to_num(targets)
    chance = torch.sigmoid(logits)
    shown = (targets.amax(dim=(1, 2)) > 0.5) & drawn
    overlap = 2 * (chance * targets).sum(dim=(1, 2)) + 1
    total = chance.sum(dim=(1, 2)) + targets.sum(dim=(1, 2)) + 1
    dice = (1 - overlap / total) * shown
    return entropy + dice.sum() / shown.sum().clamp(min=1)
