"""Whether a network can be computed in FP16 at all.

No runtime on a CPU tells: ONNX Runtime and OpenVINO compute an FP16 graph in FP32, and a network whose values exceed
FP16 passes every comparison there while it answers NaN on a GPU. So the network itself is run twice in torch: with
every result rounded to FP16, on whole windows; and truly in FP16, some fifty times slower than FP32 on a CPU, on a part
of one. Norms compute in FP32 in both, as in the exported graph.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hilum_export.gates import Gate
from hilum_export.precision import LARGEST_HALF
from hilum_export.runtimes import Windows
from hilum_search.network import Network

MARGIN: Final = 2.0
"""Values may grow to this share of FP16's largest only: another patient is not the one that was tried."""
ROUNDED_BOUND: Final = 1e-3
"""Share of voxels that may get another class."""
HALF_VOXELS: Final = 32**3
"""Voxels of the part that is computed in FP16."""

_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_WITHOUT_HALF: Final = (nn.AvgPool3d, nn.AdaptiveAvgPool3d)
"""Modules whose FP16 torch lacks on a CPU."""


def overflow_gates(network: Network, windows: Windows, stride: int = 1, *, real: bool = False) -> tuple[Gate, ...]:
    """The checks; the first names the layer, the one that exceeds the bound first where one does.

    Args:
        network: in FP32.
        windows: (N, C, D, H, W).
        stride: of the network; the part that is computed in FP16 has sides that are multiples of it.
        real: whether the windows are of real cases. A made-up window's classes are a matter of chance, so nobody can
            ask them to stay.
    """
    rounded, largest, where = _rounded(network, windows)
    with torch.inference_mode():
        own = network(torch.from_numpy(windows)).numpy()
        truly = _computed_in_half(network, _part(torch.from_numpy(windows), stride))
    strange = int((~torch.isfinite(truly)).sum())
    otherwise = float((rounded.argmax(1) != own.argmax(1)).mean())
    return (
        Gate("largest value inside the network", largest, LARGEST_HALF / MARGIN, f"in {where}"),
        Gate("answers that are no number in FP16", strange, 0, "values"),
        Gate(
            "answered otherwise where every value is rounded to FP16",
            otherwise,
            ROUNDED_BOUND if real else math.inf,
            f"of the voxels of {len(windows)} {'real' if real else 'made-up'} windows",
        ),
    )


def _rounded(network: Network, windows: Windows) -> tuple[Windows, float, str]:
    """Logits, the largest absolute value inside, and the layer that it is told of."""
    rounded = copy.deepcopy(network).eval()
    mode = Rounded()
    for name, module in rounded.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: mode.enter(name))
    with torch.inference_mode():
        for value in rounded.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
        with mode:
            answer: Windows = rounded(torch.from_numpy(windows)).numpy()
    return answer, mode.largest, mode.where


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the result of every operator to FP16, and remembers the largest.

    Attributes:
        largest: absolute value before it was rounded; infinite where one was no number.
        where: the layer that gave it; that which first gave more than allowed, where one did.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0.0
        self.where = "no layer"
        self._layer = "the input"

    def enter(self, layer: str) -> None:
        """What is computed from now on belongs to that layer."""
        self._layer = layer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, tuple | list):
            return type(result)(self._round(each) for each in result)
        return self._round(result)

    def _round(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not value.numel():
            return value
        most = float(torch.nan_to_num(value, nan=float("inf")).abs().max())
        if most > self.largest:
            if self.largest <= LARGEST_HALF / MARGIN:
                self.where = self._layer
            self.largest = most
        return value.half().float()


class _InFloat(nn.Module):
    """A module that computes in FP32 between FP16 neighbours."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, value: Tensor) -> Tensor:
        answer: Tensor = self.module(value.float())
        return answer.half()


def _computed_in_half(network: Network, image: Tensor) -> Tensor:
    half = copy.deepcopy(network).eval().half()
    for parent in list(half.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORMS + _WITHOUT_HALF):
                setattr(parent, name, _InFloat(child))
    answer: Tensor = half(image.half())
    return answer


def _part(image: Tensor, stride: int) -> Tensor:
    """A block of one window around its largest value, sides multiples of the stride, of about HALF_VOXELS."""
    sides = list(image.shape[2:])
    least = 2 * stride  # a norm needs more than one voxel at the bottom
    while np.prod(sides) > HALF_VOXELS and max(sides) > least:
        sides[sides.index(max(sides))] = max(least, max(sides) // 2 // stride * stride)
    flat = int(image[0].abs().amax(0).argmax())
    peak = np.unravel_index(flat, image.shape[2:])
    cuts = []
    for place, side, whole in zip(peak, sides, image.shape[2:], strict=True):
        start = min(max(int(place) - side // 2, 0), whole - side)
        cuts.append(slice(start, start + side))
    return image[(slice(0, 1), slice(None), *cuts)]
