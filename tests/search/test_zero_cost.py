from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.errors import SearchError
from hilum_search.losses import make_loss
from hilum_search.network import Network, build
from hilum_search.recipe import Training
from hilum_search.zero_cost import Score, grad_norm, naswot, prefilter, score, synflow

SMALL = C2FNAS(2, (0, 1, 0), ("2d", "3d", "p3d"))
VNAS_SMALL = VNAS(("2d",) * 16, ("2d",) * 5, 4, (8, 8, 8, 8), pooling=())
LOSS = make_loss(Training(steps=1, class_weights=(1.0, 1.0, 1.0)))
NAMES: tuple[Score, ...] = ("synflow", "grad_norm", "naswot")


def _batch(seed: int = 0, count: int = 2, side: int = 8) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, side, side, side, generator=chance)
    return images, torch.randint(3, (count, side, side, side), generator=chance)


def _chain() -> Network:
    """Two convolutions with a norm and a ReLU between them, then the head."""
    torch.manual_seed(0)
    first, second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 5, 3, padding=1)
    return Network(nn.Sequential(first, nn.InstanceNorm3d(4, affine=True), nn.ReLU(), second), nn.Conv3d(5, 3, 1))


def test_synflow_of_a_chain_is_its_layers_times_the_paths_through_it() -> None:
    network, images = _chain(), torch.rand(2, 1, 6, 6, 6)
    kernels = [m.weight.detach().double().abs() for m in network.modules() if isinstance(m, nn.Conv3d)]
    flow = torch.ones(1, 1, 6, 6, 6, dtype=torch.float64)
    for kernel in kernels:
        flow = F.conv3d(flow, kernel, padding=kernel.shape[-1] // 2)
    # Each kernel's weights times their gradients sum to the whole flow, which is linear in them.
    assert synflow(network, images) == pytest.approx(math.log(3 * float(flow.sum())), rel=1e-6)


def test_synflow_does_not_depend_on_norms_biases_or_values() -> None:
    images, network = torch.rand(2, 1, 6, 6, 6), _chain()
    plain = synflow(_chain(), images)
    with torch.no_grad():
        for values in network.parameters():
            if values.ndim == 1:
                values.uniform_(-3, 3)
    assert synflow(network, 100 * images - 50) == plain


def test_synflow_of_a_network_as_deep_and_wide_as_the_published_stays_in_range() -> None:
    deep = C2FNAS(8, (0, 0, 1, 1, 2, 2, 3, 3, 2, 1, 0, 0), ("3d5",) * 12)
    assert 30 < score("synflow", deep, 1, 3, _batch(side=16, count=1), LOSS, 0) < 200


def test_the_norm_of_the_gradient_is_that_of_the_loss() -> None:
    images, classes = _batch()
    network = _chain()
    torch.autograd.backward(LOSS(network(images), classes))
    kernels = [m.weight for m in network.modules() if isinstance(m, nn.Conv3d)]
    expected = sum(float(kernel.grad.norm()) for kernel in kernels if kernel.grad is not None)
    assert grad_norm(_chain(), (images, classes), LOSS) == pytest.approx(expected, rel=1e-5)
    double = grad_norm(_chain(), (images, classes), lambda logits, truth: 2 * LOSS(logits, truth))
    assert double == pytest.approx(2 * expected, rel=1e-5)


def test_naswot_tells_windows_apart() -> None:
    images, _ = _batch(count=3)
    torch.manual_seed(0)
    found = naswot(build(SMALL, 1, 3), images)
    torch.manual_seed(0)
    assert naswot(build(SMALL, 1, 3), images.flip(0)) == pytest.approx(found)
    torch.manual_seed(0)
    alike = naswot(build(SMALL, 1, 3), torch.cat([images[:1], images[:1] + 0.001 * images[1:2], images[2:]]))
    assert alike < found


def test_naswot_is_the_determinant_of_the_hamming_kernel() -> None:
    network = Network(nn.Sequential(nn.ReLU()), nn.Conv3d(1, 2, 1))
    first = torch.ones(1, 1, 4, 4, 4)
    second = first.clone()
    second[..., 0] = -1  # a quarter of 64 voxels
    assert naswot(network, torch.cat([first, second])) == pytest.approx(math.log(64**2 - 48**2))


def test_naswot_needs_two_windows_that_differ() -> None:
    images, classes = _batch(count=1)
    with pytest.raises(SearchError, match="at least two"):
        score("naswot", SMALL, 1, 3, (images, classes), LOSS, 0)
    twice = (torch.cat([images, images]), torch.cat([classes, classes]))
    with pytest.raises(SearchError, match="naswot of a network is -inf"):
        score("naswot", SMALL, 1, 3, twice, LOSS, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_follows_from_its_seed_and_changes_nothing_around(name: Score) -> None:
    images, classes = _batch(side=8)
    kept = images.clone(), classes.clone()
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    found = [score(name, SMALL, 1, 3, (images, classes), LOSS, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, kept[0])
    assert torch.equal(classes, kept[1])


@pytest.mark.parametrize("name", NAMES)
def test_networks_with_batch_norm_are_scored_too(name: Score) -> None:
    assert score(name, VNAS_SMALL, 1, 3, _batch(side=32), LOSS, 0) > 0


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(SearchError, match="no score 'luck'; known are synflow, grad_norm, naswot"):
        score("luck", SMALL, 1, 3, _batch(), LOSS, 0)  # type: ignore[arg-type]


def _filters(architecture: Architecture, seed: int) -> float:
    assert isinstance(architecture, C2FNAS)
    return architecture.filters + (10 if seed == architecture.filters else 0)


def test_the_filter_keeps_the_best_by_the_mean_over_seeds() -> None:
    networks = [C2FNAS(n, (0, 1, 0), ("3d",) * 3) for n in (1, 5, 2, 4, 5)]
    assert prefilter(networks, 3, _filters, seeds=(7, 8)) == [1, 4, 3]
    assert prefilter(networks, 3, _filters, seeds=(7, 2)) == [2, 1, 4]
    assert prefilter(networks, 5, _filters, seeds=(7,)) == [1, 4, 3, 2, 0]
    for keep in (0, 6):
        with pytest.raises(SearchError, match="keep 1 to 5"):
            prefilter(networks, keep, _filters)


def test_the_filter_takes_a_score_as_it_is() -> None:
    networks = [C2FNAS(n, (0, 1, 0), ("3d",) * 3) for n in (1, 6, 3)]
    judge = partial(_synflow, batch=_batch())
    assert prefilter(networks, 2, judge) == [1, 2]


def _synflow(architecture: Architecture, seed: int, batch: tuple[Tensor, Tensor]) -> float:
    return score("synflow", architecture, 1, 3, batch, LOSS, seed)
