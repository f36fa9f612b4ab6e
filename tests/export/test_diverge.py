"""The first layer on which two graphs differ is named, however far behind it the difference is felt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hilum_export.diverge import AT_ONCE, Side, first_difference
from hilum_export.noise import noise
from hilum_export.runtimes import onnxruntime, openvino
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOWS = noise(2, (16, 16, 8))


@pytest.fixture(scope="module")
def path(shared: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    to_onnx(shared.network, 2, (16, 16, 8), path)
    return path


def test_the_runtimes_agree_on_every_layer(path: Path) -> None:
    assert first_difference(Side(path, onnxruntime), Side(path, openvino), WINDOWS, 1e-3) is None


@pytest.mark.parametrize("place", [0, 2, -1])
def test_one_changed_weight_is_found_where_it_is(path: Path, tmp_path: Path, place: int) -> None:
    model = onnx.load(path)
    weights = {each.name: each for each in model.graph.initializer}
    node = [node for node in model.graph.node if node.op_type == "Conv"][place]
    kernel = numpy_helper.to_array(weights[node.input[1]]) * 1.5
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(kernel.astype(np.float32), node.input[1]))
    onnx.save(model, tmp_path / "other.onnx")
    found = first_difference(Side(path, onnxruntime), Side(tmp_path / "other.onnx", onnxruntime), WINDOWS, 1e-3)
    assert found is not None
    assert (found.tensor, found.node, found.operator) == (node.output[0], node.name, "Conv")
    assert found.difference > 0.1
    assert str(found).startswith(f"The first layer to differ is {node.name} (Conv), by 0.")
    assert len(model.graph.node) > 2 * AT_ONCE
