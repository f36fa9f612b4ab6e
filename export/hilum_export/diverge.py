"""Where two answers to the same windows part: the first tensor of a graph on which two runs differ."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilum_export.runtimes import Outputs, Runtime, Windows

AT_ONCE = 8
"""Tensors that are given out in one run: all of a large network at once would not fit into memory."""


@dataclass(frozen=True)
class Divergence:
    """The first difference.

    Attributes:
        tensor: its name in the graph.
        node: what computes it.
        operator: of the node.
        difference: largest absolute one, as a share of the tensor's largest value.
    """

    tensor: str
    node: str
    operator: str
    difference: float

    def __str__(self) -> str:
        where = f"{self.node} ({self.operator})"
        return f"The first layer to differ is {where}, by {self.difference:.2g} of its largest value."


@dataclass(frozen=True)
class Side:
    """A file and what runs it."""

    path: Path
    runtime: Runtime


def first_difference(one: Side, other: Side, windows: Windows, bound: float) -> Divergence | None:
    """The first tensor, in the order in which ``one`` computes them, that differs by more than the bound.

    Only tensors that both graphs name are compared; their types may differ.

    Args:
        one, other: two runtimes on one file, or two files, such as a network and its half-precision variant.
        windows: (N, C, D, H, W).
        bound: largest difference that passes, as a share of the tensor's largest value.
    """
    import onnx

    model, names = onnx.load(one.path), set(_computed(onnx.load(other.path)))
    makers = {output: node for node in model.graph.node for output in node.output}
    common = [name for name in _computed(model) if name in names]
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, len(common), AT_ONCE):
            wanted = common[first : first + AT_ONCE]
            answers = [_run(side, wanted, windows, Path(folder)) for side in (one, other)]
            for name in wanted:
                found = _share(answers[1][name], answers[0][name])
                if not found <= bound:
                    return Divergence(name, makers[name].name or name, makers[name].op_type, found)
    return None


def _computed(model: Any) -> Iterator[str]:
    """Names of what a graph computes, in its order; constants are not computed from the image."""
    from_image = {model.graph.input[0].name}
    for node in model.graph.node:
        if from_image & set(node.input):
            from_image.update(node.output)
            yield from (name for name in node.output if name)


def _run(side: Side, names: Sequence[str], windows: Windows, folder: Path) -> Outputs:
    """Those tensors of a graph, as float32."""
    import onnx

    model = onnx.load(side.path)
    typed = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    there = {output.name for output in model.graph.output}
    for name in names:
        if name not in there:
            model.graph.output.append(typed.get(name) or onnx.ValueInfoProto(name=name))
    path = folder / "exposed.onnx"
    onnx.save(model, path)
    return {name: value.astype(np.float32) for name, value in side.runtime(path, windows).items() if name in names}


def _share(answer: Windows, truth: Windows) -> float:
    largest = float(np.abs(truth).max(initial=0.0))
    off = float(np.abs(answer - truth).max(initial=0.0))
    return off if largest == 0 else off / largest
