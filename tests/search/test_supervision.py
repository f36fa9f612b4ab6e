from __future__ import annotations

import pytest
import torch

from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.errors import RecipeError
from hilum_search.network import build
from hilum_search.supervision import Supervised

UNET = C2FNAS(2, (0, 0, 1, 2, 1, 1, 0), ("2d",) * 7)
NARROW = VNAS(("2d",) * 16, ("2d",) * 5, 4, (8, 8, 8, 8))


@pytest.mark.parametrize(
    ("architecture", "sizes"), [(UNET, [32, 16, 8]), (NARROW, [32, 16, 8, 4, 2])], ids=["c2fnas", "vnas"]
)
def test_coarser_levels_answer_too_finest_first(architecture: Architecture, sizes: list[int]) -> None:
    torch.manual_seed(0)
    network = build(architecture, 1, 3)
    supervised = Supervised(network, architecture, 3)
    image = torch.rand(2, 1, 32, 32, 32)
    answers = supervised(image)
    assert [tuple(answer.shape) for answer in answers] == [(2, 3, *[size] * 3) for size in sizes]
    sum(answer.square().mean() for answer in answers).backward()
    assert [name for name, p in supervised.named_parameters() if p.grad is None] == []


def test_nothing_is_kept_of_it_where_no_gradient_is_wanted() -> None:
    network = build(UNET, 1, 3)
    keys = set(network.state_dict())
    supervised = Supervised(network, UNET, 3)
    with torch.no_grad():
        network(torch.rand(1, 1, 16, 16, 16))
    assert supervised._features == []
    assert set(network.state_dict()) == keys


def test_a_network_without_coarser_levels_is_refused() -> None:
    flat = C2FNAS(2, (0, 0), ("2d", "2d"))
    with pytest.raises(RecipeError, match="several levels"):
        Supervised(build(flat, 1, 2), flat, 2)
