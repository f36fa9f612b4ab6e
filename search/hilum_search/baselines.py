"""Networks to compare with, each as a body and a 1x1x1 head, so that they train, export and serve as searched ones do.

A library's network is taken as it is, its last 1x1x1 convolution as the head. Where the library's own forward cannot be
exported, or names one weight twice, its modules are put in a plain order here; the tests hold both to the same answer.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from hilum_search.baseline_architectures import (
    DINTS_LEVELS,
    NO_PATH,
    PATHS,
    AHNet,
    Baseline,
    DiNTS,
    NnUNet,
    SegResNet,
    UNet3D,
    VNet,
)
from hilum_search.errors import ArchitectureError, SearchError

Parts = tuple[nn.Module, nn.Conv3d]
"""A body, windows (N, C, D, H, W) to features (N, F, D, H, W), and the head to the classes."""

VNET_WIDTH = 16


def parts(architecture: Baseline, in_channels: int, classes: int) -> Parts:
    """Body and head of a network to compare with, with fresh weights.

    Raises:
        ArchitectureError: V-Net cannot take this many channels.
        SearchError: nnU-Net's library is not installed.
    """
    match architecture:
        case UNet3D():
            return UNet3DBody(architecture, in_channels), nn.Conv3d(architecture.filters, classes, 1)
        case VNet():
            return _vnet(architecture, in_channels, classes)
        case AHNet():
            return AHNetBody(architecture, in_channels, classes), _identity(classes)
        case NnUNet():
            return _nnunet(architecture, in_channels, classes)
        case DiNTS():
            return _dints(architecture, in_channels, classes)
        case SegResNet():
            return _segresnet(architecture, in_channels, classes)
        case _:
            assert_never(architecture)


class UNet3DBody(nn.Module):
    """Encoder of pairs with maximum pooling, decoder of pairs on upsampled features beside their skip."""

    def __init__(self, architecture: UNet3D, in_channels: int) -> None:
        super().__init__()
        widths = [architecture.filters * 2**level for level in range(architecture.levels)]
        inputs = [in_channels, *widths[:-1]]
        groups = architecture.groups
        self.pool = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.down = nn.ModuleList(
            nn.Sequential(*_norm_unit(i, width // 2, groups), *_norm_unit(width // 2, width, groups))
            for i, width in zip(inputs, widths, strict=True)
        )
        self.merge = nn.ModuleList(
            nn.Sequential(*_norm_unit(deep + width, width, groups), *_norm_unit(width, width, groups))
            for width, deep in reversed(list(itertools.pairwise(widths)))
        )

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, filters, D, H, W), non-negative."""
        features = self.down[0](image)
        skips = []
        for level in list(self.down)[1:]:
            skips.append(features)
            features = level(self.pool(features))
        for merge, skip in zip(self.merge, reversed(skips), strict=True):
            features = merge(torch.cat([skip, self.up(features)], 1))
        whole: Tensor = features
        return whole


class AHNetBody(nn.Module):
    """MONAI's AH-Net whole: it ends in an upsampling of logits, so that its features are logits already."""

    def __init__(self, architecture: AHNet, in_channels: int, classes: int) -> None:
        from monai.networks.nets.ahnet import AHNet as Library

        super().__init__()
        self.smallest = architecture.smallest_plane
        self.network = Library(architecture.layers, 3, in_channels, classes, architecture.pooling, "trilinear")

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, K, D, H, W)."""
        if min(image.shape[2:4]) < self.smallest:
            raise ArchitectureError(
                f"The window {tuple(image.shape[2:])} is too small for this AH-Net: its first two sides must have "
                f"{self.smallest} voxels or more; enlarge the window or lower pooling."
            )
        features: Tensor = self.network(image)
        return features


class NnUNetBody(nn.Module):
    """nnU-Net's encoder and decoder: the stages, the transposed convolutions, and what merges both.

    The library's own modules name every weight two or three times (its decoder holds its encoder, its blocks a list of
    their parts) and carry the heads of deep supervision. Here each weight has one name and a use.
    """

    def __init__(self, stages: list[nn.Module], ups: list[nn.Module], merges: list[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.ups = nn.ModuleList(ups)
        self.merges = nn.ModuleList(merges)

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, filters, D, H, W)."""
        skips = [image]
        for stage in self.stages:
            skips.append(stage(skips[-1]))
        features = skips.pop()
        for up, merge in zip(self.ups, self.merges, strict=True):
            features = merge(torch.cat([up(features), skips.pop()], 1))
        return features


