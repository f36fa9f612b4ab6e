"""Memory that a network needs at once to run a window, counted on tensors without storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hilum_search.cost import FLOAT_BYTES
from hilum_search.network import parameters

_ACTIVATIONS = (torch.ops.aten.relu.default, torch.ops.aten.leaky_relu.default)
_NORM = torch.ops.aten.native_batch_norm.default
_BY_ITS_OWN_FIGURES = 5
"""Argument of _NORM: instance norms are computed by it as well, from the window's own figures."""


def peak_bytes(network: nn.Module, image: Tensor) -> int:
    """An estimate: weights, and the most that the tensors still needed hold together at any step, in float32.

    Args:
        network: in evaluation mode; it may lie on the ``meta`` device.
        image: (1, C, D, H, W) on the same device; the caller's, so not counted.
    """
    recorder = _Recorder(image)
    with recorder, torch.no_grad():
        answer = network(image)
    recorder.keep(answer)
    return recorder.most() + FLOAT_BYTES * parameters(network)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes for every tensor that is computed its size, and the first and last step that needs it."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner: dict[int, int] = {}
        self._kept: list[Tensor] = [image]  # a storage that was freed would give its address to the next one
        self._bytes: list[int] = []
        self._first: list[int] = []
        self._last: list[int] = []
        self._step = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._step += 1
        for tensor in read:
            self._need(tensor)
        first = out[0] if isinstance(out, tuple) else out  # norms and pools also give what the way back would need
        if isinstance(first, Tensor):
            self._add(first, read, _folded(func, args))
        return out

    def keep(self, answer: Tensor) -> None:
        """The answer is needed to the end."""
        self._need(answer)

    def most(self) -> int:
        """The most bytes at any step."""
        steps = range(self._step + 1)
        spans = list(zip(self._bytes, self._first, self._last, strict=True))
        return max(sum(size for size, first, last in spans if first <= step <= last) for step in steps)

    def _need(self, tensor: Tensor) -> None:
        place = self._owner.get(_storage(tensor))
        if place is not None:
            self._last[place] = self._step

    def _add(self, tensor: Tensor, read: Sequence[Tensor], folded: bool) -> None:
        self._kept.append(tensor)
        if _storage(tensor) in self._owner:
            return
        if folded and _storage(read[0]) in self._owner:
            self._owner[_storage(tensor)] = self._owner[_storage(read[0])]
            return
        self._owner[_storage(tensor)] = len(self._bytes)
        self._bytes.append(tensor.numel() * FLOAT_BYTES)
        self._first.append(self._step)
        self._last.append(self._step)


def _folded(func: Any, args: Sequence[Any]) -> bool:
    """Whether engines do it on the way, without a tensor of its own: activations, and norms by fixed figures."""
    return func in _ACTIVATIONS or (func is _NORM and not args[_BY_ITS_OWN_FIGURES])


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
