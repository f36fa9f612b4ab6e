from __future__ import annotations

import pytest
import torch
from torch import nn

from hilum_benchmark.cost import Activations, measure
from hilum_search.architecture import C2FNAS_PANC
from hilum_search.baseline_architectures import UNet3D

CUBE = 4 * 8**3  # bytes of one channel of 8x8x8 float32


def _count(network: nn.Module) -> tuple[int, int]:
    """Peak and sum in channels of 8x8x8, one channel in."""
    with torch.device("meta"):
        network, image = network.to("meta"), torch.empty(1, 1, 8, 8, 8)
    with torch.no_grad(), Activations() as activations:
        network(image)
    return activations.peak // CUBE, activations.made // CUBE


def test_what_is_freed_no_longer_counts_and_the_input_never_does() -> None:
    chain = nn.Sequential(nn.Conv3d(1, 5, 1), nn.Conv3d(5, 3, 1), nn.Conv3d(3, 1, 1))
    assert _count(chain) == (8, 9)


def test_in_place_and_views_make_nothing() -> None:
    chain = nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(inplace=True), nn.Flatten(2), nn.ReLU())
    assert _count(chain) == (8, 8)


def test_a_skip_stays_alive() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv3d(1, 4, 1), nn.Conv3d(4, 4, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            first = self.one(image)
            return torch.cat([first, self.two(first)], 1)

    assert _count(Skip()) == (16, 16)


def test_multiply_adds_of_one_convolution_and_of_the_reconstruction() -> None:
    cost = measure(C2FNAS_PANC, 1, 3, (96, 96, 96))
    assert cost.parameters == 17_021_827
    assert cost.gmac == pytest.approx(150.023, abs=5e-4)
    assert 300 < cost.peak_mib < cost.sum_mib
    # Two pairs of 3x3x3: 1-2-4 and, at half the side, 4-4-8; then 12-4, 4-4 and the head of 1x1x1.
    tiny = measure(UNet3D(4, 2, 2), 1, 3, (8, 8, 8))
    expected = 512 * 27 * (1 * 2 + 2 * 4 + 12 * 4 + 4 * 4) + 64 * 27 * (4 * 4 + 4 * 8) + 512 * 4 * 3
    assert tiny.gmac * 1e9 == pytest.approx(expected)
