"""Arms beside the body, painted into the air of a window: a patient scanned with arms up has none to show."""

from __future__ import annotations

import torch
from torch import Tensor

from hilum_search.recipe import Limbs

AIR = -300.0
"""Only what lies below this value (HU) is painted over."""
SKIN = 0.85
"""Share of the radius inside which there is muscle; outside it there is fat."""


def draw_limb(image: Tensor, ids: Tensor, where: Tensor, rules: Limbs, chance: torch.Generator) -> None:
    """Paint one limb along the last axis into a window, in place.

    Args:
        image: (C, d, h, w) values in HU.
        ids: (d, h, w) ids of the reference; the limb's bone gets ``rules.id``.
        where: (d, h, w, 3) voxel coordinates of the window, divided by the slab's extent: the body lies in 0..1.
        rules: sizes, as shares of the body's width.
        chance: source of all chance.
    """
    low, high = rules.radius
    radius = low + (high - low) * _rand(chance)
    gap = radius * (1 + 0.3 * (_rand(chance) - 0.3))
    across = -gap if _rand(chance) < 0.5 else 1 + gap
    along = 0.2 + 0.6 * _rand(chance)
    lean = (torch.rand(2, generator=chance) - 0.5) * 2 * radius
    height = where[..., 2] - 0.5
    aside = where[..., 0] - across - lean[0] * height
    front = where[..., 1] - along - lean[1] * height
    distance = torch.sqrt(aside**2 + front**2) / radius
    air = (image[0] < AIR) & (distance < 1)
    marrow, cortex = sorted(((0.1 + 0.15 * _rand(chance)), (0.25 + 0.1 * _rand(chance))))
    tissue = torch.full_like(distance, -100.0)
    tissue[distance < SKIN] = 50 + 15 * _randn(chance)
    tissue[distance < cortex] = 400 + 600 * _rand(chance)
    tissue[distance < marrow] = 150 * _rand(chance)
    image[:, air] = tissue[air]
    ids[air & (distance < cortex)] = rules.id


def _rand(chance: torch.Generator) -> float:
    return float(torch.rand((), generator=chance))


def _randn(chance: torch.Generator) -> float:
    return float(torch.randn((), generator=chance))
