"""The body of a V-NAS network: stem, residual encoder, dense decoder, pyramid volumetric pooling.

Source: V-NAS (Zhu et al., 3DV 2019) for cells and operators; where its text could not be read, AH-Net (Liu et al.,
MICCAI 2018), whose wiring it keeps. Batch normalisation, skips added and not concatenated.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hilum_search.architecture import ENCODER_STAGES, VNAS, CellStyle, Operator
from hilum_search.ops import Kernel

FLAT: Kernel = (3, 3, 1)
CUBE: Kernel = (3, 3, 3)
ACROSS: Kernel = (1, 1, 3)
POINT: Kernel = (1, 1, 1)
ENCODER: dict[Operator, tuple[Kernel, Kernel]] = {"2d": (FLAT, POINT), "3d": (CUBE, POINT), "p3d": (FLAT, ACROSS)}
DECODER: dict[Operator, tuple[Kernel, Kernel]] = {"2d": (FLAT, POINT), "3d": (CUBE, CUBE), "p3d": (FLAT, ACROSS)}
"""The two convolutions [X; Y] of each choice."""

LAYERS, GROWTH, BOTTLENECK = 3, 20, 4
"""Of a decoder block, as AH-Net has them."""


class VNASBody(nn.Module):
    """Windows (N, C, D, H, W) to features (N, F, D, H, W); D, H, W multiples of 32."""

    def __init__(self, architecture: VNAS, in_channels: int) -> None:
        super().__init__()
        a = architecture
        first, second, third, fourth = a.widths
        self.stem = nn.Sequential(
            *_normalised(in_channels, a.stem, (7, 7, 1), (2, 2, 1)),
            nn.ReLU(),
            nn.MaxPool3d((1, 1, 2), (1, 1, 2)),
            *_normalised(a.stem, first, ACROSS),
            nn.ReLU(),
        )
        self.pool = nn.MaxPool3d(2, 2)
        self.stages = nn.ModuleList(_stages(a))
        self.ups = nn.ModuleList(
            [_up(fourth, third), _up(third, second), _up(second, first), _normalised(first, first), _up(first, first)]
        )
        widths = (third, second, first, first, first)
        self.blocks = nn.ModuleList(DenseBlock(w, op) for w, op in zip(widths, a.decoder, strict=True))
        self.pyramid = nn.ModuleList(_pyramid(first, a.pooling))
        self.last = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        """Features at full resolution: the last block's and the pyramid's."""
        half = self.stem(image)
        skips = [half, self.pool(half)]
        for stage in self.stages:
            skips.append(stage(skips[-1]))
        features = skips.pop()
        for up, block in zip(self.ups, self.blocks, strict=True):
            features = block(up(features) + skips.pop())
        whole: Tensor = self.last(torch.cat([features, *(level(features) for level in self.pyramid)], 1))
        return whole


class EncoderCell(nn.Module):
    """x + f(x): two convolutions, each normalised and followed by ReLU; (N, C, D, H, W) to the same shape."""

    def __init__(self, channels: int, operator: Operator, style: CellStyle) -> None:
        super().__init__()
        one, two = ENCODER[operator]
        if style == "plain":
            self.body = _chain((channels, channels, channels), (one, two))
        else:
            inner = max(channels // 4, 1)
            self.body = _chain((channels, inner, inner, inner, channels), (POINT, one, two, POINT))

    def forward(self, features: Tensor) -> Tensor:
        """The residual sum."""
        total: Tensor = features + self.body(features)
        return total


class DenseBlock(nn.Module):
    """AH-Net's dense block with a choice of its two convolutions, and a 1x1x1 unit back to its width."""

    def __init__(self, channels: int, operator: Operator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(channels + n * GROWTH, operator) for n in range(LAYERS))
        self.back = _before(channels + LAYERS * GROWTH, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, D, H, W) to the same shape."""
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        merged: Tensor = self.back(features)
        return merged


class DenseLayer(nn.Module):
    """1x1x1, X, Y; X's and Y's outputs are summed, then 1x1x1: (N, C, D, H, W) to (N, GROWTH, D, H, W)."""

    def __init__(self, channels: int, operator: Operator) -> None:
        super().__init__()
        one, two = DECODER[operator]
        inner = GROWTH * BOTTLENECK
        self.narrow = _before(channels, inner)
        self.first, self.second = _before(inner, GROWTH, one), _before(GROWTH, GROWTH, two)
        self.post = _before(GROWTH, GROWTH)

    def forward(self, features: Tensor) -> Tensor:
        """What the layer adds."""
        one = self.first(self.narrow(features))
        added: Tensor = self.post(one + self.second(one))
        return added


def body_channels(architecture: VNAS) -> int:
    """Channels of the body's output."""
    pooled = len(architecture.pooling)
    return architecture.widths[0] + pooled * (architecture.widths[0] // pooled if pooled else 0)


def _stages(a: VNAS) -> list[nn.Module]:
    """The four encoder stages; all but the first halve every side."""
    operators = iter(a.encoder)
    stages: list[nn.Module] = []
    for inputs, width, count in zip((a.widths[0], *a.widths), a.widths, ENCODER_STAGES, strict=False):
        cells = [EncoderCell(width, operator, a.cell_style) for operator in itertools.islice(operators, count)]
        stages.append(nn.Sequential(*(_down(inputs, width) if stages else []), *cells))
    return stages


def _down(inputs: int, outputs: int) -> list[nn.Module]:
    narrow = _normalised(inputs, inputs, POINT, (2, 2, 1))
    return [*narrow, nn.ReLU(), nn.MaxPool3d((1, 1, 2), (1, 1, 2)), *_normalised(inputs, outputs), nn.ReLU()]


def _up(inputs: int, outputs: int) -> nn.Sequential:
    scale = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
    return nn.Sequential(*_normalised(inputs, outputs), scale)


def _pyramid(channels: int, pooling: tuple[int, ...]) -> list[nn.Module]:
    levels: list[nn.Module] = []
    for side in pooling:
        unit = _normalised(channels, channels // len(pooling))
        if side == 1:
            levels.append(unit)
            continue
        scale = nn.Upsample(scale_factor=side, mode="trilinear", align_corners=False)
        levels.append(nn.Sequential(nn.MaxPool3d(side, side), *unit, scale))
    return levels


def _chain(widths: tuple[int, ...], kernels: tuple[Kernel, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for (inputs, outputs), kernel in zip(itertools.pairwise(widths), kernels, strict=True):
        layers += [*_normalised(inputs, outputs, kernel), nn.ReLU()]
    return nn.Sequential(*layers)


def _normalised(inputs: int, outputs: int, kernel: Kernel = POINT, stride: Kernel = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, outputs, kernel, stride), nn.BatchNorm3d(outputs))


def _before(inputs: int, outputs: int, kernel: Kernel = POINT) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm3d(inputs), nn.ReLU(), _convolution(inputs, outputs, kernel))


def _convolution(inputs: int, outputs: int, kernel: Kernel, stride: Kernel = (1, 1, 1)) -> nn.Conv3d:
    a, b, c = kernel
    return nn.Conv3d(inputs, outputs, kernel, stride, (a // 2, b // 2, c // 2), bias=False)