class ResidualBlock(nn.Module):
    """nnU-Net's basic block: two convolutions with norms, added to the (pooled, projected) input."""

    def __init__(self, body: nn.Sequential, skip: nn.Sequential, activation: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.skip = skip
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        """(N, inputs, D, H, W) to (N, outputs, D/stride, H/stride, W/stride)."""
        total: Tensor = self.activation(self.body(features) + self.skip(features))
        return total


class DiNTSBody(nn.Module):
    """A decoded DiNTS network with static indices: stems into the levels, blocks of paths, stems back up."""

    def __init__(self, architecture: DiNTS, library: Any) -> None:
        super().__init__()
        words = architecture.code
        self.first = sorted(architecture.starts(0))
        self.last = sorted(architecture.ends(len(words) - 1), reverse=True)
        self.down = nn.ModuleList(library.stem_down[str(level)].mod for level in self.first)
        tree = library.dints_space.cell_tree
        self.blocks = nn.ModuleList(
            DiNTSBlock({path: tree[str((block, path))] for path, letter in enumerate(word) if letter != NO_PATH})
            for block, word in enumerate(words)
        )
        self.up = nn.ModuleList(library.stem_up[str(level)].mod for level in range(self.last[0], -1, -1))
        self.final = library.stem_finals[0]

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, filters, D, H, W)."""
        levels = {level: stem(image) for level, stem in zip(self.first, self.down, strict=True)}
        for block in self.blocks:
            levels = block(levels)
        features = self.up[0](levels[self.last[0]])
        for level, stem in zip(range(self.last[0] - 1, -1, -1), list(self.up)[1:], strict=True):
            features = stem(features + levels[level] if level in levels else features)
        whole: Tensor = self.final(features)
        return whole


class DiNTSBlock(nn.Module):
    """The paths of one block, each a change of level and then its one operator."""

    def __init__(self, cells: dict[int, Any]) -> None:
        super().__init__()
        self.routes = [PATHS[path] for path in cells]
        self.cells = nn.ModuleList(nn.Sequential(cell.preprocess, cell.op.ops[0]) for cell in cells.values())

    def forward(self, levels: dict[int, Tensor]) -> dict[int, Tensor]:
        """Level -> features (N, C, D, H, W) to the levels after the block: what comes in by several paths is summed."""
        found: dict[int, Tensor] = {}
        for (source, target), cell in zip(self.routes, self.cells, strict=True):
            features = cell(levels[source])
            found[target] = found[target] + features if target in found else features
        return found


def _norm_unit(inputs: int, outputs: int, groups: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True)


def _identity(classes: int) -> nn.Conv3d:
    """A head that changes nothing until it is trained."""
    head = nn.Conv3d(classes, classes, 1)
    nn.init.dirac_(head.weight)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


def _vnet(architecture: VNet, in_channels: int, classes: int) -> Parts:
    from monai.networks.nets.vnet import VNet as Library

    if VNET_WIDTH % in_channels:
        raise ArchitectureError(
            f"V-Net repeats its input to {VNET_WIDTH} channels and cannot take {in_channels}; give it 1, 2, 4, 8 or 16."
        )
    share = architecture.dropout
    network = Library(3, in_channels, classes, dropout_prob_down=share, dropout_prob_up=(share, share))
    last = network.out_tr
    network.out_tr = nn.Sequential(last.conv_block, last.act_function1)
    return network, last.conv2


def _segresnet(architecture: SegResNet, in_channels: int, classes: int) -> Parts:
    from monai.networks.nets.segresnet import SegResNet as Library

    down, up = architecture.down, architecture.up
    network = Library(3, architecture.filters, in_channels, classes, blocks_down=down, blocks_up=up)
    norm, activation, last = network.conv_final
    network.conv_final = nn.Sequential(norm, activation)
    return network, last.conv


def _dints(architecture: DiNTS, in_channels: int, classes: int) -> Parts:
    library = dints_library(architecture, in_channels, classes)
    return DiNTSBody(architecture, library), library.stem_finals[1]


def dints_library(architecture: DiNTS, in_channels: int, classes: int) -> Any:
    """MONAI's own DiNTS of a code: what we rearrange, and what the tests compare with."""
    from monai.networks.nets.dints import DiNTS as Library
    from monai.networks.nets.dints import TopologyInstance

    letters = [[-1 if letter == NO_PATH else int(letter) for letter in word] for word in architecture.code]
    operators = np.array(letters)
    reads = [architecture.starts(block) for block in range(len(letters))]
    active = [*reads, architecture.ends(len(letters) - 1)]
    nodes = np.array([[level in levels for level in range(DINTS_LEVELS)] for levels in active])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints which window it recommends
        space = TopologyInstance(
            [(operators >= 0).astype(np.int64), operators.clip(0)],
            channel_mul=architecture.filters / 32,
            num_blocks=len(letters),
            num_depths=DINTS_LEVELS,
        )
    return Library(space, in_channels, classes, node_a=nodes)


