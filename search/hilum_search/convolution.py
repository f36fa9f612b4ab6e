"""Convolutions that train faster on a CPU and in less memory: the same sums, taken in another order.

torch hands a convolution to oneDNN whole. Where a volume is larger than the cache that is slow, most of all for the
gradient of the weights; and the ReLU before a convolution is a volume of its own, written, kept for the way back and
read again. Here a volume goes through in slabs of planes, and the ReLU is taken of a slab while it is at hand. Weights,
names, shapes and, but for rounding, values are those of ``nn.ReLU`` and ``nn.Conv3d``; figures stand in
``docs/train.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLAB_BYTES = 8 * 2**20
"""Of a slab, on the side with more channels."""
SMALLEST = 20480
"""With as many values of N x C x D x H or fewer, torch does not hand a convolution to oneDNN: far slower."""
ONE = (1, 1, 1)


@contextmanager
def quick_convolutions(model: nn.Module) -> Iterator[None]:
    """While open, the model's plain convolutions compute in slabs where they are differentiated on a CPU.

    Plain: stride 1, no dilation, no groups, zeros around, size kept. A ReLU goes along where a ``nn.Sequential`` calls
    it directly before such a convolution; called by anybody else it is the ReLU that it always was.
    """
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    for module in model.modules():
        kind = _Chain if type(module) is nn.Sequential else _Quick if _plain(module) else None
        if kind is not None:
            before.append((module, type(module)))
            module.__class__ = kind
    try:
        yield
    finally:
        for module, own in before:
            module.__class__ = own


class _Chain(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        relu = False
        for here, after in zip_longest(self, list(self)[1:]):
            if type(here) is nn.ReLU and isinstance(after, _Quick) and not (_heard(here) or _heard(after)):
                relu = True
            elif relu and isinstance(here, _Quick):
                x, relu = here.convolve(x, relu=True), False
            else:
                x = here(x)
        return x


class _Quick(nn.Conv3d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.convolve(x)

    def convolve(self, x: Tensor, relu: bool = False) -> Tensor:
        """The convolution, of x or of its ReLU."""
        whole = x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or x.ndim != 5
        if whole or not torch.is_grad_enabled():
            plain: Tensor = super()._conv_forward(F.relu(x) if relu else x, self.weight, self.bias)
            return plain
        found: Tensor = _InSlabs.apply(x, self.weight, self.bias, relu)  # type: ignore[no-untyped-call]
        return found


def _heard(module: nn.Module) -> bool:
    """Whether somebody listens to its calls."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _plain(module: nn.Module) -> bool:
    if type(module) is not nn.Conv3d:
        return False
    odd = all(side % 2 for side in module.kernel_size)
    same = module.padding == tuple(side // 2 for side in module.kernel_size)
    steps = module.stride == ONE and module.dilation == ONE
    return odd and same and steps and module.groups == 1 and module.padding_mode == "zeros"


class _InSlabs(torch.autograd.Function):
    """ReLU where wanted, convolution, and their gradients: of x (N, C, D, H, W) and a weight of odd sides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.relu = relu
        slabs = _Slabs.of(x, weight)
        if len(slabs.bounds) == 1:
            return F.conv3d(F.relu(x) if relu else x, weight, bias, padding=slabs.padding)
        found = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
        for start, stop in slabs.bounds:
            found[:, :, start:stop] = F.conv3d(slabs.take(x, start, stop, relu), weight, bias, padding=slabs.padding)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient, slabs = gradients[0].contiguous(), _Slabs.of(x, weight)
        wanted, wanted_weight, wanted_bias, _ = ctx.needs_input_grad
        if len(slabs.bounds) == 1:
            return *_whole(x, weight, gradient, slabs.padding, ctx), None
        turned = weight.flip(2, 3, 4).transpose(0, 1).contiguous()
        of_x = torch.empty_like(x) if wanted else None
        of_weight = torch.zeros_like(weight) if wanted_weight else None
        for start, stop in slabs.bounds:
            if of_weight is not None:
                taken, here = slabs.take(x, start, stop, ctx.relu), gradient[:, :, start:stop].contiguous()
                of_weight += _of_weight(taken, weight, here, slabs.padding)
            if of_x is not None:
                # The way back through a convolution that keeps the size is one with the kernel turned around.
                back = F.conv3d(slabs.take(gradient, start, stop), turned, padding=slabs.padding)
                of_x[:, :, start:stop] = back.mul_(x[:, :, start:stop] > 0) if ctx.relu else back
        return of_x, of_weight, gradient.sum((0, 2, 3, 4)) if wanted_bias else None, None


@dataclass(frozen=True)
class _Slabs:
    """How a volume is cut along its first axis: bounds, planes to take along on each side, and what is left to pad."""

    bounds: list[tuple[int, int]]
    margin: int
    padding: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> _Slabs:
        batch, _, depth, height, width = x.shape
        fewer, more = sorted(weight.shape[:2])
        planes = max(SLAB_BYTES // (4 * batch * more * height * width), SMALLEST // (batch * fewer * height) + 1)
        count = max(1, depth // planes)
        around = tuple(side // 2 for side in weight.shape[2:])
        bounds = [(i * depth // count, (i + 1) * depth // count) for i in range(count)]
        return cls(bounds, 0, around) if count == 1 else cls(bounds, around[0], (0, *around[1:]))

    def take(self, x: Tensor, start: int, stop: int, relu: bool = False) -> Tensor:
        """Planes with the margin around them, zeros beyond the ends."""
        first, last, depth = start - self.margin, stop + self.margin, x.shape[2]
        part = x[:, :, max(first, 0) : min(last, depth)]
        taken = F.relu(part) if relu else part
        beyond = max(-first, 0), max(last - depth, 0)
        return F.pad(taken, (0, 0, 0, 0, *beyond)) if any(beyond) else taken


def _whole(
    x: Tensor, weight: Tensor, gradient: Tensor, padding: tuple[int, ...], ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The three gradients of a volume that is no larger than a slab."""
    taken = F.relu(x) if ctx.relu else x
    mask, sizes = ctx.needs_input_grad[:3], [weight.shape[0]]
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, taken, weight, sizes, ONE, padding, ONE, False, (0, 0, 0), 1, mask
    )
    return of_x.mul_(x > 0) if ctx.relu and of_x is not None else of_x, of_weight, of_bias


def _of_weight(x: Tensor, weight: Tensor, gradient: Tensor, padding: tuple[int, ...]) -> Tensor:
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, ONE, padding, ONE, False, (0, 0, 0), 1, (False, True, False)
    )[1]
    return found
