from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hilum_export.checks import Subject, check
from hilum_export.errors import GateError
from hilum_export.gates import SHARE, Gate, difference, head_arrays, head_gate, torch_outputs
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOWS = np.random.default_rng(0).normal(0, 1, (2, 2, 16, 16, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def path(shared: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    to_onnx(shared.network, 2, (16, 16, 8), path)
    return path


def test_the_right_file_passes_every_gate(trained: Trained, path: Path) -> None:
    found = check(Subject(trained.network, 2, (16, 16, 8), 2), "fp32", path, path)
    assert [gate.name for gate in found.gates] == [
        "sides of the window that the stride does not divide",
        "weights outside the file",
        "operators of other makers",
        "weights that are not FP32",
        "inputs and outputs that are not FP32",
        "largest tensor",
        "size of the file",
        "onnxruntime logits",
        "onnxruntime features",
        "openvino logits",
        "openvino features",
        "head(features) = logits",
        "strongly typed TensorRT-RTX build",
    ][: len(found.gates)]
    assert found.passed and found.failure == "" and found.why == ""
    assert found.audit["operators"]["Conv"] > 3


def test_a_file_of_other_weights_fails(trained: Trained, path: Path) -> None:
    with torch.no_grad():
        trained.network.head.weight.mul_(1.01)
    found = check(Subject(trained.network, 2, (16, 16, 8), 2), "fp32", path, path)
    assert found.failure.startswith("onnxruntime logits: ")
    with pytest.raises(GateError, match=r"onnxruntime logits: .* Nothing was published"):
        found.require()


def test_a_window_that_the_stride_does_not_divide_is_seen_before_anything_runs(trained: Trained, path: Path) -> None:
    found = check(Subject(trained.network, 2, (16, 16, 8), 16), "fp32", path, path)
    assert found.failure.startswith("sides of the window that the stride does not divide: 1 of 3, stride 16")
    assert not any("onnxruntime" in gate.name for gate in found.gates)


def test_the_head_alone_gives_the_logits(trained: Trained) -> None:
    outputs = torch_outputs(trained.network, WINDOWS)
    weight, bias = head_arrays(trained.network)
    features, logits = outputs["features"], outputs["logits"]
    assert head_gate((features, logits), (weight, bias)).passed
    assert not head_gate((features, logits), (weight, bias + 1)).passed


def test_a_difference_that_is_no_number_does_not_pass() -> None:
    truth = np.ones((1, 1, 1, 1, 2), np.float32)
    answer = truth.copy()
    answer[..., 0] = np.nan
    broken = Gate("nan", difference(answer, truth, truth), 1.0)
    assert not broken.passed
    assert difference(truth + 0.5, truth, 10 * truth) == pytest.approx(0.05)
    assert broken.fields() == {"name": "nan", "value": None, "bound": 1.0, "unit": SHARE, "passed": False}
    told = Gate("told", 0.5, math.inf, "of 1")
    assert told.passed and str(told) == "told: 0.5 of 1" and told.fields()["bound"] is None