def _nnunet(architecture: NnUNet, in_channels: int, classes: int) -> Parts:
    library = nnunet_library(architecture, in_channels, classes)
    encoder, decoder = library.encoder, library.decoder
    if architecture.encoder == "plain":
        stages: list[nn.Module] = [_convolutions(stage[0]) for stage in encoder.stages]
    else:
        stages = [nn.Sequential(*(_residual(block) for block in stage.blocks)) for stage in encoder.stages]
        stages[0] = nn.Sequential(_convolutions(encoder.stem), stages[0])
    merges: list[nn.Module] = [_convolutions(stage) for stage in decoder.stages]
    return NnUNetBody(stages, list(decoder.transpconvs), merges), decoder.seg_layers[-1]


def nnunet_library(architecture: NnUNet, in_channels: int, classes: int) -> Any:
    """The network as nnU-Net's own library builds and initialises it.

    Raises:
        SearchError: the library is not installed.
    """
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    except ImportError as error:
        raise SearchError(
            "nnU-Net's networks need the package dynamic-network-architectures; install it with "
            "pip install --no-deps dynamic-network-architectures==0.4.4."
        ) from error
    stages = len(architecture.blocks)
    common = {
        "input_channels": in_channels,
        "n_stages": stages,
        "features_per_stage": architecture.widths,
        "conv_op": nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1, *(2,) * (stages - 1)),
        "num_classes": classes,
        "n_conv_per_stage_decoder": architecture.decoder,
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    if architecture.encoder == "plain":
        network = PlainConvUNet(n_conv_per_stage=architecture.blocks, **common)
    else:
        network = ResidualEncoderUNet(n_blocks_per_stage=architecture.blocks, **common)
    return network.apply(network.initialize)


def _convolutions(stacked: Any) -> nn.Sequential:
    """Convolution, norm and activation of each unit, in a row."""
    return nn.Sequential(*(layer for unit in stacked.convs for layer in unit.all_modules))


def _residual(block: Any) -> ResidualBlock:
    body = nn.Sequential(*block.conv1.all_modules, *block.conv2.all_modules)
    skip: list[nn.Module] = []
    units: list[Any] = list(block.skip) if isinstance(block.skip, nn.Sequential) else []  # else the identity
    for unit in units:
        skip += [unit] if isinstance(unit, nn.AvgPool3d) else list(unit.all_modules)
    return ResidualBlock(body, nn.Sequential(*skip), block.nonlin2)
