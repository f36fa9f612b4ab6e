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


def unit(inputs: int, outputs: int, kernel: Kernel, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """ReLU, convolution, instance norm: (N, inputs, D, H, W) to (N, outputs, D/stride, H/stride, W/stride)."""
    return nn.Sequential(nn.ReLU(), *convolution(inputs, outputs, kernel, stride, dilation))


def convolution(inputs: int, outputs: int, kernel: Kernel, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (divided by the stride), then instance norm; no activation before."""
    a, b, c = (side // 2 * dilation for side in kernel)
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride, (a, b, c), dilation, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
    )


def _one(kernel: Kernel, dilation: int = 1) -> Callable[[int], nn.Sequential]:
    return lambda channels: unit(channels, channels, kernel, dilation=dilation)


def _pseudo_three_d(channels: int) -> nn.Sequential:
    return nn.Sequential(unit(channels, channels, (3, 3, 1)), unit(channels, channels, (1, 1, 3)))


OPERATORS: Final[dict[Operator, Callable[[int], nn.Sequential]]] = {
    "2d": _one((3, 3, 1)),
    "3d": _one((3, 3, 3)),
    "p3d": _pseudo_three_d,
    "2d5": _one((5, 5, 1)),
    "3d5": _one((5, 5, 5)),
    "3d-dilated": _one((3, 3, 3), dilation=2),
    "3d5-dilated": _one((5, 5, 5), dilation=2),
}
