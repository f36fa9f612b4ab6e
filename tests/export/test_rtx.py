"""What TensorRT will take and what it will not, with TensorRT-RTX's real parser and builder on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hilum_gpu import HAS_GPU
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hilum_export.checks import Checked
from hilum_export.errors import EngineBuildError, GateError
from hilum_export.precision import to_half
from hilum_export.repository import Profile
from hilum_export.rtx import rtx, rtx_gate
from hilum_export.tensorrt_api import load, plain
from hilum_export.tensorrt_build import Options, build
from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.network import build as network_of
from hilum_search.to_onnx import to_onnx

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no graph is shown to TensorRT's parser")

SIZE = (8, 8, 8)
"""Window of the graphs that are made by hand."""


def graph(
    path: Path, nodes: Sequence[NodeProto], constants: dict[str, np.ndarray] | None = None, batch: object = "n"
) -> Path:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 2, *SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    made = helper.make_graph(list(nodes), "g", [image], [logits], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("of.another.maker", 1)]
    path.write_bytes(helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def node(operator: str, *inputs: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, ["image", *inputs], ["logits"], name=f"the_{operator}", **attributes)


@pytest.fixture
def plain_graph(tmp_path: Path) -> Path:
    return graph(tmp_path / "relu.onnx", [node("Relu")])


SAMPLES: dict[str, tuple[Architecture, tuple[int, int, int]]] = {
    "c2fnas": (C2FNAS(3, (0, 1, 0), ("2d", "p3d", "3d"), True), (16, 16, 8)),
    "vnas": (VNAS(("2d", "3d", "p3d", "3d") * 4, ("2d", "3d", "p3d", "3d", "p3d"), 4, (4, 6, 8, 8)), (32, 32, 32)),
}


@pytest.mark.parametrize("family", ["c2fnas", pytest.param("vnas", marks=pytest.mark.slow)])
def test_networks_of_our_spaces_build(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    architecture, window = SAMPLES[family]
    torch.manual_seed(0)
    path, half = tmp_path / "model.onnx", tmp_path / "half.onnx"
    to_onnx(network_of(architecture, 2, 3).eval(), 2, window, path)
    to_half(path, half)
    capfd.readouterr()
    for file in (path, half):
        gate = rtx_gate(file, 2, window, 4)
        assert gate is not None and gate.passed, gate
    assert capfd.readouterr() == ("", "")  # TensorRT says hundreds of lines by itself


RESIZE = {"sizes": np.array([1, 1, 2, 2, 2], np.float32)}


@pytest.mark.parametrize(
    ("nodes", "constants", "said"),
    [
        ([node("Add", "w")], {"w": np.ones((1, 2, *SIZE), np.float16)}, r"Add the_Add: .*types Float and Half\)"),
        ([node("Resize", "", "sizes", mode="cubic")], RESIZE, r"Resize the_Resize: .*only supports cubic resizing on"),
        ([node("Det")], {}, r"Det the_Det: it knows no such operator"),
        ([node("Blur", domain="of.another.maker")], {}, r"Blur the_Blur: it knows no such operator"),
    ],
    ids=["mixed types", "cubic", "no importer", "another maker"],
)
def test_what_it_does_not_take_is_named_in_the_sentence_of_the_gate(
    nodes: list[NodeProto], constants: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    gate = rtx_gate(graph(tmp_path / "bad.onnx", nodes, constants), 2, SIZE, 4)
    assert gate is not None and gate.value >= 1
    checked = Checked("fp32", tmp_path / "bad.onnx", "", (gate,), {})
    with pytest.raises(GateError, match=rf"build: \d errors \(TensorRT cannot read bad\.onnx: {said}") as told:
        checked.require()
    assert "/_src/" not in told.value.message and "\n" not in told.value.message


@pytest.mark.parametrize("profile", [Profile(4, 2, 1), Profile(1, 8, 4), Profile(0, 1, 1)])
def test_batches_that_are_no_range(plain_graph: Path, profile: Profile) -> None:
    library = rtx()
    assert library is not None
    with pytest.raises(EngineBuildError, match="are no range"):
        build(library, plain_graph, (2, *SIZE), profile)


def test_a_window_of_another_size(plain_graph: Path) -> None:
    gate = rtx_gate(plain_graph, 2, (8, 8, 16), 4)
    assert gate is not None and not gate.passed
    assert "The network takes windows (2, 8, 8, 8), the plan is to take (2, 8, 8, 16)" in str(gate)


def test_a_fixed_batch_is_the_only_one_of_the_plan(tmp_path: Path) -> None:
    library = rtx()
    assert library is not None
    path = graph(tmp_path / "one.onnx", [node("Relu")], batch=1)
    assert build(library, path, (2, *SIZE), Profile(1, 4, 4)).profile == Profile(1, 1, 1)


@pytest.mark.parametrize("content", [b"", b"\0\1 no protobuf", None])
def test_a_file_that_is_no_network(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    gate = rtx_gate(path, 2, SIZE, 4)
    assert gate is not None and not gate.passed


def test_a_plan_is_not_taken_for_loaded_where_there_is_no_gpu(
    plain_graph: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if HAS_GPU:
        pytest.skip("there is a GPU here")
    library = rtx()
    assert library is not None
    plan = build(library, plain_graph, (2, *SIZE), Profile(1, 4, 4), Options()).plan
    with pytest.raises(EngineBuildError, match=r"cannot load the plan: .*CUDA driver"):
        load(library, plan)
    with pytest.raises(EngineBuildError, match="cannot load the plan"):
        load(library, plan[: len(plan) // 2])
    assert capfd.readouterr() == ("", "")


def test_none_where_it_is_not_installed(plain_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert rtx_gate(plain_graph, 2, SIZE, 4) is None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "IBuilder::build: Error Code 4: API Usage Error (add: types differ. In validate at /_src/a.cpp:4)",
            "add: types differ",
        ),
        ('Assertion failed: (a == "b") && "Only b is supported."', "Only b is supported."),
        ("It failed\n  for a reason.", "It failed for a reason"),
    ],
)
def test_messages_are_told_without_their_source_code(message: str, expected: str) -> None:
    assert plain(message) == expected
