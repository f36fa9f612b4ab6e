"""FP16 stands in the graph, norms stay in FP32, the door is as chosen; INT8 sits in the convolutions."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hilum_export import precision
from hilum_export.gates import difference, torch_outputs
from hilum_export.noise import noise
from hilum_export.precision import to_half, to_int8
from hilum_export.runtimes import onnxruntime, openvino
from hilum_export.structure import structure
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOW = (16, 16, 8)
WINDOWS = noise(2, WINDOW)


@pytest.fixture(scope="module")
def full(shared: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    to_onnx(shared.network, 2, WINDOW, path)
    return path


@pytest.fixture(scope="module")
def half(full: Path) -> Path:
    to_half(full, full.with_name("half.onnx"))
    return full.with_name("half.onnx")


@pytest.fixture(scope="module")
def thin(full: Path) -> Path:
    """FP16 at the door, too."""
    to_half(full, full.with_name("thin.onnx"), "fp16")
    return full.with_name("thin.onnx")


def test_weights_are_half_norms_are_not_and_the_door_is_as_before(full: Path, half: Path) -> None:
    model, before = onnx.load(half), onnx.load(full)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits", "features"]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {
        TensorProto.FLOAT
    }
    assert model.graph.output[1].type == before.graph.output[1].type
    found = structure(half, 4, "fp16")
    assert all(gate.passed for gate in found.gates)
    assert set(found.audit["norms"]) == {"FLOAT"} and found.audit["norms"]["FLOAT"] > 3
    assert not all(gate.passed for gate in structure(full, 4, "fp16").gates)
    assert not all(gate.passed for gate in structure(half, 4, "fp32").gates)


def test_with_half_at_the_door_norms_are_islands_all_the_same(thin: Path, half: Path) -> None:
    model = onnx.load(thin)
    onnx.checker.check_model(model, full_check=True)
    door = (*model.graph.input, *model.graph.output)
    assert [value.name for value in door] == ["image", "logits", "features"]
    assert {value.type.tensor_type.elem_type for value in door} == {TensorProto.FLOAT16}
    found = structure(thin, 4, "fp16", "fp16")
    assert all(gate.passed for gate in found.gates)
    assert found.audit["norms"] == structure(half, 4, "fp16").audit["norms"]


def test_half_at_the_door_is_taken_and_given_as_float32_by_both_runtimes(half: Path, thin: Path) -> None:
    windows = WINDOWS.astype(np.float16).astype(np.float32)  # so that the door rounds nothing
    for runtime in (onnxruntime, openvino):
        there, here = runtime(half, windows), runtime(thin, windows)
        for name in ("logits", "features"):
            assert here[name].dtype == np.float32
            assert difference(here[name], there[name], there["logits"]) < 2e-3


def test_a_window_beyond_half_fails_instead_of_being_cut(thin: Path) -> None:
    answer = onnxruntime(thin, np.full_like(WINDOWS, 1e5))["logits"]
    assert not np.isfinite(answer).all()
    assert not difference(answer, np.zeros_like(answer), np.ones_like(answer)) <= 1e-2


@pytest.mark.parametrize("runtime", [onnxruntime, openvino])
def test_it_answers_nearly_as_the_network(shared: Trained, half: Path, runtime: object) -> None:
    truth = torch_outputs(shared.network, WINDOWS)
    answer = runtime(half, WINDOWS)  # type: ignore[operator]
    for name in ("logits", "features"):
        assert answer[name].dtype == np.float32
        off = difference(answer[name], truth[name], truth["logits"])
        assert 0 < off < 1e-2


def test_a_norm_in_half_is_found(half: Path, tmp_path: Path) -> None:
    """What the converter writes by itself: no islands, all at the door in FP16."""
    from onnxconverter_common import float16

    model = float16.convert_float_to_float16(onnx.load(half.with_name("model.onnx")))
    onnx.save(model, tmp_path / "without.onnx")
    failed = [gate.name for gate in structure(tmp_path / "without.onnx", 4, "fp16", "fp16").gates if not gate.passed]
    assert failed == ["norms that do not compute in FP32"]


def test_weights_that_half_cannot_hold_are_not_cut_to_a_smaller_bound(tmp_path: Path) -> None:
    """The converter's own default cuts at 10,000."""
    kernel = np.full((1, 1, 1, 1, 1), 40_000, np.float32)
    node = helper.make_node("Conv", ["image", "kernel"], ["logits"], kernel_shape=[1, 1, 1])
    sizes = ["batch", 1, 4, 4, 4]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("image", "logits")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(kernel, "kernel")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "full.onnx")
    to_half(tmp_path / "full.onnx", tmp_path / "half.onnx")
    (found,) = onnx.load(tmp_path / "half.onnx").graph.initializer
    assert float(numpy_helper.to_array(found).max()) == 40_000


