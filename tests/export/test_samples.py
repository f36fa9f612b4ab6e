"""Chance networks of both spaces, at small width, through ONNX, FP16 and a strongly typed TensorRT build."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hilum_networks import as_if_trained

from hilum_export.checks import Subject, check
from hilum_export.noise import noise
from hilum_export.precision import to_half
from hilum_search.architecture import VNAS
from hilum_search.network import build
from hilum_search.sampling import sample
from hilum_search.spaces import C2FNASSpace, Space, VNASSpace
from hilum_search.to_onnx import to_onnx

WINDOW = (32, 32, 32)
IN_TEST, IN_ALL = 4, 20
SPACES: dict[str, Space] = {
    "c2fnas": C2FNASSpace(filters=4),
    "vnas": VNASSpace(VNAS(("2d",) * 16, ("2d",) * 5, 4, (4, 6, 8, 8))),
}


def numbers(first: int, last: int) -> list[object]:
    return [pytest.param(n, marks=pytest.mark.slow if n >= IN_TEST else ()) for n in range(first, last)]


@pytest.mark.parametrize("seed", numbers(0, IN_ALL))
@pytest.mark.parametrize("family", SPACES)
def test_a_chance_network_passes_every_check(family: str, seed: int, tmp_path: Path) -> None:
    space = SPACES[family]
    architecture = space.build(sample(space, random.Random(seed)))
    torch.manual_seed(seed)
    network = build(architecture, 1, 3)
    as_if_trained(network, torch.from_numpy(noise(1, WINDOW)))
    full, half = tmp_path / "model.onnx", tmp_path / "half.onnx"
    to_onnx(network, 1, WINDOW, full)
    to_half(full, half)
    subject = Subject(network, 1, WINDOW, architecture.stride)
    for found in (check(subject, "fp32", full, full), check(subject, "fp16", half, full)):
        assert found.passed, found.failure
        assert found.skipped == (), "TensorRT-RTX is part of [dev]"
        assert any("TensorRT-RTX" in gate.name for gate in found.gates)
    assert half.stat().st_size < full.stat().st_size
