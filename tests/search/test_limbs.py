from __future__ import annotations

import torch

from hilum_search.limbs import draw_limb
from hilum_search.recipe import Limbs

RULES = Limbs(chance=1.0, radius=(0.2, 0.2), id=69)


def window() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Air, a body in the middle of the first axis, and the coordinates of a window twice as wide as the body."""
    axes = (torch.linspace(-0.5, 1.5, 40), torch.linspace(0, 1, 20), torch.linspace(0, 1, 6))
    where = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    image = torch.full((1, 40, 20, 6), -1000.0)
    image[:, 10:30] = 40.0
    return image, torch.zeros(40, 20, 6, dtype=torch.long), where


def test_a_limb_has_bone_and_muscle_and_leaves_the_body_alone() -> None:
    sides = set()
    for seed in range(20):
        image, ids, where = window()
        draw_limb(image, ids, where, RULES, torch.Generator().manual_seed(seed))
        assert bool((image[:, 10:30] == 40.0).all())
        assert not bool((ids[10:30] != 0).any())
        bone = image[0][ids == 69]
        assert bone.numel() > 0
        assert float(bone.max()) >= 400
        painted = (image[0] > -300) & (where[..., 0].sub(0.5).abs() > 0.53)
        assert bool(painted.any())
        sides.add(bool((ids[:10] != 0).any()))
    assert sides == {True, False}  # left and right
