"""What a file shows without being run: other people's files may hold anything."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hilum_export.errors import ExportError
from hilum_export.structure import Structure, structure


def written(path: Path, nodes: list[Any], sizes: list[Any], weights: list[Any] | None = None) -> Path:
    """A graph from ``image`` to ``logits`` of one size."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
    graph = helper.make_graph(nodes, "g", [image], [logits], weights or [])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("org.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def failed(found: Structure) -> list[str]:
    return [gate.name for gate in found.gates if not gate.passed]


SIZES = ["batch", 1, 8, 8, 8]
RELU = helper.make_node("Relu", ["image"], ["logits"])


def test_a_plain_file_passes(tmp_path: Path) -> None:
    found = structure(written(tmp_path / "m.onnx", [RELU], SIZES), 4)
    assert failed(found) == []
    assert {gate.name: gate.value for gate in found.gates}["largest tensor"] == 4 * 8**3
    assert found.audit == {"operators": {"Relu": 1}, "initialisers": {}, "norms": {}}


def test_tensors_that_no_runtime_takes(tmp_path: Path) -> None:
    huge = written(tmp_path / "m.onnx", [RELU], ["batch", 4, 640, 640, 512])
    assert failed(structure(huge, 4)) == ["largest tensor"]
    assert failed(structure(huge, 1)) == []
    free = structure(written(tmp_path / "free.onnx", [RELU], ["batch", 1, "depth", 8, 8]), 1)
    assert failed(free) == ["largest tensor"]
    assert math.isnan({gate.name: gate.value for gate in free.gates}["largest tensor"])


def test_operators_that_are_not_in_the_standard(tmp_path: Path) -> None:
    node = helper.make_node("Anything", ["image"], ["logits"], domain="org.example")
    assert failed(structure(written(tmp_path / "m.onnx", [node], SIZES), 1)) == ["operators of other makers"]


def test_weights_that_lie_elsewhere_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.ones(1, np.float32).tobytes())
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "../secret")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    (tmp_path / "models").mkdir()
    node = helper.make_node("Mul", ["image", "w"], ["logits"])
    found = structure(written(tmp_path / "models" / "m.onnx", [node], SIZES, [weight]), 1)
    assert "weights outside the file" in failed(found)


def test_weights_of_another_precision(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(1, np.float16), "w")
    nodes = [helper.make_node("Cast", ["w"], ["f"], to=1), helper.make_node("Mul", ["image", "f"], ["logits"])]
    found = structure(written(tmp_path / "m.onnx", nodes, SIZES, [weight]), 1)
    assert failed(found) == ["weights that are not FP32"]
    assert found.audit["initialisers"] == {"FLOAT16": 1}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_door_of_two_types(tmp_path: Path, place: int) -> None:
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    kinds = [half if n == place else single for n in range(3)]
    names = ("image", "logits", "features")
    door = [helper.make_tensor_value_info(n, kind, SIZES) for n, kind in zip(names, kinds, strict=True)]
    nodes = [
        helper.make_node("Cast", ["image"], [name], to=kind) for name, kind in zip(names[1:], kinds[1:], strict=True)
    ]
    graph = helper.make_graph(nodes, "g", door[:1], door[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    for wire, other in (("fp32", 1), ("fp16", 2)):
        gates = structure(tmp_path / "m.onnx", 1, "fp16", wire).gates  # type: ignore[arg-type]
        (gate,) = (each for each in gates if each.name == f"inputs and outputs that are not {wire.upper()}")
        assert (gate.value, gate.passed) == (other, False)


@pytest.mark.parametrize("content", [b"", b"no network", b"\x80\x04pickle"])
def test_what_is_no_onnx_is_said_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"m\.onnx is no sound ONNX file: "):
        structure(tmp_path / "m.onnx", 1)


def test_a_graph_of_two_inputs(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", [RELU], SIZES)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("prompt", TensorProto.FLOAT, SIZES))
    onnx.save(model, path)
    with pytest.raises(ExportError, match="and nothing else"):
        structure(path, 1)


def test_a_graph_that_contradicts_itself(tmp_path: Path) -> None:
    node = helper.make_node("Concat", ["image", "image"], ["logits"], axis=1)
    with pytest.raises(ExportError, match="no sound ONNX"):
        structure(written(tmp_path / "m.onnx", [node], SIZES), 1)
