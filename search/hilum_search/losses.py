"""Training losses: a region loss and a voxel loss, mixed; the same at coarser levels for deep supervision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from hilum_search.recipe import Training

SMOOTH = 1.0
"""Voxels added above and below in Dice, so that a label absent from a batch costs nothing when it is not predicted."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K, D, H, W) and classes (N, D, H, W) to one value."""


def make_loss(training: Training, device: torch.device | None = None) -> Loss:
    """The loss that a recipe asks for."""
    region, voxel = _region(training), _voxel(training, torch.tensor(training.class_weights, device=device))
    share = training.dice_share

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        return share * region(logits, classes) + (1 - share) * voxel(logits, classes)

    return loss


def deep(loss: Loss, answers: Sequence[Tensor], classes: Tensor) -> Tensor:
    """The loss at every level, each half the weight of the finer one, weights summing to 1 (nnU-Net's rule).

    Args:
        loss: of one level.
        answers: logits, full resolution first.
        classes: (N, D, H, W); coarser levels take the nearest voxel.
    """
    weights = [0.5**level for level in range(len(answers))]
    total = torch.zeros((), device=classes.device)
    for weight, logits in zip(weights, answers, strict=True):
        coarse = classes
        if logits.shape[2:] != classes.shape[1:]:
            coarse = F.interpolate(classes[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].long()
        total = total + weight / sum(weights) * loss(logits, coarse)
    return total


def soft_dice_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """One minus the mean soft Dice of the labels, the whole batch taken as one volume; background left out."""
    probabilities = torch.softmax(logits, 1)[:, 1:]
    truth = F.one_hot(classes, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    axes = (0, 2, 3, 4)
    overlap = (probabilities * truth).sum(axes)
    dice = (2 * overlap + SMOOTH) / (probabilities.sum(axes) + truth.sum(axes) + SMOOTH)
    return 1 - dice.mean()


def _region(training: Training) -> Loss:
    if training.region_loss == "dice":
        return soft_dice_loss
    from monai.losses import TverskyLoss

    alpha, beta = training.tversky
    smooth = {"smooth_nr": SMOOTH, "smooth_dr": SMOOTH}
    given = TverskyLoss(False, True, softmax=True, alpha=alpha, beta=beta, batch=True, **smooth)
    return lambda logits, classes: given(logits, classes[:, None])


def _voxel(training: Training, weights: Tensor) -> Loss:
    """Cross-entropy, or MONAI's focal loss, whose mean runs over the K classes too: 1/K of that of Lin et al."""
    if training.voxel_loss == "ce":
        return lambda logits, classes: F.cross_entropy(logits, classes, weights)
    from monai.losses import FocalLoss

    given = FocalLoss(to_onehot_y=True, gamma=training.focal_gamma, weight=weights, use_softmax=True)
    return lambda logits, classes: given(logits, classes[:, None])
