"""What one window through a network costs by count: multiply-adds, and the memory of what it makes on the way.

Counted on tensors without data, so that the largest network takes seconds and no memory.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hilum_benchmark.process import MIB

if TYPE_CHECKING:
    from hilum_search.architecture import Architecture


@dataclass(frozen=True)
class Cost:
    """Counts of one network at one window.

    Attributes:
        parameters: trainable values.
        gmac: thousand millions of multiply-adds in convolutions, plain and transposed.
        peak_mib: activations alive at one time, at most (see Activations).
        sum_mib: all activations that are made.
    """

    parameters: int
    gmac: float
    peak_mib: float
    sum_mib: float


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that are made inside the block, each from when it is made to when nobody holds it.

    Views and operations in place make none. What existed before, weights and input, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made = 0
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count what it returns."""
        before = {id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor, before)
        self.peak = max(self.peak, sum(self._alive.values()))
        return out

    def _count(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in before or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.made += storage.nbytes()
        weakref.finalize(storage, self._alive.pop, key)


def measure(architecture: Architecture, in_channels: int, classes: int, window: tuple[int, int, int]) -> Cost:
    """Count one window (1, in_channels, *window) in float32, evaluation mode, no gradient."""
    from hilum_search.network import build, parameters

    with torch.device("meta"):
        network = build(architecture, in_channels, classes).eval()
        image = torch.empty(1, in_channels, *window)
    counter, activations = FlopCounterMode(display=False), Activations()
    with torch.no_grad():
        with counter:
            network(image)
        with activations:
            network(image)
    operations = counter.get_total_flops()
    return Cost(parameters(network), operations / 2e9, activations.peak / MIB, activations.made / MIB)
