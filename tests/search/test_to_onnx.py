from __future__ import annotations

from pathlib import Path

import onnx
import torch

from hilum_search.architecture import C2FNAS
from hilum_search.network import build
from hilum_search.to_onnx import OPSET, to_onnx


def test_one_file_with_named_tensors_and_a_free_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(C2FNAS(2, (0, 1, 0), ("2d", "p3d", "3d"), True), 2, 3)
    to_onnx(network, 2, (16, 16, 8), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx")
    shapes = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["batch", 2, 16, 16, 8],
        "logits": ["batch", 3, 16, 16, 8],
        "features": ["batch", 2, 16, 16, 8],
    }
    assert model.opset_import[0].version == OPSET


def test_nothing_of_the_machine_is_written_into_the_file(tmp_path: Path) -> None:
    network = build(C2FNAS(2, (0,), ("2d",)), 1, 2)
    to_onnx(network, 1, (8, 8, 8), tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content
    assert b"hilum_search" not in content
