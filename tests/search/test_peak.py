from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hilum_search.architecture import C2FNAS
from hilum_search.network import build, parameters
from hilum_search.ops import unit
from hilum_search.peak import peak_bytes

VOXELS = 8**3
IMAGE = torch.empty(1, 1, 8, 8, 8, device="meta")


def activations(network: nn.Module) -> int:
    """Values held at most, weights not counted."""
    network = network.to("meta").eval()
    return peak_bytes(network, IMAGE) // 4 - parameters(network)


def test_a_chain_holds_two_neighbours_at_most() -> None:
    chain = nn.Sequential(*(nn.Conv3d(a, b, 1, bias=False) for a, b in ((1, 4), (4, 8), (8, 2), (2, 2))))
    assert activations(chain) == (4 + 8) * VOXELS
    assert peak_bytes(chain, IMAGE) == 4 * (12 * VOXELS + parameters(chain))


def test_a_tensor_lives_until_it_is_read_last() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv3d(1, 4, 1), nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            kept = self.one(image)
            total: Tensor = self.three(self.two(kept)) + kept
            return total

    assert activations(Skip()) == 3 * 4 * VOXELS


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LeakyReLU(), nn.BatchNorm3d(4)])
def test_what_an_engine_does_on_the_way_costs_nothing(layer: nn.Module) -> None:
    assert activations(nn.Sequential(nn.Conv3d(1, 4, 1), layer)) == 4 * VOXELS


def test_an_instance_norm_needs_its_input_and_its_output() -> None:
    assert activations(unit(1, 4, (1, 1, 1))) == pytest.approx(8 * VOXELS, rel=0.01)


def test_wider_networks_and_larger_windows_need_more() -> None:
    def needed(filters: int, side: int) -> int:
        with torch.device("meta"):
            network = build(C2FNAS(filters, (0, 1, 0), ("2d", "3d", "2d")), 1, 2).eval()
            return peak_bytes(network, torch.empty(1, 1, side, side, side))

    assert needed(2, 8) < needed(4, 8) < needed(4, 16)
