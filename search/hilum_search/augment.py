"""Random windows of a slab, on torch: rotated, scaled, bent, mirrored, enhanced, blurred and noisy, sampled once.

Nothing is mirrored unless the recipe says so: the side on which an organ lies is part of what is learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hilum_search.limbs import draw_limb
from hilum_search.recipe import Augmentation

COARSE = (4, 4, 2)  # control points of the elastic field and of the intensity bias


@dataclass(frozen=True)
class Slab:
    """A slab as tensors: image (C, D, H, W) before the intensity rule, ids (D, H, W)."""

    image: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Sample:
    """A window: image (C, d, h, w) before the intensity rule, classes (d, h, w)."""

    image: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Sides:
    """Which axis runs from left to right, and the class (K,) that each class becomes when they change places."""

    axis: int
    swapped: Tensor


class Augmenter:
    """Draws windows of one size; all chance comes from the generator that is passed in."""

    def __init__(
        self, rules: Augmentation, size: tuple[int, int, int], class_of: Tensor, sides: Sides | None = None
    ) -> None:
        self.rules = rules
        self.size = size
        self.class_of = class_of  # (largest id + 1,)
        self.sides = sides

    def draw(self, slab: Slab, centre: Tensor, chance: torch.Generator) -> Sample:
        """A window around ``centre`` (3,), a voxel of the slab; beyond the slab as the rules say."""
        points = self._points(centre, chance)
        image, ids = _cut(slab, points)
        extent = torch.tensor(slab.ids.shape, dtype=torch.float32) - 1
        where = points / extent.clamp(min=1)
        if self.rules.outside is not None:
            beyond = ((where[..., :2] < 0) | (where[..., :2] > 1)).any(-1)
            image[:, beyond], ids[beyond] = self.rules.outside, 0
        if self.rules.limbs is not None and _rand(chance) < self.rules.limbs.chance:
            draw_limb(image, ids, where, self.rules.limbs, chance)
        image = self._enhance(image, ids, chance)
        return self._flip(self._disturb(image, chance), self.class_of[ids], chance)

    def _points(self, centre: Tensor, chance: torch.Generator) -> Tensor:
        """(d, h, w, 3) voxel coordinates of the slab from which the window's voxels are taken."""
        rules = self.rules
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.size]
        axes[2] = self._shorten(axes[2], chance)
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        if rules.elastic:
            field = torch.randn(1, 3, *COARSE, generator=chance) * rules.elastic
            offsets = offsets + F.interpolate(field, self.size, mode="trilinear", align_corners=True)[0].movedim(0, -1)
        angles = (torch.rand(3, generator=chance) * 2 - 1) * torch.tensor(rules.rotation) * (math.pi / 180)
        scale = torch.exp((torch.rand(3, generator=chance) * 2 - 1) * math.log(rules.scale))
        return offsets @ (_rotation(angles) * scale).T + centre

    def _shorten(self, planes: Tensor, chance: torch.Generator) -> Tensor:
        if _rand(chance) >= self.rules.short:
            return planes
        count = len(planes)
        kept = max(int(count * (self.rules.smallest_share + (1 - self.rules.smallest_share) * _rand(chance))), 1)
        before = int(_rand(chance) * (count - kept + 1))
        return planes[torch.arange(count).clamp(before, before + kept - 1)]

    def _flip(self, image: Tensor, classes: Tensor, chance: torch.Generator) -> Sample:
        for axis in self.rules.flips:
            if _rand(chance) < 0.5:
                image, classes = image.flip(axis + 1), classes.flip(axis)
                if self.sides is not None and axis == self.sides.axis:
                    classes = self.sides.swapped[classes]
        return Sample(image, classes)

    def _enhance(self, image: Tensor, ids: Tensor, chance: torch.Generator) -> Tensor:
        if not self.rules.enhancement or _rand(chance) >= self.rules.enhance:
            return image
        rise = torch.zeros(len(self.class_of))
        strength = _rand(chance)
        for organ in self.rules.enhancement:
            rise[list(organ.ids)] = organ.rise * strength * (0.5 + _rand(chance))
        field = F.avg_pool3d(rise[ids][None], 3, stride=1, padding=1, count_include_pad=False)  # organs have soft edges
        return image + field

    def _disturb(self, image: Tensor, chance: torch.Generator) -> Tensor:
        rules = self.rules
        if _rand(chance) < rules.smooth:
            image = _blur(image, chance)
        if rules.bias:
            coarse = torch.randn(1, 1, *COARSE, generator=chance) * (rules.bias * _rand(chance))
            image = image + F.interpolate(coarse, self.size, mode="trilinear", align_corners=True)[0]
        if rules.noise:
            image = image + torch.randn(image.shape, generator=chance) * (rules.noise * _rand(chance))
        gain = 1 + rules.gain * _randn(chance)
        return image * gain + rules.shift * _randn(chance)


def _cut(slab: Slab, points: Tensor) -> tuple[Tensor, Tensor]:
    """Image and ids at ``points``; only the part of the slab around them is converted."""
    flat = points.reshape(-1, 3)
    last = torch.tensor(slab.ids.shape) - 1
    first = torch.minimum(flat.amin(0).floor().long().clamp(min=0), last)
    end = torch.maximum(torch.minimum(flat.amax(0).ceil().long(), last), first)
    box = tuple(slice(a, b + 1) for a, b in zip(first.tolist(), end.tolist(), strict=True))
    inside = points - first
    image = _sample(slab.image[:, *box].float(), inside, "bilinear")
    ids = _sample(slab.ids[box][None].float(), inside, "nearest")[0].long()
    return image, ids


def _sample(array: Tensor, points: Tensor, mode: str) -> Tensor:
    """(C, D, H, W) at (d, h, w, 3) voxel coordinates, edges repeated: (C, d, h, w)."""
    last = torch.tensor(array.shape[1:], dtype=torch.float32) - 1
    unit = points / last.clamp(min=1) * 2 - 1
    grid = unit.flip(-1)[None]  # grid_sample wants the last axis first
    return F.grid_sample(array[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]


def _rotation(angles: Tensor) -> Tensor:
    """(3, 3) rotation about the three window axes in turn, radians."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles.tolist()):
        a, b = [i for i in range(3) if i != axis]
        turn = torch.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _blur(image: Tensor, chance: torch.Generator) -> Tensor:
    """A three-point blur along the last axis or along all three, of random strength."""
    share = 0.5 * _rand(chance)
    everywhere = _rand(chance) < 0.5
    for axis in (1, 2, 3) if everywhere else (3,):
        size = image.shape[axis]
        index = torch.arange(size)
        up, down = (index + 1).clamp(max=size - 1), (index - 1).clamp(min=0)
        image = image * (1 - share) + (image.index_select(axis, up) + image.index_select(axis, down)) * (share / 2)
    return image


def _rand(chance: torch.Generator) -> float:
    return float(torch.rand((), generator=chance))


def _randn(chance: torch.Generator) -> float:
    return float(torch.randn((), generator=chance))
