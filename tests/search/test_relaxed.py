from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from hilum_search.architecture import VNAS, CellStyle
from hilum_search.data import Case
from hilum_search.network import Network, build, parameters
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.relaxed import Mixture, Relaxed
from hilum_search.sampling import sample
from hilum_search.spaces import Genotype, VNASSpace
from hilum_search.validate import validate
from hilum_search.vnas_network import DenseBlock, EncoderCell

TINY = VNASSpace(VNAS(("2d",) * 16, ("2d",) * 5, 4, (4, 4, 8, 8), pooling=(1, 2)))


def space(style: CellStyle = "plain") -> VNASSpace:
    return VNASSpace(VNAS(("2d",) * 16, ("2d",) * 5, 4, (4, 4, 8, 8), style, (1, 2)))


def choose(relaxed: Relaxed, genotype: Genotype) -> None:
    """One-hot probabilities."""
    with torch.no_grad():
        for row, choice in zip([*relaxed.alpha, *relaxed.beta], genotype.choices, strict=True):
            row[choice] = 1e4


def plain(relaxed: Relaxed, genotype: Genotype) -> Network:
    """The genotype's own network with the super-net's weights, copied by name."""
    network = build(relaxed.space.build(genotype), 1, 3)
    chosen, cells = {}, iter(genotype.choices)
    for name, module in network.named_modules():
        if isinstance(module, EncoderCell | DenseBlock):
            chosen[name] = f"{name}.branches.{next(cells)}"
    there = relaxed.state_dict()
    for key, value in network.state_dict().items():
        cell = next((name for name in chosen if key.startswith(f"{name}.")), None)
        value.copy_(there[key if cell is None else key.replace(cell, chosen[cell], 1)])
    return network


@pytest.mark.parametrize("style", ["plain", "bottleneck"])
def test_with_one_operator_chosen_everywhere_it_is_the_plain_network(style: CellStyle) -> None:
    torch.manual_seed(0)
    relaxed = Relaxed(space(style), 1, 3)
    genotype = sample(relaxed.space, random.Random(0))
    choose(relaxed, genotype)
    network = plain(relaxed, genotype)
    image = torch.rand(2, 1, 32, 32, 32)
    assert torch.equal(relaxed(image), network(image))
    assert torch.equal(relaxed.head(relaxed.body(image)), relaxed(image))
    assert relaxed.decoded() == relaxed.space.build(genotype)
    choose(relaxed, Genotype(0, tuple((choice + 1) % 3 for choice in genotype.choices)))  # two operators at a half each
    assert not torch.allclose(relaxed(image), network(image), atol=1e-3)


def test_a_mixture_is_the_mean_of_its_branches_at_the_start() -> None:
    relaxed = Relaxed(TINY, 1, 3)
    cell = next(module for module in relaxed.modules() if isinstance(module, Mixture))
    features = torch.rand(2, 4, 4, 4, 4)
    mean = torch.stack([branch(features) for branch in cell.branches]).mean(0)
    torch.testing.assert_close(cell(features), mean)
    np.testing.assert_array_equal(relaxed.scores(), np.full((21, 3), 1 / 3))


def test_expected_costs_are_relative_to_operators_that_count_alike() -> None:
    relaxed = Relaxed(space(), 1, 3)
    costs = torch.ones(21, 3)
    costs[:, 2] = 7.0
    assert relaxed.expected(costs).item() == pytest.approx(1.0)
    with torch.no_grad():
        relaxed.alpha[:, 2] = relaxed.beta[:, 2] = 50.0
    assert relaxed.expected(costs).item() == pytest.approx(7.0 / 3.0)
    torch.autograd.backward(relaxed.expected(costs))
    assert relaxed.alpha.grad is not None and relaxed.beta.grad is not None


def test_gradients_reach_alpha_beta_and_every_branch() -> None:
    relaxed = Relaxed(TINY, 1, 3)
    relaxed(torch.rand(2, 1, 32, 32, 32)).square().mean().backward()
    assert [name for name, p in relaxed.named_parameters() if p.grad is None] == []
    for table in relaxed.architecture_parameters():
        assert table.grad is not None
        assert bool((table.grad.abs().amax(1) > 0).all())


def test_rows_belong_to_cells_in_the_order_of_the_architecture() -> None:
    relaxed = Relaxed(TINY, 1, 3)
    rows = [module.row for module in relaxed.modules() if isinstance(module, Mixture)]
    assert [row.index for row in rows] == [*range(16), *range(5)]
    assert all(row.table is relaxed.alpha for row in rows[:16])
    assert all(row.table is relaxed.beta for row in rows[16:])


def test_its_parameters_are_what_is_shared_and_every_operator_of_every_cell() -> None:
    relaxed = Relaxed(TINY, 1, 3)
    networks = [build(TINY.build(Genotype(0, (n,) * 21)), 1, 3) for n in range(3)]
    cells = [sum(parameters(m) for m in net.modules() if isinstance(m, EncoderCell | DenseBlock)) for net in networks]
    shared = parameters(networks[0]) - cells[0]
    assert parameters(relaxed) == shared + sum(cells) + 21 * 3
    assert sum(p.numel() for p in relaxed.weights()) == shared + sum(cells)
    assert [p.shape for p in relaxed.architecture_parameters()] == [(16, 3), (5, 3)]
    names = [name for name in relaxed.state_dict() if "alpha" in name or "beta" in name]
    assert names == ["alpha", "beta"]


def test_a_copy_and_another_type_keep_cells_and_their_rows_together() -> None:
    relaxed = Relaxed(TINY, 1, 3)
    copied = copy.deepcopy(relaxed).double().eval()
    relaxed.eval()
    choose(copied, Genotype(0, (2,) * 21))
    assert copied.decoded() == TINY.build(Genotype(0, (2,) * 21))
    assert relaxed.scores().max() == pytest.approx(1 / 3)
    image = torch.rand(1, 1, 32, 32, 32)
    assert not torch.allclose(copied(image.double()).float(), relaxed(image), atol=1e-5)


def test_the_serving_pipeline_scores_the_mixture(recipe_text: str, case: Case) -> None:
    recipe: Recipe = parse_recipe(recipe_text.replace("size = [16, 16, 8]", "size = [32, 32, 32]"))
    scores = validate(Relaxed(TINY, 1, recipe.classes), recipe, [case])
    assert set(scores.together) == {"ball", "rod"}
    assert all(0 <= dice <= 1 for dice in scores.together.values())
