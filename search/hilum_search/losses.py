"""The training loss: class-weighted cross-entropy and soft Dice over the labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1.0
"""Voxels added above and below in Dice, so that a label absent from a batch costs nothing when it is not predicted."""


def loss(logits: Tensor, classes: Tensor, weights: Tensor, dice_share: float) -> Tensor:
    """Loss of logits (N, K, D, H, W) against classes (N, D, H, W); weights (K,) are the cross-entropy's."""
    entropy = F.cross_entropy(logits, classes, weights)
    return (1 - dice_share) * entropy + dice_share * soft_dice_loss(logits, classes)


def soft_dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """One minus the mean soft Dice of the labels, the whole batch taken as one volume; background left out."""
    probabilities = torch.softmax(logits, 1)[:, 1:]
    truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    axes = (0, 2, 3, 4)
    overlap = (probabilities * truth).sum(axes)
    dice = (2 * overlap + SMOOTH) / (probabilities.sum(axes) + truth.sum(axes) + SMOOTH)
    return 1 - dice.mean()
