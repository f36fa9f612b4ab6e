"""Placement and weights, each equal to its own reference library."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from hilum_inference import windows

sliding = pytest.importorskip("nnunetv2.inference.sliding_window_prediction", reason="nnU-Net is not installed")

SIZES = [(96, 96, 96), (80, 80, 16), (33, 47, 18)]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.625, 0.9])
@pytest.mark.parametrize("length", [96, 97, 143, 144, 145, 192, 300, 511])
def test_monai_placement(length: int, overlap: float) -> None:
    interval = _get_scan_interval((length,), (96,), 1, (overlap,))
    expected = [s.start for (s,) in dense_patch_slices((length,), (96,), interval)]
    assert list(windows.starts(length, 96, overlap, "monai")) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.625, 0.9])
@pytest.mark.parametrize("length", [96, 97, 143, 144, 145, 192, 300, 511])
def test_nnunet_placement(length: int, overlap: float) -> None:
    expected = sliding.compute_steps_for_sliding_window((length,), (96,), 1 - overlap)[0]
    assert list(windows.starts(length, 96, overlap, "nnunet")) == expected


@pytest.mark.parametrize("size", SIZES)
def test_monai_weights(size: tuple[int, int, int]) -> None:
    expected = compute_importance_map(size, mode="gaussian", sigma_scale=0.125)
    expected = torch.clamp(expected, min=max(float(expected.min()), 1e-3)).numpy()
    np.testing.assert_allclose(windows.weight_map(size, "monai"), expected, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_nnunet_weights(size: tuple[int, int, int]) -> None:
    gaussian = sliding.compute_gaussian(size, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    np.testing.assert_array_equal(windows.weight_map(size, "nnunet"), gaussian.float().numpy())


def test_doctests() -> None:
    assert doctest.testmod(windows).failed == 0
