from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hilum_export.errors import GateError
from hilum_export.export import check
from hilum_export.gates import Gate, difference, head_arrays, head_gate, require, torch_outputs
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOWS = np.random.default_rng(0).normal(0, 1, (2, 2, 16, 16, 8)).astype(np.float32)


@pytest.fixture
def path(trained: Trained, tmp_path: Path) -> Path:
    to_onnx(trained.network, 2, (16, 16, 8), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_right_file_passes_every_gate(trained: Trained, path: Path) -> None:
    found = check(trained.network, path, WINDOWS)
    assert [gate.name for gate in found.gates] == [
        "weights outside the file",
        "operators of other makers",
        "half or wider floats among f32 weights",
        "largest tensor",
        "size of the file",
        "onnxruntime logits",
        "onnxruntime features",
        "openvino logits",
        "openvino features",
        "head(features) = logits",
    ]
    assert all(gate.passed for gate in found.gates)
    assert found.audit["operators"]["Conv"] > 3


def test_a_file_of_other_weights_fails(trained: Trained, path: Path) -> None:
    with torch.no_grad():
        trained.network.head.weight.mul_(1.01)
    with pytest.raises(GateError, match=r"onnxruntime logits: .* nothing was published"):
        check(trained.network, path, WINDOWS)


def test_the_head_alone_gives_the_logits(trained: Trained) -> None:
    outputs = torch_outputs(trained.network, WINDOWS)
    weight, bias = head_arrays(trained.network)
    features, logits = outputs["features"], outputs["logits"]
    assert head_gate(features, logits, weight, bias).passed
    assert not head_gate(features, logits, weight, bias + 1).passed


def test_a_difference_that_is_no_number_does_not_pass() -> None:
    truth = np.ones((1, 1, 1, 1, 2), np.float32)
    answer = truth.copy()
    answer[..., 0] = np.nan
    broken = Gate("nan", difference(answer, truth, truth), 1.0)
    assert not broken.passed
    assert difference(truth + 0.5, truth, 10 * truth) == pytest.approx(0.05)
    with pytest.raises(GateError, match=r"nan: nan of the largest logit, allowed is 1; nothing was published\. Look\."):
        require([Gate("fine", 0.0, 0.0), broken], "Look.")
