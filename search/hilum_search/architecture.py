"""What a network looks like, as data: the only thing that leaves a search.

JSON: ``{"format": "hilum.architecture/1", "family": "c2fnas", ...}``; a family is one frozen dataclass here. What the
vocabulary cannot express is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import typing
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from hilum_search.baseline_architectures import DINTS_CODE, AHNet, Baseline, DiNTS, NnUNet, SegResNet, UNet3D, VNet
from hilum_search.errors import ArchitectureError
from hilum_search.own_architecture import OwnNetwork

FORMAT: Final = "hilum.architecture/1"

Operator = Literal["2d", "3d", "p3d", "2d5", "3d5", "3d-dilated", "3d5-dilated"]
"""3x3x1; 3x3x3; 3x3x1 then 1x1x3; 5x5x1; 5x5x5; 3x3x3 and 5x5x5 with dilation 2."""
OPERATORS: Final[tuple[Operator, ...]] = get_args(Operator)
BASIC: Final[tuple[Operator, ...]] = ("2d", "3d", "p3d")
"""What V-NAS and the C2FNAS paper choose from, in the order of the published codes."""
WIDE: Final[tuple[Operator, ...]] = ("3d", "3d5", "2d", "2d5", "3d-dilated", "3d5-dilated")
"""The six operators of the C2FNAS talk (WACV 2020), in its order."""

ENCODER_STAGES: Final = (3, 4, 6, 3)
"""Encoder cells of V-NAS at 1/4, 1/8, 1/16 and 1/32 of the input's resolution."""
DECODER_BLOCKS: Final = 5
CellStyle = Literal["plain", "bottleneck"]

DEEPEST_LEVEL: Final = 3
"""Levels 0 to 3 lie at 1/2, 1/4, 1/8 and 1/16 of the input's resolution."""


def check_walk(levels: tuple[int, ...]) -> None:
    """Refuse a level sequence that is no walk from level 0 back to level 0 in unit steps."""
    if not levels or levels[0] != 0 or levels[-1] != 0:
        raise ArchitectureError(f"The levels {list(levels)} must start and end at 0.")
    if not all(0 <= level <= DEEPEST_LEVEL for level in levels):
        raise ArchitectureError(f"The levels {list(levels)} must lie between 0 and {DEEPEST_LEVEL}.")
    if any(abs(b - a) > 1 for a, b in itertools.pairwise(levels)):
        raise ArchitectureError(f"The levels {list(levels)} must change by at most one from cell to cell.")


def _check_operators(given: tuple[Operator, ...], allowed: tuple[Operator, ...]) -> None:
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ArchitectureError(f"Unknown operator {unknown[0]!r}; known are {', '.join(allowed)}.")


@dataclass(frozen=True)
class C2FNAS:
    """A network of the coarse-to-fine space (Yu et al., CVPR 2020): a walk over levels, one operator a cell.

    Attributes:
        filters: channels f of the stem at full resolution; level k carries 2^(k+1) f.
        levels: the level of each cell, from 0 to 0 in steps of at most one, DEEPEST_LEVEL at most.
        operators: the operator of each cell, see Operator.
        full_resolution_skip: whether the stem's features at full resolution join the head. Ours, not the paper's: thin
            structures such as ribs are narrower than a voxel at half resolution.

    Raises:
        ArchitectureError: a walk, an operator or a size outside the space.
    """

    filters: int
    levels: tuple[int, ...]
    operators: tuple[Operator, ...]
    full_resolution_skip: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.filters <= 256:
            raise ArchitectureError(f"filters is {self.filters}; it must lie between 1 and 256.")
        if len(self.operators) != len(self.levels):
            raise ArchitectureError(
                f"There are {len(self.levels)} levels and {len(self.operators)} operators; each cell needs one of each."
            )
        _check_operators(self.operators, OPERATORS)
        check_walk(self.levels)

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "c2fnas"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return int(2 ** (max(self.levels) + 1))

    def channels(self, level: int) -> int:
        """Channels of the features at one level."""
        return int(self.filters * 2 ** (level + 1))


