from __future__ import annotations

import pytest
import torch

from hilum_search.losses import deep, make_loss, soft_dice_loss
from hilum_search.recipe import Training


def rules(**changes: object) -> Training:
    return Training.model_validate({"steps": 1, "class_weights": (1.0, 1.0, 1.0)} | changes)


def logits_of(classes: torch.Tensor, certainty: float) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, 3).movedim(-1, 1).float() * certainty


CLASSES = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("region", ["dice", "tversky"])
@pytest.mark.parametrize("voxel", ["ce", "focal"])
def test_right_answers_cost_nothing_wrong_ones_do(region: str, voxel: str) -> None:
    loss = make_loss(rules(region_loss=region, voxel_loss=voxel))
    assert float(loss(logits_of(CLASSES, 50.0), CLASSES)) == pytest.approx(0, abs=1e-4)
    assert float(loss(logits_of((CLASSES + 1) % 3, 50.0), CLASSES)) > 5


def test_a_label_that_neither_side_holds_costs_nothing() -> None:
    classes = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    assert float(soft_dice_loss(logits_of(classes, 50.0), classes)) == pytest.approx(0, abs=1e-6)


def test_class_weights_count_in_the_cross_entropy() -> None:
    classes = torch.tensor([0, 1]).reshape(1, 2, 1, 1)
    logits = torch.zeros(1, 3, 2, 1, 1)
    logits[:, 0] = 2.0  # right for voxel 0, wrong for voxel 1
    even = make_loss(rules(dice_share=0.0))(logits, classes)
    assert float(make_loss(rules(dice_share=0.0, class_weights=(1.0, 9.0, 1.0)))(logits, classes)) > float(even)


def test_tversky_of_equal_weights_is_soft_dice() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    even = make_loss(rules(dice_share=1.0, region_loss="tversky", tversky=(0.5, 0.5)))
    # Its smoothing counts twice as much: a voxel above and below half as many.
    assert float(even(logits, CLASSES)) == pytest.approx(float(soft_dice_loss(logits, CLASSES)), abs=0.01)


def test_focal_loss_forgives_what_is_nearly_right() -> None:
    sure = logits_of(CLASSES, 3.0)
    plain = make_loss(rules(dice_share=0.0))(sure, CLASSES)
    focal = make_loss(rules(dice_share=0.0, voxel_loss="focal"))(sure, CLASSES)
    assert float(focal) < 0.1 * float(plain)


def test_focal_loss_is_a_mean_over_classes_too() -> None:
    """As MONAI has it; that of Lin et al., a mean over voxels alone, is three times this one at three classes."""
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    right = torch.log_softmax(logits, 1).gather(1, CLASSES[:, None])
    published = -((1 - right.exp()) ** 2 * right).mean()
    focal = make_loss(rules(dice_share=0.0, voxel_loss="focal"))
    torch.testing.assert_close(3 * focal(logits, CLASSES), published)


def test_coarser_levels_count_half_as_much_each() -> None:
    loss = make_loss(rules(dice_share=0.0))
    fine, coarse = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 2, 2, 2)
    nearest = CLASSES[:, 1::2, 1::2, 1::2]
    expected = (2 * loss(fine, CLASSES) + loss(coarse, nearest)) / 3
    torch.testing.assert_close(deep(loss, [fine, coarse], CLASSES), expected)
