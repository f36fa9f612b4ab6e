from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hilum_export.errors import GateError
from hilum_export.gates import Gate, apply_head, check, difference, torch_outputs
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOWS = np.random.default_rng(0).normal(0, 1, (2, 2, 16, 16, 8)).astype(np.float32)


@pytest.fixture
def path(trained: Trained, tmp_path: Path) -> Path:
    to_onnx(trained.network, 2, (16, 16, 8), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_the_right_file_passes_every_gate(trained: Trained, path: Path) -> None:
    gates = check(trained.network, path, WINDOWS)
    assert [gate.name for gate in gates] == [
        "onnxruntime logits",
        "onnxruntime features",
        "openvino logits",
        "openvino features",
        "head(features) = logits",
    ]
    assert all(gate.passed for gate in gates)


def test_a_file_of_other_weights_fails(trained: Trained, path: Path) -> None:
    with torch.no_grad():
        trained.network.head.weight.mul_(1.01)
    with pytest.raises(GateError, match="onnxruntime logits"):
        check(trained.network, path, WINDOWS)


def test_the_head_alone_gives_the_logits(trained: Trained) -> None:
    outputs = torch_outputs(trained.network, WINDOWS)
    logits = apply_head(trained.network, outputs["features"])
    np.testing.assert_allclose(logits, outputs["logits"], atol=1e-5)


def test_a_difference_that_is_no_number_does_not_pass() -> None:
    truth = np.ones((1, 1, 1, 1, 2), np.float32)
    answer = truth.copy()
    answer[..., 0] = np.nan
    assert not Gate("nan", difference(answer, truth, truth), 1.0).passed
    assert difference(truth + 0.5, truth, 10 * truth) == pytest.approx(0.05)