@dataclass(frozen=True)
class VNAS:
    """A network of the V-NAS space (Zhu et al., 3DV 2019): an encoder of 16 residual cells, five decoder blocks.

    The papers name the operators 0, 1, 2: 2D, 3D, P3D (BASIC). What a cell makes of them, the widths and the pooling
    are read from re-implementations and from AH-Net, whose wiring V-NAS keeps; see docs/networks.md.

    Attributes:
        encoder: one of BASIC for each cell, 3 + 4 + 6 + 3 of them.
        decoder: one of BASIC for each block, from the deepest up.
        stem: channels of the 7x7x1 convolution at half the in-plane resolution.
        widths: channels of the four encoder stages.
        cell_style: ``plain``, or ``bottleneck``: the two convolutions on a quarter of the channels.
        pooling: sides in voxels, at half resolution, of the pyramid's cubes; empty for no pyramid.

    Raises:
        ArchitectureError: an operator or a size outside the space.
    """

    encoder: tuple[Operator, ...]
    decoder: tuple[Operator, ...]
    stem: int = 24
    widths: tuple[int, ...] = (40, 60, 80, 160)
    cell_style: CellStyle = "plain"
    pooling: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        for name, given, needed in (
            ("encoder", self.encoder, sum(ENCODER_STAGES)),
            ("decoder", self.decoder, DECODER_BLOCKS),
            ("widths", self.widths, len(ENCODER_STAGES)),
        ):
            if len(given) != needed:
                raise ArchitectureError(f"{name} has {len(given)} entries; it must have {needed}.")
        _check_operators((*self.encoder, *self.decoder), BASIC)
        if not all(4 <= width <= 2048 for width in (self.stem, *self.widths)):
            raise ArchitectureError("stem and widths must lie between 4 and 2048.")
        if self.cell_style not in get_args(CellStyle):
            raise ArchitectureError(f"cell_style is {self.cell_style!r}; it must be plain or bottleneck.")
        if any(side not in (1, 2, 4, 8, 16) for side in self.pooling) or len(set(self.pooling)) < len(self.pooling):
            raise ArchitectureError("pooling must hold different sides out of 1, 2, 4, 8 and 16.")
        if len(self.pooling) > self.widths[0]:
            raise ArchitectureError("pooling has more levels than the first stage has channels.")

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "vnas"

    @property
    def stride(self) -> int:
        """Every side of a window must be a multiple of this many voxels."""
        return 32


Architecture = C2FNAS | VNAS | Baseline | OwnNetwork
"""Any architecture that can be built."""

_FAMILIES: Final[dict[str, type[Architecture]]] = {
    "ahnet": AHNet,
    "c2fnas": C2FNAS,
    "dints": DiNTS,
    "nnunet": NnUNet,
    "own": OwnNetwork,
    "segresnet": SegResNet,
    "unet3d": UNet3D,
    "vnas": VNAS,
    "vnet": VNet,
}

C2FNAS_PANC: Final = C2FNAS(
    filters=32,
    levels=(0, 0, 1, 1, 2, 3, 2, 2, 1, 0, 0, 0),
    operators=("2d", "p3d", "3d", "3d", "3d", "2d", "3d", "3d", "p3d", "3d", "2d", "3d"),
)
"""Our reconstruction of the paper's network for the pancreas: 17.02 M parameters."""


def _coded(encoder: str, decoder: str) -> VNAS:
    """A V-NAS network from its published code, a digit a cell."""
    return VNAS(tuple(BASIC[int(digit)] for digit in encoder), tuple(BASIC[int(digit)] for digit in decoder))


