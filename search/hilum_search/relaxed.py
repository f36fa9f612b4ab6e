"""The V-NAS super-net: every cell computes all its operators and answers their weighted sum.

Source: V-NAS (Zhu et al., 3DV 2019), section 3.2: a cell's answer is the sum of its operators' answers, each times its
entry of softmax(alpha), a row for each encoder cell, or softmax(beta), a row for each decoder block. What is shared by
all networks of the space (stem, ways down and up, pyramid, head) is that of the plain network, module for module.

The way back needs every branch of every cell: with three operators a step of training keeps 2.6 times the activations
of a plain network and peaks at 2.1 times its memory (two windows of 64 cubed, a fifth of the published widths). Alpha
and beta start at zero, so that all operators count exactly alike and the start holds no chance (our choice; DARTS draws
them with standard deviation 0.001).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hilum_search.architecture import VNAS
from hilum_search.network import Network
from hilum_search.sampling import decode
from hilum_search.spaces import VNASSpace
from hilum_search.vnas_network import DenseBlock, EncoderCell, VNASBody, body_channels


class Relaxed(Network):
    """All networks of a V-NAS space at once: windows (N, C, D, H, W) to logits (N, K, D, H, W).

    Args:
        space: its template gives widths, cell style and pooling.
        in_channels: of the windows.
        classes: background among them.

    Attributes:
        alpha: (16, operators) logits of the encoder's cells.
        beta: (5, operators) logits of the decoder's blocks, from the deepest up.
    """

    def __init__(self, space: VNASSpace, in_channels: int, classes: int) -> None:
        template = space.template
        body = VNASBody(template, in_channels)
        super().__init__(body, nn.Conv3d(body_channels(template), classes, 1))
        self.space = space
        self.alpha = nn.Parameter(torch.zeros(len(template.encoder), len(space.operators)))
        self.beta = nn.Parameter(torch.zeros(len(template.decoder), len(space.operators)))
        _mix_encoder(body, space, self.alpha)
        _mix_decoder(body, space, self.beta)

    def weights(self) -> list[nn.Parameter]:
        """Everything that is trained but alpha and beta."""
        return [parameter for name, parameter in self.named_parameters() if name not in ("alpha", "beta")]

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Alpha and beta."""
        return [self.alpha, self.beta]

    def scores(self) -> NDArray[np.float64]:
        """(21, operators) probabilities, encoder first: what ``sampling.decode`` reads."""
        logits = torch.cat([self.alpha, self.beta]).detach().double().cpu()
        found: NDArray[np.float64] = torch.softmax(logits, 1).numpy()
        return found

    def expected(self, costs: Tensor) -> Tensor:
        """What the probabilities make of a cost of each cell's operators, relative to operators that count alike.

        Args:
            costs: (21, operators), encoder first, 0 or more; of any unit.
        """
        shares = torch.softmax(torch.cat([self.alpha, self.beta]), 1)
        found: Tensor = (shares * costs).sum() / costs.mean(1).sum()
        return found

    def decoded(self) -> VNAS:
        """The architecture of each cell's most probable operator; the first of equals."""
        return self.space.build(decode(self.space, self.scores()))


@dataclass(frozen=True, eq=False)
class Row:
    """A cell's row of alpha or beta.

    No module holds the table a second time: it has one name in ``state_dict`` and stands once among the parameters.
    """

    table: nn.Parameter
    index: int

    def shares(self) -> Tensor:
        """(operators,) of sum 1."""
        return torch.softmax(self.table[self.index], 0)


class Mixture(nn.Module):
    """A cell that computes every operator: (N, C, D, H, W) to the same shape."""

    def __init__(self, branches: Iterable[nn.Module], row: Row) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.row = row

    def forward(self, features: Tensor) -> Tensor:
        """The branches' answers, weighted."""
        shares = self.row.shares()
        total: Tensor = shares[0] * self.branches[0](features)
        for share, branch in zip(shares[1:], list(self.branches)[1:], strict=True):
            total = total + share * branch(features)
        return total


def _mix_encoder(body: VNASBody, space: VNASSpace, alpha: nn.Parameter) -> None:
    """Put a mixture in place of every encoder cell."""
    style, rows = space.template.cell_style, itertools.count()
    for stage, width in zip(body.stages, space.template.widths, strict=True):
        for name, module in list(stage.named_children()):
            if isinstance(module, EncoderCell):
                branches = [EncoderCell(width, operator, style) for operator in space.operators]
                setattr(stage, name, Mixture(branches, Row(alpha, next(rows))))


def _mix_decoder(body: VNASBody, space: VNASSpace, beta: nn.Parameter) -> None:
    """Put a mixture in place of every decoder block."""
    first, second, third, _ = space.template.widths
    body.blocks = nn.ModuleList(
        Mixture([DenseBlock(width, operator) for operator in space.operators], Row(beta, index))
        for index, width in enumerate((third, second, first, first, first))
    )
