"""From an architecture to a plain network: the one builder for search, training and export.

A network is a ``body`` (window to features at full resolution) and a ``head`` (a 1x1x1 convolution to classes), so
that a gateway may blend features and apply the head once a voxel. Modules and indices are static, so that any exporter
can trace them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.baselines import parts
from hilum_search.errors import ArchitectureError
from hilum_search.ops import OPERATORS, convolution, unit
from hilum_search.own_architecture import OwnNetwork
from hilum_search.space import wiring
from hilum_search.vnas_network import VNASBody, body_channels


class Network(nn.Module):
    """Windows (N, C, D, H, W) to logits (N, K, D, H, W); D, H, W multiples of the architecture's stride."""

    def __init__(self, body: nn.Module, head: nn.Conv3d) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every class."""
        logits: Tensor = self.head(self.body(image))
        return logits


class Cell(nn.Module):
    """One or two inputs, each brought to the cell's level and through its own operator; summed, then a 1x1x1 unit."""

    def __init__(self, branches: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.post = unit(channels, channels, (1, 1, 1))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Features (N, channels, D, H, W) at the cell's level."""
        total: Tensor = self.branches[0](inputs[0])
        for branch, features in zip(list(self.branches)[1:], inputs[1:], strict=True):
            total = total + branch(features)
        merged: Tensor = self.post(total)
        return merged


class C2FNASBody(nn.Module):
    """Stem, cells and the last units of the head: (N, C, D, H, W) to (N, filters, D, H, W)."""

    def __init__(self, architecture: C2FNAS, in_channels: int) -> None:
        super().__init__()
        a, f = architecture, architecture.filters
        placed = (0, *a.levels)
        self.inputs = wiring(a.levels)
        self.stem = convolution(in_channels, f, (3, 3, 3))
        self.down = unit(f, 2 * f, (3, 3, 3), stride=2)
        self.cells = nn.ModuleList(
            Cell(
                [nn.Sequential(_bring(a, placed[i], level), OPERATORS[operator](a.channels(level))) for i in inputs],
                a.channels(level),
            )
            for inputs, level, operator in zip(self.inputs, a.levels, a.operators, strict=True)
        )
        self.narrow = unit(2 * f, f, (3, 3, 3))
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.skip = unit(f, f, (1, 1, 1)) if a.full_resolution_skip else None
        self.last = unit(f, f, (3, 3, 3))
        self.activation = nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        """Features, non-negative."""
        full = self.stem(image)
        outputs = [self.down(full)]
        for cell, inputs in zip(self.cells, self.inputs, strict=True):
            outputs.append(cell([outputs[i] for i in inputs]))
        whole = self.up(self.narrow(outputs[-1]))
        if self.skip is not None:
            whole = whole + self.skip(full)
        activated: Tensor = self.activation(self.last(whole))
        return activated


def build(architecture: Architecture, in_channels: int, classes: int) -> Network:
    """The network of an architecture with fresh weights (seed torch first where they matter).

    Raises:
        ArchitectureError: a network to compare with that cannot take this many channels; a network of the caller's
            own, which only the caller can build.
        SearchError: one whose library is not installed.
    """
    if isinstance(architecture, OwnNetwork):
        raise ArchitectureError(
            f"{architecture.name} is its author's own network; build it in Python and pass it as network."
        )
    if isinstance(architecture, C2FNAS):
        return Network(C2FNASBody(architecture, in_channels), nn.Conv3d(architecture.filters, classes, 1))
    if isinstance(architecture, VNAS):
        return Network(VNASBody(architecture, in_channels), nn.Conv3d(body_channels(architecture), classes, 1))
    return Network(*parts(architecture, in_channels, classes))


def parameters(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in network.parameters())


def count(architecture: Architecture, in_channels: int, classes: int) -> int:
    """Number of parameters of the network, found without allocating it."""
    with torch.device("meta"):
        return parameters(build(architecture, in_channels, classes))


def _bring(architecture: C2FNAS, source: int, target: int) -> nn.Module:
    """An input of level ``source`` to channels and size of level ``target`` (at most one level away)."""
    inputs, outputs = architecture.channels(source), architecture.channels(target)
    if target > source:
        return unit(inputs, outputs, (3, 3, 3), stride=2)
    bring = unit(inputs, outputs, (1, 1, 1))
    if target < source:
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False), bring)
    return bring
