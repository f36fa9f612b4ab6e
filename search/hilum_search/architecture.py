"""What a network looks like, as data: the only thing that leaves a search.

JSON: ``{"format": "hilum.architecture/1", "family": "c2fnas", ...}``; a family is one frozen dataclass here. What the
vocabulary cannot express is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from hilum_search.errors import ArchitectureError

FORMAT: Final = "hilum.architecture/1"

Operator = Literal["2d", "3d", "p3d"]
OPERATORS: Final[tuple[Operator, ...]] = get_args(Operator)

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


@dataclass(frozen=True)
class C2FNAS:
    """A network of the coarse-to-fine space (Yu et al., CVPR 2020): a walk over levels, one operator a cell.

    Attributes:
        filters: channels f of the stem at full resolution; level k carries 2^(k+1) f.
        levels: the level of each cell, from 0 to 0 in steps of at most one, DEEPEST_LEVEL at most.
        operators: the operator of each cell: ``2d`` 3x3x1, ``3d`` 3x3x3, ``p3d`` 3x3x1 then 1x1x3.
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
        unknown = sorted(set(self.operators) - set(OPERATORS))
        if unknown:
            raise ArchitectureError(f"Unknown operator {unknown[0]!r}; known are {', '.join(OPERATORS)}.")
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


Architecture = C2FNAS
"""Any architecture that can be built; a union as soon as there is a second family."""

_FAMILIES: Final[dict[str, type[Architecture]]] = {"c2fnas": C2FNAS}

C2FNAS_PANC: Final = C2FNAS(
    filters=32,
    levels=(0, 0, 1, 1, 2, 3, 2, 2, 1, 0, 0, 0),
    operators=("2d", "p3d", "3d", "3d", "3d", "2d", "3d", "3d", "p3d", "3d", "2d", "3d"),
)
"""Our reconstruction of the paper's network for the pancreas: 17.02 M parameters."""


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
    return _c2fnas(rest)


def digest(architecture: Architecture) -> str:
    """SHA-256 of the architecture's canonical JSON: equal architectures have equal digests."""
    canonical = json.dumps(json.loads(to_json(architecture)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _c2fnas(fields: dict[str, Any]) -> C2FNAS:
    filters, levels, operators = fields["filters"], fields["levels"], fields["operators"]
    skip = fields.get("full_resolution_skip", False)
    if type(filters) is not int or type(skip) is not bool:
        raise ArchitectureError("filters must be a whole number and full_resolution_skip true or false.")
    if not isinstance(levels, list | tuple) or any(type(level) is not int for level in levels):
        raise ArchitectureError("levels must be a list of whole numbers.")
    if not isinstance(operators, list | tuple) or any(type(operator) is not str for operator in operators):
        raise ArchitectureError("operators must be a list of names.")
    return C2FNAS(filters, tuple(levels), tuple(operators), skip)