C2FNAS_SMALL: Final = C2FNAS(12, (0, 1, 2, 2, 1, 0), ("p3d", "3d", "3d", "3d", "3d", "p3d"), full_resolution_skip=True)
"""Our choice for a laptop, no search's: the demo model's network."""

NAMED: Final[dict[str, Architecture]] = {
    "c2fnas-panc": C2FNAS_PANC,
    "c2fnas-small": C2FNAS_SMALL,
    "vnas-msd-pancreas": _coded("0222000221211011", "10201"),
    "vnas-nih-pancreas": _coded("0000001202022000", "00201"),
    "vnas-2d": _coded("0" * 16, "0" * 5),
    "vnas-3d": _coded("1" * 16, "1" * 5),
    "vnas-p3d": _coded("2" * 16, "2" * 5),
    "unet3d": UNet3D(),
    "vnet": VNet(),
    "ahnet": AHNet(),
    "nnunet": NnUNet(),
    "nnunet-resenc": NnUNet(encoder="residual", blocks=(1, 3, 4, 6, 6), decoder=1),
    "dints": DiNTS(DINTS_CODE),
    "segresnet": SegResNet(),
}
"""Networks with a name, searched ones first, then those to compare with.

Of NIH's decoder only the first digit is known; the rest is our choice: MSD pancreas's.
"""


def to_json(architecture: Architecture) -> str:
    """The architecture as JSON, one field a line."""
    fields = {"format": FORMAT, "family": architecture.family} | dataclasses.asdict(architecture)
    return json.dumps(fields, indent=2)


def parse_architecture(text: str | bytes) -> Architecture:
    """An architecture from its JSON.

    Raises:
        ArchitectureError: not JSON, another format, an unknown family or field, a value outside the space.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ArchitectureError(f"The architecture is not valid JSON: {error}.") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ArchitectureError(f'The architecture must be an object with "format": "{FORMAT}".')
    return from_fields(fields)


def from_fields(fields: dict[str, Any]) -> Architecture:
    """An architecture from plain data, as a recipe or the JSON holds it, the family among it.

    Raises:
        ArchitectureError: an unknown family or field, a missing field, a value of the wrong type or outside the space.
    """
    rest = dict(fields)
    family = rest.pop("family", None)
    kind = _FAMILIES.get(family) if isinstance(family, str) else None
    if kind is None:
        raise ArchitectureError(f"Unknown family {family!r}; known are {', '.join(sorted(_FAMILIES))}.")
    known = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    for name in sorted(set(rest) - set(known)) + sorted(required - set(rest)):
        verb = "needs" if name in required else "has no"
        raise ArchitectureError(f"An architecture of family {family} {verb} field {name!r}.")
    hints = typing.get_type_hints(kind)
    checked: dict[str, Any] = {name: _checked(name, hints[name], value) for name, value in rest.items()}
    return kind(**checked)


def digest(architecture: Architecture) -> str:
    """SHA-256 of the architecture's canonical JSON: equal architectures have equal digests."""
    canonical = json.dumps(json.loads(to_json(architecture)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


_MEANINGS: Final[dict[type, str]] = {int: "whole number", float: "number", bool: "true or false", str: "name"}


def _checked(name: str, hint: Any, value: object) -> object:
    """A value of JSON or TOML as the field's type; lists become tuples. No value is converted into another meaning."""
    if typing.get_origin(hint) is tuple:
        kind = _plain_type(get_args(hint)[0])
        if not isinstance(value, list | tuple) or any(type(entry) is not kind for entry in value):
            raise ArchitectureError(f"{name} must be a list of {_MEANINGS[kind]}s.")
        return tuple(value)
    kind = _plain_type(hint)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ArchitectureError(f"{name} must be {'' if kind is bool else 'a '}{_MEANINGS[kind]}.")
    return value


def _plain_type(hint: Any) -> type:
    """The type of one value: the choices of a Literal are names, the sets of fields hold nothing else."""
    kind: type = str if typing.get_origin(hint) is Literal else hint
    return kind
