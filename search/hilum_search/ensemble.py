"""The folds of a cross-validation as one network: logits are averaged, as nnU-Net does.

Heads are linear, so the mean of their answers is one head on all features put together: the ensemble exports, serves
and blends like any other network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hilum_search.errors import DataError
from hilum_search.network import Network


class Bodies(nn.Module):
    """Windows (N, C, D, H, W) to the features of every body, (N, F1 + F2 + ..., D, H, W)."""

    def __init__(self, bodies: Sequence[nn.Module]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, image: Tensor) -> Tensor:
        """The features, one body's after the other's."""
        return torch.cat([body(image) for body in self.bodies], 1)


def ensemble(networks: Sequence[Network]) -> Network:
    """One network that answers the mean of the logits.

    Raises:
        DataError: no network, or networks of different classes.
    """
    classes = {network.head.out_channels for network in networks}
    if len(classes) != 1:
        raise DataError(f"An ensemble needs networks of the same classes; these have {sorted(classes)}.")
    weights = torch.cat([network.head.weight for network in networks], 1) / len(networks)
    biases = [network.head.bias for network in networks]
    head = nn.Conv3d(weights.shape[1], classes.pop(), 1)
    with torch.no_grad():
        head.weight.copy_(weights)
        total = torch.stack([torch.zeros(head.out_channels) if bias is None else bias for bias in biases])
        head.bias.copy_(total.mean(0))  # type: ignore[union-attr]
    return Network(Bodies([network.body for network in networks]), head).eval()
