from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, NAMED, OPERATORS, VNAS, CellStyle, Operator
from hilum_search.network import build, count, parameters


def test_the_reconstruction_has_the_papers_17_02_million_parameters() -> None:
    assert count(C2FNAS_PANC, 1, 3) == 17_021_827
    assert count(C2FNAS_PANC, 4, 4) == 17_024_452


@pytest.mark.parametrize(("filters", "millions"), [(24, 9.58), (16, 4.26), (8, 1.07)])
def test_narrower_reconstructions(filters: int, millions: float) -> None:
    narrow = C2FNAS(filters, C2FNAS_PANC.levels, C2FNAS_PANC.operators)
    assert count(narrow, 4, 4) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("skip", [False, True])
def test_logits_and_features_have_the_windows_size(skip: bool) -> None:
    architecture = C2FNAS(2, (0, 1, 2, 1, 0), ("2d", "3d", "p3d", "3d", "2d"), skip)
    network = build(architecture, 3, 5)
    image = torch.rand(2, 3, 16, 8, 24)
    assert network(image).shape == (2, 5, 16, 8, 24)
    assert network.body(image).shape == (2, 2, 16, 8, 24)
    assert torch.equal(network.head(network.body(image)), network(image))
    assert count(architecture, 3, 5) == parameters(network)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_weight_is_reached_by_the_gradient(operator: Operator) -> None:
    network = build(C2FNAS(2, (0, 0, 1, 0), (operator,) * 4, True), 1, 2)
    network(torch.rand(1, 1, 8, 8, 8)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_2d_operator_does_not_mix_planes_but_the_stem_does() -> None:
    from hilum_search.ops import OPERATORS as BUILDERS

    image = torch.rand(1, 2, 6, 6, 6)
    changed = image.clone()
    changed[..., 5] += 1
    for name, mixes in (("2d", False), ("3d", True), ("p3d", True)):
        layers = BUILDERS[name](2).eval()  # type: ignore[index]
        convolutions = torch.nn.Sequential(*[m for m in layers.modules() if isinstance(m, torch.nn.Conv3d)])
        difference = (convolutions(image) - convolutions(changed)).abs().amax((0, 1, 2, 3))
        assert bool(difference[4] > 0) is mixes, name


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vnas-msd-pancreas", 3_320_066),
        ("vnas-2d", 1_763_266),
        ("vnas-3d", 4_770_466),
        ("vnas-p3d", 2_044_066),
    ],
)
def test_named_vnas_networks_keep_their_size(name: str, values: int) -> None:
    assert count(NAMED[name], 1, 2) == values


@pytest.mark.parametrize("style", ["plain", "bottleneck"])
@pytest.mark.parametrize("operator", BASIC)
def test_a_vnas_network_answers_on_its_window_and_learns_everywhere(operator: Operator, style: CellStyle) -> None:
    architecture = VNAS((operator,) * 16, (operator,) * 5, 4, (8, 8, 8, 8), style, (1, 2, 8))
    network = build(architecture, 2, 3)
    image = torch.rand(2, 2, 32, 64, 32)
    network(image).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    assert network.body(image).shape == (2, 8 + 3 * 2, 32, 64, 32)
    assert torch.equal(network.head(network.body(image)), network(image))


def test_dilated_and_wide_operators_keep_the_size_and_reach_farther() -> None:
    from hilum_search.ops import OPERATORS as BUILDERS

    image = torch.rand(1, 2, 12, 12, 12)
    changed = image.clone()
    changed[..., 6] += 1
    for name, reach in (("2d5", 0), ("3d", 1), ("3d5", 2), ("3d-dilated", 2), ("3d5-dilated", 4)):
        layer = next(m for m in BUILDERS[name](2).modules() if isinstance(m, torch.nn.Conv3d))  # type: ignore[index]
        difference = (layer(image) - layer(changed)).abs().amax((0, 1, 2, 3))
        assert [n for n in range(12) if difference[n] > 0][-1] == 6 + reach, name


@pytest.mark.parametrize(("inputs", "classes", "gmac"), [(1, 3, 150.023), (4, 4, 152.344)])
def test_the_reconstruction_costs_what_the_paper_says(inputs: int, classes: int, gmac: float) -> None:
    with torch.device("meta"):
        network, image = build(C2FNAS_PANC, inputs, classes), torch.empty(1, inputs, 96, 96, 96)
    with FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=5e-4)  # two operations to a multiply-add
