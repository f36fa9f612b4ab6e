"""Deep supervision: while a network trains, features of coarser levels are scored too; nothing of it is kept.

Source: Dou et al., MICCAI 2016; levels and weights as in nnU-Net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.errors import RecipeError
from hilum_search.network import C2FNASBody, Network
from hilum_search.vnas_network import VNASBody


class Supervised(nn.Module):
    """A network that answers at several levels, full resolution first.

    Raises:
        RecipeError: a network of which nobody knows the coarser features.
    """

    def __init__(self, network: Network, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.network = network
        taps = _taps(network, architecture)
        self.heads = nn.ModuleList(nn.Conv3d(channels, classes, 1) for _, channels in taps)
        self._features: list[Tensor] = []
        for module, _ in taps:
            module.register_forward_hook(self._keep)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits (N, K, D, H, W) at full resolution, then at the coarser levels, finest first."""
        self._features = []
        logits = self.network(image)
        coarse = [head(features) for head, features in zip(self.heads, self._features, strict=True)]
        self._features = []
        return [logits, *reversed(coarse)]

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._features.append(output)


def _taps(network: Network, architecture: Architecture) -> Sequence[tuple[nn.Module, int]]:
    """Modules on the way up whose output is scored, in the order in which they run, and their channels."""
    body = network.body
    if isinstance(architecture, C2FNAS) and isinstance(body, C2FNASBody):
        levels = architecture.levels
        last = {level: cell for cell, level in enumerate(levels)}
        wanted = sorted(cell for level, cell in last.items() if level < max(levels))
        found = [(body.cells[cell], architecture.channels(levels[cell])) for cell in wanted]
    elif isinstance(architecture, VNAS) and isinstance(body, VNASBody):
        first, second, third, _ = architecture.widths
        # The fourth block lies at the third's resolution; it is the better one to score.
        found = [(body.blocks[n], width) for n, width in ((0, third), (1, second), (3, first), (4, first))]
    else:
        found = []
    if not found:
        raise RecipeError("training.deep_supervision is offered for c2fnas networks with several levels and for vnas.")
    return found