def test_int8_sits_in_the_convolutions(full: Path, shared: Trained) -> None:
    path = full.with_name("int8.onnx")
    chance = np.random.default_rng(0)
    windows = [WINDOWS[:1] + chance.normal(0, 0.1, WINDOWS[:1].shape).astype(np.float32) for _ in range(4)]
    to_int8(full, path, windows)
    found = structure(path, 4, "int8")
    assert all(gate.passed for gate in found.gates)
    assert [gate.name for gate in structure(full, 4, "int8").gates if not gate.passed] == [
        "convolutions that are not INT8"
    ]
    truth = torch_outputs(shared.network, WINDOWS)["logits"]
    for runtime in (onnxruntime, openvino):
        answer = runtime(path, WINDOWS)["logits"]
        assert 0 < difference(answer, truth, truth) < 0.3


def _convolutions(path: Path) -> Path:
    """Two convolutions of 32 channels with all weights alike: no sums that INT8 must hold are larger."""
    alike = np.full((32, 32, 3, 3, 3), 1 / 864, np.float32)
    kernels = [numpy_helper.from_array(alike, f"kernel of {made}") for made in ("middle", "logits")]
    nodes = [
        helper.make_node("Conv", [source, f"kernel of {made}"], [made], kernel_shape=[3] * 3, pads=[1] * 6)
        for source, made in (("image", "middle"), ("middle", "logits"))
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 32, 8, 8, 8]) for name in ("image", "logits")
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], kernels)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_int8_answers_alike_on_processors_without_vnni(tmp_path: Path) -> None:
    """Those add two products in 16 bits: with weights up to 127 half of this network's answer was lost there."""
    windows = np.random.default_rng(0).uniform(0.5, 1.0, (2, 32, 8, 8, 8)).astype(np.float32)
    full = _convolutions(tmp_path / "full.onnx")
    to_int8(full, tmp_path / "int8.onnx", [windows[:1], windows[1:]])
    found = structure(tmp_path / "int8.onnx", 2, "int8")
    assert all(gate.passed for gate in found.gates)
    truth = onnxruntime(full, windows)["logits"]
    for runtime in (onnxruntime, openvino):
        assert difference(runtime(tmp_path / "int8.onnx", windows)["logits"], truth, truth) < 0.02


def test_the_length_of_a_vector_is_computed_in_fp32(tmp_path: Path) -> None:
    """torch computes a norm of vectors as one operator; in FP16 its squares would exceed 65,504 from 256 on."""
    from onnx.reference import ReferenceEvaluator

    image = np.full((1, 4, 2, 2, 2), 300, np.float32)
    nodes = [
        helper.make_node("Relu", ["image"], ["seen"]),
        helper.make_node("ReduceL2", ["seen", "axis"], ["sum"]),
        helper.make_node("Div", ["seen", "sum"], ["logits"]),
    ]
    sizes: list[Any] = ["batch", 4, 2, 2, 2]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("image", "logits")]
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [axis])
    full = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(full, tmp_path / "full.onnx")
    to_half(tmp_path / "full.onnx", tmp_path / "half.onnx")
    assert structure(tmp_path / "half.onnx", 1, "fp16").audit["norms"] == {"FLOAT": 1}
    (answer,) = ReferenceEvaluator(onnx.load(tmp_path / "half.onnx")).run(None, {"image": image})
    np.testing.assert_allclose(answer, 0.5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["grouped", "matrix"])
