"""A network that FP16 cannot hold is found, which no runtime on a CPU shows."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hilum_export.gates import difference, torch_outputs
from hilum_export.noise import noise
from hilum_export.overflow import MARGIN, _part, _rounded, overflow_gates
from hilum_export.precision import LARGEST_HALF, to_half
from hilum_export.runtimes import onnxruntime, openvino
from hilum_search.network import Network
from hilum_search.to_onnx import to_onnx
from hilum_search.trained import Trained

WINDOWS = noise(2, (16, 16, 8))


def scaled(network: Network, factor: float) -> Network:
    """The same function: a norm follows the convolution and takes the factor out again."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        changed.body.get_submodule("stem")[0].weight.mul_(factor)  # type: ignore[index]
    return changed


def test_a_sound_network_passes(trained: Trained) -> None:
    largest, strange, otherwise = overflow_gates(trained.network, WINDOWS)
    assert 0 < otherwise.value < 0.05 and otherwise.passed  # made up: only told
    assert not overflow_gates(trained.network, WINDOWS, real=True)[2].passed
    assert largest.passed and strange.passed
    assert 1 < largest.value < 1000
    assert strange.value == 0


def test_what_overflows_is_found_and_the_layer_is_named(trained: Trained, tmp_path: Path) -> None:
    broken = scaled(trained.network, 4e5)
    truth, same = torch_outputs(trained.network, WINDOWS)["logits"], torch_outputs(broken, WINDOWS)["logits"]
    assert difference(same, truth, truth) < 1e-3  # FP32 does not notice
    to_onnx(broken, 2, (16, 16, 8), tmp_path / "full.onnx")
    to_half(tmp_path / "full.onnx", tmp_path / "half.onnx")
    for runtime in (onnxruntime, openvino):  # nor do runtimes on a CPU
        assert np.isfinite(runtime(tmp_path / "half.onnx", WINDOWS)["logits"]).all()
    largest, strange, _ = overflow_gates(broken, WINDOWS)
    assert not largest.passed and largest.unit == "in body.stem.0"
    assert not strange.passed and strange.value > 0


def test_a_value_within_half_but_near_its_end_is_refused(trained: Trained) -> None:
    value = overflow_gates(scaled(trained.network, 1e4), WINDOWS)[0].value
    largest, _, _ = overflow_gates(scaled(trained.network, 1e4 * 0.8 * LARGEST_HALF / value), WINDOWS)
    assert LARGEST_HALF / MARGIN < largest.value < LARGEST_HALF
    assert not largest.passed and largest.unit == "in body.stem.0"


def test_the_rounded_answer_is_near_and_leaves_the_network_alone(trained: Trained) -> None:
    before = copy.deepcopy(trained.network.state_dict())
    truth = torch_outputs(trained.network, WINDOWS)["logits"]
    assert 0 < difference(_rounded(trained.network, WINDOWS)[0], truth, truth) < 0.02
    assert all(torch.equal(value, before[name]) for name, value in trained.network.state_dict().items())


class Pooled(nn.Module):
    """Modules that torch cannot compute in FP16 on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.norm = nn.GroupNorm(1, 2)

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.up(self.pool(image)))
        return answer


def test_modules_without_half_compute_in_float() -> None:
    torch.manual_seed(0)
    gates = overflow_gates(Network(Pooled(), nn.Conv3d(2, 3, 1)), WINDOWS)
    assert all(gate.passed for gate in gates)


@pytest.mark.parametrize(
    ("size", "stride", "wanted"),
    [
        ((16, 16, 8), 4, (16, 16, 8)),
        ((96, 96, 96), 16, (32, 32, 32)),
        ((96, 96, 16), 8, (24, 48, 16)),
        ((256, 64, 64), 64, (128, 64, 64)),
    ],
)
def test_the_part_that_is_computed_in_half(size: tuple[int, ...], stride: int, wanted: tuple[int, ...]) -> None:
    image = torch.zeros(2, 1, *size)
    image[0, 0, -1, 0, 3] = 1
    part = _part(image, stride)
    assert part.shape[:2] == (1, 1) and part.max() == 1
    assert all(side % stride == 0 for side in part.shape[2:])
    assert tuple(part.shape[2:]) == wanted
