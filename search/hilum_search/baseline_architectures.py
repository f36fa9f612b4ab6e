"""Networks to compare with, as data: each family is one frozen dataclass, built by ``baselines``.

Every field is what the family's own code lets one choose; what it fixes is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from hilum_search.errors import ArchitectureError

Encoder = Literal["plain", "residual"]
"""nnU-Net's two encoders: two convolutions a stage, or residual blocks."""
MOST_STAGES: Final = 7

PATHS: Final = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 3))
"""Where the paths of a DiNTS block lead, (from level, to level), in the order of MONAI's codes."""
CELLS: Final = "01234"
"""DiNTS's cells: nothing; 3x3x3; 3x3x1 then 1x1x3; 3x1x3 then 1x3x1; 1x3x3 then 3x1x1."""
NO_PATH: Final = "."
DINTS_LEVELS: Final = 4


@dataclass(frozen=True)
class UNet3D:
    """A 3D U-Net (Cicek et al., MICCAI 2016) in the layout that pytorch-3dunet made common.

    Pairs of convolution, group norm and ReLU; the first of an encoder's pair has half the width; maximum pooling down,
    nearest neighbours up, skips concatenated; convolutions without bias.

    Attributes:
        filters: channels at full resolution, doubled from level to level.
        levels: resolutions, the full one among them.
        groups: groups of every group norm.

    Raises:
        ArchitectureError: a size outside the family.
    """

    filters: int = 64
    levels: int = 4
    groups: int = 8

    def __post_init__(self) -> None:
        _within("levels", self.levels, 2, MOST_STAGES)
        _within("groups", self.groups, 1, 64)
        _within("filters", self.filters, 2, 256)
        if self.filters % (2 * self.groups):
            raise ArchitectureError(
                f"filters is {self.filters}; half of it must be a multiple of the {self.groups} groups."
            )

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "unet3d"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return int(2 ** (self.levels - 1))


@dataclass(frozen=True)
class VNet:
    """V-Net (Milletari et al., 3DV 2016) as MONAI has it; its widths, 16 to 256, are fixed.

    Attributes:
        dropout: share of the channels that training drops in the deeper half.

    Raises:
        ArchitectureError: a share outside [0, 1).
    """

    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ArchitectureError(f"dropout is {self.dropout}; it must lie between 0 and 1, 1 excluded.")

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "vnet"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return 16


