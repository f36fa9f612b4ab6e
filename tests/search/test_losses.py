from __future__ import annotations

import pytest
import torch

from hilum_search.losses import loss, soft_dice_loss


def logits_of(classes: torch.Tensor, certainty: float) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float() * certainty


def test_right_answers_cost_nothing_wrong_ones_do() -> None:
    classes = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(3)
    assert float(loss(logits_of(classes, 50.0), classes, weights, 0.5)) == pytest.approx(0, abs=1e-4)
    assert float(loss(logits_of((classes + 1) % 3, 50.0), classes, weights, 0.5)) > 10


def test_a_label_that_neither_side_holds_costs_nothing() -> None:
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    assert float(soft_dice_loss(logits_of(classes, 50.0), classes)) == pytest.approx(0, abs=1e-6)


def test_class_weights_count_in_the_cross_entropy() -> None:
    classes = torch.tensor([0, 1]).reshape(1, 2, 1, 1)
    logits = torch.zeros(1, 3, 2, 1, 1)
    logits[:, 0] = 2.0  # right for voxel 0, wrong for voxel 1
    even = loss(logits, classes, torch.tensor([1.0, 1.0, 1.0]), 0.0)
    assert float(loss(logits, classes, torch.tensor([1.0, 9.0, 1.0]), 0.0)) > float(even)
