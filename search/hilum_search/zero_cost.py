"""Scores of networks that were never trained: synflow, the norm of the gradient, NASWOT; and a filter by them.

Each score is of a network built afresh from a seed, so it is one draw; the filter takes the mean over a few seeds. How
far a score ranks networks as training does is to be measured (``ranks.kendall``) and not to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hilum_search.architecture import Architecture
from hilum_search.errors import SearchError
from hilum_search.losses import Loss
from hilum_search.network import Network, build

Score = Literal["synflow", "grad_norm", "naswot"]
Batch = tuple[Tensor, Tensor]
"""Windows (N, C, D, H, W) and their classes (N, D, H, W)."""

SEEDS: Final = (0, 1, 2)
SCALE: Final = 2.0**-60
"""Of synflow's input and of its sum: the flow through some forty layers leaves float32's range else."""
BLOCKS: Final = 4
"""NASWOT codes hold this many blocks of voxels along each side (our choice)."""

_NORMS: Final = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


def score(
    name: Score, architecture: Architecture, in_channels: int, classes: int, batch: Batch, loss: Loss, seed: int
) -> float:
    """One score of an untrained network; larger is better. Neither torch's generator nor the batch is changed.

    Args:
        name: of the score.
        architecture: of the network.
        in_channels, classes: of the network.
        batch: windows of training cases; synflow reads their size only, NASWOT needs two windows at least.
        loss: of logits and classes; only the norm of the gradient asks for it.
        seed: of the weights.

    Raises:
        SearchError: an unknown score, too few windows, or a score that is no finite number.
    """
    scores: dict[str, Callable[[Network, Batch, Loss], float]] = {
        "synflow": lambda network, batch, _: synflow(network, batch[0]),
        "grad_norm": grad_norm,
        "naswot": lambda network, batch, _: naswot(network, batch[0]),
    }
    if name not in scores:
        raise SearchError(f"There is no score {name!r}; known are {', '.join(scores)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(architecture, in_channels, classes).to(batch[0].device)
        found = scores[name](network, batch, loss)
    if not math.isfinite(found):
        raise SearchError(f"The score {name} of a network is {found}; give another batch, or use another score.")
    return found


def prefilter(
    architectures: Sequence[Architecture],
    keep: int,
    judge: Callable[[Architecture, int], float],
    seeds: Sequence[int] = SEEDS,
) -> list[int]:
    """The indices of the best networks, best first; of equals the first.

    Args:
        architectures: to choose from.
        keep: how many.
        judge: the score of an architecture with the weights of a seed, such as ``score``.
        seeds: over which scores are averaged.

    Raises:
        SearchError: fewer networks than are to be kept, or none to be kept.
    """
    if not 1 <= keep <= len(architectures):
        raise SearchError(f"{keep} of {len(architectures)} networks cannot be kept; keep 1 to {len(architectures)}.")
    means = [sum(judge(each, seed) for seed in seeds) / len(seeds) for each in architectures]
    return sorted(range(len(means)), key=lambda n: (-means[n], n))[:keep]


def synflow(network: Network, images: Tensor) -> float:
    """Logarithm of the synaptic flow (Tanaka et al., NeurIPS 2020) through the convolutions; changes the network.

    Weights become their absolute values and the input one window of ones; the score is the sum over all kernels of
    weight times gradient of the summed output. Normalisation is left out: instance norm would take away all that ones
    become, batch norm is left out by Abdelfattah et al. (ICLR 2021) too. Biases are left out as well. Its logarithm
    ranks alike and stays readable.
    """
    _without_norms(network)
    kernels = _kernels(network)
    with torch.no_grad():
        for values in network.parameters():
            if values.ndim > 1:
                values.abs_()
            else:
                values.zero_()
    flow = network.eval()(torch.full_like(images[:1], SCALE)).mul(SCALE).sum()
    gradients = torch.autograd.grad(flow, kernels)
    total = sum(float((w.detach().double() * g.double()).sum()) for w, g in zip(kernels, gradients, strict=True))
    return math.log(total) - 2 * math.log(SCALE) if total > 0 else -math.inf


def grad_norm(network: Network, batch: Batch, loss: Loss) -> float:
    """Sum over the kernels of the Euclidean norm of the loss's gradient (Abdelfattah et al., ICLR 2021).

    The network is in training mode: untrained batch norm knows no statistics but the batch's.
    """
    images, classes = batch
    gradients = torch.autograd.grad(loss(network.train()(images), classes), _kernels(network))
    return sum(float(torch.linalg.vector_norm(gradient)) for gradient in gradients)


def naswot(network: Network, images: Tensor) -> float:
    """Logarithm of the determinant of the windows' Hamming kernel (Mellor et al., ICML 2021).

    A window's code says for each ReLU whether it is open. Here it says so for blocks of voxels, whether the most are
    open (our choice): voxels are many and neighbours say the same. The mean over a whole channel would say nothing,
    since instance norm makes it zero.
    """
    if len(images) < 2:
        raise SearchError("NASWOT tells windows apart; give a batch of at least two.")
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        a, b, c = (min(side, BLOCKS) for side in inputs[0].shape[2:])
        code = (F.adaptive_avg_pool3d((inputs[0] > 0).float(), (a, b, c)) > 0.5).flatten(1).double()
        kernel.add_(code @ code.T + (1 - code) @ (1 - code).T)

    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(add)
    with torch.no_grad():
        network.train()(images)
    return float(torch.linalg.slogdet(kernel).logabsdet)


def _kernels(network: nn.Module) -> list[nn.Parameter]:
    return [values for values in network.parameters() if values.ndim > 1]


def _without_norms(network: nn.Module) -> None:
    """Every normalisation becomes nothing."""
    norms = [name for name, module in network.named_modules() if isinstance(module, _NORMS)]
    for name in norms:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())
