"""The operators a cell may hold; one row of OPERATORS each.

Kernels are written as in the papers, in-plane x in-plane x through-plane: the last axis of a window runs through the
planes. Everything is pre-activated: ReLU, convolution without bias, instance normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import nn

from hilum_search.architecture import Operator

Kernel = tuple[int, int, int]


def unit(inputs: int, outputs: int, kernel: Kernel, stride: int = 1) -> nn.Sequential:
    """ReLU, convolution, instance norm: (N, inputs, D, H, W) to (N, outputs, D/stride, H/stride, W/stride)."""
    return nn.Sequential(nn.ReLU(), *convolution(inputs, outputs, kernel, stride))


def convolution(inputs: int, outputs: int, kernel: Kernel, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (divided by the stride), then instance norm; no activation before."""
    a, b, c = kernel
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, (a // 2, b // 2, c // 2), bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
    )


def _two_d(channels: int) -> nn.Sequential:
    return unit(channels, channels, (3, 3, 1))


def _three_d(channels: int) -> nn.Sequential:
    return unit(channels, channels, (3, 3, 3))


def _pseudo_three_d(channels: int) -> nn.Sequential:
    return nn.Sequential(unit(channels, channels, (3, 3, 1)), unit(channels, channels, (1, 1, 3)))


OPERATORS: Final[dict[Operator, Callable[[int], nn.Sequential]]] = {
    "2d": _two_d,
    "3d": _three_d,
    "p3d": _pseudo_three_d,
}
