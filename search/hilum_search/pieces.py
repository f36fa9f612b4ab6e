"""A searched network as the chain of pieces that its latency is added up from: stem, cells, ways down and up, head.

Pieces with equal keys are equal in structure whatever network they come from, so each is measured once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hilum_search.architecture import C2FNAS, ENCODER_STAGES, VNAS, Architecture
from hilum_search.errors import ArchitectureError
from hilum_search.network import C2FNASBody, Cell, Network
from hilum_search.space import wiring
from hilum_search.vnas_network import EncoderCell, VNASBody

IMAGE = 0
"""Where a piece that reads the window reads from."""


@dataclass(frozen=True)
class Features:
    """A tensor between two pieces: (N, channels, D/stride, H/stride, W/stride)."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Piece:
    """One piece of a network.

    Attributes:
        key: names its structure, widths and size included; not the window, nor the channels of image and logits.
        reads: the outputs it reads, the main one first; IMAGE, or n for the n-th piece (from 1).
        output: what it gives.
    """

    key: str
    reads: tuple[int, ...]
    output: Features


def pieces(architecture: Architecture) -> list[Piece]:
    """The pieces in the order they run; the last one ends in the features that the network's 1x1x1 head reads.

    Raises:
        ArchitectureError: a network of neither searched family.
    """
    if isinstance(architecture, C2FNAS):
        return _c2fnas_pieces(architecture)
    if isinstance(architecture, VNAS):
        return _vnas_pieces(architecture)
    raise ArchitectureError(f"Latency is looked up for c2fnas and vnas only, not for {architecture.family}.")


def modules(network: Network) -> list[nn.Module]:
    """The pieces of a built network, in the order of ``pieces``; each takes the tensors that its piece reads."""
    body = network.body
    if isinstance(body, C2FNASBody):
        return [body.stem, body.down, *(_Listed(cell) for cell in body.cells if isinstance(cell, Cell)), _Finish(body)]
    if isinstance(body, VNASBody):
        return _vnas_modules(body)
    raise ArchitectureError("Latency is looked up for c2fnas and vnas only.")


def _c2fnas_pieces(a: C2FNAS) -> list[Piece]:
    name, placed = f"c2fnas/{a.filters}", (0, *a.levels)
    chain = [
        Piece(f"{name} stem", (IMAGE,), Features(a.filters, 1)),
        Piece(f"{name} down", (1,), Features(a.channels(0), 2)),
    ]
    for inputs, level, operator in zip(wiring(a.levels), a.levels, a.operators, strict=True):
        sources = ",".join(str(placed[i]) for i in inputs)
        key = f"{name} cell {sources}>{level} {operator}"
        chain.append(Piece(key, tuple(i + 2 for i in inputs), Features(a.channels(level), int(2 ** (level + 1)))))
    last, features = len(chain), Features(a.filters, 1)
    if a.full_resolution_skip:
        return [*chain, Piece(f"{name} head with skip", (last, 1), features)]
    return [*chain, Piece(f"{name} head", (last,), features)]


def _vnas_pieces(a: VNAS) -> list[Piece]:
    chain = [
        Piece(f"vnas stem {a.stem}>{a.widths[0]}", (IMAGE,), Features(a.widths[0], 2)),
        Piece(f"vnas pool {a.widths[0]}", (1,), Features(a.widths[0], 4)),
    ]
    skips, operators, before = [1, 2], iter(a.encoder), a.widths[0]
    for stage, (width, count) in enumerate(zip(a.widths, ENCODER_STAGES, strict=True)):
        here = Features(width, 4 * 2**stage)
        if stage:
            chain.append(Piece(f"vnas down {before}>{width}/{here.stride}", (len(chain),), here))
        for operator in itertools.islice(operators, count):
            key = f"vnas {a.cell_style} {operator} {width}/{here.stride}"
            chain.append(Piece(key, (len(chain),), here))
        skips.append(len(chain))
        before = width
    skips.pop()
    for operator in a.decoder:
        source, skip = chain[-1].output, skips.pop()
        here = chain[skip - 1].output
        up = f"vnas up {source.channels}/{source.stride}>{here.channels}/{here.stride}"
        chain.append(Piece(up, (len(chain), skip), here))
        chain.append(Piece(f"vnas block {operator} {here.channels}/{here.stride}", (len(chain),), here))
    pooled = ",".join(map(str, a.pooling))
    whole = Features(a.widths[0] + sum(a.widths[0] // len(a.pooling) for _ in a.pooling), 1)
    return [*chain, Piece(f"vnas head {a.widths[0]} pyramid {pooled or 'none'}", (len(chain),), whole)]


def _vnas_modules(body: VNASBody) -> list[nn.Module]:
    parts: list[nn.Module] = [body.stem, body.pool]
    for stage in body.stages:
        layers = list(stage.children())
        down = [layer for layer in layers if not isinstance(layer, EncoderCell)]
        if down:
            parts.append(nn.Sequential(*down))
        parts += layers[len(down) :]
    for up, block in zip(body.ups, body.blocks, strict=True):
        parts += [_Joined(up), block]
    return [*parts, _Pyramid(body)]


class _Listed(nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.cell(list(inputs))
        return out


class _Joined(nn.Module):
    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.up = up

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.up(features) + skip
        return out


class _Finish(nn.Module):
    """What C2FNASBody does after its last cell."""

    def __init__(self, body: C2FNASBody) -> None:
        super().__init__()
        self.narrow, self.up, self.skip, self.last = body.narrow, body.up, body.skip, body.last
        self.activation = body.activation

    def forward(self, features: Tensor, *full: Tensor) -> Tensor:
        whole = self.up(self.narrow(features))
        if self.skip is not None:
            whole = whole + self.skip(full[0])
        out: Tensor = self.activation(self.last(whole))
        return out


class _Pyramid(nn.Module):
    """What VNASBody does after its last block."""

    def __init__(self, body: VNASBody) -> None:
        super().__init__()
        self.pyramid, self.last = body.pyramid, body.last

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.last(torch.cat([features, *(level(features) for level in self.pyramid)], 1))
        return out
