"""The same network in fewer bits: FP16 in the graph itself, and INT8 for the CPU.

TensorRT 11 has no builder flag for FP16: every network is strongly typed, so the types must stand in the ONNX graph.
onnxconverter-common writes them; NVIDIA's ModelOpt AutoCast would, too, but its ``[onnx]`` extra brings CuPy and the
GPU build of ONNX Runtime to machines that have no GPU.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hilum_export.runtimes import Windows

Precision = Literal["fp32", "fp16", "int8"]
Wire = Literal["fp32", "fp16"]
"""Type of what goes into a network and comes out of it."""
NORMS: Final = ("InstanceNormalization", "GroupNormalization", "BatchNormalization", "LayerNormalization")
SUMS: Final = (
    *NORMS,
    *("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
)
"""Operators that stay in FP32, islands between two casts: they sum over a whole window, or squares, which FP16 cannot
hold."""
LARGEST_HALF: Final = 65504.0
SMALLEST_HALF: Final = 2.0**-24
"""Bounds of FP16. Larger weights would be cut without a word; the overflow check finds what they do."""
CALIBRATION: Final = (8, 32)
"""Windows that INT8's ranges are read from, at least and at most ..."""
CALIBRATION_VOXELS: Final = 2**23
"""... and their voxels in between: ten windows of 96x96x96 show as many values as hundreds of pictures."""
LARGEST_INT8 = 64
"""Magnitude of an INT8 weight at most. A processor without VNNI adds two products of a weight and an activation (255 at
most) in 16 bits and cuts what exceeds 32,767 without a word: with weights up to 127 a file would answer otherwise there
than where its checks were made (oneDNN, "Nuances of int8 Computations")."""


def calibration_windows(window: tuple[int, int, int]) -> int:
    """How many windows of that size INT8's ranges are read from.

    >>> calibration_windows((96, 96, 96)), calibration_windows((64, 64, 64)), calibration_windows((256, 256, 256))
    (9, 32, 8)
    """
    least, most = CALIBRATION
    return max(least, min(most, CALIBRATION_VOXELS // math.prod(window)))


def to_half(source: Path, target: Path, wire: Wire = "fp32") -> None:
    """Write the FP16 form of an FP32 file: norms in FP32, the door as chosen, everything else in FP16."""
    import onnx
    from onnxconverter_common import float16

    model = onnx.load(source)
    _free_outputs(model.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights below the smallest FP16 number
        half = float16.convert_float_to_float16(
            model,
            keep_io_types=wire == "fp32",
            min_positive_val=SMALLEST_HALF,
            max_finite_val=LARGEST_HALF,
            op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *SUMS],
        )
    del half.graph.value_info[:]
    onnx.save(half, target)


def to_int8(source: Path, target: Path, windows: Sequence[Windows]) -> None:
    """Write the INT8 form of an FP32 file for OpenVINO and ONNX Runtime on a CPU, by post-training quantisation.

    Convolutions get INT8 weights and activations, each between a quantisation and its inverse; norms stay in FP32.
    Weights take half their range, within LARGEST_INT8, so that every processor answers the same.

    Args:
        source: the FP32 file.
        target: to be written.
        windows: of real cases, (1, C, D, H, W) each, as the network sees them; ranges are read from them.
    """
    import onnx

    nncf = _nncf()
    model = onnx.load(source)
    image = model.graph.input[0].name
    data = nncf.Dataset(list(windows), lambda window: {image: window})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # its bars
        warnings.simplefilter("ignore")
        quantised = nncf.quantize(
            model,
            data,
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(windows),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    del quantised.graph.value_info[:]
    _hold_weights(quantised.graph)
    onnx.save(quantised, target)


def _hold_weights(graph: Any) -> None:
    """Halve weights beyond LARGEST_INT8, and double their scales: NNCF leaves grouped convolutions at full range."""
    from onnx import numpy_helper

    tensors = {each.name: each for each in graph.initializer}
    for name, nodes in dequantised(graph).items():
        values = numpy_helper.to_array(tensors[name])
        if values.dtype != np.int8 or np.abs(values.astype(np.int16)).max(initial=0) <= LARGEST_INT8:
            continue
        tensors[name].CopyFrom(numpy_helper.from_array(np.rint(values / 2).astype(np.int8), name))
        for node in nodes:
            scale = f"{node.input[1]}_of_{node.name or node.output[0]}"
            doubled = 2 * numpy_helper.to_array(tensors[node.input[1]])
            graph.initializer.append(numpy_helper.from_array(doubled, scale))
            node.input[1] = scale


def dequantised(graph: Any) -> dict[str, list[Any]]:
    """The weights of a graph that are stored in INT8 or UINT8, by name, and the nodes that make numbers of each."""
    weights = {each.name for each in graph.initializer if len(each.dims) > 1}
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            found.setdefault(node.input[0], []).append(node)
    return found


def _nncf() -> Any:
    """NNCF, which neither draws bars into a log nor tells anybody what is quantised."""
    import logging

    from hilum_inference.engines.runtime import openvino

    openvino()  # keeps its telemetry from being imported
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


def _free_outputs(graph: Any) -> None:
    """Let no node read an output of the graph: the converter casts outputs, and the reader would see FP32."""
    import onnx

    read = {name for node in graph.node for name in node.input}
    for name in [output.name for output in graph.output if output.name in read]:
        inner = f"{name}_inside"
        for node in graph.node:
            for names in (node.input, node.output):
                for place, other in enumerate(names):
                    if other == name:
                        names[place] = inner
        graph.node.append(onnx.helper.make_node("Identity", [inner], [name], name=f"{name}_given"))