@dataclass(frozen=True)
class AHNet:
    """AH-Net (Liu et al., MICCAI 2018) as MONAI has it, with trilinear upsampling; its widths are fixed.

    Attributes:
        layers: residual blocks of the four encoder stages.
        pooling: levels of the pyramid of in-plane pooling, 0 to 4; each doubles the smallest window.

    Raises:
        ArchitectureError: a number outside the family.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    pooling: int = 3

    def __post_init__(self) -> None:
        _entries("layers", self.layers, 4, 4)
        _all_within("layers", self.layers, 1, 64)
        _within("pooling", self.pooling, 0, 4)

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "ahnet"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return 32

    @property
    def smallest_plane(self) -> int:
        """Voxels that the first two sides of a window need at least: the widest pooling works at half resolution."""
        return int(max(32, 2 ** (self.pooling + 3)))


@dataclass(frozen=True)
class NnUNet:
    """The network of an nnU-Net plan (Isensee et al., Nature Methods 2021), isotropic 3x3x3 kernels and strides of 2.

    Attributes:
        filters: channels at full resolution, doubled from stage to stage.
        largest: channels that no stage exceeds.
        encoder: ``plain``, or ``residual`` as in nnU-Net's ResEnc plans.
        blocks: for each stage its convolutions (plain) or residual blocks (residual).
        decoder: convolutions of each decoder stage.

    Raises:
        ArchitectureError: a size outside the family.
    """

    filters: int = 32
    largest: int = 320
    encoder: Encoder = "plain"
    blocks: tuple[int, ...] = (2, 2, 2, 2, 2)
    decoder: int = 2

    def __post_init__(self) -> None:
        _within("filters", self.filters, 1, 256)
        _within("largest", self.largest, self.filters, 2048)
        if self.encoder not in get_args(Encoder):
            raise ArchitectureError(f"encoder is {self.encoder!r}; it must be plain or residual.")
        _entries("blocks", self.blocks, 2, MOST_STAGES)
        _all_within("blocks", self.blocks, 1, 16)
        _within("decoder", self.decoder, 1, 16)

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "nnunet"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return int(2 ** (len(self.blocks) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(min(self.filters * 2**stage, self.largest) for stage in range(len(self.blocks)))


@dataclass(frozen=True)
class DiNTS:
    """A decoded network of the DiNTS space (He et al., CVPR 2021) as MONAI has it: four levels, several paths at once.

    Attributes:
        code: a word for each block, a letter for each of PATHS: ``.`` for no path, else its cell's place in CELLS.
        filters: channels of the stem at full resolution; level k carries 2^(k+1) times as many.

    Raises:
        ArchitectureError: a letter or a size outside the space; a path that starts where none ends or that leads
            nowhere, for its weights would never learn.
    """

    code: tuple[str, ...]
    filters: int = 32

    def __post_init__(self) -> None:
        _within("filters", self.filters, 2, 256)
        _entries("code", self.code, 1, 40)
        for word in self.code:
            if len(word) != len(PATHS) or set(word) - set(NO_PATH + CELLS):
                raise ArchitectureError(
                    f"The block {word!r} of the code must have {len(PATHS)} letters out of {NO_PATH + CELLS}."
                )
        for block in range(1, len(self.code)):
            before, after = self.ends(block - 1), self.starts(block)
            if before != after:
                raise ArchitectureError(
                    f"The paths of block {block} end at the levels {sorted(before)}, those of the next start at "
                    f"{sorted(after)}; they must be the same."
                )
        if not self.starts(0):
            raise ArchitectureError("The first block of the code has no path; give it at least one.")

    def starts(self, block: int) -> set[int]:
        """Levels that a block reads."""
        return {source for (source, _), cell in zip(PATHS, self.code[block], strict=True) if cell != NO_PATH}

    def ends(self, block: int) -> set[int]:
        """Levels that a block writes."""
        return {target for (_, target), cell in zip(PATHS, self.code[block], strict=True) if cell != NO_PATH}

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "dints"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return int(2**DINTS_LEVELS)


@dataclass(frozen=True)
class SegResNet:
    """SegResNet (Myronenko, 2018) as MONAI has it, without the variational branch.

    Attributes:
        filters: channels at full resolution, doubled from level to level; a multiple of 8, the groups of its norms.
        down: residual blocks of each level on the way down.
        up: the same on the way up, one entry less.

    Raises:
        ArchitectureError: a size outside the family.
    """

    filters: int = 32
    down: tuple[int, ...] = (1, 2, 2, 4)
    up: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        _within("filters", self.filters, 8, 256)
        if self.filters % 8:
            raise ArchitectureError(f"filters is {self.filters}; it must be a multiple of 8.")
        _entries("down", self.down, 2, MOST_STAGES)
        _entries("up", self.up, len(self.down) - 1, len(self.down) - 1)
        _all_within("down and up", (*self.down, *self.up), 1, 16)

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "segresnet"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return int(2 ** (len(self.down) - 1))


Baseline = UNet3D | VNet | AHNet | NnUNet | DiNTS | SegResNet
"""Any network to compare with."""

DINTS_CODE: Final = (
    "1.12......",
    "0..1.1....",
    "0..0..2.1.",
    "0..3..0..1",
    "0..0..0..1",
    "2..0..01.0",
    "0..01.04..",
    "0..1..1...",
    "01.01.....",
    "1..2......",
    "21.0......",
    "1..1......",
)
"""Our choice, a U with side paths: down to the deepest level, up again, every level kept alive beside it. What the
authors found lies in a binary checkpoint, not in print."""


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ArchitectureError(f"{name} is {value}; it must lie between {low} and {high}.")


def _all_within(name: str, values: tuple[int, ...], low: int, high: int) -> None:
    if not all(low <= value <= high for value in values):
        raise ArchitectureError(f"The entries of {name} must lie between {low} and {high}.")


def _entries(name: str, values: tuple[object, ...], low: int, high: int) -> None:
    if not low <= len(values) <= high:
        allowed = str(low) if low == high else f"{low} to {high}"
        raise ArchitectureError(f"{name} has {len(values)} entries; it must have {allowed}.")
