"""What can be told of an ONNX file without running it: whether it is whole, plain, and within the runtimes' limits."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_export.errors import ExportError
from hilum_export.gates import Gate
from hilum_export.noise import BATCH
from hilum_export.precision import LARGEST_INT8, SUMS, Precision, Wire, dequantised

LARGEST_TENSOR = 2**31 - 1
"""Elements of one tensor: TensorRT refuses more."""
LARGEST_FILE = 2**31 - 1
"""Bytes: a protobuf message cannot be larger."""
STANDARD = ("", "ai.onnx")
CONVOLUTIONS = ("Conv", "ConvTranspose")
WEIGHTS: dict[Precision, tuple[str, ...]] = {"fp16": ("FLOAT16",), "int8": ("INT8", "UINT8")}
"""Types of a convolution's kernel."""
MAY_STAY: dict[Precision, int] = {"fp16": 0, "int8": 2}
"""Convolutions that may have stayed in FP32: NNCF leaves those whose ranges it could not read."""
DOOR: dict[Wire, str] = {"fp32": "FLOAT", "fp16": "FLOAT16"}
"""Type of the input and of every output."""


@dataclass(frozen=True)
class Structure:
    """Of a file.

    Attributes:
        gates: the checks.
        audit: numbers of nodes by operator and of initialisers by type.
        fixed_batch: windows that the file takes at once; 0 where it takes any number.
    """

    gates: tuple[Gate, ...]
    audit: dict[str, Any]
    fixed_batch: int

    @property
    def batch(self) -> int:
        """Windows to try it with: two where it takes any number, since one would not show a batch that was frozen."""
        return self.fixed_batch or BATCH


def structure(path: Path, batch: int, precision: Precision = "fp32", wire: Wire = "fp32") -> Structure:
    """Check a file that somebody may have made elsewhere.

    Args:
        path: of the file.
        batch: windows in one call at most.
        precision: that its convolutions must have.
        wire: that its input and outputs must have.

    Raises:
        ExportError: no ONNX, or a graph that contradicts itself.
    """
    model = _read(path)
    types = Counter(_type(each.data_type) for each in model.graph.initializer)
    operators = Counter(node.op_type for node in model.graph.node)
    largest = math.nan if _outside(model) else _largest(model, batch)
    gates = (
        Gate("weights outside the file", _outside(model), 0, "tensors"),
        Gate("operators of other makers", _foreign(model), 0, "nodes"),
        *_typed(model, precision),
        _door(model, wire),
        Gate("largest tensor", largest, LARGEST_TENSOR, "elements"),
        Gate("size of the file", path.stat().st_size, LARGEST_FILE, "bytes"),
    )
    audit = {"operators": dict(operators), "initialisers": dict(types), "norms": dict(_norms(model))}
    return Structure(gates, audit, _fixed_batch(model))


def _read(path: Path) -> Any:
    """The model, checked; in full where its weights lie inside, since the check follows paths."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        if not _outside(model):
            onnx.checker.check_model(model, full_check=True)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ExportError(f"{path.name} is no sound ONNX file: {reason}") from error
    inputs = model.graph.input
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 5:
        raise ExportError(f"{path.name} does not take windows (N, C, D, H, W), and nothing else.")
    return model


def _outside(model: Any) -> int:
    """Initialisers that lie in another file, wherever their path leads."""
    import onnx

    return sum(each.data_location == onnx.TensorProto.EXTERNAL for each in model.graph.initializer)


def _foreign(model: Any) -> int:
    return sum(node.domain not in STANDARD for node in model.graph.node) + len(model.functions)


def _typed(model: Any, precision: Precision) -> tuple[Gate, ...]:
    """Whether weights are of the type that the file promises, and norms compute in FP32."""
    types = Counter(_type(each.data_type) for each in model.graph.initializer)
    if precision == "fp32":
        other = sum(types[name] for name in ("FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8"))
        return (Gate("weights that are not FP32", other, 0, "tensors"),)
    weights = {each.name: _type(each.data_type) for each in model.graph.initializer}
    made_from = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    used = [node.input[1] for node in model.graph.node if node.op_type in CONVOLUTIONS]
    kernels = [weights.get(made_from.get(name, name), "") for name in used]
    left = sum(kind not in WEIGHTS[precision] for kind in kernels)
    norms = sum(kind != "FLOAT" for kind in _norms(model).elements())
    gates: tuple[Gate, ...] = (
        Gate(f"convolutions that are not {precision.upper()}", left, MAY_STAY[precision], "nodes"),
        Gate("norms that do not compute in FP32", norms, 0, "nodes"),
    )
    if precision == "int8" and not _outside(model):
        gates += (Gate("weights that overflow on processors without VNNI", _beyond(model), 0, "tensors"),)
    return gates


def _beyond(model: Any) -> int:
    """Weights, whatever uses them, with a value beyond LARGEST_INT8; of UINT8 ones, which lie around 128, too."""
    import numpy as np
    from onnx import numpy_helper

    middle = {"INT8": 0, "UINT8": 128}
    stored = dequantised(model.graph)
    weights = [each for each in model.graph.initializer if each.name in stored and _type(each.data_type) in middle]
    values = [numpy_helper.to_array(each).astype(np.int16) - middle[_type(each.data_type)] for each in weights]
    return sum(int(np.abs(each).max(initial=0)) > LARGEST_INT8 for each in values)


def _door(model: Any, wire: Wire) -> Gate:
    """Whether input and outputs are of one type: what a configuration says of them must hold for all."""
    tensors = (*model.graph.input, *model.graph.output)
    other = sum(_type(each.type.tensor_type.elem_type) != DOOR[wire] for each in tensors)
    return Gate(f"inputs and outputs that are not {wire.upper()}", other, 0, "tensors")


def _norms(model: Any) -> Counter[str]:
    """Number of norms by the type that they compute in."""
    import onnx

    typed = onnx.shape_inference.infer_shapes(model).graph
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*typed.value_info, *typed.input, *typed.output)}
    found = (kinds.get(node.input[0], 0) for node in model.graph.node if node.op_type in SUMS)
    return Counter(_type(kind) for kind in found)


def _largest(model: Any, batch: int) -> float:
    """Elements of the largest tensor at that batch; NaN where a size follows from neither window nor batch."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    if not _fixed_batch(model):
        fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    known = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    most = 0
    for value in (*known.input, *known.value_info, *known.output):
        dims = value.type.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            return math.nan
        most = max(most, math.prod(dim.dim_value for dim in dims))
    return most


def _fixed_batch(model: Any) -> int:
    """Windows that the file takes at once; 0 where it takes any number."""
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def _type(number: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(number))