def test_int8_of_other_layers_stays_within_bounds_too(tmp_path: Path, kind: str) -> None:
    """NNCF leaves grouped convolutions at full range."""
    rng = np.random.default_rng(0)
    image: list[Any] = ["batch", 32, 8, 8, 8]
    first = numpy_helper.from_array(np.full((32, 32, 1, 1, 1), 1 / 32, np.float32), "first")
    if kind == "grouped":
        second = rng.uniform(0.5, 1, (32, 8, 3, 3, 3)).astype(np.float32) / 216
        node = helper.make_node("Conv", ["middle", "second"], ["logits"], kernel_shape=[3] * 3, pads=[1] * 6, group=4)
    else:
        second = rng.uniform(0.5, 1, (8, 8)).astype(np.float32) / 8
        node = helper.make_node("MatMul", ["middle", "second"], ["logits"])
    nodes = [helper.make_node("Conv", ["image", "first"], ["middle"], kernel_shape=[1] * 3), node]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("image", "logits")]
    weights = [first, numpy_helper.from_array(second, "second")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    full = tmp_path / "full.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), full)
    windows = rng.uniform(0.5, 1.0, (2, 32, 8, 8, 8)).astype(np.float32)
    to_int8(full, tmp_path / "int8.onnx", [windows[:1], windows[1:]])
    stored = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    kernels = [each for each in stored if each.dtype == np.int8 and each.ndim > 1]
    assert len(kernels) == 2 and all(50 < np.abs(each.astype(int)).max() <= 64 for each in kernels)
    assert all(gate.passed for gate in structure(tmp_path / "int8.onnx", 2, "int8").gates)
    truth = onnxruntime(full, windows)["logits"]
    for runtime in (onnxruntime, openvino):
        assert difference(runtime(tmp_path / "int8.onnx", windows)["logits"], truth, truth) < 0.03


def test_int8_weights_of_a_matrix_are_looked_at(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.full((4, 4), 127, np.int8), "matrix"),
        numpy_helper.from_array(np.float32(1), "scale"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["matrix", "scale"], ["weights"]),
        helper.make_node("MatMul", ["image", "weights"], ["logits"]),
    ]
    sizes: list[Any] = ["batch", 1, 4, 4, 4]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("image", "logits")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    failed = [gate.name for gate in structure(tmp_path / "m.onnx", 1, "int8").gates if not gate.passed]
    assert failed == ["weights that overflow on processors without VNNI"]


@pytest.mark.parametrize(("weight", "kind", "beyond"), [(64, np.int8, 0), (-65, np.int8, 1), (193, np.uint8, 1)])
def test_int8_weights_that_some_processors_cannot_add_are_found(
    tmp_path: Path, weight: int, kind: type[np.integer[Any]], beyond: int
) -> None:
    kernel = np.full((1, 1, 1, 1, 1), weight, kind)
    nodes = [
        helper.make_node("DequantizeLinear", ["kernel", "scale"], ["weights"]),
        helper.make_node("Conv", ["image", "weights"], ["logits"], kernel_shape=[1, 1, 1]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 4, 4, 4]) for name in ("image", "logits")
    ]
    weights = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.float32(1), "scale")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    gates = {gate.name: gate for gate in structure(tmp_path / "m.onnx", 1, "int8").gates}
    gate = gates["weights that overflow on processors without VNNI"]
    assert (gate.value, gate.passed) == (beyond, beyond == 0)


def test_doctests() -> None:
    assert doctest.testmod(precision).failed == 0
