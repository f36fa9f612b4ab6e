"""Optimisers and learning rates that a recipe can ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from hilum_search.recipe import Training

POLY_POWER = 0.9
"""Of nnU-Net's and of the V-NAS recipe's decay."""


def make_optimiser(training: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW or SGD, as the recipe says; its rate is set anew at every step."""
    t = training
    if t.optimiser == "adamw":
        return torch.optim.AdamW(parameters, t.learning_rate, weight_decay=t.weight_decay)
    return torch.optim.SGD(
        parameters, t.learning_rate, t.momentum, weight_decay=t.weight_decay, nesterov=t.momentum > 0
    )


def learning_rate(training: Training, step: int) -> float:
    """The rate of a step, from 0: a linear rise over ``warmup`` steps, then the schedule.

    >>> rule = Training(steps=12, warmup=2, learning_rate=1.0, class_weights=(1.0, 1.0))
    >>> [round(learning_rate(rule, step), 2) for step in (0, 1, 2, 7, 11)]
    [0.5, 1.0, 1.0, 0.5, 0.02]
    """
    t = training
    if step < t.warmup:
        return t.learning_rate * (step + 1) / t.warmup
    done = (step - t.warmup) / max(t.steps - t.warmup, 1)
    if t.schedule == "cosine":
        return t.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if t.schedule == "poly":
        return float(t.learning_rate * (1 - done) ** POLY_POWER)
    passed = sum(step >= round(share * t.steps) for share in t.milestones)  # 0.07 * 100 is a little above 7
    return float(t.learning_rate * t.decay**passed)
